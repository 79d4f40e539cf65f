"""The loss of section III.C: its sets, its weights, its residuals as vectors."""

import sys
from dataclasses import replace

import pytest
import torch
import two_factor

from soundgreeks import claims, equation, garch, heston
from soundgreeks.operators import PRESETS, Operator, PricingProblem
from soundgreeks.operators.problem import claim_folder
from soundgreeks.training import Phase, train

SMOKE = replace(PRESETS["smoke"], dtype="float64")
F64 = torch.float64


def problem_for(**settings):
    config = replace(SMOKE, **settings)
    return PricingProblem(Operator(config))


def terms(problem):
    found = {}
    for part in problem.parts():
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + float(value.detach())
    return found


def test_half_of_the_boundary_is_on_either_side():
    domain = heston.TABLE_I | {"x": (-1.0, 2.5)}
    problem = problem_for(boundary=(6, 8), domain=domain)
    x = problem.sets["boundary"].x
    assert (x == -1.0).sum() == (x == 2.5).sum() == 4
    problem.begin(Phase("lbfgs", 1), 1, 0)
    more = problem.sets["more boundary"].x
    assert (more == -1.0).any() and (more == 2.5).any()


def test_each_term_is_what_it_says_and_carries_its_weight():
    base = terms(problem_for())
    assert set(base) == {"physics", "atm", "boundary"} and min(base.values()) > 0
    for name, setting in (("atm", "lambda_atm"), ("boundary", "lambda_boundary")):
        tripled = terms(problem_for(**{setting: 3.0}))
        assert tripled == pytest.approx(base | {name: 3 * base[name]})
    fourth = terms(problem_for(lambda_max=0.0))
    assert fourth["physics"] < base["physics"] and fourth["atm"] < base["atm"]
    robust = terms(problem_for(robust=1e-6))
    assert 0 < robust["physics"] < 1e-3 * base["physics"] and robust["atm"] < base["atm"]
    with pytest.raises(ValueError, match="robust must be 0 for gauss-newton"):
        problem_for(robust=1.0, phases=(Phase("gauss-newton", 1),))
    problem = problem_for()
    points = problem.sets["physics"]
    problem.operator.requires_grad_(False)
    u = problem.operator.jet(points.x, points.state, points.tau, points.p)
    r = equation.residual(u, points.state, points.p)
    assert float(equation.physics_loss(r, 0.1)) == pytest.approx(base["physics"])
    edge = problem.sets["boundary"]
    price = problem.operator.value(edge.x, edge.state, edge.tau, edge.p)
    target = claims.CALL.edge(edge.x, edge.tau, edge.p.r)
    assert float((price - target).square().mean()) == pytest.approx(base["boundary"])


@pytest.mark.parametrize(
    "model", [heston.MODEL, garch.MODEL, two_factor.MODEL], ids=lambda m: m.name
)
@pytest.mark.parametrize("points", [(3, 8), 12])
def test_residuals_as_vectors_have_the_loss_and_gradient_of_the_terms(model, points):
    problem = problem_for(
        model=model.name, domain=None, ansatz="implied", points=points, atm=6, boundary=4,
        lambda_atm=3.0, lambda_boundary=0.5,
    )  # fmt: skip
    weights = dict(problem.operator.named_parameters())
    loss = sum(sum(part.values()) for part in problem.parts())
    total = 0.0
    for function, rows in problem.residuals():
        total = (
            total
            + torch.stack([function(weights, *row) for row in zip(*rows, strict=True)])
            .square()
            .sum()
        )
    torch.testing.assert_close(total, loss)
    for a, b in zip(
        torch.autograd.grad(total, list(weights.values())),
        torch.autograd.grad(loss, list(weights.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_optimiser_lowers_the_loss_of_the_same_problem():
    config = dict(network="similarity", ansatz="implied_scaled", width=8, points=64, atm=16,
                  boundary=16, boundary_second=0)  # fmt: skip
    for name, steps in (("adam", 40), ("soap", 40), ("lbfgs", 40), ("broyden", 40),
                        ("gauss-newton", 8)):  # fmt: skip
        problem = problem_for(**config)
        before = sum(terms(problem).values())
        train(problem.operator, problem, [Phase(name, steps, 3e-3)])
        after = sum(terms(problem).values())
        assert after < (0.2 if name in ("broyden", "gauss-newton") else 0.9) * before, name


def test_points_stay_where_an_optimiser_compares_losses_and_are_renewed_elsewhere():
    problem = problem_for(network="similarity", sampling="fresh", points=16)
    first = problem.sets["physics"].x
    for name in ("lbfgs", "broyden", "gauss-newton"):
        problem.begin(Phase(name, 1), 0, 5)
        assert torch.equal(problem.sets["physics"].x, first)
    problem.begin(Phase("adam", 10), 0, 5)
    assert not torch.equal(problem.sets["physics"].x, first)


def test_where_the_loss_is_not_finite():
    problem = problem_for()
    for w in problem.operator.network.branch.layers[-1].parameters():
        w.data[:] = torch.nan
    assert "values in the physics set, first at x = " in problem.locate()
    assert "kappa = " in problem.locate()


def test_another_models_configuration_is_refused():
    with pytest.raises(ValueError, match="config must be heston, got garch"):
        PricingProblem(Operator(SMOKE), replace(SMOKE, model="garch", domain=None))


def test_one_process_of_many_writes_the_folders_record(tmp_path):
    record = tmp_path / "config.json"
    claim_folder(tmp_path, SMOKE, write=False)
    assert not record.exists()
    claim_folder(tmp_path, SMOKE, write=True)
    written = record.stat().st_mtime_ns
    claim_folder(tmp_path, SMOKE, write=True)
    assert record.stat().st_mtime_ns == written and list(tmp_path.iterdir()) == [record]
    with pytest.raises(ValueError, match="directory must be new or hold a run of 'smoke'"):
        claim_folder(tmp_path, replace(SMOKE, seed=3), write=True)
    record.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no configuration"):
        claim_folder(tmp_path, SMOKE, write=False)


def test_a_training_step_validates_nothing():
    """Checks stand at the door: between the points and the gradient there is none."""
    problem, seen = problem_for(network="similarity", ansatz="implied_scaled"), []

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_name in ("require", "floating", "checked"):
            seen.append(frame.f_back.f_code.co_name)

    sys.setprofile(watch)
    try:
        for part in problem.parts():
            sum(part.values()).backward()
    finally:
        sys.setprofile(None)
    assert seen == []
