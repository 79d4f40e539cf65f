"""Chapter 2's numbers by other means: what the printed loss charges and prefers, how large it is.

Prices by Heston's own formula with Gil-Pelaez' integral, written here anew; derivatives of networks
by autograd of autograd instead of jets.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from test_jets import nested

from soundgreeks import evaluation, heston, weights
from soundgreeks.book import reference
from soundgreeks.operators import PRESETS, Operator, PricingProblem

LOADED = ("deepsvm", "paper_anchor", "paper_implied")


@cache
def points():
    """The chapter's, as arrays: x, nu, tau and five parameters; the first 2,400 are uniform."""
    data = evaluation.draw(1, 4000)
    return data.x.numpy(), data.nu.numpy(), data.tau.numpy(), [v.numpy() for v in data.p]


def uniform(n=2400):
    x, nu, tau, p = points()
    return x[:n], nu[:n], tau[:n], [v[:n] for v in p]


@cache
def truth():
    """e^x P1 - e^{-r tau} P2, Heston's own formula."""
    x, nu, tau, p = points()
    first, second = (above_strike(x, nu, tau, p, shift) for shift in (1, 0))
    return np.exp(x) * first - np.exp(-p[-1] * tau) * second


def held(key, value):
    entry = reference.load()[key]
    assert entry.holds(value), f"{key}: {value:.10g} against {entry.value} +- {entry.tolerance}"


def rmse(a, b):
    return float(np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2)))


def characteristic(u, nu, tau, p):
    """E exp(iu (X - x)) of the log price, Albrecher et al.'s form; u of any shape, complex."""
    kappa, theta, sigma, rho, r = p
    b = kappa - rho * sigma * 1j * u
    d = np.sqrt(b * b + sigma**2 * (1j * u + u * u))
    g, decay = (b - d) / (b + d), np.exp(-d * tau)
    mean = kappa * theta / sigma**2 * ((b - d) * tau - 2 * np.log((1 - g * decay) / (1 - g)))
    level = (b - d) / sigma**2 * (1 - decay) / (1 - g * decay)
    return np.exp(1j * u * r * tau + mean + level * nu)


def rule(n, low, high):
    z, w = np.polynomial.legendre.leggauss(n)
    return low + (high - low) * (z + 1) / 2, w * (high - low) / 2


def above_strike(x, nu, tau, p, shift=0):
    """Q(X > 0) by Gil-Pelaez, 1/2 + (1/pi) int Re[e^{iux} f(u)/(iu)] du; (n,) arguments.

    With shift 1 under the measure whose numeraire is the asset. Beyond twelve standard deviations
    0 or 1.
    """
    kappa, theta, _, _, r = p
    variance = theta * tau + (nu - theta) * -np.expm1(-kappa * tau) / kappa
    scale = 1 / np.sqrt(variance)
    z = (x + r * tau) * scale
    found, near = np.where(z > 0, 1.0, 0.0), np.abs(z) < 12
    x, nu, tau, scale, *p = (v[near, None] for v in (x, nu, tau, scale, *p))
    total = 0.0
    for low, high, n in ((0, 4, 32), (4, 12, 64), (12, 36, 128), (36, 108, 160)):
        v, w = rule(n, low, high)
        u = v * scale
        f = np.exp(1j * u * x) * characteristic(u - 1j * shift, nu, tau, p) / (1j * u)
        if shift:
            f = f * np.exp(-p[-1] * tau)
        total = total + (f.real * w * scale).sum(-1)
    found[near] = 0.5 + total / np.pi
    return found


def kinked(x, nu, tau, p):
    """u_0 = payoff + r int_0^tau e^{-rs} Q(X_s > 0) ds."""
    interest = 0.0
    for q, w in zip(*rule(10, 0, 1), strict=True):
        s = tau * q**2
        interest = interest + p[-1] * 2 * tau * q * w * np.exp(-p[-1] * s) * above_strike(
            x, nu, s, p
        )
    return np.maximum(np.expm1(x), 0) + interest


def intrinsic(x, nu, tau, p):
    return np.maximum(np.exp(x) - np.exp(-p[-1] * tau), 0)


def test_the_time_value_and_the_side_of_the_anchor():
    held("ansatz.time_value", rmse(truth()[:2400], intrinsic(*uniform())))
    x, nu, tau, (kappa, theta, _, _, r) = points()
    w = theta * tau + (nu - theta) * -np.expm1(-kappa * tau) / kappa
    k = x + r * tau
    d = k / np.sqrt(w) + 0.5 * np.sqrt(w)
    anchor = np.exp(x) * ndtr(d) - np.exp(-r * tau) * ndtr(d - np.sqrt(w))
    near = np.abs(k) < 0.5 * np.sqrt(w)
    held("ansatz.truth_below_anchor", np.mean(truth()[near] < anchor[near]))


def test_the_price_without_the_strike():
    without = kinked(*uniform())
    held("ansatz.asked_to_truth", rmse(without, truth()[:2400]))
    x, nu, tau, p = uniform()
    given = [torch.from_numpy(v) for v in (x, nu, tau, *p)]
    price = weights.load("deepsvm").price(*given[:3], heston.Parameters(*given[3:])).numpy()
    held("ansatz.deepsvm_to_asked", rmse(price, without))
    held("ansatz.deepsvm_to_truth", rmse(price, truth()[:2400]))
    held("ansatz.deepsvm_to_intrinsic", rmse(price, intrinsic(*uniform())))


def test_the_bias_of_the_smoothed_payoff_by_parseval():
    """E[phi_h - phi] = (1/pi) int Re[f(u) int e^{-iuy} (phi_h - phi)(y) dy] du, for 500 points."""
    x, nu, tau, p = uniform(500)
    h, (u, w) = 0.05, rule(2000, 0, 4000)
    transform = 0.0
    for low, high in ((-0.6, 0.0), (0.0, 0.6)):  # beyond, the payoffs agree to 1e-5
        y, w_y = rule(1600, low, high)
        v = np.expm1(y)
        gap = w_y * (v / (1 + np.exp(-v / h)) - np.maximum(v, 0))
        transform = transform + np.exp(-1j * u[:, None] * y) @ gap
    column = [v[:, None] for v in (x, nu, tau, *p)]
    f = np.exp(1j * u * column[0]) * characteristic(u, *column[1:3], column[3:])
    bias = np.exp(-p[-1] * tau) * ((f * transform).real @ w) / np.pi
    held("ansatz.bias_rmse", rmse(bias, 0))


@pytest.mark.parametrize("name", LOADED)
def test_the_loss_on_fresh_points_without_jets(name):
    """Chapter 2's 2^13 residual points, as many at the money, and 2^11 on the boundary."""
    operator = weights.load(name).requires_grad_(False)
    sizes = dict(points=2**13, atm=2**13, boundary=2**11, boundary_second=0, chunk=4096)
    problem = PricingProblem(operator, replace(operator.config, seed=2026, **sizes))
    total = 0.0
    for kind in ("physics", "atm"):
        squares = torch.cat(
            [equation_residual(operator, s) ** 2 for s in problem.sets[kind].chunks(2048)]
        )
        total += float(squares.mean() + 0.1 * (squares**2).mean())
    edge = problem.sets["boundary"]
    target = (edge.x.exp() - torch.exp(-edge.p.r * edge.tau)) * (edge.x > 0)
    total += float((operator.price(edge.x, edge.nu, edge.tau, edge.p) - target).square().mean())
    short = {"deepsvm": "printed"}.get(name, name.removeprefix("paper_"))
    held(f"ansatz.paper.{short}_fresh", total)
    if name == "deepsvm":
        held("ansatz.deepsvm_loss", total)


def equation_residual(operator, s):
    """Eq. 5 written out, on derivatives by nested autograd."""
    p, nu = s.p, s.nu
    u = nested(lambda x, nu, tau: operator.value(x, nu, tau, p), s.x, nu, s.tau)
    second = 0.5 * nu * u.xx + p.rho * p.sigma * nu * u.part("xnu")
    second = second + 0.5 * p.sigma**2 * nu * u.part("nunu")
    first = (p.r - 0.5 * nu) * u.x + p.kappa * (p.theta - nu) * u.nu
    return (u.tau - second - first + p.r * u.value).detach()


def test_residual_and_price_error_pay_what_the_kink_owes():
    """int R psi - int u L* psi = 1/2 int nu psi(0, .), for a network without training."""
    operator = Operator(replace(PRESETS["printed"], seed=3, width=16, latent=16)).double()
    p = heston.Parameters(*torch.tensor([2.0, 0.06, 0.5, -0.7, 0.08]).double())
    (left, a), (right, _) = rule(16, -0.2, 0), rule(16, 0, 0.2)
    (nu, b), (tau, c) = rule(10, 0.1, 0.3), rule(10, 0.3, 0.8)
    x = np.concatenate([left, right])
    x, nu, tau = (torch.from_numpy(v.ravel()) for v in np.meshgrid(x, nu, tau, indexing="ij"))
    weight = np.einsum("i,j,k->ijk", np.concatenate([a, a]), b, c).ravel()

    def bump(z):
        return (1 - z * z) ** 4

    def psi(x, nu, tau):
        return bump(x / 0.2) * bump((nu - 0.2) / 0.1) * bump((tau - 0.55) / 0.25)

    u = nested(lambda *at: operator.value(*at, p), x, nu, tau)
    f = nested(psi, x, nu, tau)
    r = u.tau - (p.r - nu / 2) * u.x - p.rho * p.sigma * nu * u.part("xnu") + p.r * u.value
    r = r - 0.5 * p.sigma**2 * nu * u.part("nunu") - 0.5 * nu * u.xx
    r = r - p.kappa * (p.theta - nu) * u.nu
    star = -f.tau + (p.r - nu / 2) * f.x - p.rho * p.sigma * (f.x + nu * f.part("xnu"))
    star = star - 0.5 * p.sigma**2 * (2 * f.nu + nu * f.part("nunu")) - 0.5 * nu * f.xx
    star = star + p.kappa * ((p.theta - nu) * f.nu - f.value) + p.r * f.value
    paid = float(((r * f.value - u.value * star).detach().numpy() * weight).sum())
    (nu, b), (tau, c) = rule(10, 0.1, 0.3), rule(10, 0.3, 0.8)
    owed = 0.5 * (b * nu * bump((nu - 0.2) / 0.1)).sum() * (c * bump((tau - 0.55) / 0.25)).sum()
    assert paid == pytest.approx(owed, rel=1e-9)
