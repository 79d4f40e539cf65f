r"""The smile to second order in the volatility of variance, without a network.

For a variance with linear drift and the noise of a power,

.. math:: d\nu = \kappa(\theta - \nu)\,dt + \sigma\nu^p\,dZ, \qquad d\langle \ln S, Z\rangle
          = \rho\sqrt\nu\,dt,

let :math:`v_s = \theta + (\nu - \theta)e^{-\kappa s}` be its path without noise and
:math:`a_s = (1 - e^{-\kappa(\tau - s)})/\kappa` what a unit of variance at time s adds to the total
one. Three integrals along that path,

.. math:: A = \int_0^\tau v_s^{p + 1/2} a_s\,ds, \quad B = \int_0^\tau v_s^{2p} a_s^2\,ds, \quad
          C = \int_0^\tau (p + \tfrac12)\,v_s^{p - 1/2} a_s
              \int_0^s v_t^{p + 1/2} e^{-\kappa(s - t)}\,dt\,ds,

give the implied total variance W to second order in sigma (Bergomi and Guyon, 2012, "Stochastic
volatility's orderly smiles", whose functionals are sigma rho A, sigma^2 B and sigma^2 rho^2 C).
The integrals are sums of positive numbers over Gauss nodes: nothing cancels, single precision does.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet

NODES = 5
_WING = 4.0  # standard deviations after which the smile is continued flat
_MOST = 1.5  # the largest correction of ln w


class Moments(NamedTuple):
    r"""The three integrals in units of the total variance w: dimensionless, jets or tensors.

    skew :math:`= \sigma\rho A/w^{3/2}`, bend :math:`= \sigma^2\rho^2 C/w^2`, and spread
    :math:`= \sigma^2 B/w^2`, the relative variance of the integrated variance.
    """

    skew: Any
    bend: Any
    spread: Any


@cache
def _nodes(
    count: int, dtype: torch.dtype, device: torch.device, inference: bool
) -> tuple[Tensor, Tensor]:
    """Kept apart for inference mode, whose tensors no gradient may pass through."""
    q, weight = np.polynomial.legendre.leggauss(count)
    values = np.stack([(q + 1) / 2, weight / 2])
    found = torch.as_tensor(values, dtype=dtype, device=device)
    return found[0], found[1]


def moments(p, tau, nu, y, power: float) -> Moments:
    """`Moments` by quadrature in s / tau.

    Parameters
    ----------
    p : parameters with kappa, theta, sigma and rho
    tau, nu, y : time to maturity in years, variance in 1/year, ln of the expected total variance;
        jets, or tensors
    power : of the variance in its noise, .5 for Heston and 1 for the GARCH diffusion

    >>> one = torch.ones((), dtype=torch.float64)
    >>> p = type("p", (), dict(kappa=1e-6 * one, theta=one, sigma=one, rho=-one))
    >>> found = moments(p, one, one, 0 * one, 0.5)  # without reversion A = 1/2, B = 1/3, C = 1/6
    >>> found.skew, found.bend, found.spread
    (tensor(-0.5000...), tensor(0.1667...), tensor(0.3333...))
    """
    q, weight = nodes(tau, nu, p.kappa, p.theta)
    inner, inner_weight = q[:, None], weight[:, None]  # (inner, outer, ...)

    def path(q):
        v = (nu + -p.theta) * jets.exp(tau * (-p.kappa * q)) + p.theta
        return v.clamp_min(1e-12)  # a power of it may be negative

    v, a = path(q), jets.expm1(tau * (-p.kappa * (1 - q))) / -p.kappa
    before = jets.power(path(q * inner), power + 0.5)
    before = before * jets.exp(tau * (-p.kappa * q * (1 - inner)))
    before = total(before * inner_weight) * q  # over tau
    first = total(jets.power(v, power + 0.5) * a * weight) * tau
    second = total(jets.power(v, 2 * power) * (a * a) * weight) * tau
    mixed = total(jets.power(v, power - 0.5) * (power + 0.5) * a * before * weight) * tau * tau
    skew, square = p.sigma * p.rho, jets.exp(y * -2)
    return Moments(
        first * jets.exp(y * -1.5) * skew, mixed * square * skew**2, second * square * p.sigma**2
    )


def nodes(*given, count: int = NODES) -> tuple[Tensor, Tensor]:
    """`count` Gauss nodes and weights on [0, 1], shaped to stand before tensors or jets `given`.

    >>> q, weight = nodes(torch.zeros(3, 4, dtype=torch.float64))
    >>> q.shape, (weight * q**3).sum()
    (torch.Size([5, 1, 1]), tensor(0.2500, dtype=torch.float64))
    """
    values = [torch.as_tensor(v.value if isinstance(v, Jet) else v) for v in given]
    where = values[0].dtype, values[0].device
    q, weight = _nodes(count, *where, torch.is_inference_mode_enabled())
    flat = (1,) * max(v.ndim for v in values)
    return q.view(-1, *flat), weight.view(-1, *flat)


def total(v):
    """The sum over the first dimension, of every channel.

    >>> total(Jet(torch.tensor([1.0, 2.0]), x=torch.ones(2)))
    Jet(3.0, {'x': tensor(2.)})
    """
    if not isinstance(v, Jet):
        return v.sum(0)
    shape = v.value.shape
    parts = {k: d.expand(shape).sum(0) for k, d in v.parts.items()}
    return v._new(v.value.sum(0), parts)


def correction(k, y, at: Moments):
    r"""ln W - ln w to second order in sigma, at forward log-moneyness k.

    With :math:`m = s/2 - k/s`, :math:`s = \sqrt w`,

    .. math:: \text{skew}\,m + \text{bend}\,(m^2 - 1) + \tfrac14\text{skew}^2 (3 + 3sm - 5m^2)
              + \tfrac14\text{spread}\,(m^2 - sm - 1) - \tfrac12\text{skew}^2 m^2 .

    Far in the wings the expansion in sigma means nothing: k/s enters as 4 tanh(k/4s), and of the
    sum 1.5 tanh(sum/1.5) is returned.

    >>> one = torch.ones(())
    >>> correction(0 * one, (0.04 * one).log(), Moments(-0.1 * one, 0 * one, 0 * one))
    tensor(-0.0025)
    """
    s = jets.exp(y * 0.5)
    z = jets.tanh(k * jets.exp(y * -0.5) * (1 / _WING)) * _WING
    m = s * 0.5 - z
    square, sm, skew2 = m * m, s * m, at.skew * at.skew
    total = at.skew * m + at.bend * (square + -1) + at.spread * (square - sm + -1) * 0.25
    total = total + skew2 * (sm * 3 - square * 7 + 3) * 0.25
    return jets.tanh(total * (1 / _MOST)) * _MOST
