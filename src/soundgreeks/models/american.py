r"""The American put: a price that knows its exercise boundary, for a network to correct.

Barone-Adesi and Whaley (1987) for a total variance W and the discount factor e^{-q}, q = r tau:
above a critical moneyness s the European put P and what the right to exercise adds,

.. math:: A(x) = P(x) + f(s)\,e^{-\beta (x - s)}, \qquad f(x) = 1 - e^x - P(x),
          \qquad \beta = \tfrac12\Big[m - 1 + \sqrt{(m - 1)^2 + \frac{4m}{1 - e^{-q}}}\Big],
          \qquad m = \frac{2q}{W},

and below it the payoff 1 - e^x. The two meet in value and slope: s is where A is largest, hence

.. math:: \beta f(s) = e^s\,\Phi(d_1(s)).

So A lies above the payoff and its Gamma jumps at s, whatever W. With W exp(s N) in the place of W
the network places the boundary, and smooth pasting is built in.
"""

import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from . import black_scholes
from .claims import Put, register

_ROUNDING = 1e-6  # by which a price in single precision may exceed a payoff that it equals
_STEPS = 16  # of Newton's method, from the right, where the function is concave


class AmericanPut(Put):
    """max(1 - e^x, 0), paid whenever the holder likes.

    >>> from soundgreeks.models.american import PUT
    >>> x, y, tau = Jet(torch.tensor(0.0), x=1), Jet(torch.tensor(0.04).log()), Jet(torch.ones(()))
    >>> r = torch.tensor(0.05)
    >>> PUT.anchor(x + tau * r, y, tau, r).value  # 0.0609 in truth; the European put is 0.0557
    tensor(0.0610)
    """

    name, european = "american_put", False

    def edge(self, x, tau, r):
        return self.payoff(x)

    def anchor(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet:
        x, q = k - tau * r, tau * r
        s, beta, gain = _boundary(y, q)
        waits = (x.value > s.value).to(y.value.dtype)
        premium = gain * jets.exp(-(beta * (x - s).clamp_min(0.0)))
        held = super().anchor(k, y, tau, r) + premium
        return held * waits + self.payoff(x) * (1 - waits)

    def condition(self, residual: Tensor, u: Tensor, x: Tensor) -> Tensor:
        """The residual where the holder waits; where u is the payoff, it is r > 0 and may be."""
        return torch.where(u > self.payoff(x) + _ROUNDING, residual, 0.0)

    def slack(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet:
        return jets.tanh(tau * r * jets.exp(y * -0.5)) * 0.5

    def features(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> list[Jet]:
        """The distance to the boundary in standard deviations, and the interest at stake."""
        q, width = tau * r, jets.exp(y * -0.5)
        s, _, _ = _boundary(y, q)
        return [jets.tanh((k - q - s) * width * 0.5), jets.tanh(q * width), q * 10]


def _boundary(y: Jet, q: Jet) -> tuple[Jet, Jet, Jet]:
    """Critical moneyness s, beta and f(s) at ln total variance y and q = r tau >= 0."""
    square = q * q
    rate = square * (1 / 12) + q * 0.5 + 1.0 - square * square * (1 / 720)  # q / (1 - e^{-q})
    m1 = q * jets.exp(-y) * 2 + -1.0
    beta = (m1 + jets.sqrt(m1 * m1 + rate * jets.exp(-y) * 8)) * 0.5

    def gap(s):
        """beta f(s) - e^s Phi(d1), which falls in s, and f(s)."""
        k = s + q
        call = jets.exp(-q) * jets.compose(black_scholes.partials(k.value, y.value), k, y)
        f = -jets.expm1(-q) - call
        width = jets.exp(y * -0.5)
        d1 = k * width + jets.exp(y * 0.5) * 0.5
        return beta * f - jets.exp(s) * _normal(d1), f, d1.value, width.value

    still = Jet(torch.zeros_like(y.value + q.value), pairs=y.pairs)
    s = _solve(y.value, q.value, beta.value).to(y.value.dtype)
    found, _, d1, width = gap(still + s)
    fall = torch.exp(s) * ((beta.value + 1) * torch.special.ndtr(d1) + width * _density(d1))
    s = still + s + found * (1 / fall)  # for s_y and s_q; A is largest at s and needs no more
    return s, beta, gap(s)[1]


@torch.no_grad()
def _solve(y: Tensor, q: Tensor, beta: Tensor) -> Tensor:
    """The root s <= 0 of beta f(s) = e^s Phi(d1(s)), in double precision."""
    y, q, beta = (v.double() for v in torch.broadcast_tensors(y, q, beta))
    width, gain = torch.exp(-0.5 * y), -torch.expm1(-q)
    s = torch.zeros_like(y)
    for _ in range(_STEPS):
        d1 = (s + q) * width + 0.5 / width
        delta = torch.exp(s) * torch.special.ndtr(d1)
        f = gain - delta + torch.exp(-q) * torch.special.ndtr(d1 - 1 / width)
        fall = (beta + 1) * delta + torch.exp(s) * width * _density(d1)
        s = (s + (beta * f - delta) / fall.clamp_min(1e-300)).clamp(max=0.0)
    return s


def _density(d: Tensor) -> Tensor:
    return torch.exp(-0.5 * d * d) * 0.3989422804014327


def _normal(d: Jet) -> Jet:
    density = _density(d.value)
    return d.chain(torch.special.ndtr(d.value), density, -d.value * density)


PUT = register(AmericanPut())
