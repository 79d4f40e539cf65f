"""The table of statistics: zero for the truth, right for errors put in on purpose."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import black_scholes, equation, evaluation, heston
from soundgreeks.models.heston import Greeks
from soundgreeks.operators import PRESETS, Operator, PricingProblem

F64 = torch.float64


class Truth:
    """The semi-analytic pricer, with errors of our choice."""

    def __init__(self, price=0.0, wave=0.0):
        self.price_error, self.wave = price, wave

    model = heston.MODEL

    def price(self, x, nu, tau, p):
        return heston.call(x, nu, tau, p) * (1 + self.price_error * p.kappa) + self.price_error

    def greeks(self, x, nu, tau, p):
        price, delta, gamma = heston.price_delta_gamma(x, nu, tau, p)
        zero = torch.zeros_like(price)
        delta = delta + self.wave * torch.sin(50 * x)
        gamma = gamma + 50 * self.wave * torch.cos(50 * x)
        return Greeks(price + self.price_error, delta, gamma, zero, zero)


def test_the_truth_has_no_errors():
    table = evaluation.evaluate(Truth(), seed=3, n=1000)
    for name, row in table.items():
        for statistic, value in row.items():
            if statistic == "points":
                assert value >= 90
            elif "bp" in statistic:
                assert value < 1e-3  # prices to 1e-15 over vegas down to e^-4.5
            else:
                assert abs(value) < 1e-9, (name, statistic)


def test_errors_are_measured():
    data = evaluation.draw(seed=4, n=1000)
    row = evaluation.errors(Truth(price=1e-4), data)["all"]
    assert row["price rmse"] == pytest.approx(1e-4) and row["price worst"] == pytest.approx(1e-4)
    assert row["vol rmse bp"] > 1
    low = evaluation.errors(Truth(price=-0.05), data)["all"]
    assert low["outside bounds"] > 0.1
    shape = evaluation.curves(Truth(wave=0.02), seed=4, n=20).statistics()
    assert shape["worst negative Gamma"] < -0.05 and shape["negative Gammas"] > 0.1
    assert shape["variation of Delta"] > 0.1


def test_no_point_is_left_out():
    """One point that is off by a hundredth: its error is the worst, its share is in the mean."""
    data = evaluation.draw(seed=4, n=200)

    class Off(Truth):
        def greeks(self, x, nu, tau, p):
            found = super().greeks(x, nu, tau, p)
            for field in found[:3]:
                field[7] += 0.01
            return found

    row = evaluation.errors(Off(), data)["all"]
    assert row["points"] == 120
    for greek in ("price", "delta", "gamma"):
        assert row[f"{greek} worst"] == pytest.approx(0.01)
        assert row[f"{greek} rmse"] == pytest.approx(0.01 / 120**0.5)


def test_a_basis_point_is_one():
    data = evaluation.draw(seed=4, n=200)
    k, growth = data.x + data.p.r * data.tau, torch.exp(data.p.r * data.tau)
    w = black_scholes.implied_variance(data.price * growth, k)

    class Wide(Truth):
        def greeks(self, x, nu, tau, p):
            price = black_scholes.call(k, ((w / tau).sqrt() + 1e-4).nan_to_num(1.0) ** 2 * tau)
            return super().greeks(x, nu, tau, p)._replace(price=price / growth)

    for row in evaluation.errors(Wide(), data).values():
        assert row["vol rmse bp"] == pytest.approx(1.0, rel=1e-3)
        assert row["vol worst bp"] == pytest.approx(1.0, rel=1e-2)


def test_sets_are_fresh_by_seed_and_cover_every_region():
    a, b, again = (evaluation.draw(seed, 500) for seed in (1, 2, 1))
    assert torch.equal(a.x, again.x) and torch.equal(a.price, again.price)
    assert not torch.equal(a.x, b.x)
    assert heston.satisfies_feller(a.p).all() and a.tau.min() >= evaluation.TAU_LOW
    assert all(region.sum() >= 50 for region in a.regions().values())
    text = evaluation.format_table(evaluation.evaluate(Truth(), 1, 500))
    assert "near Feller" in text and "worst negative Gamma: 0" in text
    with pytest.raises(ValueError, match="n must be an integer of at least 100"):
        evaluation.draw(0, 5)


def test_a_fresh_loss_is_the_mean_over_points_of_its_own():
    """The physics term by one pass; the points follow from `seed`, not from the operator's own."""
    config = replace(PRESETS["smoke"], atm=0, boundary=0, boundary_second=0)
    losses = []
    for own in (0, 1):
        operator = Operator(replace(config, seed=own)).double()
        operator.load_state_dict(Operator(config).double().state_dict())
        losses.append(evaluation.fresh_loss(operator, points=64, seed=5))
    assert losses[0] == losses[1] != evaluation.fresh_loss(operator, points=64, seed=6)
    at = PricingProblem(operator, replace(config, seed=5, points=64)).sets["physics"]
    assert at.count == 64 and at.p.shape == at.x.shape
    squared = equation.residual(operator.jet(at.x, at.state, at.tau, at.p), at.state, at.p) ** 2
    expected = float((squared + config.lambda_max * squared**2).mean().detach())
    assert losses[0]["physics"] == pytest.approx(expected, rel=1e-12)
