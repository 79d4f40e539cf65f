"""Lifted rough Heston: the lift against published prices, the model against its transform."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from soundgreeks import black_scholes, calibration, heston, lifted_heston, paths, weights
from soundgreeks.models import lifted_heston_integral, rough_kernel
from soundgreeks.operators import PRESETS, Operator, correction

F64 = torch.float64
MODEL, LIFT = lifted_heston.MODEL, lifted_heston.LIFT
GIVEN = lifted_heston.Parameters(0.3, 0.04, 0.4, -0.7, 0.03)
P = MODEL.checked(GIVEN)
STATE = torch.tensor([0.09, 0.01, -0.01], dtype=F64)
K = torch.tensor([75.0, 100.0, 130.0], dtype=F64)
PUBLISHED = {  # of QuantLib's test suite, S = 100, V0 = theta
    0.25: (25.762400, 3.793313, 0.001586),
    1.0: (28.394103, 8.336634, 0.202295),
    2.0: (31.520600, 12.722717, 1.285820),
}


def off(lift):
    """The worst distance from the published prices, in units of strike."""
    tau = torch.tensor(list(PUBLISHED), dtype=F64)[:, None]
    found = lifted_heston_integral.price((100 / K).log(), 0.04, tau, GIVEN, lift, steps=(50, 100))
    return float((found.price - torch.tensor(list(PUBLISHED.values()), dtype=F64) / K).abs().max())


def test_the_lift_is_the_best_one_and_prices_as_published():
    found = rough_kernel.lift(3)
    assert np.allclose(found, LIFT, rtol=1e-5)
    assert off(LIFT) < 1e-4 and off(rough_kernel.lift(4)) < 2e-5
    assert off(rough_kernel.lift(2)) > 5e-4
    t = np.geomspace(0.02, 2, 50)
    worst = [
        abs(rough_kernel.integrated(lift, t) / rough_kernel.integrated(None, t) - 1).max()
        for lift in (rough_kernel.lift(2), found, rough_kernel.lift(4))
    ]
    assert worst[0] > 0.1 and worst[1] < 0.03 and worst[2] < 0.005
    with pytest.raises(ValueError, match="factors must be from 2 to 6, got 1"):
        rough_kernel.lift(1)


def test_a_kernel_without_memory_is_heston():
    """Also the transform of any lift: one factor, and three of one speed, are the same model."""
    p, x = heston.Parameters(2.0, 0.04, 0.5, -0.7, 0.05), torch.tensor([-0.3, 0.1], dtype=F64)
    true = heston.price_delta_gamma(x, 0.06, 0.7, p)
    for lift in (rough_kernel.Lift((0.0,), (1.0,)), rough_kernel.Lift((0.0,) * 3, (0.5, 0.3, 0.2))):
        found = lifted_heston_integral.price(x, 0.06, 0.7, lifted_heston.Parameters(*p), lift)
        for a, b in zip(found, true, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_modes_are_those_of_the_drift():
    """Forward variances by the exponential of the drift's own matrix."""

    def drift(y):
        terms = MODEL.drift(P, *y)
        return torch.stack([sum(f * g for f, g in terms[n]) + 0 * y[0] for n in MODEL.states])

    matrix = torch.autograd.functional.jacobian(drift, STATE)
    rest = torch.linalg.solve(matrix, -drift(torch.zeros(3, dtype=F64)))
    tau = torch.tensor(0.4, dtype=F64)
    after = rest + torch.linalg.matrix_exp(matrix * tau) @ (STATE - rest)
    moved, w = MODEL._drift(P, MODEL.modes(P), tau, *STATE)
    torch.testing.assert_close(torch.stack(moved), after)
    change = torch.linalg.solve(matrix, after - STATE) + rest * tau
    torch.testing.assert_close(w, change[0])
    torch.testing.assert_close(MODEL.expected_variance(P, tau, *STATE), change[0])
    kick = torch.tensor([sum(LIFT.weights), 1.0, 1.0], dtype=F64)
    m = MODEL.modes(P)
    response = (torch.linalg.matrix_exp(matrix * tau) @ kick)[0]
    torch.testing.assert_close((m.kick * torch.exp(-m.speed * tau)).sum(), response)


def test_moments_are_the_integrals():
    m = MODEL.modes(P)
    mu, g = m.speed.numpy(), m.kick.numpy()
    a = np.array([float(v) for v in MODEL.deviations(P, m, *STATE)])

    def xi(s):
        return 0.04 + (a * np.exp(-mu * s)).sum()

    def response(t):
        return (g * -np.expm1(-mu * t) / mu).sum()

    def before(s):
        return quad(lambda t: xi(t) * (g * np.exp(-mu * (s - t))).sum(), 0, s)[0]

    w = quad(xi, 0, 1)[0]
    first = quad(lambda s: xi(s) * response(1 - s), 0, 1)[0] * -0.28 / w**1.5
    mixed = quad(lambda s: response(1 - s) * before(s), 0, 1)[0] * 0.28**2 / w**2
    spread = quad(lambda s: xi(s) * response(1 - s) ** 2, 0, 1)[0] * 0.16 / w**2
    y = torch.tensor(w, dtype=F64).log()
    found = MODEL.smile_moments(P, torch.ones((), dtype=F64), y, *STATE)
    less = 1 / (1 + spread / 2)
    truth = first * less**0.5, mixed * less, spread * less
    assert [float(v) for v in found] == pytest.approx(truth, rel=2e-3)


def test_paths_meet_the_transform():
    """Price, Delta and Gamma within four standard errors; another model is seen."""
    x = torch.tensor([[-0.2, 0.0, 0.3]], dtype=F64)
    options = dict(paths=2**14, count=200, generator=torch.Generator().manual_seed(1))
    nu = torch.tensor([0.05], dtype=F64)
    found = paths.conditional_call(MODEL, x, nu, 0.5, GIVEN, **options)
    true = lifted_heston_integral.price(x[0], 0.05, 0.5, GIVEN)
    for a, b, error in zip(found[:3], true, found[3:], strict=True):
        assert ((a[0] - b).abs() < 4 * error[0]).all()
    other = lifted_heston_integral.price(x[0], 0.05, 0.5, GIVEN, rough_kernel.lift(3, 0.3))
    assert ((found.price[0] - other.price).abs() > 6 * found.price_error[0]).any()


def test_a_kick_keeps_mean_and_variance():
    z = torch.randn(2**20, dtype=F64, generator=torch.Generator().manual_seed(0))
    for spread in (0.01, 0.05, 0.2):  # of one regime and the other
        after = lifted_heston._kicked(torch.tensor(0.04, dtype=F64), torch.tensor(spread), z)
        assert (after >= 0).all()
        sd = (0.04 * spread) ** 0.5
        assert abs(after.mean() - 0.04) < 4 * sd / 2**10
        assert abs(after.std() / sd - 1) < 0.02


def test_the_residual_knows_the_error():
    """Equation, paths and ansatz agree: an untrained operator, corrected, has the true price."""
    torch.manual_seed(0)
    untrained = Operator(replace(PRESETS["rough_heston"], width=8, hidden=2)).double()
    x = torch.tensor([-0.1, 0.0, 0.2], dtype=F64)
    at = x, MODEL.whole(torch.full((3,), 0.05, dtype=F64)), torch.full((3,), 0.5, dtype=F64)
    state = tuple(torch.as_tensor(v, dtype=F64).expand(3) for v in at[1])
    p = P[None].map(lambda v: v.expand(3))
    found = correction.estimate(untrained, x, state, at[2], p, paths=2**12)
    wrong = untrained.price(x, 0.05, 0.5, GIVEN)
    true = lifted_heston_integral.price(x, 0.05, 0.5, GIVEN).price
    assert (wrong - true).abs().min() > 1e-3
    assert (wrong - found.value - true).abs().max() < 0.1 * (wrong - true).abs().max()
    assert ((wrong - found.value - true).abs() < 4 * found.value_error + 1e-4).all()


def test_hidden_factors_start_at_zero():
    operator = weights.load("rough_heston")
    one = operator.price(0.1, 0.04, 1.0, GIVEN)
    assert torch.equal(one, operator.price(0.1, (0.04, 0.0, 0.0), 1.0, GIVEN))
    assert (one - operator.price(0.1, (0.04, -0.01, -0.003), 1.0, GIVEN)).abs() > 1e-4
    assert operator.price(0.1, (0.04, 0.02, 0.01), 1.0, GIVEN).isfinite()  # no path leads there
    assert len(operator.greeks(0.1, 0.04, 1.0, GIVEN).vega) == 3


def test_the_network_meets_the_transform_and_the_published_prices():
    operator = weights.load("rough_heston")
    source = torch.Generator().manual_seed(3)
    p, u = MODEL.sample(100, generator=source), torch.rand(3, 100, generator=source, dtype=F64)
    x, nu, tau = -1 + 2 * u[0], 0.01 + 0.39 * u[1], 0.02 + 1.98 * u[2]
    away = operator.price(x, nu, tau, p) - lifted_heston_integral.price(x, nu, tau, p).price
    assert away.square().mean().sqrt() < 1e-4
    for tau, prices in PUBLISHED.items():
        found = operator.price((100 / K).log(), 0.04, tau, GIVEN)
        assert (found - torch.tensor(prices, dtype=F64) / K).abs().max() < 5e-4


def test_the_pricing_time_has_one_state_to_calibrate():
    operator, p = weights.load("rough_heston"), MODEL.checked(GIVEN._replace(r=0.0))
    x = torch.linspace(-0.2, 0.2, 7, dtype=F64).repeat(2)
    tau = torch.tensor([0.2, 1.0], dtype=F64).repeat_interleave(7)
    vol = (black_scholes.implied_variance(operator.price(x, 0.05, tau, p), x) / tau).sqrt()
    quotes = calibration.Quotes(x, tau, 0.0, vol)
    surface = calibration.Surface(operator.price, lifted_heston.TODAY, quotes)
    assert surface.names == ("nu", "kappa", "theta", "sigma", "rho")
    fit = calibration.calibrate(surface, starts=4)
    assert 1e4 * fit.rmse[0] < 1
