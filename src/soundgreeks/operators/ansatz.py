r"""How a network becomes a price: four maps from the correction N to u, all on jets.

=========  ==========================================================  =========================
name       u                                                            built in
=========  ==========================================================  =========================
printed    max(e^x - 1, 0) + tau softplus(N)              (eq. 10)      payoff; u >= payoff
smoothed   (e^x - 1) sigmoid((e^x - 1)/h) + tau softplus(N)             a smoothed payoff
anchor     e^{-r tau} F(x + r tau, w) + tau N                           payoff, smoothness
implied    e^{-r tau} F(x + r tau, w exp(N))                            payoff, smoothness and
                                                                        both no-arbitrage bounds
=========  ==========================================================  =========================

F is `black_scholes.call` and w the expected total variance, which solves
w_tau = nu + kappa (theta - nu) w_nu, so that the leading singular terms of the residual cancel.
The smoothed payoff is that of Sobolev Pruning, section 5.2.4, with width h = 0.05.

For networks that see one point at a time there are also coordinates in which prices of all
variances and maturities look alike (`similarity_features`).
"""

import math
from collections.abc import Callable

import torch

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from ..models import black_scholes
from ..models.heston import Parameters

SMOOTHING_WIDTH = 0.05


def expected_variance(nu: Jet, tau: Jet, p: Parameters) -> Jet:
    r"""w = theta tau + (nu - theta)(1 - e^{-kappa tau})/kappa as a jet in (nu, tau).

    The integral of E[nu_s] over the life of the option.
    """
    decay = torch.exp(-p.kappa * tau.value)
    slope = tau.chain(-torch.expm1(-p.kappa * tau.value) / p.kappa, decay, -p.kappa * decay)
    return tau * p.theta + (nu + -p.theta) * slope


def log_expected_variance(nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """ln w as a jet; at tau = 0 the logarithm of the smallest variance that matters."""
    w = expected_variance(nu, tau, p)
    tiny = torch.finfo(w.value.dtype).eps ** 2
    return jets.log(Jet(w.value.clamp_min(tiny), *tuple(w)[1:]))


def forward_log_moneyness(x: Jet, tau: Jet, p: Parameters) -> Jet:
    """k = x + r tau."""
    return x + tau * p.r


def payoff(x: Jet) -> Jet:
    """max(e^x - 1, 0), eq. 6, with its derivatives off the kink: eq. 10 has no others."""
    slope = torch.exp(x.value) * (x.value > 0)
    return x.chain(torch.expm1(x.value).clamp_min(0), slope, slope)


def smoothed_payoff(x: Jet, width: float = SMOOTHING_WIDTH) -> Jet:
    """v sigmoid(v / width) with v = e^x - 1."""
    e = torch.exp(x.value)
    v = x.chain(torch.expm1(x.value), e, e)
    return v * jets.sigmoid(v * (1 / width))


def black_scholes_price(k: Jet, y: Jet, tau: Jet, p: Parameters) -> Jet:
    """e^{-r tau} F(k, e^y)."""
    price = jets.compose(black_scholes.partials(k.value, y.value), k, y)
    return jets.exp(tau * -p.r) * price


def printed(n: Jet, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """Eq. 10."""
    return payoff(x) + tau * jets.softplus(n)


def smoothed(n: Jet, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """Eq. 10 on a payoff without a kink, hence with a bias where tau is small."""
    return smoothed_payoff(x) + tau * jets.softplus(n)


def anchor(n: Jet, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """Black-Scholes at the expected variance, plus tau N: linear in N."""
    k = forward_log_moneyness(x, tau, p)
    return black_scholes_price(k, log_expected_variance(nu, tau, p), tau, p) + tau * n


def implied(n: Jet, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """Black-Scholes at the expected variance times exp(N)."""
    k = forward_log_moneyness(x, tau, p)
    return black_scholes_price(k, log_expected_variance(nu, tau, p) + n, tau, p)


def implied_scaled(n: Jet, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
    """`implied` with N replaced by sigma sqrt(tau) N, the size of the smile's first correction."""
    return implied(_sqrt_time(tau) * p.sigma * n, x, nu, tau, p)


ANSATZ: dict[str, Callable[..., Jet]] = {
    "printed": printed,
    "smoothed": smoothed,
    "anchor": anchor,
    "implied": implied,
    "implied_scaled": implied_scaled,
}


def plain_features(x: Jet, nu: Jet, tau: Jet) -> list[Jet]:
    """The trunk inputs of DeepSVM."""
    return [x, nu, tau]


def scale_features(x: Jet, nu: Jet, tau: Jet) -> list[Jet]:
    """Trunk inputs that resolve the scales on which prices bend near the money and near nu = 0."""
    near = [jets.tanh(x * (1 / s)) for s in (0.05, 0.15, 0.4)]
    return [x, nu, tau, *near, jets.sqrt(tau + 0.01), jets.log(nu + 0.01)]


SCALE_RANGES = [(-1, 1)] * 3 + [(0.1, math.sqrt(1.01)), (math.log(0.01), math.log(0.42))]
"""Of the five inputs that `scale_features` adds to (x, nu, tau)."""


def similarity_features(x: Jet, nu: Jet, tau: Jet, p: Parameters) -> list[Jet]:
    r"""Coordinates of order one in which prices at all variances and maturities look alike.

    The price bends over a width sqrt(w), which changes fifty-fold over Table I; in
    z = (x + r tau)/sqrt(w) it bends over a width of one everywhere. The rate enters only
    through the forward, because u(x, nu, tau; r) = e^{-r tau} u(x + r tau, nu, tau; 0).
    """
    k = forward_log_moneyness(x, tau, p)
    y = log_expected_variance(nu, tau, p)
    z = k * jets.exp(y * -0.5)
    tiny = torch.finfo(p.theta.dtype).eps
    theta = p.theta.clamp_min(tiny)
    constants = [
        torch.log(p.kappa),
        0.5 * torch.log(theta) + 1.5,
        p.sigma / torch.sqrt(2 * p.kappa * theta),
        2 * p.rho + 1,
    ]
    return [
        jets.tanh(z * (1 / 3)),
        y * 0.25 + 1,
        jets.log(Jet(nu.value.clamp_min(1e-6), *tuple(nu)[1:])) * 0.5 - 0.5 * torch.log(theta),
        _sqrt_time(tau),
        jets.tanh(k),
        *(Jet(c) for c in constants),
    ]


def _sqrt_time(tau: Jet) -> Jet:
    return jets.sqrt(Jet(tau.value.clamp_min(1e-8), *tuple(tau)[1:]))
