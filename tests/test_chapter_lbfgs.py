"""Numbers of chapter 4 by code that the chapter does not use, and its stored races.

Derivatives are those of nested automatic differentiation of the price, prices QuantLib's; of the
book only points and networks are taken.
"""

import json
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from soundgreeks import evaluation, weights
from soundgreeks.book import reference, runner
from soundgreeks.operators import PricingProblem
from soundgreeks.training import Phase

RACE = runner.find_root() / "book/data/optimizer_race.json"


def agrees(key, value):
    entry = reference.load()[f"lbfgs.{key}"]
    assert entry.evidence in ("independent", "external")
    assert entry.holds(value), (key, value)


@pytest.fixture(scope="module")
def deepsvm():
    return weights.load("deepsvm", dtype=torch.float64).requires_grad_(False)


def residual(operator, points):
    """u_tau - N[u] of eq. 5, derivatives of derivatives, one row of parameters at a time."""
    rows = []
    for p in zip(*(v.reshape(-1) for v in points.p), strict=True):
        p = type(points.p)(*p)
        x, nu, tau = (v.clone().requires_grad_() for v in (points.x, *points.state, points.tau))
        u = operator.value(x, nu, tau, type(p)(*(v.expand(len(x)) for v in p)))
        u_x, u_nu, u_tau = torch.autograd.grad(u.sum(), (x, nu, tau), create_graph=True)
        u_xx, u_xnu = torch.autograd.grad(u_x.sum(), (x, nu), retain_graph=True)
        (u_nunu,) = torch.autograd.grad(u_nu.sum(), nu)
        generator = 0.5 * nu * (u_xx - u_x) + p.r * (u_x - u) + p.kappa * (p.theta - nu) * u_nu
        generator = generator + nu * (p.rho * p.sigma * u_xnu + 0.5 * p.sigma**2 * u_nunu)
        rows.append((u_tau - generator).detach())
    return torch.stack(rows)


def terms(operator, number, **sizes):
    """Eq. 11 on the points of a seed, term by term."""
    config = replace(operator.config, seed=number, dtype="float64", **sizes)
    problem = PricingProblem(operator, config)
    problem.begin(Phase("lbfgs", 1), 1, 0)
    found = {}
    for name in ("physics", "atm"):
        square = residual(operator, problem.sets[name].to(dtype=torch.float64)) ** 2
        found[name] = float((square + 0.1 * square**2).mean())
    gaps = []
    for name in ("boundary", "more boundary"):
        edge = problem.sets[name].to(dtype=torch.float64)
        ends = torch.where(edge.x > 0, edge.x.exp() - torch.exp(-edge.p.r * edge.tau), 0.0)
        gaps.append((operator.value(edge.x, edge.nu, edge.tau, edge.p) - ends).reshape(-1))
    return found | {"boundary": float(torch.cat(gaps).square().mean())}


def test_the_loss_of_deepsvm_on_its_own_points(deepsvm):
    """Drawn again from its seed, they give what its log says of its last iterations."""
    own = terms(deepsvm, deepsvm.config.seed, points=(1, 8))
    agrees("paper.own_atm", own["atm"])
    agrees("paper.own_boundary", own["boundary"])
    logged = deepsvm.provenance["training"]
    assert own["atm"] == pytest.approx(logged["atm"], rel=0.02)
    assert own["boundary"] == pytest.approx(logged["boundary"], rel=0.05)


def test_the_loss_of_deepsvm_on_fresh_points(deepsvm):
    drawn = [terms(deepsvm, number, points=(32, 128)) for number in range(1, 7)]
    agrees("paper.one_atm", drawn[0]["atm"])
    agrees("paper.fresh_physics", np.median([d["physics"] for d in drawn]))
    agrees("paper.fresh_atm", np.median([d["atm"] for d in drawn]))
    agrees("paper.fresh", np.median([sum(d.values()) for d in drawn]))


def test_the_price_error_of_deepsvm(deepsvm):
    judge = evaluation.draw(99, 1000)
    x, nu, tau, *p = (v[:600] for v in (judge.x, judge.nu, judge.tau, *judge.p))
    p = type(judge.p)(*p)
    truth = oracles.quantlib_heston_many(x, nu, tau, p, engine="laguerre")
    known = ~np.isnan(truth)
    assert known.mean() > 0.99
    gap = (deepsvm.price(x, nu, tau, p).numpy() - truth)[known]
    agrees("paper.price", np.sqrt(np.mean(gap**2)))


def test_the_races_are_complete_and_fair():
    record = json.loads(RACE.read_text())
    runs = {}
    for key, rows in record["rows"].items():
        name, number = key.rsplit(", seed ", 1)
        runs.setdefault(name, {})[int(number)] = np.array(rows)
    assert len(record["seeds"]) >= 3 and len(runs) >= 6
    for name, of_seed in runs.items():
        assert sorted(of_seed) == record["seeds"], name
        for rows in of_seed.values():
            assert (np.diff(rows[:, :3], axis=0) >= 0).all()  # steps, passes, seconds
            assert rows[-1, 2] >= record["budget"] or rows[-1, 0] < 10**6
            assert rows[-2, 2] < record["budget"]
    for number in record["seeds"]:  # one start: the same losses and the same price error
        starts = np.stack([of_seed[number][0, 3:] for of_seed in runs.values()])
        np.testing.assert_allclose(starts, np.broadcast_to(starts[:1], starts.shape), rtol=1e-3)
    for name, rate in record["rates"].items():  # the best of the pilot, by the fresh loss
        tried = {k: rows[-1][4] for k, rows in record["pilot"].items() if k.startswith(name)}
        assert min(tried, key=tried.__getitem__) == f"{name}, {rate:g}"
