"""What each ansatz builds in, whatever the network says."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import Jet, ansatz, claims, collocation, heston, jets
from soundgreeks.operators import PRESETS, Operator

F64 = torch.float64


@pytest.fixture
def points():
    domain = heston.TABLE_I | {"tau": (1e-3, 1.0)}
    return collocation.draw(400, domain=domain, generator=torch.Generator().manual_seed(0))


def wild(name, points, claim=claims.CALL):
    """The ansatz around corrections of order one that no network was trained to give."""
    n = Jet(torch.randn(len(points.x), generator=torch.Generator().manual_seed(1), dtype=F64))
    at = ansatz.At(*jets.coordinates(points.x, points.nu, points.tau), points.p, claim=claim)
    return ansatz.ANSATZ[name](n, at)


@pytest.mark.parametrize("name", ["printed", "anchor", "implied", "implied_scaled"])
def test_payoff_at_maturity(name, points):
    points = replace(points, tau=torch.zeros_like(points.tau))
    u = wild(name, points).value
    torch.testing.assert_close(u, torch.expm1(points.x).clamp_min(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["implied", "implied_scaled"])
def test_implied_variance_respects_both_bounds(name, points):
    u, discount = wild(name, points).value, torch.exp(-points.p.r * points.tau)
    assert (u >= (points.x.exp() - discount).clamp_min(0) - 1e-15).all()
    assert (u <= points.x.exp()).all()


@pytest.mark.parametrize("name", ["anchor", "implied"])
def test_a_put_is_the_call_less_the_forward(name, points):
    call, put = wild(name, points), wild(name, points, claims.PUT)
    forward = points.x.exp() - torch.exp(-points.p.r * points.tau)
    torch.testing.assert_close(call.value - put.value, forward, rtol=0, atol=1e-14)
    torch.testing.assert_close(call.x - put.x, points.x.exp(), rtol=0, atol=1e-11)
    points = replace(points, tau=torch.zeros_like(points.tau))
    payoff = torch.expm1(points.x).neg().clamp_min(0)
    torch.testing.assert_close(wild(name, points, claims.PUT).value, payoff, rtol=0, atol=1e-14)


def test_printed_ansatz_stays_above_the_payoff_but_not_above_the_bound(points):
    at = ansatz.At(*jets.coordinates(points.x, points.nu, points.tau), points.p)
    quiet = ansatz.printed(Jet(torch.full_like(points.x, -10)), at).value
    assert (quiet >= torch.expm1(points.x).clamp_min(0)).all()
    bound = (points.x.exp() - torch.exp(-points.p.r * points.tau)).clamp_min(0)
    assert (quiet < bound).any()


def test_printed_ansatz_jumps_by_one_at_the_strike():
    x = torch.tensor([-1e-12, 1e-12], dtype=F64)
    n = Jet(0.3 + 0 * x, x=0.1 + 0 * x)
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    u = ansatz.printed(n, ansatz.At(*jets.coordinates(x, 0 * x + 0.04, 0 * x + 0.5), p))
    torch.testing.assert_close(u.x[1] - u.x[0], torch.tensor(1.0, dtype=F64))


def test_expected_variance_solves_its_equation_and_agrees_with_the_model(points):
    _, nu, tau = jets.coordinates(points.x, points.nu, points.tau)
    w, p = heston.expected_variance(nu, tau, points.p), points.p
    torch.testing.assert_close(w.value, heston.expected_variance(points.nu, points.tau, p))
    torch.testing.assert_close(w.tau, points.nu + p.kappa * (p.theta - points.nu) * w.nu)


def test_rate_enters_through_the_forward_only(points):
    operator = Operator(replace(PRESETS["sound"], dtype="float64"))
    p = points.p
    free = heston.Parameters(p.kappa, p.theta, p.sigma, p.rho, 0 * p.r)
    u = operator.value(points.x, points.nu, points.tau, p)
    shifted = operator.value(points.x + p.r * points.tau, points.nu, points.tau, free)
    torch.testing.assert_close(u, torch.exp(-p.r * points.tau) * shifted, rtol=1e-12, atol=1e-15)


def test_smoothed_payoff_has_the_bias_it_is_known_for():
    width = ansatz.SMOOTHING_WIDTH
    at_the_money = claims.CALL.smoothed_payoff(Jet(torch.zeros(1, dtype=F64), x=1), width)
    assert at_the_money.value.item() == 0
    dip = claims.CALL.smoothed_payoff(torch.tensor([-0.0660], dtype=F64), width)
    assert dip.item() == pytest.approx(-0.2785 * ansatz.SMOOTHING_WIDTH, rel=1e-3)
