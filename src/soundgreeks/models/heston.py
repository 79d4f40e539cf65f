r"""The Heston model: parameters, Table I, semi-analytic price and Greeks.

.. math:: dS = r S\,dt + \sqrt\nu S\,dW^S, \qquad
          d\nu = \kappa(\theta - \nu)\,dt + \sigma\sqrt\nu\,dW^\nu, \qquad
          d\langle W^S, W^\nu\rangle = \rho\,dt

(DeepSVM, eqs. 1 and 2). Prices are normalised, u = V/K, and x = ln(S/K), tau = T - t in years.
"""

from collections import namedtuple
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require
from ..arithmetic import jets
from ..arithmetic.jets import Jet
from . import heston_integral
from .domain import Domain
from .model import (
    CORRELATION,
    NON_NEGATIVE,
    POSITIVE,
    Greeks,
    Model,
    ParameterTuple,
    Step,
    delta_gamma,
    mean_reverting,
    register,
)

TABLE_I = Domain(
    {
        "kappa": (0.5, 3.0),
        "theta": (0.01, 0.20),
        "sigma": (0.1, 1.0),
        "rho": (-0.95, -0.05),
        "r": (0.00, 0.08),
        "x": (-2.0, 2.0),
        "nu": (0.01, 0.40),
        "tau": (0.0, 1.0),
    },
    where="feller",
)
"""DeepSVM's Table I: five model parameters under the Feller condition, three coordinates."""

WIDE = Domain(
    {
        "kappa": (0.2, 20.0),
        "theta": (0.01, 0.30),
        "sigma": (0.05, 4.0),
        "rho": (-0.98, 0.3),
        "r": (0.00, 0.08),
        "x": (-2.0, 2.0),
        "nu": (0.005, 0.60),
        "tau": (0.0, 2.0),
    },
    where="wide",
    logarithmic=("kappa",),
)
"""Where calibrations to equity indices end: far beyond Feller, up to two years."""


class Parameters(ParameterTuple, namedtuple("Parameters", "kappa theta sigma rho r")):
    """Heston parameters, numbers or tensors that broadcast against each other.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)

    Attributes
    ----------
    kappa : speed of mean reversion, 1/year, > 0
    theta : long-run variance, 1/year, >= 0
    sigma : volatility of variance, 1/year, >= 0
    rho : correlation of spot and variance, in [-1, 1]
    r : risk-free rate, continuously compounded, 1/year
    """

    __slots__ = ()


def satisfies_feller(p: Parameters) -> Tensor:
    """Whether 2 kappa theta > sigma^2: the variance never reaches zero. Boolean, shape of `p`.

    >>> satisfies_feller(Parameters(2.0, 0.04, 0.3, -0.7, 0.05))  # 0.16 > 0.09
    tensor(True)
    """
    return torch.as_tensor(2 * p.kappa * p.theta > p.sigma**2)


def satisfies_wide(p: Parameters) -> Tensor:
    """Whether sigma^2 < 12.5 kappa theta: far beyond Feller, where markets are. Shape of `p`.

    >>> satisfies_wide(Parameters(2.0, 0.04, 0.9, -0.7, 0.05))  # 0.81 < 1
    tensor(True)
    """
    return torch.as_tensor(12.5 * p.kappa * p.theta > p.sigma**2)


class Heston(Model):
    """Heston's coefficients.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> MODEL.closeness(p)  # sigma^2 / (2 kappa theta)
    0.5625
    """

    name = "heston"
    Parameters = Parameters
    domain = TABLE_I
    meaning = dict(kappa=POSITIVE, theta=NON_NEGATIVE, sigma=NON_NEGATIVE, rho=CORRELATION)
    conditions = {"feller": satisfies_feller}
    edges = {"feller": 1.0}
    closed_form = True
    power = 0.5

    def variance(self, p, nu):
        return nu

    def covariances(self, p, nu):
        return {("x", "nu"): [(p.rho * p.sigma, nu)], ("nu", "nu"): [(p.sigma**2, nu)]}

    def drift(self, p, nu):
        return {"nu": [(p.kappa * p.theta, 1.0), (-p.kappa, nu)]}

    def expected_variance(self, p, tau, nu):
        return mean_reverting(nu, tau, p.kappa, p.theta)

    def features(self, p, nu: Jet) -> list[Jet]:
        theta = p.theta.clamp_min(torch.finfo(p.theta.dtype).eps)
        constants = [
            torch.log(p.kappa),
            0.5 * torch.log(theta) + 1.5,
            p.sigma / torch.sqrt(2 * p.kappa * theta),
            2 * p.rho + 1,
        ]
        relative = jets.log(nu.clamp_min(1e-6)) * 0.5 - 0.5 * torch.log(theta)
        return [relative, *(Jet(c, pairs=nu.pairs) for c in constants)]

    def smile(self, p):
        return p.sigma

    def near_edge(self, p, u, domain):
        """sigma^2 moved into (.8, 1) of its bound, where the domain still holds.

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> MODEL.near_edge(p, torch.tensor(0.5), TABLE_I).sigma**2  # 0.9 of 0.16
        tensor(0.1440, dtype=torch.float64)
        """
        low, high = domain["sigma"]
        most = 2 * self.edges.get(domain.where, 1.0)
        edge = (most * p.kappa * p.theta).sqrt() * (0.8 + 0.2 * u).sqrt()
        sigma = torch.where((edge > low) & (edge < high), edge, p.sigma)
        return p._replace(sigma=sigma)

    def closeness(self, p):
        return p.sigma**2 / (2 * p.kappa * p.theta)

    def at_closeness(self, p, value):
        return p._replace(sigma=(2 * p.kappa * p.theta * value).sqrt())

    def step(self, p, dt, z, nu):
        """`variance_step` where it stays positive, Euler's step elsewhere.

        >>> p = MODEL.checked(Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
        >>> dt = torch.tensor(0.5, dtype=torch.float64)
        >>> MODEL.step(p, dt, torch.zeros(1), torch.tensor(0.04)).integrated  # (0.04 + 0.0329) dt/2
        tensor(0.0182, dtype=torch.float64)
        """
        if not bool((4 * p.kappa * p.theta > p.sigma**2).all() & (p.sigma > 0).all()):
            return super().step(p, dt, z, nu)
        after = variance_step(p, dt, z[0], nu)
        integrated = 0.5 * (nu + after) * dt
        noise = (after - nu - p.kappa * (p.theta * dt - integrated)) / p.sigma
        return Step((after,), integrated, p.rho * noise, (1 - p.rho**2) * integrated)

    def greeks(self, x, state, tau, p):
        (nu,) = state
        return greeks(x, nu, tau, p)


MODEL = register(Heston())


class HestonSmooth(Heston):
    """Heston's model to a network that sees the variance by a coordinate smooth at 0.

    Near nu = 0 the equation has a second solution, nu^(1 - 2 kappa theta/sigma^2), finite beyond
    Feller. The price is the smooth one; in nu/(nu + theta) it is simple, in a logarithm both are.

    >>> nu = Jet(torch.tensor(0.04, dtype=torch.float64), nu=1)
    >>> p = SMOOTH_MODEL.checked(Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> SMOOTH_MODEL.features(p, nu)[0].value  # 4 nu/(nu + theta) - 2
    tensor(0., dtype=torch.float64)
    """

    name = "heston_smooth"

    def features(self, p, nu: Jet) -> list[Jet]:
        _, *constants = super().features(p, nu)
        theta = p.theta.clamp_min(torch.finfo(p.theta.dtype).eps)
        return [nu * jets.power(nu + theta, -1.0) * 4 + -2.0, *constants]


class HestonWide(HestonSmooth):
    """The same where markets are: sigma^2 up to 6.25 times Feller's bound, two years.

    >>> WIDE_MODEL.domain.where, WIDE_MODEL.domain["kappa"]
    ('wide', (0.2, 20.0))
    """

    name = "heston_wide"
    domain = WIDE
    conditions = Heston.conditions | {"wide": satisfies_wide}
    edges = Heston.edges | {"wide": 6.25}


SMOOTH_MODEL, WIDE_MODEL = register(HestonSmooth()), register(HestonWide())


def variance_step(p, dt, z: Tensor, nu: Tensor) -> Tensor:
    r"""The variance after dt: half a step of drift, a step of noise, half a step of drift.

    .. math:: \nu \to e^{-\kappa h/2}\nu + b, \qquad
              \nu \to (\sqrt\nu + \tfrac12\sigma\sqrt h\,z)^2, \qquad
              b = (\theta - \tfrac{\sigma^2}{4\kappa})(1 - e^{-\kappa h/2})

    (Alfonsi 2010, of second weak order). Positive whenever 4 kappa theta > sigma^2. `dt` in years;
    `z`, a standard normal, and `nu`, 1/year, broadcast, also with `p`.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> nu, h, z = torch.tensor([0.04, 1.0, 0.0])
    >>> variance_step(MODEL.checked(p), h, z, nu)  # 0.02875 + 0.01125 e^{-2}
    tensor(0.0303, dtype=torch.float64)
    """
    decay = torch.exp(-p.kappa * dt / 2)
    push = (4 * p.kappa * p.theta - p.sigma**2) / (4 * p.kappa) * -torch.expm1(-p.kappa * dt / 2)
    root = (decay * nu + push).sqrt()
    return decay * (root + 0.5 * p.sigma * (dt**0.5 * z)) ** 2 + push


def sample_parameters(n: int, domain: Domain = TABLE_I, **options) -> Parameters:
    """`n` parameter vectors of Table I under the Feller condition (51.8 % of it); `Model.sample`.

    >>> p = sample_parameters(8)
    >>> p.shape, bool(satisfies_feller(p).all())
    (torch.Size([8]), True)

    Parameters
    ----------
    options : `generator`, `dtype`, `device`

    Raises
    ------
    ValueError
        `n` is not a positive integer.
    """
    return MODEL.sample(n, domain, **options)


def expected_variance(nu, tau, p: Parameters) -> Tensor:
    r"""Expected variance accumulated to maturity, the total variance of the Black-Scholes anchor.

    .. math:: w(\nu, \tau) = \theta\tau + (\nu - \theta)\frac{1 - e^{-\kappa\tau}}{\kappa}

    Its time derivative solves w_tau = nu + kappa (theta - nu) w_nu. Shape: that of the arguments
    broadcast; for jets a jet.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> expected_variance(0.04, 1.0, p), expected_variance(0.09, 1.0, p)
    (tensor(0.0400, dtype=torch.float64), tensor(0.0616, dtype=torch.float64))
    """
    if not isinstance(nu, Jet):
        nu, tau, kappa, theta = floating(nu=nu, tau=tau, kappa=p.kappa, theta=p.theta)
        return mean_reverting(nu, tau, kappa, theta)
    return mean_reverting(nu, tau, p.kappa, p.theta)


class Derivatives(NamedTuple):
    """The seven channels of the PDE (eq. 5): u and its partial derivatives in (x, nu, tau).

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> derivatives(0.0, 0.04, 1.0, p).x  # Delta at x = 0
    tensor(0.6919, dtype=torch.float64)
    """

    u: Tensor
    x: Tensor
    nu: Tensor
    tau: Tensor
    xx: Tensor
    xnu: Tensor
    nunu: Tensor

    def jet(self) -> Jet:
        """The same as a jet, for the residual of the equation.

        >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
        >>> derivatives(0.0, 0.04, 1.0, p).jet().xx
        tensor(2.4328, dtype=torch.float64)
        """
        return Jet(self.u, **self._asdict() | {"u": 0})


def call(x, nu, tau, p: Parameters) -> Tensor:
    r"""Price of a European call over its strike, by Lewis' integral with a control variate.

    With k = x + r tau, Q = u^2 + 1/4 and the characteristic functions of Heston and of a
    Black-Scholes model of the same expected variance w on the line Im = -1/2,

    .. math:: u(x, \nu, \tau) = e^{-r\tau}\Big[BS(k, w) - \frac{e^{k/2}}{\pi}\int_0^\infty
        \mathrm{Re}\,\frac{e^{iuk}(\varphi_H - \varphi_{BS})(u - i/2)}{Q}\,du\Big]

    (Lewis 2001; Andersen and Piterbarg 2010 for the control variate). The trapezoid rule
    converges geometrically; step and cut-off come from bounds on the integrand, option by option.
    Computed in float64 whatever the input; differentiable in every argument.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> 100 * call(0.0, 0.04, 1.0, p)
    tensor(10.3942, dtype=torch.float64)

    Parameters
    ----------
    x, nu, tau : log-moneyness ln(S/K), variance >= 0 (1/year), time to maturity >= 0 (years);
        floats or tensors that broadcast with `p`

    Raises
    ------
    ValueError
        A non-finite argument, a parameter outside its meaning, a negative variance or time, shapes
        that do not broadcast.
    FloatingPointError
        Arguments so extreme that double precision cannot hold the price.
    """
    return _evaluate(x, nu, tau, p, "price")[0]


def derivatives(x, nu, tau, p: Parameters) -> Derivatives:
    """u and its derivatives in (x, nu, tau), each under the integral of `call`. Same arguments.

    The tau derivative comes from the Riccati equations of the exponents, not from the PDE.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> d = derivatives(0.0, 0.04, 1.0, p)
    >>> n = 0.03 * d.x + 0.02 * d.xx - 0.0084 * d.xnu + 0.0018 * d.nunu - 0.05 * d.u
    >>> bool((d.tau - n).abs() < 1e-12)  # the PDE holds; nu = theta, so no drift
    True
    """
    return Derivatives(*_evaluate(x, nu, tau, p, "all"))


def greeks(x, nu, tau, p: Parameters) -> Greeks:
    r"""Price, Delta, Gamma, vega dV/dnu and theta -dV/dtau, all over K. Arguments as in `call`.

    .. math:: \Delta = e^{-x} u_x, \qquad \Gamma = e^{-2x}(u_{xx} - u_x)

    At tau = 0 they are those of the payoff, and Gamma vanishes off the strike.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> greeks(0.0, 0.04, 1.0, p).delta
    tensor(0.6919, dtype=torch.float64)
    """
    d = derivatives(x, nu, tau, p)
    x = _like(x, d.u)
    return Greeks(d.u, *delta_gamma(x, d.x, d.xx), d.nu, -d.tau)


def price_delta_gamma(x, nu, tau, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """The first three of `greeks` at nearly the cost of the price alone.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> price_delta_gamma(0.0, 0.04, 1.0, p)[1]  # Delta
    tensor(0.6919, dtype=torch.float64)
    """
    u, u_x, u_xx = _evaluate(x, nu, tau, p, "gamma")
    return u, *delta_gamma(_like(x, u), u_x, u_xx)


def _like(x, u: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=u.dtype, device=u.device)


def _evaluate(x, nu, tau, p: Parameters, what: str) -> list[Tensor]:
    """Price ("price"), (u, u_x, u_xx) ("gamma") or the seven channels ("all")."""
    p = MODEL.checked(p)
    inputs = floating(x=x, nu=nu, tau=tau, **p._asdict())
    shape, dtype = inputs[0].shape, inputs[0].dtype
    require(torch.isfinite(inputs[0]), "x", inputs[0], "finite")
    for name, value in zip(("nu", "tau"), inputs[1:3], strict=True):
        require((value >= 0) & torch.isfinite(value), name, value, "non-negative and finite")
    x, nu, tau, kappa, theta, sigma, rho, r = (v.reshape(-1).to(torch.float64) for v in inputs)
    sigma = sigma.clamp(min=1e-100)  # its square still divides; the price no longer sees it
    model = (kappa, theta, sigma, rho)
    k, decay = x + r * tau, torch.exp(-kappa * tau)
    w_nu, w_tau = -torch.expm1(-kappa * tau) / kappa, theta + (nu - theta) * decay
    w = theta * tau + (nu - theta) * w_nu
    result = heston_integral.forward(k, w, w_nu, w_tau, nu, tau, model, what)
    discount = torch.exp(-r * tau)
    f, *rest = result.unbind(dim=1)
    channels = [f]
    if rest:
        f_k, gamma, *rest = rest
        channels = [f, f_k, f_k + gamma]
    if rest:
        f_nu, f_tau, f_knu, f_nunu = rest
        u_tau = f_tau + r * (f_k - f)
        channels = [f, f_k, f_nu, u_tau, f_k + gamma, f_knu, f_nunu]
    found = [discount * c for c in channels]
    lost = ~torch.isfinite(found[0])
    if bool(lost.any()):
        i = int(lost.nonzero()[0])
        at = ", ".join(
            f"{n} = {float(v.reshape(-1)[i]):.4g}"
            for n, v in zip(("x", "nu", "tau", *Parameters._fields), inputs, strict=True)
        )
        raise FloatingPointError(f"double precision cannot hold the price at {at}")
    return [c.reshape(shape).to(dtype) for c in found]
