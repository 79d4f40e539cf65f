"""An American put and a down-and-out call: their anchors, what is built in, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import QuantLib as ql
import torch

from soundgreeks import Jet, claims, heston, weights
from soundgreeks.book import runner
from soundgreeks.models import american, barrier
from soundgreeks.operators import PRESETS, Operator, PricingProblem
from soundgreeks.operators.collocation import Points

F64 = torch.float64
R, VOL, DAYS = 0.06, 0.25, 200
TAU = DAYS / 365
X = torch.linspace(-0.6, 0.4, 21, dtype=F64)
P = barrier.Parameters(2.0, 0.06, 0.3, -0.7, 0.85, 0.06)


def tensor(v):
    return torch.as_tensor(v, dtype=F64)


def american_jet(x, y, tau, r):
    t = Jet(tensor(tau), tau=1)
    return american.PUT.anchor(Jet(x, x=1) + t * tensor(r), Jet(y, nu=1), t, tensor(r))


def black_scholes(x: float):
    """QuantLib's process with the volatility of these tests, and the day of maturity."""
    today, year = ql.Date(2, 1, 2020), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    rate, none = (ql.YieldTermStructureHandle(ql.FlatForward(today, v, year)) for v in (R, 0.0))
    vol = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), VOL, year))
    spot = ql.QuoteHandle(ql.SimpleQuote(math.exp(x)))
    return ql.BlackScholesMertonProcess(spot, none, rate, vol), today + DAYS


def untrained(name):
    config = replace(PRESETS[name], width=8, hidden=2, points=64, dtype="float64")
    operator = Operator(config)
    with torch.no_grad():  # far from the anchor
        for w in operator.parameters():
            w.mul_(3)
    return operator


def test_the_american_anchor_is_barone_adesi_and_whaleys():
    ours = american_jet(X, torch.full_like(X, VOL**2 * TAU).log(), TAU, R).value
    for x, value in zip(X.tolist(), ours.tolist(), strict=True):
        process, end = black_scholes(x)
        put = ql.PlainVanillaPayoff(ql.Option.Put, 1.0)
        option = ql.VanillaOption(put, ql.AmericanExercise(end - DAYS, end))
        option.setPricingEngine(ql.BaroneAdesiWhaleyApproximationEngine(process))
        assert value == pytest.approx(option.NPV(), abs=2e-6)


def test_the_american_anchors_derivatives():
    y, h = torch.full_like(X, math.log(0.05)), 1e-4

    def at(i=0, j=0, k=0):
        return american_jet(X + i * h, y + j * h, TAU + k * h, R).value

    u = american_jet(X, y, TAU, R)
    close = dict(atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(u.x, (at(1) - at(-1)) / (2 * h), **close)
    torch.testing.assert_close(u.nu, (at(0, 1) - at(0, -1)) / (2 * h), **close)
    torch.testing.assert_close(u.tau, (at(0, 0, 1) - at(0, 0, -1)) / (2 * h), **close)
    torch.testing.assert_close(u.xx, (at(1) - 2 * at() + at(-1)) / h**2, **close)
    torch.testing.assert_close(u.nunu, (at(0, 1) - 2 * at() + at(0, -1)) / h**2, **close)
    cross = at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)
    torch.testing.assert_close(u.xnu, cross / (4 * h * h), **close)


def test_the_weights_see_every_channel_of_the_american_anchor():
    """The gradient in y, where the weights enter, of each derivative."""
    y, h = torch.full_like(X, math.log(0.05)).requires_grad_(), 1e-5
    for name in ("x", "nu", "tau", "xx", "xnu", "nunu"):
        (found,) = torch.autograd.grad(getattr(american_jet(X, y, TAU, R), name).sum(), y)
        up, down = (getattr(american_jet(X, y.detach() + e, TAU, R), name) for e in (h, -h))
        torch.testing.assert_close(found, (up - down) / (2 * h), atol=1e-6, rtol=1e-5)


def test_a_put_without_interest_is_european():
    y = torch.full_like(X, math.log(0.05))
    u = american_jet(X, y, TAU, 0.0).value
    european = claims.PUT.anchor(Jet(X), Jet(y), Jet(tensor(TAU)), tensor(0.0))
    torch.testing.assert_close(u, european.value, atol=1e-7, rtol=0)


def test_an_american_put_is_never_below_its_payoff_and_pastes_smoothly():
    put = untrained("american_put")
    x = torch.linspace(-1.5, 0.5, 20_001, dtype=F64)
    found = put.greeks(x, 0.06, 0.7, heston.Parameters(2.0, 0.06, 0.3, -0.7, 0.06))
    payoff = (-torch.expm1(x)).clamp_min(0)
    assert (found.price - payoff).min() > -1e-12
    stopped = found.price <= payoff
    assert 0.05 < stopped.double().mean() < 0.7
    jump = found.delta.diff().abs().max()  # over 1e-4 in x: no kink
    assert jump < 2e-3
    assert found.gamma.diff().abs().max() > 0.1  # but Gamma jumps


def test_the_reflection_is_the_barrier_formula():
    y, t, r = torch.full_like(X, VOL**2 * TAU).log(), Jet(tensor(TAU)), tensor(R)
    claim = barrier.DownAndOut(tensor(0.85))
    ours = claim.anchor(Jet(X) + t * r, Jet(y), t, r).value
    for x, value in zip(X.tolist(), ours.tolist(), strict=True):
        if math.exp(x) <= 0.85:
            assert value == 0
            continue
        process, end = black_scholes(x)
        call = ql.PlainVanillaPayoff(ql.Option.Call, 1.0)
        terms = ql.Barrier.DownOut, 0.85, 0.0, call, ql.EuropeanExercise(end)
        option = ql.BarrierOption(*terms)
        option.setPricingEngine(ql.AnalyticBarrierEngine(process))
        assert value == pytest.approx(option.NPV(), abs=1e-12)


def test_a_barrier_price_vanishes_whatever_the_weights():
    call = untrained("down_and_out")
    level = torch.tensor([0.72, 0.85, 0.95], dtype=F64)
    p = P._replace(level=level)
    assert call.price(level.log() + 1e-12, 0.06, 0.7, p).abs().max() < 1e-10
    below = call.greeks(level.log() - 0.1, 0.06, 0.7, p)
    assert all((v == 0).all() for v in below[:3])
    assert (call.price(level.log() + 0.1, 0.06, 0.7, p) != 0).all()


def test_points_are_where_the_equation_holds():
    points = PricingProblem(untrained("down_and_out")).sets["physics"]
    assert (points.x >= points.p.level.log() - 1e-12).all() and points.p.level.min() >= 0.7
    problem = PricingProblem(untrained("american_put"))
    assert (problem.residual(problem.sets["physics"]) == 0).double().mean() < 0.4


def test_rounding_is_no_reason_to_wait():
    """In single precision a price is above the payoff that it equals, or below, by its last bit."""
    put = untrained("american_put").float()
    x, nu, tau = torch.linspace(-1, -0.6, 1000), torch.full((1000,), 0.04), torch.rand(1000)
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.06).map(lambda v: torch.full((1000,), v))
    assert (PricingProblem(put).residual(Points(x, nu, tau, p)) == 0).all()


def test_the_loss_has_a_gradient():
    for name in ("american_put", "down_and_out"):
        problem = PricingProblem(untrained(name))
        loss = sum(v for part in problem.parts() for v in part.values())
        gradients = torch.autograd.grad(loss, list(problem.operator.parameters()))
        assert all(torch.isfinite(g).all() for g in gradients) and loss.detach() > 0


@pytest.mark.parametrize("name", ["american_put", "down_and_out"])
def test_an_error_from_european_paths_is_refused(name):
    operator = untrained(name)
    p = P if name == "down_and_out" else heston.Parameters(2.0, 0.06, 0.3, -0.7, 0.06)
    with pytest.raises(ValueError, match=f"claim must be European, got '{name}'"):
        operator.price(0.0, 0.06, 0.7, p, with_error=True)


@pytest.mark.parametrize("name, kind", [("american_put", "american"), ("down_and_out", "barrier")])
def test_what_is_shipped_is_as_good_as_the_chapter_says(name, kind):
    """Against QuantLib's finite differences, stored by benchmarks/other_claims.py."""
    path = runner.find_root() / "book" / "data" / "other_claims.json"
    table = json.loads(path.read_text())
    inputs = {k: tensor(v) for k, v in table["inputs"].items()}
    operator = weights.load(name).double()
    p = operator.model.Parameters(*(inputs[k] for k in operator.model.Parameters._fields))
    x = inputs["x_put" if kind == "american" else "x_barrier"]
    found = operator.greeks(x, inputs["nu"], inputs["days"] / 365, p)
    price, delta, _ = (found[j] - tensor(table["values"][kind])[:, j] for j in range(3))
    assert price.square().mean().sqrt() < 1e-4 and price.abs().max() < 1e-3
    assert delta.square().mean().sqrt() < 1e-3


def test_the_american_put_has_no_islands():
    """Deep in the money it stops, at all maturities and variances: Delta lies in [-1, 0]."""
    put, p = weights.load("american_put"), heston.Parameters(3.0, 0.06, 0.55, -0.2, 0.06)
    x, tau = torch.linspace(-0.9, 1.0, 200)[:, None, None], torch.tensor([0.02, 0.1, 0.5, 1.0])
    nu = torch.tensor([0.01, 0.05, 0.2, 0.4])[:, None]
    delta = put.greeks(x, nu, tau, p).delta
    assert delta.min() > -1.01 and delta.max() < 0.01


def test_a_level_is_in_its_range():
    with pytest.raises(ValueError, match="level must be in"):
        barrier.MODEL.checked(P._replace(level=1.2))
