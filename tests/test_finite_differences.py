"""Finite differences: exact where the answer is known, of the order claimed, clear on bad input."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.linalg import expm
from three_halves import MODEL as THREE_HALVES
from three_halves import Parameters as ThreeHalves
from two_factor import MODEL as TWO_FACTOR

from soundgreeks import black_scholes, garch, heston, paths
from soundgreeks.models import claims
from soundgreeks.models import finite_differences as fd

P = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
SMALL = (20, 28, 36)


def heston_options(count, seed):
    """Moneynesses, variances, maturities and parameters of Table I, each (count,)."""
    source = torch.Generator().manual_seed(seed)
    p = heston.sample_parameters(count, generator=source)
    u = torch.rand(3, count, generator=source, dtype=torch.float64)
    return u[0] - 0.5, 0.01 + 0.39 * u[1], 0.05 + 0.95 * u[2], p


def test_heston_in_its_whole_box():
    x, nu, tau, p = heston_options(30, 0)
    exact = torch.stack(heston.price_delta_gamma(x, nu, tau, p))
    found = [fd.price(heston.MODEL, x[i], nu[i], float(tau[i]), p[i]) for i in range(30)]
    values = torch.stack([torch.stack(f) for f in found], 1)[..., 0]
    off, stated = (values[:3] - exact).abs(), values[3:]
    assert (off[0] < 1e-7).all() and (off[1] < 1e-6).all() and (off[2] < 5e-5).all()
    assert (stated.square().mean(1) > off.square().mean(1)).all()  # conservative in the mean
    assert (stated[0] < 1e-6).all() and ((off <= 3 * stated + 1e-9).double().mean(1) > 0.9).all()


def test_errors_fall_with_the_square_of_the_step_and_with_the_fourth_power_when_extrapolated():
    x = torch.linspace(-0.3, 0.3, 13).double()
    exact = torch.stack(heston.price_delta_gamma(x, 0.05, 0.5, P))
    sizes, plain, better = (24, 36, 54), [], []
    for n in sizes:
        found = fd.price(heston.MODEL, x, 0.05, 0.5, P, grids=(2 * n // 3, n))
        better.append((torch.stack(found[:3]) - exact).square().mean(1).log())
        plain.append(torch.stack(found[3:]).square().mean(1).log())  # of the finer grid, nearly
    steps = np.diff(np.log(sizes))[:, None]
    for errors, power, slack in ((plain, 2, 0.4), (better, 4, 0.9)):
        order = -0.5 * np.diff(torch.stack(errors).numpy(), axis=0) / steps
        assert (abs(order - power) < slack).all(), order
    assert (better[-1] < plain[-1] - 2 * math.log(8)).all()


def test_many_options_of_one_maturity_at_once():
    x, nu = torch.tensor([-0.4, -0.1, 0.0, 0.3]).double(), torch.tensor([0.02, 0.04, 0.2, 0.05])
    found = fd.price(heston.MODEL, x, nu, 0.7, P)
    exact = heston.price_delta_gamma(x, nu.double(), 0.7, P)
    for value, true, most in zip(found[:3], exact, (2e-7, 2e-6, 5e-5), strict=True):
        assert value.shape == (4,) and (value - true).abs().max() < most
    assert fd.price(heston.MODEL, x, 0.04, 0.7, P, grids=SMALL).price.shape == (4,)


def test_a_rate_only_discounts_the_forward():
    p = P._replace(r=0.0)
    shifted = fd.price(heston.MODEL, 0.1 + 0.05, 0.04, 1.0, p, grids=SMALL)
    found = fd.price(heston.MODEL, 0.1, 0.04, 1.0, P, grids=SMALL)
    assert float(found.price) == pytest.approx(math.exp(-0.05) * float(shifted.price), abs=1e-14)
    assert float(found.delta) == pytest.approx(float(shifted.delta), abs=1e-13)


def test_without_noise_it_is_black_and_scholes():
    p = P._replace(sigma=1e-3, rho=0.0)
    for module in (heston, garch):
        found = fd.price(module.MODEL, 0.05, 0.09, 0.5, module.Parameters(*p))
        w = heston.expected_variance(0.09, 0.5, p)
        exact = math.exp(-0.025) * black_scholes.call(0.05 + 0.025, w)
        assert float(found.price) == pytest.approx(float(exact), abs=1e-7)


@pytest.mark.parametrize(
    "model, p",
    [
        (garch.MODEL, garch.Parameters(1.5, 0.09, 0.9, -0.8, 0.03)),
        (THREE_HALVES, ThreeHalves(20.0, 0.09, 3.0, -0.6, 0.02)),
    ],
)
def test_models_without_a_formula_agree_with_a_simulation(model, p):
    x = torch.tensor([[-0.15, 0.0, 0.2]]).double()
    found = fd.price(model, x[0], 0.06, 0.6, p)
    source = torch.Generator().manual_seed(0)
    nu = torch.tensor([0.06]).double()
    options = dict(paths=2**13, count=160, generator=source)
    simulated = paths.conditional_call(model, x, nu, 0.6, p, **options)
    for k, steps in enumerate((5e-5, 1e-4, 1e-3)):  # the bias of 160 steps
        assert ((found[k] - simulated[k][0]).abs() < 4 * simulated[3 + k][0] + steps).all()
    assert (found.price_error < 1e-6).all()


def test_zero_variance_is_nothing_special():
    """Without Feller's condition the variance reaches zero, where no condition was set."""
    p = heston.Parameters(1.0, 0.04, 0.4, -0.6, 0.02)
    assert not heston.satisfies_feller(p)
    found = fd.price(heston.MODEL, 0.0, 0.02, 1.0, p, grids=(32, 48, 64))
    exact = heston.price_delta_gamma(0.0, 0.02, 1.0, p)
    assert float((found.price - exact[0]).abs()) < 1e-6


def test_the_coefficients_are_where_they_belong():
    """N of a cubic in k, times ln nu and powers of it, against derivatives by hand."""
    grid = fd.Grid(np.linspace(-1, 1, 401), (np.arange(200) + 0.5) * 0.005, 0.3, 0.3)
    p = heston.MODEL.checked(P)
    n = fd.generator(heston.MODEL, p, grid)
    k, nu = np.meshgrid(grid.k, grid.nu)
    found = (n @ (k**2 * nu**2).ravel()).reshape(k.shape)[20:-20, 20:-20]
    k, nu = k[20:-20, 20:-20], nu[20:-20, 20:-20]
    wanted = nu / 2 * (2 - 2 * k) * nu**2 - 0.7 * 0.3 * nu * 2 * k * 2 * nu
    wanted += 0.5 * 0.09 * nu * k**2 * 2 + 2.0 * (0.04 - nu) * k**2 * 2 * nu
    assert abs(found - wanted).max() < 2e-3 * abs(wanted).max()


def test_the_march_is_the_exponential_of_fifth_order_and_damps():
    a = np.array([[-1.0, 2.0], [-3.0, -2.0]])
    exact, u = expm(a) @ [1.0, 0.5], np.array([1.0, 0.5])
    off = [abs(fd.march(sparse.csc_matrix(a), u, 1.0, n) - exact).max() for n in (4, 8)]
    assert 4.5 < math.log2(off[0] / off[1]) < 6
    assert abs(fd.march(sparse.csc_matrix([[-1e9]]), np.ones(1), 1.0, 1)[0]) < 1e-6


def test_averages_know_the_kink():
    grid = fd.Grid(np.linspace(-1, 1, 9), np.linspace(0.1, 1, 8), 0.3, 0.3)
    found = fd._averages(grid, claims.PUT.payoff)
    fine = np.linspace(-0.125, 0, 20_001)
    there = 0.5 * np.trapezoid(1 - np.exp(0.3 * np.sinh(fine)), fine) / 0.125
    assert found[4] == pytest.approx(there, rel=1e-8)
    assert (found[5:] == 0).all() and found[0] == pytest.approx(1 - math.exp(grid.k[0]), rel=0.01)


def test_extrapolation_is_exact_for_even_powers():
    sizes = (3, 4, 6)
    values = [torch.tensor([2.0, -1.0]).double() + 5 / n**2 - 7 / n**4 for n in sizes]
    best, error = fd.extrapolated(values, sizes)
    assert torch.allclose(best, torch.tensor([2.0, -1.0]).double(), atol=1e-12)
    two = (16 * values[1] - 36 * values[2]) / (16 - 36)
    assert torch.allclose(error, (two - best).abs())


def test_bad_input_is_one_clear_error():
    for bad, words in (
        (dict(tau=0.0), "tau must be positive"),
        (dict(tau=math.inf), "tau must be positive and finite"),
        (dict(state=0.0), "nu must be positive"),
        (dict(x=math.nan), "x must be finite"),
        (dict(grids=(24,)), "grids must be at least two"),
        (dict(grids=(36, 24)), "grids must be at least two"),
        (dict(p=heston.Parameters(2.0, torch.tensor([0.04, 0.05]), 0.3, -0.7, 0.05)), "one param"),
        (dict(p=P._replace(rho=1.5)), "rho must be in"),
        (dict(model=TWO_FACTOR), "of one state and one noise"),
        (dict(x=torch.zeros(2), state=torch.ones(3)), "shapes do not broadcast"),
    ):
        given = dict(model=heston.MODEL, x=0.0, state=0.04, tau=1.0, p=P) | bad
        with pytest.raises(ValueError, match=words):
            fd.price(**given)
