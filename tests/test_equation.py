"""The pricing equation: zero on the truth; by jets, bilinear form and nested autograd alike."""

from dataclasses import replace

import pytest
import three_halves
import torch
import two_factor
from test_jets import nested

from soundgreeks import Jet, claims, collocation, equation, garch, heston
from soundgreeks.operators import PRESETS, Operator

F64 = torch.float64

MODELS = [heston.MODEL, garch.MODEL, three_halves.MODEL, two_factor.MODEL]


def draw(size, seed=0, model=heston.MODEL):
    generator = torch.Generator().manual_seed(seed)
    domain = model.domain | {"tau": (0.01, 1.0)}
    return collocation.draw(size, model=model, domain=domain, generator=generator)


def operator_for(model=heston.MODEL, **settings):
    config = dict(model=model.name, domain=None, dtype="float64") | settings
    return Operator(replace(PRESETS["smoke"], **config))


def test_the_true_price_solves_the_equation():
    points = draw(200)
    u = heston.derivatives(points.x, points.nu, points.tau, points.p).jet()
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
    u = Jet(inside * (e - discount), x=inside * e, tau=inside * points.p.r * discount,
            xx=inside * e)  # fmt: skip
    assert equation.residual(u, points.nu, points.p).abs().max() < 1e-14


def by_definition(model, operator, points):
    """u_tau - N[u] from the text of `models.model`, every derivative by nested autograd."""
    leaves = [v.clone().requires_grad_() for v in (points.x, *points.state, points.tau)]
    x, *state, tau = leaves
    p, names = points.p, list(model.noises)
    u = operator.value(x, tuple(state), tau, p)

    def d(a):
        return torch.autograd.grad(a.sum(), leaves, create_graph=True, materialize_grads=True)

    def along(gradient, noise):
        at = dict(zip(model.states, gradient[1:], strict=False))
        return sum(weight * at[s] for s, weight in model.noises[noise].items())

    def total(terms):
        return sum(f * g for f, g in terms)

    first = d(u)
    s2, c = model.variance(p, *state), model.covariances(p, *state)
    n = (p.r - s2 / 2) * first[0] + s2 / 2 * d(first[0])[0] - p.r * u
    for i, a in enumerate(names):
        slope = along(first, a)
        n = n + total(c["x", a]) * d(slope)[0]
        for b in names[i:]:
            n = n + total(c[a, b]) * along(d(slope), b) * (0.5 if a == b else 1.0)
    for name, terms in model.drift(p, *state).items():
        n = n + total(terms) * first[1 + model.states.index(name)]
    return (first[-1] - n).detach()


@pytest.mark.parametrize("network", ["deeponet", "similarity"])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_model_is_its_coefficients(model, network):
    """All channels, and six of them, against the equation written out; six for two factors too."""
    operator = operator_for(model, network=network, ansatz="implied")
    points = draw(50, seed=3, model=model)
    x, state, tau, p = points.x, points.state, points.tau, points.p
    expected = by_definition(model, operator, points)
    full = equation.residual(operator.jet(x, state, tau, p), state, p, model)
    torch.testing.assert_close(full, expected, rtol=0, atol=1e-9)
    u = operator.on(equation.coordinates(x, state, tau, model, p), p)
    assert len(u.parts) == 5  # and the value: no channel in tau, none for a factor
    short = equation.short_residual(u, state, p, model)
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-9)


def test_heston_is_equation_5():
    points = draw(50, seed=3)
    operator = operator_for()
    x, nu, tau, p = points.x, points.nu, points.tau, points.p
    u = nested(lambda *a: operator.value(*a, p), x, nu, tau)
    expected = u.tau - (
        (p.r - nu / 2) * u.x + nu / 2 * u.xx + p.rho * p.sigma * nu * u.xnu
        + p.sigma**2 * nu / 2 * u.nunu + p.kappa * (p.theta - nu) * u.nu - p.r * u.value
    )  # fmt: skip
    found = equation.residual(operator.jet(x, nu, tau, p), nu, p)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", MODELS[:3], ids=lambda m: m.name)
@pytest.mark.parametrize("ansatz", ["printed", "implied"])
@pytest.mark.parametrize("nu", [None, 1e-6, 0.0])
def test_six_channels_do(model, ansatz, nu):
    """On a product of parameters and points, with the gradient, to the edge nu = 0."""
    operator = operator_for(model, ansatz=ansatz)
    points = draw((6, 40), seed=5, model=model)
    x, tau, p = points.x, points.tau, points.p
    nu = points.nu if nu is None else torch.full_like(x, nu)

    def gradient(r):
        return torch.autograd.grad((r * r).sum(), list(operator.parameters()))

    seven = equation.residual(operator.jet(x, nu, tau, p), nu, p, model)
    u = operator.on(equation.coordinates(x, nu, tau, model), p)
    assert "tau" not in u.parts
    six = equation.short_residual(u, nu, p, model)
    torch.testing.assert_close(six, seven, rtol=0, atol=1e-10)
    for a, b in zip(gradient(six), gradient(seven), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("model", MODELS[:3], ids=lambda m: m.name)
@pytest.mark.parametrize("claim", [claims.CALL, claims.PUT], ids=lambda c: c.name)
def test_bilinear_form_equals_jets(model, claim):
    operator = operator_for(model, ansatz="anchor", claim=claim.name)
    points = draw((6, 40), seed=4, model=model)
    x, nu, tau, p = points.x, points.nu, points.tau, points.p

    def gradient(r):
        return torch.autograd.grad((r * r).sum(), list(operator.parameters()))

    by_jets = equation.residual(operator.jet(x, nu, tau, p), nu, p, model)
    bilinear = equation.bilinear_residual(operator.network, x, nu, tau, p, model=model, claim=claim)
    torch.testing.assert_close(bilinear, by_jets, rtol=0, atol=1e-10)
    for a, b in zip(gradient(bilinear), gradient(by_jets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_losses():
    r = torch.tensor([1.0, -2.0])
    assert equation.physics_loss(r, 0.1).item() == pytest.approx((1 + 4) / 2 + 0.1 * (1 + 16) / 2)
    few = torch.tensor([1e-4, -1e-4, 1e3], dtype=F64, requires_grad=True)
    (pull,) = torch.autograd.grad(equation.physics_loss(few, 0.0, robust=1e-2), few)
    assert pull[0].item() == pytest.approx(2e-4 / 3, rel=1e-3)  # small ones as in a mean square
    assert pull[2].item() == pytest.approx(2 * 1e-2 / 3, rel=1e-3)  # 2 c
    x, tau = torch.tensor([-2.0, 2.0], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
    exact = torch.tensor([0.0, float(torch.exp(x[1]) - torch.exp(-0.04 * tau[1]))], dtype=F64)
    rate = torch.tensor(0.04, dtype=F64)
    assert equation.boundary_loss(exact, x, tau, rate).item() == 0
    assert equation.boundary_loss(exact + 0.1, x, tau, rate).item() == pytest.approx(0.01)
