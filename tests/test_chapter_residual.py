"""Numbers of chapter 3 about stored networks and integrals, by code that the chapter does not use.

Prices are QuantLib's, derivatives those of nested automatic differentiation, integrals products of
Gauss-Legendre rules; of the book only points and networks are taken.
"""

import math

import numpy as np
import oracles
import pytest
import torch

from soundgreeks import collocation, evaluation, weights
from soundgreeks.book import reference
from soundgreeks.operators import Config, PricingProblem

ENGINE = "cos"


def agrees(key, value):
    entry = reference.load()[f"residual.{key}"]
    assert entry.evidence == "independent" and entry.kind == "equal"
    assert abs(value - entry.value) <= entry.tolerance, (key, value)


def by_nesting(operator, points):
    """u_tau - N[u] of eq. 5 at every pair of parameters and points, by differentiating twice."""
    m, n = len(points.p.r), len(points.x)
    found = []
    for i in range(m):
        p = points.p[i].map(lambda v: v.expand(n))
        x, nu, tau = (v.clone().requires_grad_() for v in (points.x, points.nu, points.tau))
        u = operator.value(x, nu, tau, p)
        u_x, u_nu, u_tau = torch.autograd.grad(u.sum(), (x, nu, tau), create_graph=True)
        u_xx, u_xnu = torch.autograd.grad(u_x.sum(), (x, nu), retain_graph=True)
        (u_nunu,) = torch.autograd.grad(u_nu.sum(), nu)
        noise = u_xx / 2 + p.rho * p.sigma * u_xnu + p.sigma**2 * u_nunu / 2
        drift = (p.r - nu / 2) * u_x + p.kappa * (p.theta - nu) * u_nu
        found.append((u_tau - nu * noise - drift + p.r * u).detach())
    return torch.stack(found)


@pytest.fixture(scope="module")
def deepsvm():
    return weights.load("deepsvm").double().requires_grad_(False)


def test_the_loss_of_deepsvm_on_points_that_it_has_not_seen(deepsvm):
    config = Config(points=(64, 512), atm=(64, 64), boundary=(64, 64), seed=1_000)
    sets = PricingProblem(deepsvm, config).sets
    for name in ("physics", "atm"):
        squares = by_nesting(deepsvm, sets[name]).numpy() ** 2
        agrees(f"paper_fresh.{name}", np.mean(squares) + 0.1 * np.mean(squares**2))
        if name == "physics":
            agrees("paper_fourth", 0.1 * np.mean(squares**2) / np.mean(squares))
    edge = sets["boundary"]
    x, tau, r = edge.x.numpy(), edge.tau.numpy(), edge.p.r.numpy()
    price = deepsvm.price(edge.x, edge.nu, edge.tau, edge.p).numpy()
    target = np.where(x > 0, np.exp(x) - np.exp(-r * tau), 0.0)
    agrees("paper_fresh.boundary", np.mean((price - target) ** 2))


def test_the_residuals_where_prices_are_judged(deepsvm):
    generator = torch.Generator().manual_seed(2)
    fresh = collocation.draw((64, 512), x_map="uniform", generator=generator)
    for key, operator in (("paper", deepsvm), ("sound", weights.load("sound"))):
        r = by_nesting(operator.requires_grad_(False), fresh)
        agrees(f"{key}_residual", r.square().mean().sqrt().item())


def test_price_errors_against_quantlib(deepsvm):
    test = evaluation.draw(2, 6000)
    true = oracles.quantlib_heston_many(test.x, test.nu, test.tau, test.p, ENGINE)
    assert np.isfinite(true).all()

    def rmse(operator, where):
        price = operator.price(test.x, test.nu, test.tau, test.p).double().numpy()
        return math.sqrt(np.mean((price - true)[where] ** 2))

    agrees("paper_price", rmse(deepsvm, slice(3600)))
    sound, nu = weights.load("sound"), test.nu.numpy()
    agrees("sound_all", rmse(sound, slice(3600)))
    agrees("sound_low", rmse(sound, nu < 0.03))
    agrees("sound_high", rmse(sound, nu > 0.37))


def squared_residual(x, nu, tau):
    """Of the Black-Scholes anchor: the two terms with the volatility of variance."""
    kappa, theta, sigma, rho, r = 1.5, 0.08, 0.4, -0.6, 0.05
    slope = -np.expm1(-kappa * tau) / kappa  # dw/dnu
    w = theta * tau + (nu - theta) * slope
    d = (x + r * tau) / np.sqrt(w) - np.sqrt(w) / 2
    density = np.exp(-(d**2) / 2) / np.sqrt(2 * np.pi)
    f_kw = -d * density / (2 * w)
    d_w = -(d + np.sqrt(w)) / (2 * w)
    f_ww = -density / (4 * w**1.5) - d * d_w * density / (2 * np.sqrt(w))
    noise = rho * sigma * f_kw * slope + sigma**2 / 2 * f_ww * slope**2
    return (np.exp(-r * tau) * nu * noise) ** 2


def test_the_mean_squared_residual_of_the_anchor_by_quadrature():
    def mean(points):
        nodes, weight = np.polynomial.legendre.leggauss(points)
        nodes, weight = (1 + nodes) / 2, weight / 2
        u = np.meshgrid(nodes, nodes, nodes, indexing="ij")
        square = squared_residual(2 * u[0] - 1, 0.01 + 0.39 * u[1], 0.05 + 0.95 * u[2])
        return np.einsum("ijk,i,j,k", square, weight, weight, weight)

    assert abs(mean(120) / mean(90) - 1) < 1e-6
    agrees("mean_square", mean(120))


def test_the_mean_feller_ratio_of_table_i():
    kappa, theta = (np.linspace(a, b, 2001) for a, b in ((0.5, 3.0), (0.01, 0.2)))
    c = 2 * kappa[:, None] * theta
    top = np.minimum(np.sqrt(c), 1.0)  # sigma runs from 0.1 to there
    ratio, volume = (np.trapezoid(np.trapezoid(f)) for f in ((top**3 - 1e-3) / (3 * c), top - 0.1))
    agrees("feller_mean", ratio / volume)
