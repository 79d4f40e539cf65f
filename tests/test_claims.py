"""Claims: a put is there; a barrier and early exercise are added here, as one class each."""

from dataclasses import replace

import pytest
import torch

from soundgreeks import Jet, claims, heston, jets
from soundgreeks.models.claims import CLAIMS, Call, Put, register
from soundgreeks.operators import PRESETS, Config, Operator, PricingProblem
from soundgreeks.training import Phase, train

F64 = torch.float64
BARRIER = -0.3


class DownAndOut(Call):
    """A call that dies at x = BARRIER."""

    name = "knocked_out"

    def edge(self, x, tau, r):
        return torch.where(x > 0, super().edge(x, tau, r), 0.0)

    def shape(self, u, x, tau):
        return u * jets.tanh((x - BARRIER) * 20.0)


class AmericanPut(Put):
    """A put that may be exercised early: the smaller of residual and u - payoff vanishes."""

    name = "exercised_early"

    def edge(self, x, tau, r):
        return self.payoff(x)

    def condition(self, residual, u, x):
        return torch.minimum(residual, u - self.payoff(x))


register(DownAndOut())
register(AmericanPut())


def taught(**settings):
    config = Config(
        network="similarity", ansatz="implied_scaled", width=24, hidden=2, sampling="fresh",
        points=256, atm=0, boundary=64, boundary_second=0, lambda_max=0.0,
        phases=(Phase("adam", 150, 5e-3),), dtype="float64", **settings,
    )  # fmt: skip
    operator = Operator(config)
    train(operator, PricingProblem(operator), config.phases)
    return operator.requires_grad_(False)


P = heston.Parameters(2.0, 0.06, 0.3, -0.7, 0.06)
X = torch.linspace(-0.25, 0.25, 11, dtype=F64)


def test_a_put_trains_without_labels_to_the_put():
    put = taught(claim="put")
    true = heston.call(X, 0.06, 1.0, P) - X.exp() + torch.exp(torch.tensor(-0.06, dtype=F64))
    assert (put.price(X, 0.06, 1.0, P) - true).abs().max() < 5e-3
    assert (
        put.greeks(X, 0.06, 1.0, P).delta - heston.greeks(X, 0.06, 1.0, P).delta + 1
    ).abs().max() < 0.02


def test_a_barrier_is_one_class():
    domain = heston.TABLE_I | {"x": (BARRIER, 2.0), "tau": (0.01, 1.0)}
    operator = taught(claim="knocked_out", domain=domain)
    price = operator.price(X, 0.06, 1.0, P)
    assert operator.price(BARRIER, 0.06, 1.0, P).abs() < 1e-15
    call = heston.call(X, 0.06, 1.0, P)
    assert (price <= call + 1e-3).all() and (price > 0).all()
    assert price[0] < 0.7 * call[0] and price[-1] > 0.9 * call[-1]


def test_early_exercise_is_one_class():
    european, american = taught(claim="put"), taught(claim="exercised_early")
    high = P._replace(r=0.08)
    a, e = (o.price(X, 0.06, 1.0, high) for o in (american, european))
    assert (a > e - 5e-4).all() and (a - e).max() > 1e-3


@pytest.mark.parametrize("name", ["call", "put", "knocked_out", "exercised_early"])
def test_payoff_edges_and_round_trip(name):
    claim = CLAIMS[name]
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=F64)
    sign = 1 if isinstance(claim, Call) else -1
    torch.testing.assert_close(claim.payoff(x), (sign * torch.expm1(x)).clamp_min(0))
    jet = claim.payoff(Jet(x, x=1))
    torch.testing.assert_close(jet.x, sign * x.exp() * (sign * x > 0))
    torch.testing.assert_close(jet.xx + 0 * x, sign * x.exp() * (sign * x > 0))
    config = replace(PRESETS["smoke"], claim=name)
    assert Operator(Config.from_dict(config.to_dict())).claim is claim


def test_edges_are_those_of_equations_7_and_8():
    x, tau, r = torch.tensor([-2.0, 2.0], dtype=F64), torch.tensor(0.5), torch.tensor(0.04)
    discount = torch.exp(-r * tau)
    torch.testing.assert_close(
        claims.CALL.edge(x, tau, r), torch.stack([0 * x[0], x[1].exp() - discount])
    )
    torch.testing.assert_close(
        claims.PUT.edge(x, tau, r), torch.stack([discount - x[0].exp(), 0 * x[0]])
    )
