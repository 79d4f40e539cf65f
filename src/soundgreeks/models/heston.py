r"""The Heston model: parameters, Table I, semi-analytic price and Greeks.

.. math:: dS = r S\,dt + \sqrt\nu S\,dW^S, \qquad
          d\nu = \kappa(\theta - \nu)\,dt + \sigma\sqrt\nu\,dW^\nu, \qquad
          d\langle W^S, W^\nu\rangle = \rho\,dt

(DeepSVM, eqs. 1 and 2). Prices are normalised, u = V/K, and x = ln(S/K), tau = T - t in years.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require

TABLE_I = {
    "kappa": (0.5, 3.0),
    "theta": (0.01, 0.20),
    "sigma": (0.1, 1.0),
    "rho": (-0.95, -0.05),
    "r": (0.00, 0.08),
    "x": (-2.0, 2.0),
    "nu": (0.01, 0.40),
    "tau": (0.0, 1.0),
}
"""Ranges of DeepSVM's Table I: five model parameters, three domain coordinates."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Heston parameters, floats or tensors that broadcast against each other.

    Attributes
    ----------
    kappa : speed of mean reversion, 1/year, > 0
    theta : long-run variance, 1/year, >= 0
    sigma : volatility of variance, 1/year, >= 0
    rho : correlation of spot and variance, in [-1, 1]
    r : risk-free rate, continuously compounded, 1/year

    Raises
    ------
    ValueError
        A parameter outside its meaning, not finite, or shapes that do not broadcast.
    """

    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor
    r: Tensor

    def __post_init__(self):
        values = floating(**{f.name: getattr(self, f.name) for f in fields(self)})
        for field, value in zip(fields(self), values, strict=True):
            require(torch.isfinite(value), field.name, value, "finite")
            object.__setattr__(self, field.name, value)
        require(self.kappa > 0, "kappa", self.kappa, "positive")
        require(self.theta >= 0, "theta", self.theta, "non-negative")
        require(self.sigma >= 0, "sigma", self.sigma, "non-negative")
        require(self.rho.abs() <= 1, "rho", self.rho, "in [-1, 1]")

    def __iter__(self):
        return iter((self.kappa, self.theta, self.sigma, self.rho, self.r))

    def __getitem__(self, index) -> "Parameters":
        """The same index into all five tensors, e.g. ``p[:, None]``."""
        return Parameters(*(value[index] for value in self))

    @property
    def shape(self) -> torch.Size:
        return self.kappa.shape

    def stack(self) -> Tensor:
        """The parameters as one tensor (..., 5), in the order of Table I."""
        return torch.stack(tuple(self), dim=-1)


def satisfies_feller(p: Parameters) -> Tensor:
    """Whether 2 kappa theta > sigma^2: the variance never reaches zero. Boolean, shape of `p`."""
    return 2 * p.kappa * p.theta > p.sigma**2


def sample_parameters(
    n: int, *, generator: torch.Generator | None = None, dtype=torch.float64, device=None
) -> Parameters:
    """`n` parameter vectors of Table I under the Feller condition, scrambled Sobol points.

    Rejection keeps the low discrepancy of the accepted points only roughly, yet exactly the
    uniform distribution on the Feller part of the box (51.8 % of it).

    Raises
    ------
    ValueError
        `n` is not a positive integer.
    """
    require(isinstance(n, int) and n > 0, "n", n, "a positive integer")
    source = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=source))
    sobol = torch.quasirandom.SobolEngine(5, scramble=True, seed=seed)
    low, high = torch.tensor(
        [TABLE_I[k] for k in ("kappa", "theta", "sigma", "rho", "r")],
        dtype=torch.float64,
        device="cpu",
    ).T
    kept = low.new_empty(0, 5)
    while len(kept) < n:
        draw = low + (high - low) * sobol.draw(2 * n + 16, dtype=torch.float64)
        kept = torch.cat([kept, draw[satisfies_feller(Parameters(*draw.T))]])
    return Parameters(*kept[:n].to(device=device, dtype=dtype).T)


def expected_variance(nu, tau, p: Parameters) -> Tensor:
    r"""Expected variance accumulated to maturity, the total variance of the Black-Scholes anchor.

    .. math:: w(\nu, \tau) = \theta\tau + (\nu - \theta)\frac{1 - e^{-\kappa\tau}}{\kappa}

    Its time derivative solves w_tau = nu + kappa (theta - nu) w_nu. Shape: that of the arguments
    broadcast.
    """
    return p.theta * tau - (nu - p.theta) * torch.expm1(-p.kappa * tau) / p.kappa


class Derivatives(NamedTuple):
    """The seven channels of the PDE (eq. 5): u and its partial derivatives in (x, nu, tau)."""

    u: Tensor
    x: Tensor
    nu: Tensor
    tau: Tensor
    xx: Tensor
    xnu: Tensor
    nunu: Tensor


class Greeks(NamedTuple):
    """Normalised price V/K and Greeks with K = 1 (eqs. 15, 16)."""

    price: Tensor
    delta: Tensor
    gamma: Tensor
    vega: Tensor
    theta: Tensor


def call(x, nu, tau, p: Parameters) -> Tensor:
    r"""Price of a European call over its strike, by Lewis' integral with a control variate.

    With k = x + r tau, Q = u^2 + 1/4 and the characteristic functions of Heston and of a
    Black-Scholes model of the same expected variance w on the line Im = -1/2,

    .. math:: u(x, \nu, \tau) = e^{-r\tau}\Big[BS(k, w) - \frac{e^{k/2}}{\pi}\int_0^\infty
        \mathrm{Re}\,\frac{e^{iuk}(\varphi_H - \varphi_{BS})(u - i/2)}{Q}\,du\Big]

    (Lewis 2001; Andersen and Piterbarg 2010 for the control variate). The trapezoid rule
    converges geometrically; step and cut-off come from bounds on the integrand, option by option.
    Computed in float64 whatever the input; differentiable in every argument.

    Parameters
    ----------
    x, nu, tau : log-moneyness ln(S/K), variance >= 0 (1/year), time to maturity >= 0 (years);
        floats or tensors that broadcast with `p`

    Raises
    ------
    ValueError
        A non-finite argument, a negative variance or time, shapes that do not broadcast.
    """
    return _evaluate(x, nu, tau, p, "price")


def derivatives(x, nu, tau, p: Parameters) -> Derivatives:
    """u and its derivatives in (x, nu, tau), each under the integral of `call`. Same arguments.

    The tau derivative comes from the Riccati equations of the exponents, not from the PDE.
    """
    return Derivatives(*_evaluate(x, nu, tau, p, "all"))


def greeks(x, nu, tau, p: Parameters) -> Greeks:
    r"""Price, Delta, Gamma, vega dV/dnu and theta -dV/dtau, all over K. Arguments as in `call`.

    .. math:: \Delta = e^{-x} u_x, \qquad \Gamma = e^{-2x}(u_{xx} - u_x)

    At tau = 0 they are those of the payoff, and Gamma vanishes off the strike.
    """
    x = floating(x=x, like=p.kappa)[0]
    d = derivatives(x, nu, tau, p)
    delta = torch.exp(-x) * d.x
    return Greeks(d.u, delta, torch.exp(-2 * x) * (d.xx - d.x), d.nu, -d.tau)


def price_delta_gamma(x, nu, tau, p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """The first three of `greeks` at nearly the cost of the price alone."""
    x = floating(x=x, like=p.kappa)[0]
    u, u_x, u_xx = _evaluate(x, nu, tau, p, "gamma")
    return u, torch.exp(-x) * u_x, torch.exp(-2 * x) * (u_xx - u_x)


# --- the integral ---------------------------------------------------------------------------

_NATS = 33.0  # everything below e^-33 = 5e-15 of strike is dropped
_CHUNK = 2**15  # integrand values at once: complex128 temporaries stay in the second-level cache
_STRAIGHT_NODES = (
    200  # beyond so many the bent contour, which never needs more than 400, is shorter
)
_BEND, _BENT_SCALE, _BENT_STEP = 0.4, 0.6, 0.06


def _exponents(u: Tensor, kappa, theta, sigma, rho, tau) -> tuple[Tensor, Tensor]:
    """C and D of ln phi(u - i/2) = C + D nu, u complex or real, all arguments broadcast.

    The branch-safe form: with b = kappa - i rho sigma (u - i/2), d = sqrt(b^2 + sigma^2 Q) and
    Re d > 0 only decaying exponentials occur (Albrecher et al. 2007; Lord and Kahl 2010). Divided
    through by sigma^2 so that sigma -> 0 loses nothing.
    """
    q = u * u + 0.25
    b = kappa - 0.5 * rho * sigma - 1j * (rho * sigma) * u
    d = torch.sqrt(b * b + sigma**2 * q)
    decay = torch.exp(-d * tau)
    fall = q * (1 - decay)
    big_d = -fall / (b + d + (d - b) * decay)
    z = -(sigma**2) * fall / (2 * d * (b + d))
    re, im = z.real, z.imag
    # ln(1 + z) from real functions: several times faster than complex log, and exact for small z
    log = torch.complex(0.5 * torch.log1p(re * (2 + re) + im * im), torch.atan2(im, 1 + re))
    big_c = -kappa * theta * (q * tau / (b + d) + 2 / sigma**2 * log)
    return big_c, big_d


def _explosion_time(s: Tensor, kappa, sigma, rho) -> Tensor:
    """Time at which E[e^{s X}] becomes infinite (Andersen and Piterbarg 2007, prop. 3.1)."""
    chi = rho * sigma * s - kappa
    disc = chi**2 - sigma**2 * s * (s - 1)
    root = disc.abs().sqrt()
    oscillating = 2 / root * torch.atan2(root, chi)
    growing = torch.log((chi + root) / (chi - root)) / root
    return torch.where(disc < 0, oscillating, torch.where(chi < 0, torch.inf, growing))


def _tail(sign: int, w: Tensor, nu, tau, model) -> Tensor:
    """|k| beyond which the damped integral e^{-k/2} I(k) is below e^-33.

    Chernoff: for every moment s = 1/2 + sign a that exists, it is at most e^{-a|k|} E[e^{s X}],
    calls out of the money (k < 0) by s > 1, puts (k > 0) by s < 0. The best of a ladder below the
    Gaussian optimum; a = 1/2 always exists (a martingale).
    """
    ladder = 1.5 ** -torch.arange(12, dtype=w.dtype, device=w.device)
    a = (2 * _NATS / w).sqrt()[:, None] * ladder
    a = torch.cat([a, torch.full_like(a[:, :1], 0.5)], dim=1)
    kappa, theta, sigma, rho = (v[:, None] for v in model)
    s = 0.5 + sign * a
    exists = _explosion_time(s, kappa, sigma, rho) > 1.0001 * tau[:, None]
    big_c, big_d = _exponents(
        torch.complex(torch.zeros_like(a), -sign * a), kappa, theta, sigma, rho, tau[:, None]
    )
    log_moment = (big_c + big_d * nu[:, None]).real
    reach = torch.where(exists & (log_moment >= -1), (log_moment + _NATS) / a, torch.inf)
    reach[:, -1] = 2 * _NATS  # a = 1/2: the moments 0 and 1 are both one
    return torch.maximum(reach.amin(dim=1), (2 * _NATS * w).sqrt())  # the anchor's own tail


def _cut_off(ray, k, w, nu, tau, model) -> Tensor:
    """Distance along the ray (a unit complex number) beyond which both integrands are below e^-33.

    Bisection in the logarithm, from far inside to far outside for any w in float64.
    """
    low = 0.5 * (2 * _NATS / w).log()
    low, high = low - 4.0, low + 18.0
    for _ in range(11):
        middle = 0.5 * (low + high)
        u = middle.exp() * ray
        big_c, big_d = _exponents(u, *model, tau)
        oscillation = -k * u.imag if u.is_complex() else 0.0
        heston = (big_c + big_d * nu).real + oscillation
        anchor = -0.5 * w * (u * u).real + oscillation
        done = torch.maximum(heston, anchor) < -_NATS
        low, high = torch.where(done, low, middle), torch.where(done, middle, high)
    return high.exp()


def _straight_rule(k, w, nu, tau, model) -> tuple[Tensor, Tensor]:
    """Step and number of nodes of the trapezoid rule on the real line.

    Sampling with step h repeats the integral, as a function of k, with period 2 pi / h. So h is
    right when the copies keep apart: 2 pi / h >= max(right tail - k, left tail + k). Options
    beyond their own tails need no node at all.
    """
    right, left = _tail(-1, w, nu, tau, model), _tail(1, w, nu, tau, model)
    step = 2 * math.pi / torch.maximum(right - k, left + k)
    nodes = torch.ceil(_cut_off(1.0, k, w, nu, tau, model) / step)
    return step, torch.where((k > right) | (k < -left) | (w < 1e-28), 0, nodes)


def _bent_rule(k, w, nu, tau, model) -> tuple[Tensor, Tensor]:
    """Angle and number of nodes of the trapezoid rule in t on u = b sinh(t + i angle).

    For integrands that decay slowly on the real line: the nodes spread geometrically, and bending
    the contour to the side where e^{iuk} phi decays turns oscillation into decay (Boyarchenko and
    Levendorskii 2019). For large u, ln phi + iuk ~ (i k' - c sqrt(1 - rho^2)) u with
    c = (nu + kappa theta tau) / sigma and k' = k - rho c. The anchor allows |angle| < pi/4.
    """
    kappa, theta, sigma, rho = model
    uphill = k >= rho * (nu + kappa * theta * tau) / sigma
    angle = _BEND * (2 * uphill.to(k.dtype) - 1)
    far = _cut_off(torch.exp(1j * angle), k, w, nu, tau, model)
    return angle, torch.ceil(torch.asinh(far / _BENT_SCALE) / _BENT_STEP)


def _integrate(u, weight, k, w, nu, tau, model, what: str) -> Tensor:
    """The integrals of one chunk: (options, 1, 3 or 7) for nodes u of shape (options, nodes).

    Columns are the contributions to F, F_k, F_kk - F_k, F_nu, F_tau, F_knu, F_nunu where
    F(k, nu, tau) = e^{r tau} u is the price on the forward.
    """
    k, w, nu, tau = k[:, None], w[:, None], nu[:, None], tau[:, None]
    kappa, theta, sigma, rho = model = [v[:, None] for v in model]
    q = u * u + 0.25
    big_c, big_d = _exponents(u, *model, tau)
    phase = (1j * u + 0.5) * k
    e_h = torch.exp(big_c + big_d * nu + phase) * weight
    e_b = torch.exp(phase - 0.5 * w * q) * weight
    f = e_h - e_b

    def total(values):  # minus the real part: the integral is subtracted from the anchor
        return -values.real.sum(dim=1)

    price = total(f / q)
    if what == "price":
        return price[:, None]
    slope = total((1j * u + 0.5) * f / q)
    gamma = -total(f)  # (iu + 1/2)^2 - (iu + 1/2) = -q
    if what == "gamma":
        return torch.stack([price, slope, gamma], dim=1)
    b = kappa - 0.5 * rho * sigma - 1j * (rho * sigma) * u
    riccati = -0.5 * q - b * big_d + 0.5 * sigma**2 * big_d**2  # dD/dtau
    decay = torch.exp(-kappa * tau)
    w_nu, w_tau = (1 - decay) / kappa, theta + (nu - theta) * decay
    f_nu = big_d * e_h / q + 0.5 * w_nu * e_b
    f_tau = (kappa * theta * big_d + riccati * nu) * e_h / q + 0.5 * w_tau * e_b
    f_nunu = big_d**2 * e_h / q - 0.25 * w_nu**2 * q * e_b
    columns = [
        price,
        slope,
        gamma,
        total(f_nu),
        total(f_tau),
        total((1j * u + 0.5) * f_nu),
        total(f_nunu),
    ]
    return torch.stack(columns, dim=1)


def _anchor(k, w, w_nu, w_tau, what: str) -> Tensor:
    """Black-Scholes on the forward and its derivatives, columns as in `_integrate`."""
    w = w.clamp(min=1e-200)
    root = w.sqrt()
    d1, d2 = k / root + 0.5 * root, k / root - 0.5 * root
    in_the_money = k.exp() * torch.special.ndtr(d1)
    price = in_the_money - torch.special.ndtr(d2)
    if what == "price":
        return price[:, None]
    density = torch.exp(-0.5 * d2**2) / math.sqrt(2 * math.pi)
    gamma = density / root
    if what == "gamma":
        return torch.stack([price, in_the_money, gamma], dim=1)
    p_w = 0.5 * gamma
    p_kw = -0.5 * d2 * density / w
    p_ww = 0.25 * gamma / w * (d1 * d2 - 1)
    columns = [price, in_the_money, gamma, p_w * w_nu, p_w * w_tau, p_kw * w_nu, p_ww * w_nu**2]
    return torch.stack(columns, dim=1)


def _evaluate(x, nu, tau, p: Parameters, what: str):
    """Price ("price"), (u, u_x, u_xx) ("gamma") or the seven channels ("all")."""
    *inputs, kappa, theta, sigma, rho, r = floating(
        x=x, nu=nu, tau=tau, **{f.name: getattr(p, f.name) for f in fields(p)}
    )
    shape, dtype = inputs[0].shape, inputs[0].dtype
    for name, value in zip(("x", "nu", "tau"), inputs, strict=True):
        require(torch.isfinite(value), name, value, "finite")
    require(inputs[1] >= 0, "nu", inputs[1], "non-negative")
    require(inputs[2] >= 0, "tau", inputs[2], "non-negative")
    x, nu, tau, kappa, theta, sigma, rho, r = (
        v.reshape(-1).to(torch.float64) for v in (*inputs, kappa, theta, sigma, rho, r)
    )
    sigma = sigma.clamp(min=1e-100)  # its square still divides; the price no longer sees it
    model = (kappa, theta, sigma, rho)
    k, decay = x + r * tau, torch.exp(-kappa * tau)
    w_nu, w_tau = -torch.expm1(-kappa * tau) / kappa, theta + (nu - theta) * decay
    w = theta * tau + (nu - theta) * w_nu
    result = _anchor(k, w, w_nu, w_tau, what)
    result = result + _integrals(k, w, nu, tau, model, what)
    discount = torch.exp(-r * tau)
    if what == "price":
        return (discount * result[:, 0]).reshape(shape).to(dtype)
    f, f_k, gamma, *rest = result.unbind(dim=1)
    channels = [f, f_k, f_k + gamma]
    if what == "all":
        f_nu, f_tau, f_knu, f_nunu = rest
        u_tau = f_tau + r * (f_k - f)
        channels = [f, f_k, f_nu, u_tau, f_k + gamma, f_knu, f_nunu]
    return [(discount * c).reshape(shape).to(dtype) for c in channels]


def _integrals(k, w, nu, tau, model, what: str) -> Tensor:
    """All options' integrals, each by the rule that suits it; (options, 1, 3 or 7)."""
    state = [v.detach() for v in (k, w, nu, tau)]
    with torch.no_grad():
        parameter, nodes = _straight_rule(*state, [v.detach() for v in model])
        bent = nodes > _STRAIGHT_NODES
        if bool(bent.any()):
            parameter[bent], nodes[bent] = _bent_rule(
                *(v[bent] for v in state), [v.detach()[bent] for v in model]
            )
    none = torch.nonzero(nodes == 0).flatten()
    done, parts = [none], [k.new_zeros(len(none), {"price": 1, "gamma": 3, "all": 7}[what])]
    for chosen, rule in ((~bent & (nodes > 0), _straight_nodes), (bent, _bent_nodes)):
        for i, count in _chunks(torch.nonzero(chosen).flatten(), nodes):
            u, weight = rule(parameter[i], count)
            weight[:, 0] *= 0.5
            parts.append(
                _integrate(u, weight, k[i], w[i], nu[i], tau[i], [v[i] for v in model], what)
            )
            done.append(i)
    return torch.cat(parts)[torch.argsort(torch.cat(done))]


def _straight_nodes(step: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (options, count + 1) on the real half-line."""
    j = torch.arange(count + 1, dtype=step.dtype, device=step.device)
    return step[:, None] * j, (step / math.pi)[:, None].repeat(1, count + 1)


def _bent_nodes(angle: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (options, count + 1) on half of the bent contour, the rest by symmetry."""
    t = _BENT_STEP * torch.arange(count + 1, dtype=angle.dtype, device=angle.device)
    z = t + 1j * angle[:, None]
    return _BENT_SCALE * torch.sinh(z), _BENT_SCALE * _BENT_STEP / math.pi * torch.cosh(z)


def _chunks(index: Tensor, nodes: Tensor):
    """`index` sorted by number of nodes, in pieces of about `_CHUNK` values: (piece, its nodes)."""
    index = index[torch.argsort(nodes[index])]
    counts = nodes[index].long()
    start = 0
    while start < len(index):
        # a first guess from the smallest count, then as many rows as the largest of them allows
        guess = counts[start : start + max(1, _CHUNK // (int(counts[start]) + 1))]
        rows = max(1, _CHUNK // (int(guess[-1]) + 1))
        rows = min(rows, len(guess))
        yield index[start : start + rows], int(counts[start + rows - 1])
        start += rows
