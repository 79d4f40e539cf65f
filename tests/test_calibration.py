"""Bounded least squares, residuals and Jacobians from two pricers, what a fit says of itself."""

import numpy as np
import pytest
import torch
from scipy import optimize

from soundgreeks import black_scholes, garch, heston, weights
from soundgreeks.calibration import (
    FormulaSurface,
    Quotes,
    Surface,
    bid_ask,
    calibrate,
    minimise,
    profile,
)
from soundgreeks.models.heston_surface import HestonSurface

TRUE = heston.Parameters(1.7, 0.05, 0.35, -0.65, 0.02)
TAU = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64).repeat_interleave(7)
X = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64).repeat(3) * 0.4 * TAU.sqrt()


def quotes(nu=0.07, p=TRUE, x=X, tau=TAU):
    """What Heston's formula quotes."""
    price = heston.call(x, nu, tau, p) * torch.exp(p.r * tau)
    return Quotes(x, tau, p.r, (black_scholes.implied_variance(price, x + p.r * tau) / tau).sqrt())


@pytest.fixture(scope="module")
def sound():
    return weights.load("sound").double()


# Least squares


def problems(z, rows):
    """The Rosenbrock function as residuals, its valley moved for each problem."""
    centre = 1.0 + 0.5 * rows.double()
    a, b = z.unbind(-1)
    r = torch.stack([10 * (b - a**2 / centre), centre - a], -1)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    first = torch.stack([-20 * a / centre, 10 * one], -1)
    return r, torch.stack([first, torch.stack([-one, zero], -1)], -2)


@pytest.mark.parametrize("high", [10.0, 1.2])
def test_the_same_optimum_as_scipy(high):
    start = torch.tensor([[-1.2, 1.0], [0.0, -1.0], [1.1, 0.5]], dtype=torch.float64)
    found = minimise(problems, start, -2.0, high, calls=200)
    assert found.converged.all()
    for i, z in enumerate(start):
        row = torch.tensor([i])
        there = optimize.least_squares(
            lambda v, row=row: problems(torch.tensor(v)[None], row)[0][0].numpy(),
            z.numpy(), bounds=([-2, -2], [high, high]), xtol=1e-14, ftol=1e-14, gtol=1e-14,
        )  # fmt: skip
        assert found.z[i].tolist() == pytest.approx(there.x.tolist(), abs=1e-6)
        assert found.cost[i].item() < there.cost + 1e-10


def test_a_batch_takes_the_steps_of_each_alone():
    start = torch.tensor([[-1.2, 1.0], [0.0, -1.0], [1.1, 0.5]], dtype=torch.float64)
    together = minimise(problems, start, -2.0, 10.0)
    for i in range(3):
        alone = minimise(lambda z, rows, i=i: problems(z, rows + i), start[i : i + 1], -2.0, 10.0)
        assert torch.allclose(alone.z[0], together.z[i], atol=1e-12)
        assert alone.calls[0] == together.calls[i]


def test_equal_ends_hold_an_unknown_and_few_calls_are_not_enough():
    start = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    held = minimise(problems, start, torch.tensor([0.5, -2.0]), torch.tensor([0.5, 2.0]))
    assert held.z[0].tolist() == pytest.approx([0.5, 0.25]) and held.converged
    short = minimise(problems, start, -2.0, 10.0, calls=3)
    assert not short.converged and short.calls == 3


def test_a_step_into_nowhere_is_not_taken():
    def root(z, rows):  # NaN below zero, where a Gauss-Newton step from far out leads
        return torch.sqrt(z) - 0.1, 0.5 / torch.sqrt(z)[..., None]

    found = minimise(root, torch.tensor([[4.0]], dtype=torch.float64))
    assert found.z.item() == pytest.approx(0.01, rel=1e-6)


# Prices and derivatives


def test_the_formula_of_a_surface_against_the_formula_of_an_option():
    p = heston.sample_parameters(12, generator=torch.Generator().manual_seed(0))
    nu = torch.linspace(0.01, 0.4, 12, dtype=torch.float64)
    surface = HestonSurface(X, TAU, 0.03, 0.3)
    z = torch.stack([nu, *list(p)[:4]], -1).requires_grad_()
    of_row = heston.Parameters(*z[:, 1:, None].unbind(1), 0.03)
    truth = heston.call(X, z[:, :1], TAU, of_row)
    price, derivatives = surface(z.detach())
    assert (price - truth.detach()).abs().max() < 1e-7
    for i in (0, 10, 20):
        (slope,) = torch.autograd.grad(truth[:, i].sum(), z, retain_graph=True)
        assert (derivatives[:, i] - slope).abs().max() < 1e-5
    fine = HestonSurface(X, TAU, 0.03, 0.3, nodes=256)(z.detach())[0]
    assert (price - fine).abs().max() < 1e-7


@pytest.mark.parametrize("kind", ["formula", "operator"])
def test_jacobians_are_slopes(kind, sound):
    made = FormulaSurface(quotes()) if kind == "formula" else Surface(sound.price, heston.MODEL,
                                                                      quotes())  # fmt: skip
    z = torch.tensor([[0.1, 1.5, 0.06, 0.6, -0.5]], dtype=torch.float64)
    _, jacobian = made(z)
    for i in range(5):
        h = 1e-5 * torch.eye(5, dtype=torch.float64)[i]
        slope = (made(z + h)[0] - made(z - h)[0]) / 2e-5
        assert torch.allclose(jacobian[..., i], slope, rtol=1e-4, atol=1e-5)


def test_residuals_are_volatilities():
    surface = FormulaSurface(quotes())
    moved = quotes(nu=0.0702)
    z = surface.pack((torch.tensor([0.0702]),), heston.MODEL.checked(TRUE)[None])
    off = moved.volatility - quotes().volatility
    assert surface(z)[0][0].tolist() == pytest.approx(off.tolist(), rel=2e-2)
    assert torch.allclose(surface.volatilities(z)[0], moved.volatility, atol=1e-9)
    spread = FormulaSurface(moved._replace(half_spread=0.005))
    assert torch.allclose(spread(z)[0], FormulaSurface(moved)(z)[0] / 0.005, atol=1e-9)


# Fits


def test_the_truth_is_found_from_everywhere(sound):
    for surface in (FormulaSurface(quotes()), Surface(sound.price, heston.MODEL, quotes())):
        fit = calibrate(surface, starts=8)
        assert fit.converged.all() and fit.rmse < 2e-5 and not fit.edge.any()
        assert fit.values[0].tolist() == pytest.approx([0.07, 1.7, 0.05, 0.35, -0.65], rel=2e-3)
        assert fit.names == ("nu", "kappa", "theta", "sigma", "rho")
        p = fit.p._replace(r=0.02)
        price = heston.call(X, fit.state[0], TAU, p)
        assert (price - heston.call(X, 0.07, TAU, TRUE)).abs().max() < 3e-6


def test_many_markets_at_once_are_each_alone(sound):
    q = quotes()
    vol = torch.stack([q.volatility, q.volatility + 0.02, q.volatility - 0.01])
    start = (0.05, heston.Parameters(1.0, 0.08, 0.3, -0.5, 0.0))
    many = Quotes(X.expand(3, -1), TAU, 0.02, vol)
    together = calibrate(Surface(sound.price, heston.MODEL, many), start)
    for i in range(3):
        alone = calibrate(Surface(sound.price, heston.MODEL, q._replace(volatility=vol[i])), start)
        assert torch.allclose(alone.z[0], together.z[i], atol=1e-7)
        assert alone.report() == together.report(i)


def test_standard_errors_are_those_of_noise():
    noise = torch.randn(200, len(X), generator=torch.Generator().manual_seed(1)).double()
    q = quotes()
    for half in (None, 0.002):
        vol = q.volatility + 0.002 * noise
        many = Quotes(X.expand(200, -1), TAU, 0.02, vol, half)
        fit = calibrate(FormulaSurface(many), (0.07, TRUE))
        inside = ~fit.edge.any(1)
        truth = torch.tensor([0.07, 1.7, 0.05, 0.35, -0.65], dtype=torch.float64)
        score = ((fit.values - truth) / fit.errors)[inside]
        assert inside.double().mean() > 0.9
        assert score.square().mean(0).sqrt().tolist() == pytest.approx([1] * 5, abs=0.25)


def test_an_optimum_outside_is_reported():
    outside = quotes(p=TRUE._replace(kappa=4.0))
    fit = calibrate(FormulaSurface(outside))
    assert fit.edge[0, 1] and torch.isnan(fit.errors[0, 1]) and fit.values[0, 1] == 3.0
    assert "kappa   3.00000 at the edge" in fit.report() and "outside" in fit.report()
    below = calibrate(FormulaSurface(quotes(p=TRUE._replace(rho=-0.99))))
    assert below.edge[0].tolist() == [False] * 4 + [True]
    assert below.values[0, 4].item() == pytest.approx(-0.95, abs=1e-12)
    feller = calibrate(FormulaSurface(quotes(p=TRUE._replace(sigma=0.55))))
    assert feller.edge[0, 3] and heston.MODEL.closeness(feller.p).item() == pytest.approx(1)


def test_a_fit_on_the_edge_can_start_another():
    """Of many markets whose sigma lies at Feller's edge, the natural units round some outside."""
    nu = torch.linspace(0.02, 0.3, 40, dtype=torch.float64)[:, None]
    steep = TRUE._replace(sigma=1.2)  # beyond the condition
    many = quotes(nu, steep, X.expand(40, -1), TAU.expand(40, -1))
    surface = Surface(heston.call, heston.MODEL, many)
    fit = calibrate(surface, (nu[:, 0], TRUE), starts=1)
    assert fit.edge[:, fit.names.index("sigma")].any()
    again = calibrate(surface, (fit.state, fit.p))
    assert (again.rmse <= fit.rmse * (1 + 1e-6)).all()


def test_the_profile_is_lowest_at_the_fit():
    surface = FormulaSurface(quotes()._replace(half_spread=0.002))
    fit = calibrate(surface)
    sd = fit.errors[0, 1].item()
    cost = profile(surface, fit, "kappa", torch.tensor([1.7 - sd, 1.7, 1.7 + sd]))
    assert cost[1] < 1e-8 and cost[[0, 2]].tolist() == pytest.approx([0.5, 0.5], rel=0.1)


def test_a_model_without_a_formula():
    operator = weights.load("garch").double()
    p = garch.MODEL.checked(garch.Parameters(1.7, 0.05, 0.8, -0.65, 0.02))
    price = operator.price(X, 0.07, TAU, p) * torch.exp(0.02 * TAU)
    vol = (black_scholes.implied_variance(price, X + 0.02 * TAU) / TAU).sqrt()
    fit = calibrate(Surface(operator.price, garch.MODEL, Quotes(X, TAU, 0.02, vol)))
    assert fit.values[0].tolist() == pytest.approx([0.07, 1.7, 0.05, 0.8, -0.65], rel=1e-4)


# Bad input


def test_bad_input_is_one_clear_error():
    q = quotes()
    for bad, words in (
        (q._replace(volatility=-0.1), "volatility must be positive and finite, got -0.1"),
        (q._replace(tau=0.0), "tau must be positive and finite, got 0.0"),
        (q._replace(x=X.new_full((3,), torch.nan), tau=1.0, volatility=0.2), "must be finite"),
        (q._replace(x=9.0), "vega of the quotes must be above 1e-12"),
        (q._replace(x=X[:3]), "shapes do not broadcast"),
    ):
        with pytest.raises(ValueError, match=words):
            FormulaSurface(bad)
    with pytest.raises(ValueError, match="x of the quotes must be the same in all markets"):
        FormulaSurface(q._replace(x=torch.stack([X, X + 0.1])))
    with pytest.raises(ValueError, match="ask must be above the bid"):
        bid_ask(q, torch.tensor([0.18, 0.25]), torch.tensor([0.25, 0.25]))
    surface = FormulaSurface(q)
    with pytest.raises(ValueError, match="start must be within the box, got 9"):
        calibrate(surface, (0.07, TRUE._replace(kappa=9.0)))
    with pytest.raises(ValueError, match="starts must be a positive integer"):
        calibrate(surface, starts=0)
    fit = calibrate(surface)
    with pytest.raises(ValueError, match="name must be one of"):
        profile(surface, fit, "kapa", torch.tensor([1.0]))
    with pytest.raises(ValueError, match="kappa must be within the domain, got 5"):
        profile(surface, fit, "kappa", torch.tensor([5.0]))
    with pytest.raises(ValueError, match="nodes must be at least 8"):
        HestonSurface(X, TAU, 0.0, nodes=4)


def test_numpy_quotes_and_single_precision():
    q = quotes()
    vol = calibrate(FormulaSurface(Quotes(*(np.asarray(v) for v in q[:4])))).rmse
    assert vol.dtype == torch.float64 and vol < 1e-8
