r"""The Black-Scholes call on a forward: the price that the anchored networks correct.

With forward log-moneyness k = ln(F/K) = x + r tau and total variance w (the integral of the
variance over the life of the option; w = vol^2 tau for a constant volatility), the undiscounted
price in units of strike is

.. math:: F(k, w) = e^k\,\Phi(d_1) - \Phi(d_2), \qquad d_{1,2} = k/\sqrt w \pm \sqrt w / 2,

and u(x, tau) = e^{-r tau} F(x + r tau, w) is the price (Black and Scholes, 1973; Black, 1976).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._validate import floating, require

_SQRT_2PI = math.sqrt(2 * math.pi)


class Partials(NamedTuple):
    """F(k, e^y) and its partial derivatives in k and the log total variance y, all of one shape.

    >>> y = torch.tensor(0.04).log()
    >>> partials(torch.tensor(0.0), y).k  # Phi(0.1)
    tensor(0.5398)
    """

    value: Tensor
    k: Tensor
    y: Tensor
    kk: Tensor
    ky: Tensor
    yy: Tensor


def call(k, w) -> Tensor:
    r"""Undiscounted call F(k, w) in units of strike.

    Parameters
    ----------
    k : forward log-moneyness x + r tau, any shape
    w : total variance, >= 0, broadcast against `k`

    Returns
    -------
    Tensor of the broadcast shape. For w -> 0 it is the payoff max(e^k - 1, 0). Far out of the
    money the price keeps its relative precision, because e^k Phi(d1) and Phi(d2) share the factor
    exp(-d2^2/2), which is taken out before they are subtracted. Differentiable any number of times
    in both arguments, with finite gradients down to w = 0. Infinite where e^k overflows.

    >>> call(0.0, 0.04)  # 2 Phi(0.1) - 1
    tensor(0.0797, dtype=torch.float64)

    Raises
    ------
    ValueError
        `w` negative, an argument that is not finite, or shapes that do not broadcast.
    """
    k, w = floating(k=k, w=w)
    require(torch.isfinite(k), "k", k, "finite")
    require((w >= 0) & torch.isfinite(w), "w", w, "non-negative and finite")
    return value(k, w)


def value(k: Tensor, w: Tensor) -> Tensor:
    """`call` without validation, for inner loops: tensors of one dtype and device, which broadcast.

    >>> value(torch.tensor(0.0), torch.tensor(0.04))
    tensor(0.0797)
    """
    return _Call.apply(*torch.broadcast_tensors(k, w))


def partials(k: Tensor, y: Tensor) -> Partials:
    r"""F and its five partial derivatives in (k, y), y = ln w; no validation, for inner loops.

    In y all of them stay bounded where w -> 0:
    F_k = e^k Phi(d1), F_y = sqrt(w) phi(d2)/2, F_kk = F_k + phi(d2)/sqrt(w) (the one exception),
    F_ky = -d2 phi(d2)/2, F_yy = F_y (1 + d1 d2)/2.

    >>> y = torch.tensor(0.04).log()
    >>> partials(torch.tensor(0.0), y).y  # 0.1 phi(0.1)
    tensor(0.0397)
    """
    k, y = torch.broadcast_tensors(k, y)
    y = y.clamp_min(2 * math.log(torch.finfo(y.dtype).eps))
    s = torch.exp(0.5 * y)
    d2 = k / s - 0.5 * s
    d1 = d2 + s
    density = torch.exp(-0.5 * d2 * d2) / _SQRT_2PI  # phi(d2) = e^k phi(d1)
    delta = torch.exp(k) * torch.special.ndtr(d1)
    vega = 0.5 * s * density
    return Partials(
        value=_Call.apply(k, s * s) if torch.is_grad_enabled() else _price(k, s),
        k=delta,
        y=vega,
        kk=delta + density / s,
        ky=-0.5 * d2 * density,
        yy=0.5 * vega * (1 + d1 * d2),
    )


def implied_variance(price, k, *, iterations: int = 60) -> Tensor:
    """Total variance w with ``call(k, w) == price``, by bisection and Newton in sqrt(w).

    >>> implied_variance([0.0797, 1.5], 0.0)  # no price is above e^k = 1
    tensor([0.0400,    nan], dtype=torch.float64)

    Parameters
    ----------
    price : undiscounted call in units of strike
    k : forward log-moneyness, broadcast against `price`

    iterations : at most

    Returns
    -------
    Tensor of the broadcast shape; NaN where no w in (0, 16] gives the price, i.e. outside
    (max(e^k - 1, 0), e^k), or so close to the bounds that the price no longer depends on w.

    Raises
    ------
    ValueError
        `iterations` below one, or shapes that do not broadcast.
    """
    price, k = floating(price=price, k=k)
    require(iterations >= 1, "iterations", iterations, "at least 1")
    low, high = torch.zeros_like(k), torch.full_like(k, 4.0)
    s = 0.5 * (low + high)
    for _ in range(iterations):
        found = _price(k, s)
        low = torch.where(found <= price, s, low)
        high = torch.where(found <= price, high, s)
        vega = torch.exp(-0.5 * (k / s - 0.5 * s) ** 2) / _SQRT_2PI
        newton = s - (found - price) / vega
        inside = (newton > low) & (newton < high)
        before, s = s, torch.where(inside, newton, 0.5 * (low + high))
        if bool(((s - before).abs() <= 4 * torch.finfo(s.dtype).eps * s).all()):
            break
    intrinsic = torch.expm1(k).clamp_min(0)
    resolved = price - intrinsic > 4 * torch.finfo(k.dtype).eps * intrinsic
    return torch.where(resolved & (price < torch.exp(k)) & (s < 4), s * s, torch.nan)


def _price(k: Tensor, s: Tensor) -> Tensor:
    """F from s = sqrt(w) > 0: intrinsic value plus the price of the out-of-the-money option."""
    # With a = |k| and d = a/s -/+ s/2 that option is (erfcx(d1/sqrt 2) - erfcx(d2/sqrt 2))/2 times
    # exp(-d2^2/2), for the put too: F(k) = e^k - 1 + e^k F(-k). For d1 < 0, where erfcx grows
    # beyond bounds, the normal distribution functions lose nothing.
    a, half = k.abs(), 0.5 * s
    near, far = a / s - half, a / s + half
    root = math.sqrt(0.5)
    gap = torch.special.erfcx(root * near.clamp_min(0)) - torch.special.erfcx(root * far)
    tail = 0.5 * torch.exp(-0.5 * far * far) * gap.clamp_min(0)
    body = torch.exp(-a) * torch.special.ndtr(-near) - torch.special.ndtr(-far)
    otm = torch.where(near < 0, body, tail)
    # past `largest` the option is worth nothing, and e^k might overflow
    largest = 700.0 if k.dtype == torch.float64 else 88.0
    return torch.expm1(k).clamp_min(0) + torch.exp(k.clamp(0, largest)) * otm


class _Call(torch.autograd.Function):
    """The price with its closed-form gradient: autograd would give 0 * inf as w -> 0, and at k = 0,
    where `_price` changes sides, twice the slope.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(k: Tensor, w: Tensor) -> Tensor:
        s = _deviation(w)
        return _price(k, s)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def _gradient(k: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        s = _deviation(w)
        delta = torch.exp(k) * torch.special.ndtr(k / s + 0.5 * s)
        vega = torch.exp(-0.5 * (k / s - 0.5 * s) ** 2) / (2 * _SQRT_2PI * s)  # dF/dw
        return delta, vega

    @staticmethod
    def backward(ctx, grad: Tensor):
        delta, vega = _Call._gradient(*ctx.saved_tensors)
        return grad * delta, grad * vega

    @staticmethod
    def jvp(ctx, dk, dw):
        delta, vega = _Call._gradient(*ctx.saved_tensors)
        parts = [g * d for g, d in ((delta, dk), (vega, dw)) if d is not None]
        return sum(parts)


def _deviation(w: Tensor) -> Tensor:
    return w.clamp_min(torch.finfo(w.dtype).eps ** 2).sqrt()
