r"""The GARCH diffusion: variance with log-normal noise. No closed-form price is known.

.. math:: d\nu = \kappa(\theta - \nu)\,dt + \sigma\nu\,dW^\nu, \qquad s^2 = \nu, \qquad
          d\langle W^S, W^\nu\rangle = \rho\,dt

(Nelson 1990; Barone-Adesi, Rasmussen and Ravanelli 2005). Coordinates as in `heston`.
"""

from collections import namedtuple

import torch

from .domain import Domain
from .heston import TABLE_I, Heston
from .model import (
    CORRELATION,
    NON_NEGATIVE,
    POSITIVE,
    Model,
    ParameterTuple,
    Step,
    mean_reverting,
    register,
)


class Parameters(ParameterTuple, namedtuple("Parameters", "kappa theta sigma rho r")):
    """As Heston's, but sigma is the volatility of ln nu, in 1/sqrt(year)."""

    __slots__ = ()


class Garch(Model):
    """The GARCH diffusion's coefficients.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> ((square, power),) = MODEL.covariances(p, 0.04)["nu", "nu"]
    >>> round(square * power, 9)  # sigma^2 nu^2
    0.000144
    """

    name = "garch"
    Parameters = Parameters
    domain = Domain(TABLE_I)  # without the Feller condition: this variance never reaches zero
    meaning = dict(kappa=POSITIVE, theta=NON_NEGATIVE, sigma=NON_NEGATIVE, rho=CORRELATION)
    power = 1.0

    def variance(self, p, nu):
        return nu

    def covariances(self, p, nu):
        return {("x", "nu"): [(p.rho * p.sigma, nu**1.5)], ("nu", "nu"): [(p.sigma**2, nu**2)]}

    def drift(self, p, nu):
        return {"nu": [(p.kappa * p.theta, 1.0), (-p.kappa, nu)]}

    def expected_variance(self, p, tau, nu):
        return mean_reverting(nu, tau, p.kappa, p.theta)

    features = Heston.features  # type: ignore[assignment]

    def smile(self, p):
        return p.sigma

    def step(self, p, dt, z, nu):
        r"""Half a step of drift, an exact step of noise, half a step of drift: stays positive.

        The price's share of the noise follows from Ito's formula for the root of the variance,

        .. math:: \int\sqrt\nu\,dW = \frac2\sigma\,[\sqrt\nu]
                  - \int\Big(\frac{\kappa(\theta - \nu)}{\sigma\sqrt\nu}
                  - \frac\sigma4\sqrt\nu\Big)dt .

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> dt = torch.tensor(0.5, dtype=torch.float64)
        >>> MODEL.step(p, dt, torch.zeros(1), torch.tensor(0.04)).state  # nu falls by sigma^2 dt/2
        (tensor(0.0395, dtype=torch.float64),)
        """
        sigma = torch.as_tensor(p.sigma).clamp_min(1e-8)  # the quotients have limits at 0
        decay = torch.exp(-p.kappa * dt / 2)
        root = sigma * dt.sqrt()
        after = p.theta + (nu - p.theta) * decay
        after = p.theta + (after * torch.exp(root * z[0] - root**2 / 2) - p.theta) * decay

        def drift(nu):
            return p.kappa * (p.theta - nu) / (sigma * nu.sqrt()) - sigma / 4 * nu.sqrt()

        integrated = 0.5 * (nu + after) * dt
        noise = 2 / sigma * (after.sqrt() - nu.sqrt()) - 0.5 * (drift(nu) + drift(after)) * dt
        return Step((after,), integrated, p.rho * noise, (1 - p.rho**2) * integrated)


MODEL = register(Garch())
