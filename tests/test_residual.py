"""The pricing equation: zero on the truth; by jets, bilinear form and nested autograd alike."""

from dataclasses import replace

import pytest
import torch
from test_jets import nested

from soundgreeks import collocation, equation, heston
from soundgreeks.arithmetic.jets import Jet
from soundgreeks.operators import PRESETS, Operator
from soundgreeks.operators.equation import GARCH, HESTON, StochasticVolatility

F64 = torch.float64

THREE_HALVES = StochasticVolatility(
    variance=lambda nu: nu,
    covariance=lambda nu, p: [(p.rho * p.sigma, nu**2)],
    variance_of_variance=lambda nu, p: [(p.sigma**2, nu**3)],
    drift=lambda nu, p: [(p.kappa * p.theta, nu), (-p.kappa, nu**2)],
)


def draw(size, seed=0, **domain):
    generator = torch.Generator().manual_seed(seed)
    return collocation.draw(size, tau=(0.01, 1.0), generator=generator, **domain)


def test_the_true_price_solves_the_equation():
    points = draw(200)
    u = Jet(*heston.derivatives(points.x, points.nu, points.tau, points.p))
    assert equation.residual(u, points.nu, points.p).abs().max() < 1e-9


def test_black_scholes_solves_it_without_volatility_of_variance():
    points = draw(200, seed=1)
    p = points.p
    p = heston.Parameters(p.kappa, p.theta, torch.zeros_like(p.sigma), p.rho, p.r)
    assert equation.anchor_residual(points.x, points.nu, points.tau, p).abs().max() < 1e-11


def test_intrinsic_value_solves_the_equation_off_its_kink():
    """The spurious minimiser: no pointwise residual tells it from a price."""
    points = draw(200, seed=2)
    discount, e = torch.exp(-points.p.r * points.tau), points.x.exp()
    inside = (e > discount).to(F64)
    zero = 0 * e
    u = Jet(
        inside * (e - discount), inside * e, zero, inside * points.p.r * discount, inside * e,
        zero, zero,
    )  # fmt: skip
    assert equation.residual(u, points.nu, points.p).abs().max() < 1e-14


@pytest.mark.parametrize("model", [HESTON, GARCH, THREE_HALVES])
def test_another_model_is_another_set_of_coefficients(model):
    """Against the equation written with drift, volatility and correlation, by nested autograd."""
    points = draw(50, seed=3)
    operator = Operator(replace(PRESETS["smoke"], dtype="float64"))
    x, nu, tau, p = points.x, points.nu, points.tau, points.p
    drift, vol = {
        id(HESTON): (p.kappa * (p.theta - nu), p.sigma * nu.sqrt()),
        id(GARCH): (p.kappa * (p.theta - nu), p.sigma * nu),
        id(THREE_HALVES): (p.kappa * nu * (p.theta - nu), p.sigma * nu**1.5),
    }[id(model)]
    u = nested(lambda *a: operator.value(*a, p), x, nu, tau)
    expected = u.tau - (
        (p.r - nu / 2) * u.x + nu / 2 * u.xx + p.rho * nu.sqrt() * vol * u.xnu
        + vol**2 / 2 * u.nunu + drift * u.nu - p.r * u.value
    )  # fmt: skip
    found = equation.residual(operator.jet(x, nu, tau, p), nu, p, model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", [HESTON, GARCH, THREE_HALVES])
@pytest.mark.parametrize("ansatz", ["printed", "implied"])
@pytest.mark.parametrize("nu", [None, 1e-6, 0.0])
def test_six_channels_do(model, ansatz, nu):
    """On a product of parameters and points, with the gradient, to the edge nu = 0."""
    operator = Operator(replace(PRESETS["smoke"], ansatz=ansatz, dtype="float64"))
    points = draw((6, 40), seed=5)
    x, tau, p = points.x, points.tau, points.p
    nu = points.nu if nu is None else torch.full_like(x, nu)

    def gradient(r):
        return torch.autograd.grad((r * r).sum(), list(operator.parameters()))

    seven = equation.residual(operator.jet(x, nu, tau, p), nu, p, model)
    u = operator.on(equation.coordinates(x, nu, tau, model), p)
    assert u.tau is 0  # noqa: F632  (the integer stands for a channel that is absent)
    six = equation.short_residual(u, nu, p, model)
    torch.testing.assert_close(six, seven, rtol=0, atol=1e-10)
    for a, b in zip(gradient(six), gradient(seven), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("model", [HESTON, GARCH, THREE_HALVES])
@pytest.mark.parametrize("features", ["plain", "scales"])
def test_bilinear_form_equals_jets(model, features):
    config = replace(PRESETS["smoke"], ansatz="anchor", features=features, dtype="float64")
    operator = Operator(config)
    points = draw((6, 40), seed=4)
    x, nu, tau, p = points.x, points.nu, points.tau, points.p

    def gradient(r):
        return torch.autograd.grad((r * r).sum(), list(operator.parameters()))

    by_jets = equation.residual(operator.jet(x, nu, tau, p), nu, p, model)
    bilinear = equation.bilinear_residual(
        operator.network, x, nu, tau, p, features=operator.features, model=model
    )
    torch.testing.assert_close(bilinear, by_jets, rtol=0, atol=1e-10)
    for a, b in zip(gradient(bilinear), gradient(by_jets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_losses():
    r = torch.tensor([1.0, -2.0])
    assert equation.physics_loss(r, 0.1).item() == pytest.approx((1 + 4) / 2 + 0.1 * (1 + 16) / 2)
    x, tau = torch.tensor([-2.0, 2.0], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
    exact = torch.tensor([0.0, float(torch.exp(x[1]) - torch.exp(-0.04 * tau[1]))], dtype=F64)
    rate = torch.tensor(0.04, dtype=F64)
    assert equation.boundary_loss(exact, x, tau, rate).item() == 0
    assert equation.boundary_loss(exact + 0.1, x, tau, rate).item() == pytest.approx(0.01)
