"""Models by their coefficients: a new one is one file and one line; all train and are judged."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import three_halves
import torch
import two_factor

import soundgreeks
from soundgreeks import Domain, evaluation, garch, heston, paths, weights
from soundgreeks.arithmetic import Jet
from soundgreeks.models.model import MODELS, Model
from soundgreeks.operators import PRESETS, train_operator
from soundgreeks.training import Phase

F64 = torch.float64
EVERY = [heston.MODEL, garch.MODEL, three_halves.MODEL, two_factor.MODEL]
INSIDE = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)

NEW_USER = """
import json, sys, torch
from soundgreeks import evaluation, three_halves, weights
from soundgreeks.operators import Config, train_operator
from soundgreeks.training import Phase
evaluation.SIMULATION = dict(paths=256, count=16)
config = Config(
    name="mine", model="three_halves", network="similarity", ansatz="implied", width=16, hidden=2,
    sampling="fresh", points=64, atm=0, boundary=0, phases=(Phase("adam", 30, 3e-3),),
)
operator, _ = train_operator(config, sys.argv[1])
weights.save(operator, sys.argv[1] + "/mine", {})
loaded = weights.load(sys.argv[1] + "/mine")
table = evaluation.evaluate(loaded, seed=1, n=100)
p = three_halves.Parameters(kappa=10.0, theta=0.1, sigma=2.0, rho=-0.6, r=0.02)
greeks = loaded.greeks(0.0, 0.1, 0.5, p)
print(json.dumps([table["all"]["price rmse"], float(greeks.delta)]))
"""


def test_the_three_halves_model_is_one_new_file_and_one_line(tmp_path):
    """The diff of CONTRIBUTING.md, applied to a copy of the package, used as a newcomer would."""
    changed = [line for line in three_halves.DIFF.splitlines() if line.startswith("+++ ")]
    assert len(changed) == 2
    init, _ = three_halves.DIFF.split("--- /dev/null")
    assert sum(line.startswith("+") and line[1] != "+" for line in init.splitlines()) == 1
    source = Path(soundgreeks.__file__).parent
    shutil.copytree(source, tmp_path / "src/soundgreeks")
    subprocess.run(["patch", "-p1"], input=three_halves.DIFF, cwd=tmp_path, text=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", NEW_USER, str(tmp_path / "run")],
        cwd=tmp_path / "src", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rmse, delta = json.loads(done.stdout)
    assert rmse < 0.02 and 0.4 < delta < 0.8


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
@pytest.mark.parametrize("network", ["deeponet", "similarity"])
def test_every_model_trains_is_stored_and_evaluated(model, network, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SIMULATION", dict(paths=256, count=16))
    points = dict(points=64, atm=32, boundary=16, boundary_second=16)
    config = replace(
        PRESETS["smoke"], model=model.name, domain=None, network=network, ansatz="implied",
        phases=(Phase("adam", 8), Phase("gauss-newton", 2)), **points,
    )  # fmt: skip
    operator, summary = train_operator(config, tmp_path)
    assert summary["loss"] < 10
    weights.save(operator, tmp_path / "net", {})
    loaded = weights.load(tmp_path / "net")
    assert loaded.config == config and loaded.model is model
    table = evaluation.evaluate(loaded, seed=1, n=100)
    assert table["all"]["price rmse"] < 0.05
    assert ("parameters" in table) == model.closed_form
    assert ("of the truth" in table["all"]) != model.closed_form


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_expected_variance_is_that_of_the_paths(model):
    """Exact for a linear drift; the others' anchors are near, which is all they promise."""
    p = model.sample(4, generator=torch.Generator().manual_seed(2))
    state = tuple(torch.full((4,), 0.5 * sum(model.domain[s]), dtype=F64) for s in model.states)
    noise = torch.randn(100, len(model.noises), 4, 4096, dtype=F64,
                        generator=torch.Generator().manual_seed(3))  # fmt: skip
    full = tuple(v[:, None].expand(4, 4096) for v in state)
    end = paths.steps(model, full, torch.full((4, 1), 0.5, dtype=F64), p[:, None], noise)
    found, error = end.integrated.mean(1), end.integrated.std(1) / 64
    expected = model.expected_variance(p, torch.tensor(0.5, dtype=F64), *state)
    exact = model.name in ("heston", "garch")
    assert ((found - expected).abs() < 4 * error + (1e-4 if exact else 0.25) * expected).all()


@pytest.mark.parametrize("scheme", ["own", "euler"])
def test_simulated_heston_meets_the_formula(scheme, monkeypatch):
    """Price, Delta and Gamma within four standard errors, by both steps; a wrong one is seen."""
    if scheme == "euler":
        monkeypatch.setattr(heston.Heston, "step", Model.step)
    x = torch.tensor([-0.2, 0.0, 0.3], dtype=F64)

    def distances(p):
        generator = torch.Generator().manual_seed(1)
        found = paths.conditional_call(
            heston.MODEL, x, 0.06, 0.5, p, paths=2**15, count=200, generator=generator
        )
        true = heston.price_delta_gamma(x, 0.06, 0.5, INSIDE)
        return torch.stack(
            [(a - b).abs() / e for a, b, e in zip(found[:3], true, found[3:], strict=True)]
        )

    assert distances(INSIDE).max() < 4
    assert distances(INSIDE._replace(sigma=0.33)).max() > 6
    assert distances(INSIDE._replace(rho=0.7)).max() > 10


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_the_discounted_spot_is_a_martingale_and_halving_the_step_agrees(model):
    p = model.sample(1, generator=torch.Generator().manual_seed(4))
    state = tuple(torch.tensor([0.6 * sum(model.domain[s])], dtype=F64) for s in model.states)
    tau, x = torch.tensor([0.5], dtype=F64), torch.zeros(1, dtype=F64)
    noise = torch.randn(100, 1 + len(model.noises), 2**15, dtype=F64,
                        generator=torch.Generator().manual_seed(5))  # fmt: skip
    full = tuple(v.expand(2**15) for v in state)
    end, _ = paths.simulate(model, x, full, tau, p, noise)
    spot = torch.exp(end - p.r * tau)
    assert abs(spot.mean() - 1) < 4 * spot.std() / 2**7.5
    given = state[0] if len(state) == 1 else state
    coarse, fine = (
        paths.conditional_call(model, x, given, 0.5, p, paths=2**14, count=count,
                               generator=torch.Generator().manual_seed(6))
        for count in (50, 100)
    )  # fmt: skip
    assert (coarse.price - fine.price).abs() < 4 * (coarse.price_error + fine.price_error) + 1e-4
    by_payoff = torch.exp(-p.r * tau) * torch.expm1(end).clamp_min(0)
    error = by_payoff.std() / 2**7.5
    assert abs(by_payoff.mean() - fine.price) < 4 * (error + fine.price_error)


def test_models_are_known_by_name_and_say_what_they_lack():
    assert {"heston", "garch"} <= set(MODELS)
    with pytest.raises(NotImplementedError, match=r"garch has no formula: use paths\.cond"):
        garch.MODEL.greeks(0.0, (0.04,), 0.5, garch.Parameters(*INSIDE))
    with pytest.raises(ValueError, match="kappa must be positive, got -1"):
        garch.MODEL.checked(garch.Parameters(-1.0, 0.04, 0.3, -0.7, 0.05))
    with pytest.raises(ValueError, match="count must be at least 1"):
        paths.conditional_call(heston.MODEL, 0.0, 0.04, 0.5, INSIDE, count=0)


def test_near_the_edge_of_feller():
    p = heston.sample_parameters(200, generator=torch.Generator().manual_seed(0))
    near = heston.MODEL.near_edge(p, torch.rand(200, dtype=F64), heston.TABLE_I)
    moved = near.sigma != p.sigma
    assert moved.double().mean() > 0.5
    assert ((heston.MODEL.closeness(near)[moved] - 0.9).abs() <= 0.1).all()
    assert heston.satisfies_feller(near).all()


def test_a_wide_domain_draws_evenly_in_logarithms_and_beyond_feller():
    model, wide = heston.WIDE_MODEL, heston.WIDE
    p = model.sample(4000, generator=torch.Generator().manual_seed(0))
    assert heston.satisfies_wide(p).all() and not heston.satisfies_feller(p).all()
    free = Domain(dict(wide), "", ("kappa",))
    kappa = model.sample(4000, free, generator=torch.Generator().manual_seed(0)).kappa
    assert abs(float(kappa.median()) - 2.0) < 0.1 and float(kappa.min()) < 0.22
    near = model.near_edge(p, torch.rand(4000, dtype=F64), wide)
    moved = near.sigma != p.sigma
    assert ((near.sigma**2 / (12.5 * p.kappa * p.theta))[moved] - 0.9).abs().max() <= 0.1
    assert Domain.from_dict(wide.to_dict()) == wide and (wide | {"rho": (-1.0, 0.0)}).logarithmic
    for names, word in ((("vega",), "logarithmic must be one of"), (("r",), "range of r")):
        with pytest.raises(ValueError, match=word):
            Domain(dict(wide), "", names)


def test_beyond_feller_the_network_sees_the_variance_smoothly():
    """d/dnu of the coordinates stays bounded where the variance vanishes, unlike a logarithm's."""
    p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.9, -0.7, 0.05))
    for model, bounded in ((heston.WIDE_MODEL, True), (heston.MODEL, False)):
        at_zero = Jet(torch.tensor(1e-6, dtype=F64), pairs=model.pairs, nu=1)
        slopes = [float(torch.as_tensor(f.part("nu"))) for f in model.features(p, at_zero)]
        assert (max(map(abs, slopes)) < 1e3) == bounded
