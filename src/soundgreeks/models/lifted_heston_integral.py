r"""Prices of lifted rough Heston without paths or a network: by Riccati's equations.

For a kernel that is a sum of exponentials the model is affine: with x = ln(S/K) and k = x + r tau

.. math:: E\,e^{z k_\tau} = \exp\Big(zk + \int_0^\tau \big(V_0 F(g_s)
          + \kappa\theta\,g_s\big)ds\Big), \quad g = \sum_i c_i\psi_i, \quad
          \psi_i' = F(g) - x_i\psi_i,

with :math:`F(g) = \tfrac12(z^2 - z) + (\rho\sigma z - \kappa)g + \tfrac12\sigma^2g^2`, psi(0) = 0
and all factors at their start (Abi Jaber and El Euch 2019). The step integrates the exponentials
exactly and F by the trapezium rule; it is implicit, and as F is a quadratic in the one number g it
is solved by a formula, whatever the speeds. With many factors these are the prices of rough Heston
itself. The price is Lewis' integral on Re z = 1/2, with Black and Scholes' as control variate.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require
from . import black_scholes
from .lifted_heston import LIFT, MODEL, Parameters
from .model import delta_gamma
from .rough_kernel import Lift

STEPS = (150, 300)  # two grids of time, from which the error of second order is extrapolated
NODES = 320  # of the integral over frequencies
_REACH = 40.0  # the integrand has fallen by e to this power at the last node
_PIECE = 2**17  # complex numbers at a time


class Prices(NamedTuple):
    """Price of a call over its strike, Delta and Gamma; each of the arguments' shape.

    >>> from soundgreeks.models import lifted_heston, lifted_heston_integral
    >>> p = lifted_heston.Parameters(0.3, 0.04, 0.4, -0.7, 0.03)
    >>> lifted_heston_integral.price(0.0, 0.04, 1.0, p).price  # rough Heston: .0833663
    tensor(0.0834, dtype=torch.float64)
    """

    price: Tensor
    delta: Tensor
    gamma: Tensor


def price(x, nu, tau, p: Parameters, lift: Lift = LIFT, *, steps=STEPS, nodes=NODES) -> Prices:
    """The call with all hidden factors at their start, in double precision.

    >>> from soundgreeks.models import lifted_heston, lifted_heston_integral, rough_kernel
    >>> one = rough_kernel.Lift((0.0,), (1.0,))  # a kernel without memory: Heston
    >>> p = lifted_heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    >>> found = lifted_heston_integral.price(0.0, 0.04, 1.0, p, one)
    >>> bool((found.price - heston.call(0.0, 0.04, 1.0, heston.Parameters(*p))).abs() < 1e-8)
    True

    Parameters
    ----------
    x, nu, tau, p : as of `heston.call`; they broadcast
    lift : the kernel; any number of factors
    steps : of time, two numbers, the second twice the first
    nodes : of the integral

    Raises
    ------
    ValueError
        An argument outside its meaning, or shapes that do not broadcast.
    """
    p = MODEL.checked(p)
    given = floating(x=x, nu=nu, tau=tau, **p._asdict())
    require(torch.isfinite(given[0]), "x", given[0], "finite")
    require((given[1] > 0) & torch.isfinite(given[1]), "nu", given[1], "positive and finite")
    require((given[2] > 0) & torch.isfinite(given[2]), "tau", given[2], "positive and finite")
    shape = given[0].shape
    flat = [v.double().reshape(-1) for v in given]
    per = max(1, _PIECE // (nodes * max(1, len(lift.speeds))))
    pieces = [
        _price([v[i : i + per] for v in flat], lift, steps, nodes)
        for i in range(0, len(flat[0]), per)
    ]
    u, u_x, u_xx = torch.cat(pieces, 1)
    return Prices(*(v.reshape(shape) for v in (u, *delta_gamma(flat[0], u_x, u_xx))))


def _price(given: list[Tensor], lift: Lift, steps, nodes: int) -> Tensor:
    """u, u_x and u_xx, (3, n)."""
    x, nu, tau, kappa, theta, sigma, rho, r = given
    k, model = x + r * tau, (nu, kappa, theta, sigma, rho)

    def exponent(u, count):
        return characteristic(0.5 + 1j * u, tau, *model, lift, count)

    w = -2 * _slope(lambda z: characteristic(z, tau, *model, lift, 40), k)
    # frequencies beyond which nothing is left, found on a coarse grid of time
    far = torch.logspace(-1, 4, 60, dtype=w.dtype, device=w.device) / w.sqrt()[:, None]
    gone = exponent(far, 40).real < -_REACH
    last = torch.where(gone.any(1), gone.int().argmax(1), len(far[0]) - 1)
    edge = far.gather(1, last[:, None])
    # nodes sinh(t), dense where the integrand is large
    scale = 2 / w.sqrt()[:, None]
    h = torch.asinh(edge / scale) / nodes
    t = h * torch.arange(nodes + 1, dtype=h.dtype, device=h.device)
    u, weight = scale * torch.sinh(t), scale * torch.cosh(t) * h / math.pi
    weight[:, 0] *= 0.5
    coarse, fine = (exponent(u, count) for count in steps)
    z = 0.5 + 1j * u
    found = torch.exp(fine + (fine - coarse) / 3) - torch.exp(0.5 * (z * z - z) * w[:, None])
    found = found * torch.exp(z * k[:, None]) * (weight / (u * u + 0.25))
    discount = torch.exp(-r * tau)
    anchor = black_scholes.partials(k, w.log())
    parts = (anchor.value, anchor.k, anchor.kk)
    total = [a - (found * z**i).real.sum(1) for i, a in enumerate(parts)]
    return discount * torch.stack(total)


def _slope(exponent, k: Tensor) -> Tensor:
    """E[ln S] - ln S without drift: the derivative of the exponent at z = 0."""
    z = torch.full((len(k), 1), 1e-5j, dtype=torch.complex128, device=k.device)
    return (exponent(z).imag / 1e-5)[:, 0]


def characteristic(z: Tensor, tau, nu, kappa, theta, sigma, rho, lift: Lift, count: int) -> Tensor:
    """ln E[e^(z (k_tau - k))] by `count` steps that grow linearly: (n, m), of z (n, m), tau (n,)...

    >>> from soundgreeks.models import lifted_heston_integral
    >>> one, z = torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.complex128)
    >>> given = (one, 0.04 * one, one, 0.04 * one, 0.4 * one, -0.7 * one)
    >>> lifted_heston_integral.characteristic(z, *given, LIFT, 10).abs() < 1e-12  # a martingale
    tensor([[True]])
    """
    tau, nu, kappa, theta, sigma, rho = (v[:, None] for v in (tau, nu, kappa, theta, sigma, rho))
    constant, linear = 0.5 * (z * z - z), rho * sigma * z - kappa
    square = 0.5 * sigma * sigma
    psi = [torch.zeros_like(z) for _ in lift.speeds]
    g, f, total = psi[0], constant, torch.zeros_like(z)
    for n in range(count):
        h = tau * ((2 * n + 1) / count**2)
        weights = [_weights(float(x), h) for x in lift.speeds]
        known = [e * y + start * f for y, (e, start, _) in zip(psi, weights, strict=True)]
        c = [float(v) for v in lift.weights]
        new = sum(v * end for v, (_, _, end) in zip(c, weights, strict=True))
        rest = sum(v * y for v, y in zip(c, known, strict=True)) + new * constant
        b = 1 - new * linear  # square new g^2 - b g + rest = 0
        after = 2 * rest / (b + torch.sqrt(b * b - 4 * square * new * rest))
        f_after = constant + linear * after + square * after * after
        psi = [y + end * f_after for y, (_, _, end) in zip(known, weights, strict=True)]
        total = total + 0.5 * h * (nu * (f + f_after) + kappa * theta * (g + after))
        g, f = after, f_after
    return total


def _weights(x: float, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e^(-x h), and the integrals of e^(-x (h - s)) against 1 - s/h and s/h."""
    y = x * h
    small = y < 1e-2
    safe = torch.where(small, 1.0, y)
    all_of_it = torch.where(small, 1 - y / 2 + y**2 / 6 - y**3 / 24, -torch.expm1(-y) / safe)
    end = torch.where(small, 0.5 - y / 6 + y**2 / 24 - y**3 / 120, (1 - all_of_it) / safe)
    return torch.exp(-y), h * (all_of_it - end), h * end
