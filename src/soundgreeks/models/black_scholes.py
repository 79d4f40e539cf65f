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
    """F(k, e^y) and its partial derivatives in k and the log total variance y."""

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
    exp(-d2^2/2), which is taken out before they are subtracted. Differentiable twice in both
    arguments, with finite gradients down to w = 0.

    Raises
    ------
    ValueError
        `w` negative or NaN, `k` NaN, or shapes that do not broadcast.
    """
    k, w = floating(k=k, w=w)
    require(~torch.isnan(k), "k", k, "a number")
    require(w >= 0, "w", w, "non-negative")
    return _Call.apply(k, w)


def partials(k: Tensor, y: Tensor) -> Partials:
    r"""F and its five partial derivatives in (k, y), y = ln w; no validation, for inner loops.

    In y all of them stay bounded where w -> 0:
    F_k = e^k Phi(d1), F_y = sqrt(w) phi(d2)/2, F_kk = F_k + phi(d2)/sqrt(w) (the one exception),
    F_ky = -d2 phi(d2)/2, F_yy = F_y (1 + d1 d2)/2.
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
        value=_price(k, s, d1, d2),
        k=delta,
        y=vega,
        kk=delta + density / s,
        ky=-0.5 * d2 * density,
        yy=0.5 * vega * (1 + d1 * d2),
    )


def implied_variance(price, k, *, iterations: int = 60) -> Tensor:
    """Total variance w with ``call(k, w) == price``, by bisection and Newton in sqrt(w).

    Parameters
    ----------
    price : undiscounted call in units of strike
    k : forward log-moneyness, broadcast against `price`

    Returns
    -------
    Tensor of the broadcast shape; NaN where no w in (0, 16] gives the price, i.e. outside
    (max(e^k - 1, 0), e^k), or so close to the bounds that the price no longer depends on w.
    """
    price, k = floating(price=price, k=k)
    low, high = torch.zeros_like(k), torch.full_like(k, 4.0)
    s = 0.5 * (low + high)
    for _ in range(iterations):
        value = _price(k, s, k / s + 0.5 * s, k / s - 0.5 * s)
        low = torch.where(value <= price, s, low)
        high = torch.where(value <= price, high, s)
        vega = torch.exp(-0.5 * (k / s - 0.5 * s) ** 2) / _SQRT_2PI
        newton = s - (value - price) / vega
        inside = (newton > low) & (newton < high)
        s = torch.where(inside, newton, 0.5 * (low + high))
    intrinsic = torch.expm1(k).clamp_min(0)
    resolved = price - intrinsic > 4 * torch.finfo(k.dtype).eps * intrinsic
    return torch.where(resolved & (price < torch.exp(k)) & (s < 4), s * s, torch.nan)


def _price(k: Tensor, s: Tensor, d1: Tensor, d2: Tensor) -> Tensor:
    """F from s = sqrt(w) > 0: intrinsic value plus the price of the out-of-the-money option."""
    # Out of the money (k <= 0) F = e^{-d2^2/2} (erfcx(-d1/sqrt 2) - erfcx(-d2/sqrt 2)) / 2; the
    # put on the other side follows from F(k) = e^k - 1 + e^k F(-k), which swaps d1 and -d2.
    upper = torch.where(k > 0, -d2, d1)
    lower = torch.where(k > 0, -d1, d2)
    root = math.sqrt(0.5)
    scaled = torch.special.erfcx(-root * upper.clamp_max(0)) - torch.special.erfcx(-root * lower)
    tail = torch.exp(-0.5 * lower * lower) * scaled.clamp_min(0) / 2
    otm = torch.where(
        upper > 0,
        torch.exp(-k.abs()) * torch.special.ndtr(upper) - torch.special.ndtr(lower),
        tail,
    )
    return torch.expm1(k).clamp_min(0) + torch.exp(k.clamp_min(0)) * otm


class _Call(torch.autograd.Function):
    """The price with its closed-form gradient: autograd would give 0 * inf as w -> 0."""

    @staticmethod
    def forward(ctx, k: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(k, w)
        s = w.clamp_min(torch.finfo(w.dtype).eps ** 2).sqrt()
        return _price(k, s, k / s + 0.5 * s, k / s - 0.5 * s)

    @staticmethod
    def backward(ctx, grad: Tensor):
        k, w = ctx.saved_tensors
        s = w.clamp_min(torch.finfo(w.dtype).eps ** 2).sqrt()
        delta = torch.exp(k) * torch.special.ndtr(k / s + 0.5 * s)
        vega = torch.exp(-0.5 * (k / s - 0.5 * s) ** 2) / (2 * _SQRT_2PI * s)  # dF/dw
        return grad * delta, grad * vega
