r"""Lewis' integral for Heston's price and its derivatives: nodes, contours, chunks.

`heston.call` states the formula. Everything here works on flat float64 tensors, one entry an
option, without validation; it is differentiable in every argument.
"""

import math

import torch
from torch import Tensor

from . import black_scholes

_NATS = 33.0  # everything below e^-33 = 5e-15 of strike is dropped
_CHUNK = 2**15  # integrand values at once: complex128 temporaries stay in the second-level cache
_STRAIGHT_NODES = 200  # beyond so many the bent contour, which never needs over 400, is shorter
_BEND, _BENT_SCALE, _BENT_STEP = 0.4, 0.6, 0.06


def forward(k, w, w_nu, w_tau, nu, tau, model, what: str) -> Tensor:
    """F = e^{r tau} u ("price"), (F, F_k, F_kk - F_k) ("gamma") or all of `_integrate`'s columns.

    All arguments (options,); `model` is kappa, theta, sigma > 0, rho. Returns (options, 1, 3 or 7).

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> model = 2 * one, 0.04 * one, 1e-6 * one, -0.7 * one
    >>> forward(0 * one, 0.04 * one, one, one, 0.04 * one, one, model, "price")  # 2 Phi(0.1) - 1
    tensor([[0.0797]], dtype=torch.float64)
    """
    return _anchor(k, w, w_nu, w_tau, what) + integrals(k, w, nu, tau, model, what)


def _exponents(u: Tensor, model, tau) -> tuple[Tensor, Tensor]:
    """C and D of ln phi(u - i/2) = C + D nu, u complex or real, all arguments broadcast.

    The branch-safe form: with b = kappa - i rho sigma (u - i/2), d = sqrt(b^2 + sigma^2 Q) and
    Re d > 0 only decaying exponentials occur (Albrecher et al. 2007; Lord and Kahl 2010). Divided
    through by sigma^2 so that sigma -> 0 loses nothing.
    """
    kappa, theta, sigma, rho = model
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
    u = torch.complex(torch.zeros_like(a), -sign * a)
    big_c, big_d = _exponents(u, (kappa, theta, sigma, rho), tau[:, None])
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
        big_c, big_d = _exponents(u, model, tau)
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
    big_c, big_d = _exponents(u, model, tau)
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
    if what == "price":
        return black_scholes.value(k, w)[:, None]
    w = w.clamp_min(torch.finfo(w.dtype).eps ** 2)
    f = black_scholes.partials(k, w.log())
    if what == "gamma":
        return torch.stack([f.value, f.k, f.kk - f.k], dim=1)
    nu, tau = w_nu / w, w_tau / w  # of ln w
    f_nunu = (f.yy - f.y) * nu * nu
    columns = [f.value, f.k, f.kk - f.k, f.y * nu, f.y * tau, f.ky * nu, f_nunu]
    return torch.stack(columns, dim=1)


def integrals(k, w, nu, tau, model, what: str) -> Tensor:
    """All options' integrals, each by the rule that suits it; (options, 1, 3 or 7).

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> model = 2 * one, 0.04 * one, 0.3 * one, -0.7 * one
    >>> integrals(0 * one, 0.04 * one, 0.04 * one, one, model, "price")  # to add to 0.0797
    tensor([[-0.0035]], dtype=torch.float64)
    """
    with torch.no_grad():
        parameter, nodes = _straight_rule(k, w, nu, tau, model)
        bent = nodes > _STRAIGHT_NODES
        if bool(bent.any()):
            parameter[bent], nodes[bent] = _bent_rule(
                k[bent], w[bent], nu[bent], tau[bent], [v[bent] for v in model]
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
