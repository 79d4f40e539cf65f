r"""Monte Carlo noise, smoothed payoffs and pathwise derivatives.

A price is an expectation over noise, :math:`V(\theta) = E_z[v(g(\theta, z))]`. Where the payoff
`v` is Lipschitz in :math:`\theta` the derivative may move inside (Sobolev Pruning, eq. 10),

.. math:: E_z[\partial_\theta v(g(\theta, z))] = \partial_\theta E_z[v(g(\theta, z))],

and each path hands out one unbiased sample of the gradient beside its payoff.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require
from . import black_scholes
from .heston import Parameters, variance_step
from .model import Model, Step, as_states

SCHEMES = ("plain", "antithetic", "sobol")
SMOOTHINGS = ("sigmoid", "softplus", "gaussian", "uniform")


def normals(
    n: int, dim: int, *, scheme="plain", generator=None, dtype=torch.float64, device=None
) -> Tensor:
    """Standard normal draws, shape (n, dim).

    >>> normals(2, 3, scheme="antithetic").sum(0)
    tensor([0., 0., 0.], dtype=torch.float64)

    Parameters
    ----------
    scheme : "plain" draws independently; "antithetic" mirrors the first half, so row ``i + n/2``
        is minus row ``i`` (`n` even); "sobol" maps scrambled Sobol points through the inverse
        distribution function (at most 21,201 dimensions; balanced when `n` is a power of two).
    generator : on `device`; without one the global generator is used.

    Raises
    ------
    ValueError
        `n`, `dim` or `scheme` outside the above.
    """
    require(isinstance(n, int) and n > 0, "n", n, "a positive integer")
    require(isinstance(dim, int) and dim > 0, "dim", dim, "a positive integer")
    require(scheme in SCHEMES, "scheme", scheme, f"one of {', '.join(SCHEMES)}")
    if scheme == "sobol":
        limit = torch.quasirandom.SobolEngine.MAXDIM
        require(dim <= limit, "dim", dim, f"at most {limit} under the sobol scheme")
        device = device or (generator.device if generator is not None else None)
        seed = torch.randint(2**31 - 1, (), generator=generator, device=device)
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=int(seed))
        # Points are multiples of 2^-30: the middle of each cell keeps clear of 0 and 1.
        points = engine.draw(n, dtype=torch.float64) + 2.0**-31
        return torch.special.ndtri(points).to(dtype=dtype, device=device)
    if scheme == "antithetic":
        require(n % 2 == 0, "n", n, "even under the antithetic scheme")
        half = torch.randn(n // 2, dim, generator=generator, dtype=dtype, device=device)
        return torch.cat([half, -half])
    return torch.randn(n, dim, generator=generator, dtype=dtype, device=device)


class Ramp(NamedTuple):
    """A (smoothed) call payoff of x = S - K: value, two derivatives in x, each of the shape of x.

    >>> ramp(torch.tensor([-2.0, 2.0])).slope
    tensor([0., 1.])
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor


def ramp(x: Tensor, width: float = 0.0, kind: str = "sigmoid") -> Ramp:
    r"""The payoff :math:`x^+`, smoothed over a width `w`, with two derivatives by hand.

    With :math:`t = x/w`, the curvature is a kernel :math:`k(t)/w` of mass one:

    ========  ===================================  ==============================  ==============
    kind      value / w                            kernel k(t)                     second moment
    ========  ===================================  ==============================  ==============
    sigmoid   :math:`t\,\sigma(t)` (SiLU)          :math:`2\sigma' + t\sigma''`    :math:`-\pi^2/3`
    softplus  :math:`\log(1 + e^t)`                :math:`\sigma'`                 :math:`\pi^2/3`
    gaussian  :math:`t\Phi(t) + \varphi(t)`        :math:`\varphi`                 1
    uniform   :math:`(t + 1)^2/4` in [-1, 1]       1/2 in [-1, 1]                  1/3
    ========  ===================================  ==============================  ==============

    "sigmoid" is Sobolev Pruning, section 5.2.4; "softplus" integrates the logistic function;
    "gaussian" adds independent normal noise to the underlying; "uniform" spreads the digital
    slope over a call spread (Savine's fuzzy logic). ``width=0`` is the payoff itself, whose
    curvature vanishes almost everywhere: that zero is what pathwise differentiation sees.

    >>> ramp(0.0, 2.0, "gaussian").value  # 2/sqrt(2 pi)
    tensor(0.7979, dtype=torch.float64)

    Raises
    ------
    ValueError
        `width` negative or not finite, an unknown `kind`.
    """
    (x,) = floating(x=x)
    require(math.isfinite(width) and width >= 0, "width", width, "finite and non-negative")
    require(kind in SMOOTHINGS, "kind", kind, f"one of {', '.join(SMOOTHINGS)}")
    if width == 0:
        return Ramp(torch.relu(x), (x > 0).to(x.dtype), torch.zeros_like(x))
    t = x / width
    if kind == "gaussian":
        density = torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
        step = torch.special.ndtr(t)
        return Ramp(width * (t * step + density), step, density / width)
    if kind == "uniform":
        step = ((t + 1) / 2).clamp(0, 1)
        inside = (t.abs() <= 1).to(x.dtype)
        return Ramp(width * step**2 + torch.relu(x - width), step, inside / (2 * width))
    step = torch.sigmoid(t)
    density = step * torch.sigmoid(-t)
    if kind == "softplus":
        return Ramp(width * torch.nn.functional.softplus(t), step, density / width)
    kernel = density * (2 + t * (1 - 2 * step))
    return Ramp(x * step, step + t * density, kernel / width)


def pathwise(payoff, *inputs: Tensor) -> tuple[Tensor, ...]:
    r"""Payoffs of a batch of paths, and their derivatives by reverse-mode AD (eq. 11).

    >>> pathwise(torch.relu, torch.tensor([-1.0, 2.0]))
    (tensor([0., 2.]), tensor([0., 1.]))

    Parameters
    ----------
    payoff : function of `inputs` that returns one payoff a path, shape (n,); path i may depend on
        row i of the inputs only. The noise is bound inside.
    inputs : tensors (n, ...), one row a path.

    Returns
    -------
    The payoffs (n,), then one tensor of derivatives for each input, of its shape. Unbiased only
    where the payoff is Lipschitz in the inputs.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        values = payoff(*leaves)
        # An indicator has no graph: its derivative is zero wherever there is one.
        if not values.requires_grad:
            return values, *(torch.zeros_like(x) for x in leaves)
        gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    zeros = (
        torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)
    )
    return values.detach(), *zeros


def steps(model: Model, state, tau: Tensor, p, noise: Tensor) -> Step:
    """The state at maturity, with I, M and V of the whole path: given them ln S is Gaussian.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
    >>> start, tau = torch.tensor([0.04]), torch.tensor(1.0)
    >>> steps(heston.MODEL, start, tau, p, torch.zeros(4, 1, 1)).unexplained
    tensor([0.0400])

    Parameters
    ----------
    model : any model
    state : initial state, a tensor (n,) or a tuple of them
    tau, p : time to maturity, years, and parameters, broadcast against (n,)
    noise : standard normals (steps, noises, n)

    Returns
    -------
    Step, in which ln(S_tau/K) = x + r tau - I/2 + M + sqrt(V) z for an independent normal z.
    """
    state = as_states(state)
    totals = [torch.zeros_like(noise[0, 0])] * 3
    for dt, z in zip(model.times(tau, len(noise)), noise, strict=True):
        state, *more = model.step(p, dt, z, *state)
        totals = [a + b for a, b in zip(totals, more, strict=True)]
    return Step(state, *totals)


def simulate(model: Model, x, state, tau: Tensor, p, noise: Tensor) -> tuple[Tensor, tuple]:
    """ln(S_tau/K) and the state at maturity; as `steps`, with noise (steps, 1 + noises, n).

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
    >>> start, tau = torch.tensor([0.04]), torch.tensor(1.0)
    >>> simulate(heston.MODEL, 0.0, start, tau, p, torch.zeros(4, 2, 1))[0]  # r - nu/2
    tensor([0.0300])
    """
    end = steps(model, state, tau, p, noise[:, 1:])
    z = noise[:, 0].sum(0) / math.sqrt(len(noise))
    drift = p.r * tau - 0.5 * end.integrated + end.martingale
    return x + drift + end.unexplained.sqrt() * z, end.state


class Estimate(NamedTuple):
    """Monte Carlo estimates and their standard errors, each (...).

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
    >>> conditional_call(heston.MODEL, 0.0, 0.04, 1.0, p, paths=4, count=1).price_error < 1e-9
    tensor([True])
    """

    price: Tensor
    delta: Tensor
    gamma: Tensor
    price_error: Tensor
    delta_error: Tensor
    gamma_error: Tensor


def conditional_call(
    model: Model, x, state, tau, p, *, paths: int = 4096, count: int = 64, generator=None
) -> Estimate:
    r"""Price, Delta and Gamma of a call in any model, by simulating the state alone.

    Given the path of the state the log price is Gaussian, so its call is Black and Scholes', at the
    forward moneyness K = x + r tau - I/2 + M + V/2 and the total variance V:

    .. math:: u = e^{-r\tau}\,E[F(K, V)], \qquad u_x = e^{-r\tau}\,E[F_k(K, V)], \ \ldots

    (Romano and Touzi 1997; Willard 1997). Smooth in x: no kink is left to differentiate. The time
    step's bias is not in the standard errors; halve the step to see it.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.0, -0.7, 0.05))  # sigma = 0
    >>> price = conditional_call(heston.MODEL, 0.0, 0.04, 1.0, p, paths=4, count=1).price
    >>> 100 * price  # Black and Scholes at 20 % volatility
    tensor([10.4506], dtype=torch.float64)

    Parameters
    ----------
    x : (n,), a number, or (n, m): m moneynesses for each state, which share its paths
    state, tau, p : (n,) or numbers, broadcast; `state` a tensor or a tuple of tensors
    paths, count : number of paths, even (antithetic), and of time steps; the same for all options
    generator : on the device of the arguments

    Raises
    ------
    ValueError
        `paths` odd, `count` below one, an argument out of its range, or shapes that do not
        broadcast.
    """
    require(count >= 1, "count", count, "at least 1")
    p = model.checked(p)
    (x,) = floating(x=x)
    one = x.reshape(-1, 1) if x.ndim < 2 else x
    names = ("x", *model.states, "tau", *p._fields)
    given = (one[:, 0], *model.whole(state), tau, *p)
    first, *values = floating(**dict(zip(names, given, strict=True)))
    require(first.ndim == 1, "x", first, "of one dimension, or of two with the states' first")
    one, (*state, tau) = one.to(first).expand(len(first), -1), values[: 1 + len(model.states)]
    p = type(p)(*values[1 + len(model.states) :])
    require(tau > 0, "tau", tau, "positive")
    draws = normals(
        paths, count * len(model.noises), scheme="antithetic", generator=generator,
        dtype=first.dtype, device=first.device,
    )  # fmt: skip
    noise = draws.T.reshape(count, len(model.noises), 1, paths)
    found, per = [], max(1, 2**19 // (paths * one.shape[1]))
    for i in range(0, len(first), per):
        part = slice(i, i + per)
        q, maturity = p[part][:, None], tau[part, None]
        full = tuple(v[part, None].expand(-1, paths) for v in state)
        end = steps(model, full, maturity, q, noise)
        shift = q.r * maturity - 0.5 * (end.integrated - end.unexplained) + end.martingale
        at = one[part, :, None]
        y = end.unexplained.clamp_min(1e-300).log()[:, None]
        f = black_scholes.partials(at + shift[:, None], y)
        discount, e = torch.exp(-q.r * maturity)[..., None], torch.exp(-at)
        samples = discount * f.value, discount * e * f.k, discount * e * e * (f.kk - f.k)
        half = paths // 2
        pairs = [0.5 * (s[..., :half] + s[..., half:]) for s in samples]
        errors = [s.std(-1) / math.sqrt(half) for s in pairs]
        found.append((*(s.mean(-1) for s in pairs), *errors))
    shape = first.shape if x.ndim < 2 else one.shape
    return Estimate(*(torch.cat(c).reshape(shape) for c in zip(*found, strict=True)))


class HestonPaths(NamedTuple):
    """What the variance path leaves behind, all (n,): given these two, log S is Gaussian.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.001, rho=-0.7, r=0.05)
    >>> float(paths.heston(0.04, 1.0, p, torch.zeros(8, 1)).martingale.abs()) < 1e-3  # no noise
    True
    """

    integrated: Tensor  # I = int nu dt
    martingale: Tensor  # M = int sqrt(nu) dW^nu


def heston(nu: Tensor, tau: float, p: Parameters, noise: Tensor) -> HestonPaths:
    r"""Variance paths that are differentiable in their start, integrated along the way.

    Steps are `heston.variance_step`, so the path stays positive whenever
    :math:`4\kappa\theta > \sigma^2`, hence under Feller: no truncation spoils the derivative. I is
    summed by the trapezium rule, M follows from the equation of the variance,
    :math:`\sigma M = \nu_\tau - \nu_0 - \kappa(\theta\tau - I)`, and with an independent normal z

    .. math:: \ln\frac{S_\tau}{K} = x + r\tau - \tfrac12 I + \rho M + \sqrt{(1 - \rho^2) I}\,z.

    >>> p = Parameters(kappa=2.0, theta=0.04, sigma=0.001, rho=-0.7, r=0.05)
    >>> paths.heston(torch.tensor([0.04]), 1.0, p, torch.zeros(8, 1)).integrated  # near theta
    tensor([0.0400])

    Parameters
    ----------
    nu : initial variance, 1/year, (n,) or a number; differentiable
    tau : time to maturity, years
    p : parameters that broadcast against (n,)
    noise : standard normals (steps, n)

    Raises
    ------
    ValueError
        Non-positive `nu`, `tau` or sigma, or :math:`4\kappa\theta \le \sigma^2`.
    """
    require(torch.as_tensor(nu) > 0, "nu", nu, "positive")
    require(math.isfinite(tau) and tau > 0, "tau", tau, "finite and positive")
    require(noise.ndim == 2, "noise", noise, "of shape (steps, n)")
    p = Parameters(*(torch.as_tensor(v, dtype=noise.dtype, device=noise.device) for v in p))
    require(p.sigma > 0, "sigma", p.sigma, "positive")
    excess = 4 * p.kappa * p.theta - p.sigma**2
    require(excess > 0, "4 kappa theta - sigma^2", excess, "positive")
    step = tau / len(noise)
    start = torch.as_tensor(nu, dtype=noise.dtype, device=noise.device).expand(noise.shape[1:])
    nu, integrated = start, torch.zeros_like(start)
    for z in noise:
        after = variance_step(p, step, z, nu)
        integrated = integrated + (nu + after) * (step / 2)
        nu = after
    return HestonPaths(integrated, (nu - start - p.kappa * (p.theta * tau - integrated)) / p.sigma)
