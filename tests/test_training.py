"""Training: resumes to the same bits, says where it failed, and splits over processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from soundgreeks import training
from soundgreeks.operators import PRESETS, Config, Operator
from soundgreeks.operators.problem import PricingProblem, train_operator
from soundgreeks.training import Phase, train
from soundgreeks.training.optimizers import UNIT

SMOKE = replace(
    PRESETS["smoke"],
    phases=(Phase("adam", 12, 1e-3, halve_every=5), Phase("soap", 6), Phase("lbfgs", 60)),
)
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([p for p in sys.path if p]),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KILLED = """
import os, signal, sys, torch
from test_training import SMOKE
from soundgreeks.operators.problem import PricingProblem, train_operator
torch.set_num_threads(1)
class Dying(PricingProblem):
    left = 3
    def begin(self, phase, number, step):
        self.due = [number, step] >= [int(a) for a in sys.argv[2:4]]
        super().begin(phase, number, step)
    def parts(self):
        self.left -= self.due
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().parts()
import soundgreeks.operators.problem
soundgreeks.operators.problem.PricingProblem = Dying
train_operator(SMOKE, sys.argv[1], checkpoint_every=4, log_every=2)
"""


def test_killed_in_every_phase_it_resumes_to_the_same_bits(tmp_path):
    whole, summary = train_operator(SMOKE, tmp_path / "whole", checkpoint_every=4, log_every=2)
    # Three evaluations after each of these steps: of Adam, of SOAP, and, two evaluations deep in
    # a line search, of the second run of twenty L-BFGS iterations.
    for phase, step in ((0, 7), (1, 3), (2, 20)):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(phase), str(step)]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
        assert state["phase"] == phase and state["step"] > 0
    resumed, again = train_operator(SMOKE, tmp_path / "killed", checkpoint_every=4, log_every=2)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again["loss"] == summary["loss"]

    def lines(name):
        text = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text]

    assert lines("killed") == lines("whole")


def test_every_term_is_logged_and_falls(tmp_path):
    _, summary = train_operator(SMOKE, tmp_path, log_every=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["phase"] == 0] == [2, 4, 6, 8, 10, 12]
    for line in lines:
        assert line["loss"] == pytest.approx(line["physics"] + line["atm"] + line["boundary"])
    assert summary["loss"] < 1e-2 * lines[0]["loss"] and summary["skipped"] == 0


def test_a_folder_holds_one_run(tmp_path):
    train_operator(replace(SMOKE, phases=(Phase("adam", 1),)), tmp_path)
    with pytest.raises(ValueError, match="directory must be new or hold a run of"):
        train_operator(replace(SMOKE, seed=5), tmp_path)


class Parabola:
    """w^2 with faults on demand."""

    def __init__(self, module, fault=None):
        self.module, self.fault, self.step = module, fault, 0

    def begin(self, phase, number, step):
        self.step = step

    def parts(self):
        (w,) = self.module.parameters()
        value = (w * w).sum()
        if self.fault and self.fault(self.step):
            value = value + 0 * torch.sqrt(w - w).sum()  # finite, its gradient is not
        yield {"square": value}

    def locate(self):
        return "at the bottom"

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def line():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(module.weight)
    return module


def test_rare_gradients_that_are_not_finite_are_skipped():
    module = line()
    summary = train(module, Parabola(module, lambda s: s % 7 == 3), [Phase("adam", 200, 0.05)])
    assert summary["skipped"] == 29 and summary["loss"] < 1e-4
    with pytest.raises(FloatingPointError, match="20 gradients in a row are not finite"):
        train(module, Parabola(module, lambda s: True), [Phase("adam", 200)])


def test_a_loss_that_is_not_finite_says_where():
    config = replace(SMOKE, phases=(Phase("adam", 3),))
    operator = Operator(config)
    problem = PricingProblem(operator)
    piece, _ = problem._pieces["physics"][0]
    piece.nu[5] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"step 0 of phase 0: .* physics set, first at x ="
    ):
        train(operator, problem, config.phases)


def test_rates():
    halving, cosine = Phase("adam", 10, 1.0, halve_every=3), Phase("soap", 10, 1.0, warmup=2)
    assert [halving.rate_at(s) for s in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]
    assert cosine.rate_at(0) == 0.5 and cosine.rate_at(2) == 1
    assert cosine.rate_at(10) == pytest.approx(0.01)


def test_chunks_change_nothing():
    gradients = []
    for chunk in (10_000, 24):
        operator = Operator(replace(SMOKE, dtype="float64", chunk=chunk))
        total = sum(sum(part.values()) for part in PricingProblem(operator).parts())
        gradients.append(torch.autograd.grad(total, list(operator.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_refinement_lowers_no_count_and_raises_the_residual():
    config = replace(SMOKE, points=400, phases=(Phase("adam", 1),))
    problem = PricingProblem(Operator(config))
    before = problem._scores(problem.sets["physics"]).mean()
    for step in (5, 10, 15):
        problem.begin(config.phases[0], 0, step)
    assert len(problem.sets["physics"].x) == 400
    assert problem._scores(problem.sets["physics"]).mean() > before


def test_paper_preset_is_section_iii_c():
    c = PRESETS["paper"]
    adam, lbfgs = c.phases
    assert (adam.optimizer, adam.steps, adam.rate_at(0)) == ("adam", 10_000, 1e-4)
    assert adam.rate_at(2_000) == adam.rate_at(0) / 2
    assert (lbfgs.optimizer, lbfgs.steps, lbfgs.memory) == ("lbfgs", 5_000, 20)
    assert (c.points, c.rar_every) == (200_000, 500)
    assert (c.rar_candidates * c.points, c.rar_replaced * c.points) == (50_000, 20_000)
    assert (c.atm, c.boundary, c.boundary_second) == (4096, 2048, 2048)
    assert (c.lambda_max, c.lambda_boundary, c.lambda_atm) == (0.1, 1.0, 1.0)
    assert (c.network, c.ansatz, c.hidden, c.activation, c.x_map) == (
        "deeponet", "printed", 4, "gelu", "tanh",
    )  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name):
    assert Config.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="optimizer must be one of"):
        Phase("sgd", 10)
    with pytest.raises(ValueError, match="ansatz must be one of"):
        Config(ansatz="none")
    with pytest.raises(ValueError, match="configuration keys must be attributes of Config"):
        Config.from_dict({"depth": 3})


SHARDED = """
import sys, torch, torch.distributed as dist
from test_training import gradients
torch.set_num_threads(1)
dist.init_process_group("gloo")
found = gradients(dist.get_rank(), dist.get_world_size())
if dist.get_rank() == 0:
    torch.save(found, sys.argv[1])
dist.destroy_process_group()
"""


def gradients(rank=0, world=1):
    """Of one process's share of the points, averaged over processes."""
    operator = Operator(replace(SMOKE, dtype="float64"))
    for part in PricingProblem(operator, rank=rank, world=world).parts():
        sum(part.values()).backward()
    weights = list(operator.parameters())
    training.average_over_processes(weights, {})
    return [w.grad for w in weights]


def test_two_processes_find_the_gradients_of_one(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    paths = [ENVIRONMENT["PYTHONPATH"], str(Path(__file__).parent)]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            str(tmp_path / "sharded.py"), str(tmp_path / "two.pt"),
        ],
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for a, b in zip(gradients(), two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    half = gradients(0, 2)  # the test can fail: a share alone has another gradient
    assert not torch.allclose(half[0], two[0], rtol=1e-6)


def test_lbfgs_ends_when_no_step_lowers_the_loss(tmp_path):
    module, log = line(), tmp_path / "log.jsonl"
    torch.nn.init.zeros_(module.weight)
    summary = train(module, Parabola(module), [Phase("lbfgs", 10_000)], log=log)
    assert summary["loss"] == 0
    assert json.loads(log.read_text().splitlines()[-1])["step"] == UNIT


def test_lbfgs_keeps_its_pairs_when_the_loss_is_small():
    """Rosenbrock's valley times 1e-9: steepest descent would still be far from the end."""

    class Valley(Parabola):
        def parts(self):
            x, y = self.module.weight[0]
            yield {"valley": 1e-9 * ((1 - x) ** 2 + 100 * (y - x * x) ** 2)}

    module = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(module.weight, -1.0)
    train(module, Valley(module), [Phase("lbfgs", 100)])
    torch.testing.assert_close(module.weight, torch.ones_like(module.weight))


def test_soap_is_the_packaged_one():
    from pytorch_optimizer import SOAP

    weights = [torch.ones(2, 2, requires_grad=True)]
    assert isinstance(training.make_optimizer(weights, Phase("soap", 1)), SOAP)
