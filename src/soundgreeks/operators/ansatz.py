r"""How a network becomes a price: maps from the correction N to u, all on jets.

=========  ==========================================================  =========================
name       u (of a call)                                               built in
=========  ==========================================================  =========================
printed    max(e^x - 1, 0) + tau softplus(N)              (eq. 10)      payoff; u >= payoff
smoothed   (e^x - 1) sigmoid((e^x - 1)/h) + tau softplus(N)             a smoothed payoff
anchor     e^{-r tau} F(x + r tau, w) + tau N                           payoff, smoothness
implied    e^{-r tau} F(x + r tau, w exp(N))                            payoff, smoothness and
                                                                        both no-arbitrage bounds
smile      e^{-r tau} F(x + r tau, W exp(s N))                         the same, and the smile to
                                                                       second order in sigma
=========  ==========================================================  =========================

F is `black_scholes.call` and w the model's expected total variance; for a linear drift it solves
w_tau = nu + kappa (theta - nu) w_nu, so that the leading singular terms of the residual cancel.
The smoothed payoff is that of Sobolev Pruning, section 5.2.4, with width h = 0.05. Each ansatz is a
function of the correction `n` and of where it stands, `At`.

For networks that see one point at a time there are also coordinates in which prices of all
variances and maturities look alike (`similarity_features`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from ..models import claims, heston
from ..models.claims import Claim
from ..models.model import Model, as_states
from ..models.smile import Moments, correction

SMOOTHING_WIDTH = 0.05


@dataclass(frozen=True)
class At:
    """Coordinates as jets, parameters, model and claim; what several formulas need of them once.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> at.k.value, at.y.value  # r tau, ln(nu tau) as nu = theta
    (tensor(0.0500), tensor(-3.2189))
    """

    x: Jet
    state: Jet | tuple[Jet, ...]
    tau: Jet
    p: Any  # the model's parameters
    model: Model = heston.MODEL
    claim: Claim = claims.CALL

    @cached_property
    def k(self) -> Jet:
        """Forward log-moneyness x + r tau."""
        return self.x + self.tau * self.p.r

    @cached_property
    def y(self) -> Jet:
        """ln w; at tau = 0 the logarithm of the smallest variance that matters."""
        w = self.model.expected_variance(self.p, self.tau, *as_states(self.state))
        return jets.log(w.clamp_min(torch.finfo(w.value.dtype).eps ** 2))

    @cached_property
    def moments(self) -> Moments:
        """Of the integrated variance; they know no weights."""
        return self.model.smile_moments(self.p, self.tau, self.y, *as_states(self.state))

    @cached_property
    def smile(self) -> Jet:
        """What the second order in sigma adds to ln w."""
        return correction(self.k, self.y, self.moments)

    @cached_property
    def root_tau(self) -> Jet:
        return jets.sqrt(self.tau.clamp_min(1e-8))


def printed(n: Jet, at: At) -> Jet:
    """Eq. 10.

    `n` and the price are jets of the shape that the coordinates broadcast to, in units of strike.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> printed(Jet(torch.tensor(0.0)), at).value  # ln 2
    tensor(0.6931)
    """
    return at.claim.payoff(at.x) + at.tau * jets.softplus(n)


def smoothed(n: Jet, at: At) -> Jet:
    """Eq. 10 on a payoff without a kink, hence with a bias where tau is small.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> smoothed(Jet(torch.tensor(0.0)), at).value  # at x = 0 nothing but softplus: ln 2
    tensor(0.6931)
    """
    return at.claim.smoothed_payoff(at.x, SMOOTHING_WIDTH) + at.tau * jets.softplus(n)


def anchor(n: Jet, at: At) -> Jet:
    """Black-Scholes at the expected variance, plus tau N: linear in N.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> anchor(Jet(torch.tensor(0.0)), at).value  # Black-Scholes, volatility 20 %
    tensor(0.1045)
    """
    return at.claim.anchor(at.k, at.y, at.tau, at.p.r) + at.tau * n


def implied(n: Jet, at: At) -> Jet:
    """Black-Scholes at the expected variance times exp(N).

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> implied(Jet(torch.tensor(4.0).log()), at).value  # Black-Scholes, volatility 40 %
    tensor(0.1802)
    """
    return at.claim.anchor(at.k, at.y + n, at.tau, at.p.r)


def implied_scaled(n: Jet, at: At) -> Jet:
    """`implied` with N replaced by sigma sqrt(tau) N, the size of the smile's first correction.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> implied_scaled(Jet(torch.tensor(0.0)), at).value  # Black-Scholes, volatility 20 %
    tensor(0.1045)
    """
    return implied(at.root_tau * at.model.smile(at.p) * n, at)


def smile(n: Jet, at: At) -> Jet:
    r"""Black-Scholes at W exp(s N), W the expected variance with its `models.smile.correction`.

    :math:`s = v/(1 + v)`, v the relative variance of the integrated variance, is the size of what
    the correction leaves, and `Claim.slack` what the claim's own anchor leaves.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0], dtype=torch.float64)), p)  # x, nu, tau
    >>> smile(Jet(torch.zeros((), dtype=torch.float64)), at).value  # the exact price is .1039
    tensor(0.1038, dtype=torch.float64)
    """
    size = jets.sigmoid(jets.log(at.moments.spread.clamp_min(1e-12)))
    size = size + at.claim.slack(at.k, at.y, at.tau, at.p.r)
    return at.claim.anchor(at.k, at.y + at.smile + size * n, at.tau, at.p.r)


def bump(n: Jet, at: At) -> Jet:
    r"""The anchor at the smile's variance W, plus s sqrt(W) exp(-z^2/4) g N, z = k/sqrt(W).

    s is the root of the relative variance of the integrated variance: the correction is of first
    order in sigma. g is the claim's `vanishing` factor; with it the price vanishes on a barrier.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0], dtype=torch.float64)), p)  # x, nu, tau
    >>> bump(Jet(torch.zeros((), dtype=torch.float64)), at).value  # as `smile`
    tensor(0.1038, dtype=torch.float64)
    """
    terms = at.k, at.y + at.smile, at.tau, at.p.r
    size = jets.sqrt(at.moments.spread.clamp_min(1e-12))
    near = jets.exp(at.k * at.k * jets.exp(-at.y) * -0.25 + at.y * 0.5)
    return at.claim.anchor(*terms) + size * near * at.claim.vanishing(*terms) * n


ANSATZ: dict[str, Callable[..., Jet]] = {
    "printed": printed,
    "smoothed": smoothed,
    "anchor": anchor,
    "implied": implied,
    "implied_scaled": implied_scaled,
    "smile": smile,
    "bump": bump,
}


def similarity_features(at: At) -> list[Jet]:
    r"""Coordinates of order one in which prices at all variances and maturities look alike.

    The price bends over a width sqrt(w), which changes fifty-fold over Table I; in
    z = (x + r tau)/sqrt(w) it bends over a width of one everywhere. The rate enters only
    through the forward, because u(x, nu, tau; r) = e^{-r tau} u(x + r tau, nu, tau; 0).

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0])), p)  # x, nu, tau
    >>> similarity_features(at)[0].value  # tanh(0.25 / 3), 0.25 = .05/sqrt(.04)
    tensor(0.0831, dtype=torch.float64)
    """
    z = at.k * jets.exp(at.y * -0.5)
    timed = {"tau": at.tau} if at.model.timed else {}
    of_state, *of_model = at.model.features(at.p, *as_states(at.state), **timed)
    of_claim = at.claim.features(at.k, at.y, at.tau, at.p.r)
    return [
        jets.tanh(z * (1 / 3)),
        at.y * 0.25 + 1,
        of_state,
        at.root_tau,
        jets.tanh(at.k),
        *of_model,
        *of_claim,
    ]


def smile_features(at: At) -> list[Jet]:
    """The same, and what the second order in sigma knows: of the network N in `smile`.

    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> at = At(*map(Jet, torch.tensor([0.0, 0.04, 1.0], dtype=torch.float64)), p)  # x, nu, tau
    >>> [round(float(feature.value), 3) for feature in smile_features(at)[-3:]]
    [-1.192, 1.388, -0.036]
    """
    skew, _, spread = at.moments
    return [
        *similarity_features(at),
        skew * 4,
        jets.sqrt(spread.clamp_min(1e-9)) * 3,
        at.smile * 2,
    ]
