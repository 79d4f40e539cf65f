r"""Log-normal volatility with mean reversion. No closed-form price is known.

.. math:: d\ln\nu = \kappa(\ln\theta - \ln\nu)\,dt + \sigma\,dW^\nu, \qquad s^2 = \nu, \qquad
          d\langle W^S, W^\nu\rangle = \rho\,dt

(Scott 1987; Wiggins 1987): the logarithm of the variance is an Ornstein-Uhlenbeck process, theta
its median in the long run. Its forward variances are log-normal as well,

.. math:: \xi_s = E[\nu_s] = \exp\big(\ln\theta + e^{-\kappa s}\ln(\nu/\theta)
          + \tfrac{\sigma^2}{4\kappa}(1 - e^{-2\kappa s})\big), \qquad
          d\xi_s = \sigma e^{-\kappa s}\,\xi_s\,dW^\nu,

which makes this Bergomi's model of one factor. Coordinates as in `heston`.
"""

from collections import namedtuple

import torch

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from . import smile
from .domain import Domain
from .heston import TABLE_I
from .model import (
    CORRELATION,
    NON_NEGATIVE,
    POSITIVE,
    Model,
    ParameterTuple,
    Step,
    register,
)


class Parameters(ParameterTuple, namedtuple("Parameters", "kappa theta sigma rho r")):
    """As Heston's, but theta is the median variance in the long run, and sigma the volatility of
    ln nu, in 1/sqrt(year)."""

    __slots__ = ()


def is_tame(p: Parameters):
    """Whether sigma^2 < 2 kappa: ln nu deviates by less than one in the long run. Shape of `p`.

    >>> is_tame(Parameters(2.0, 0.04, 0.8, -0.7, 0.05))
    tensor(True)
    """
    return torch.as_tensor(2 * p.kappa > p.sigma**2)


class LogNormal(Model):
    """The coefficients, by Ito's formula for nu itself.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.8, rho=-0.7, r=0.05)
    >>> ((square, power),) = MODEL.covariances(p, 0.04)["nu", "nu"]
    >>> round(square * power, 9)  # sigma^2 nu^2
    0.001024
    """

    name = "lognormal"
    Parameters = Parameters
    # all of Table I; what Feller leaves of Heston's relative noise, sigma/sqrt(theta), ends at 2.4
    domain = Domain({**TABLE_I, "sigma": (0.1, 2.4)}, where="tame")
    meaning = dict(kappa=POSITIVE, theta=POSITIVE, sigma=NON_NEGATIVE, rho=CORRELATION)
    conditions = {"tame": is_tame}
    edges = {"tame": 1.0}

    def variance(self, p, nu):
        return nu

    def covariances(self, p, nu):
        return {("x", "nu"): [(p.rho * p.sigma, nu**1.5)], ("nu", "nu"): [(p.sigma**2, nu**2)]}

    def drift(self, p, nu):
        theta, least = torch.as_tensor(p.theta), 1e-30  # nu ln nu has a limit at 0
        constant = p.kappa * theta.log() + 0.5 * p.sigma**2
        return {"nu": [(constant, nu), (-p.kappa, nu * torch.as_tensor(nu).clamp_min(least).log())]}

    def _forward(self, p, s, nu):
        """ln xi_s, for tensors and jets."""
        decay = jets.exp(s * -p.kappa)
        away = jets.log(nu.clamp_min(1e-12)) + -torch.log(p.theta)
        spread = jets.expm1(s * (-2 * p.kappa)) * (p.sigma**2 / (-4 * p.kappa))
        return decay * away + spread + torch.log(p.theta)

    def expected_variance(self, p, tau, nu):
        """By `smile.NODES` Gauss nodes, which is six digits and more over the domain.

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.8, -0.7, 0.05))
        >>> MODEL.expected_variance(p, *torch.tensor([1.0, 0.04], dtype=torch.float64))
        tensor(0.0425, dtype=torch.float64)
        """
        q, weight = smile.nodes(tau, nu, *p)
        return smile.total(jets.exp(self._forward(p, tau * q, nu)) * weight) * tau

    def smile_moments(self, p, tau, y, nu):
        r"""Bergomi and Guyon's functionals of log-normal forward variances.

        With :math:`a_s = \int_s^\tau \xi_t e^{-\kappa(t-s)}\,dt` and
        :math:`b_s = \int_0^s \sqrt{\xi_t} e^{-\kappa(s-t)}\,dt`,

        .. math:: A = \int_0^\tau \sqrt{\xi_s}\,a_s\,ds, \quad B = \int_0^\tau a_s^2\,ds, \quad
                  C = \tfrac12\int_0^\tau \big(\sqrt{\xi_s}\,a_s b_s + \xi_s b_s^2\big)\,ds .

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.8, -0.7, 0.05))
        >>> tau, nu = torch.tensor([1.0, 0.04], dtype=torch.float64)
        >>> y = MODEL.expected_variance(p, tau, nu).log()
        >>> MODEL.smile_moments(p, tau, y, nu).spread  # of the integrated variance
        tensor(0.0617, dtype=torch.float64)
        """
        q, weight = smile.nodes(tau, nu, *p)
        inner, inner_weight = q[:, None], weight[:, None]  # (inner, outer, ...)

        def half(q):
            return jets.exp(self._forward(p, tau * q, nu) * 0.5)  # the root of xi

        root = half(q)
        later = half(q + (1 - q) * inner)
        a = later * later * jets.exp(tau * (-p.kappa * (1 - q) * inner))
        a = smile.total(a * inner_weight) * (1 - q)  # over tau, as b and the sums below
        b = half(q * inner) * jets.exp(tau * (-p.kappa * q * (1 - inner)))
        b = smile.total(b * inner_weight) * q
        lean, rise = root * a, root * b
        first = smile.total(lean * weight) * tau
        second = smile.total(a * a * weight) * tau
        mixed = smile.total((lean * b + rise * rise) * (0.5 * weight)) * tau
        skew, square = p.sigma * p.rho, jets.exp(y * -2)
        return smile.Moments(
            first * tau * jets.exp(y * -1.5) * skew,
            mixed * tau * tau * square * skew**2,
            second * tau * tau * square * p.sigma**2,
        )

    def features(self, p, nu: Jet) -> list[Jet]:
        constants = [
            torch.log(p.kappa),
            0.5 * torch.log(p.theta) + 1.5,
            p.sigma - 1,
            2 * p.rho + 1,
        ]
        relative = jets.log(nu.clamp_min(1e-12)) * 0.5 + -0.5 * torch.log(p.theta)
        return [relative, *(Jet(c, pairs=nu.pairs) for c in constants)]

    def smile(self, p):
        return p.sigma

    def near_edge(self, p, u, domain):
        low, high = domain["sigma"]
        edge = (2 * p.kappa * (0.8 + 0.2 * u)).sqrt()
        return p._replace(sigma=torch.where((edge > low) & (edge < high), edge, p.sigma))

    def closeness(self, p):
        return p.sigma**2 / (2 * p.kappa)

    def at_closeness(self, p, value):
        return p._replace(sigma=(2 * p.kappa * value).sqrt())

    def visited(self, p, domain, u, generator=None):
        """Uniform in the logarithm, a little denser where the variance is large."""
        low, high = domain["nu"]
        return (low * (high / low) ** (u[0] ** 0.7),)

    def step(self, p, dt, z, nu):
        r"""An exact step of ln nu; the price's share of the noise by Ito's formula for the root,

        .. math:: \int\sqrt\nu\,dW = \frac2\sigma\,[\sqrt\nu]
                  - \int\sqrt\nu\Big(\frac\kappa\sigma\ln\frac\theta\nu + \frac\sigma4\Big)dt .

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.8, -0.7, 0.05))
        >>> dt, nu = torch.tensor([0.5, 0.08], dtype=torch.float64)
        >>> MODEL.step(p, dt, torch.zeros(1), nu).state  # 0.04 2^(1/e)
        (tensor(0.0516, dtype=torch.float64),)
        """
        sigma = torch.as_tensor(p.sigma).clamp_min(1e-8)  # the quotients have limits at 0
        decay, level = torch.exp(-p.kappa * dt), torch.as_tensor(p.theta).log()
        nu = nu.clamp_min(1e-12)
        spread = sigma * (-torch.expm1(-2 * p.kappa * dt) / (2 * p.kappa)).sqrt()
        after = torch.exp(level + (nu.log() - level) * decay + spread * z[0])

        def drift(nu):
            return nu.sqrt() * (p.kappa * (level - nu.log()) / sigma + sigma / 4)

        integrated = 0.5 * (nu + after) * dt
        noise = 2 / sigma * (after.sqrt() - nu.sqrt()) - 0.5 * (drift(nu) + drift(after)) * dt
        return Step((after,), integrated, p.rho * noise, (1 - p.rho**2) * integrated)


MODEL = register(LogNormal())
