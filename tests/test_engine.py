"""The engine on losses of a few weights: settings, logs, locks, interrupted and damaged runs."""

import json
import signal

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from soundgreeks import training
from soundgreeks.training import Phase, train

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Regression:
    """A noisy fit whose points come from a generator: all that a checkpoint must carry."""

    def __init__(self, device="cpu"):
        self.module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for w in self.module.parameters():
                w.copy_(torch.randn(w.shape, generator=generator))
        self.module.to(device)
        self.generator = torch.Generator(device).manual_seed(0)
        self.steps, self.at = [], {}
        self.x = self.draw()

    def draw(self):
        where = self.generator.device
        return torch.rand(16, 2, generator=self.generator, device=where)

    def begin(self, phase, number, step):
        self.steps.append((number, step))
        if not phase.fixed_points:
            self.x = self.draw()

    def errors(self, weights, x):
        y = functional_call(self.module, weights, (x,))[..., 0]
        return (y - x[..., 0] * x[..., 1]) / 4

    def parts(self):
        self.at.pop(self.steps[-1], lambda: None)()
        weights = dict(self.module.named_parameters())
        early, late = (self.errors(weights, x).square() for x in self.x.split([12, 4]))
        yield {"first": early[:8].sum(), "second": early[8:].sum()}
        yield {"second": late.sum()}

    def residuals(self):
        yield self.errors, (self.x,)

    def locate(self):
        return "somewhere"

    def state_dict(self):
        return {"x": self.x, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        assert state["x"].device == next(self.module.parameters()).device
        self.x = state["x"]
        self.generator.set_state(state["generator"].cpu())

    def weights(self):
        return torch.cat([w.detach().reshape(-1) for w in self.module.parameters()])


ALL = [
    Phase("adam", 30, 1e-2, schedule="one-cycle", decay=1e-3),
    Phase("soap", 25, 1e-2),
    Phase("lbfgs", 60),
    Phase("broyden", 60),
    Phase("gauss-newton", 12),
]


def files(folder):
    return dict(checkpoint=folder / "checkpoint.pt", log=folder / "log.jsonl", log_every=5)


def entries(path):
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    problem = Regression()
    summary = train(problem.module, problem, ALL, **files(folder))
    return problem.weights(), entries(folder / "log.jsonl"), summary


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(optimizer="sgd"), "optimizer must be one of"),
        (dict(schedule="linear"), "schedule must be one of"),
        (dict(steps=0), "steps must be a whole number, at least 1, got 0"),
        (dict(steps=-5), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(steps=True), "steps"),
        (dict(steps=None), "steps"),
        (dict(warmup=-1), "warmup must be a whole number, at least 0, got -1"),
        (dict(halve_every=-1), "halve_every"),
        (dict(halve_every=0.5), "halve_every"),
        (dict(memory=0), "memory"),
        (dict(rate=float("inf")), "rate must be finite and positive, got inf"),
        (dict(rate=float("nan")), "rate"),
        (dict(rate=0.0), "rate"),
        (dict(rate="fast"), "rate"),
        (dict(decay=-1.0), "decay must be finite and non-negative"),
        (dict(decay=float("inf")), "decay"),
        (dict(optimizer="soap", decay=0.1), "decay must be 0 for soap"),
        (dict(optimizer="lbfgs", schedule="one-cycle"), "schedule must be cosine but for adam"),
        (dict(schedule="one-cycle", warmup=5), "warmup must be 0 for one-cycle"),
        (dict(schedule="one-cycle", halve_every=5), "halve_every must be 0 for one-cycle"),
    ],
)
def test_bad_phases_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Phase(**{"optimizer": "adam", "steps": 10} | settings)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_one_cycle_is_torchs(steps):
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 0.02)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        adam, 0.02, total_steps=steps + 1, pct_start=0.3, div_factor=25, final_div_factor=400
    )
    phase = Phase("adam", steps, 0.02, schedule="one-cycle")
    for step in range(steps):
        (group,) = adam.param_groups
        assert phase.settings_at(step) == {"lr": group["lr"], "betas": group["betas"]}
        adam.step()
        torchs.step()


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path):
    problem = Regression()

    class Minimal:
        begin, parts = problem.begin, problem.parts

    for arguments, options, message in [
        ((problem, []), {}, "phases must be one or more"),
        ((problem, ALL), {"log_every": 0}, "log_every must be a whole number, at least 1"),
        ((problem, ALL), {"checkpoint_every": -1}, "checkpoint_every"),
        ((Minimal(), ALL), {}, r"loss must be an object with .*'residuals'.*, got one without"),
        ((Minimal(), ALL[:1]), {"checkpoint": tmp_path / "c.pt"}, "without .*'load_state_dict'"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(problem.module, *arguments, **options)
    assert problem.steps == []
    train(problem.module, Minimal(), ALL[:4])  # enough without checkpoints and residuals
    problem.module.requires_grad_(False)
    with pytest.raises(ValueError, match="module must be one with parameters that require"):
        train(problem.module, problem, ALL)


# Terms and transfers


def test_logged_terms_add_up_in_every_phase(whole):
    _, lines, summary = whole
    assert [line["optimizer"] for line in lines if line["step"] <= 5] == [
        "adam",
        "soap",
        "gauss-newton",
    ]
    assert {line["phase"] for line in lines} == {0, 1, 2, 3, 4}
    for line in [*lines, summary]:
        assert line["loss"] == pytest.approx(line["first"] + line["second"], rel=1e-6)
    assert all(("rate" in line) == (line["phase"] < 2) for line in lines)
    assert lines[5]["rate"] == Phase("adam", 30, 1e-2, schedule="one-cycle").rate_at(29)


class Transfers(TorchDispatchMode):
    """Counts numbers that leave the device by `item`, `float` and the like."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(monkeypatch):
    lists, original = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: lists.append(1) or original(t))
    single, whole_lists = [], []
    for steps in (10, 60):
        problem = Regression()
        with Transfers() as transfers:
            train(problem.module, problem, [Phase("adam", steps)])
        single.append(transfers.count)
        whole_lists.append(len(lists))
        lists.clear()
    assert single[0] == single[1]
    assert whole_lists == [10 + 1, 60 + 1]  # one a step, and the terms of the last


def test_the_bar_is_for_people(monkeypatch):
    def shown(*arguments, **options):
        raise AssertionError("nobody sees it")

    monkeypatch.setattr("soundgreeks.training.engine.tqdm.set_postfix", shown)
    problem = Regression()
    train(problem.module, problem, ALL[:1])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(problem.module, problem, ALL[:1], progress=False)
    with pytest.raises(AssertionError, match="nobody sees it"):
        train(problem.module, problem, ALL[:1])


# Interrupted runs


@pytest.mark.parametrize("phase", range(len(ALL)))
def test_after_ctrl_c_a_run_resumes_to_the_same_bits(phase, whole, tmp_path):
    problem = Regression()
    step = ALL[phase].steps // 3 // 20 * 20 if ALL[phase].fixed_points else 11
    step = 3 if ALL[phase].optimizer == "gauss-newton" else step
    problem.at[phase, step] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem.module, problem, ALL, **files(tmp_path))
    assert problem.steps[-1] == (phase, step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["phase"] == phase and state["step"] > step  # the step in progress was finished
    resumed = Regression()
    train(resumed.module, resumed, ALL, **files(tmp_path))
    assert resumed.steps[0] != (0, 0)
    assert torch.equal(resumed.weights(), whole[0])
    assert entries(tmp_path / "log.jsonl") == whole[1]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    problem = Regression()

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    problem.at[0, 7] = twice
    with pytest.raises(KeyboardInterrupt):
        train(problem.module, problem, ALL, checkpoint_every=5, **files(tmp_path))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_ctrl_c_without_a_checkpoint_stops_at_once():
    problem = Regression()
    problem.at[0, 2] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem.module, problem, ALL)
    assert problem.steps[-1] == (0, 2)


def test_one_checkpoint_is_for_one_training_at_a_time(tmp_path):
    outer, inner = Regression(), Regression()
    refused = []

    def second():
        try:
            train(inner.module, inner, ALL[:1], **files(tmp_path))
        except OSError as error:
            refused.append(str(error))

    outer.at[0, 3] = second
    train(outer.module, outer, ALL[:1], **files(tmp_path))
    assert inner.steps == []
    (message,) = refused
    assert message.startswith(f"checkpoint {tmp_path / 'checkpoint.pt'} is in use by another")
    train(inner.module, inner, ALL[:1], **files(tmp_path))  # free again


# Logs and checkpoints that others touched


@pytest.mark.parametrize("fault", ["shortened", "deleted", "foreign"])
def test_the_log_is_made_whole_on_resuming(fault, whole, tmp_path):
    problem = Regression()
    problem.at[1, 13] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem.module, problem, ALL, **files(tmp_path))
    log = tmp_path / "log.jsonl"
    if fault == "shortened":
        log.write_bytes(log.read_bytes()[:100])
    elif fault == "deleted":
        log.unlink()
    else:
        log.write_text("something else\n" * 1000)
    resumed = Regression()
    train(resumed.module, resumed, ALL, **files(tmp_path))
    assert "\0" not in log.read_text() and entries(log) == whole[1]


def test_a_finished_run_whose_log_was_deleted_has_it_again(tmp_path):
    problem = Regression()
    summary = train(problem.module, problem, ALL[:2], **files(tmp_path))
    before = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").unlink()
    again = train(problem.module, problem, ALL[:2], **files(tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == before
    assert again["loss"] == summary["loss"] and again["first"] == summary["first"]


def test_a_damaged_or_foreign_checkpoint_is_one_clear_error(tmp_path):
    problem, path = Regression(), tmp_path / "checkpoint.pt"
    train(problem.module, problem, ALL[:2], **files(tmp_path))
    good = path.read_bytes()

    def refused(message, module=problem.module, phases=ALL[:2]):
        with pytest.raises(ValueError, match=message) as caught:
            train(module, problem, phases, checkpoint=path)
        assert str(path) in str(caught.value) and "delete it to train anew" in str(caught.value)

    for content in (good[: len(good) // 2], b"", b"no checkpoint at all\n" * 50):
        path.write_bytes(content)
        refused("is damaged")
    torch.save({"weights": torch.ones(3)}, path)
    refused("no checkpoint of this version")
    path.write_bytes(good)
    refused("of another module", module=nn.Linear(2, 1))
    refused("of a run of other phases", phases=[Phase("adam", 99), ALL[1]])
    refused("of a run of other phases", phases=ALL[:1])
    train(problem.module, problem, ALL[:3], checkpoint=path)  # more phases go on from there
    assert problem.steps[-1] == (2, 40)


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_comes_back_on_the_modules_device(device, tmp_path):
    problem = Regression(device)
    problem.at[3, 20] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(problem.module, problem, ALL, **files(tmp_path))
    resumed = Regression(device)
    summary = train(resumed.module, resumed, ALL, **files(tmp_path))
    assert summary["loss"] < 1e-3 and resumed.weights().device.type == device


def test_a_loss_that_is_not_finite_names_step_and_rate():
    problem = Regression()

    def spoil():
        problem.x[0, 0] = torch.nan

    problem.at[0, 4] = spoil
    rate = ALL[0].rate_at(4)
    message = rf"loss is nan at step 4 of phase 0: somewhere \(rate {rate:.3g}\)"
    with pytest.raises(FloatingPointError, match=message):
        train(problem.module, problem, ALL)


def test_optimisers_are_made_of_lists_and_of_names():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    by_name = training.make_optimizer(dict(module.named_parameters()), Phase("adam", 1))
    (group,) = by_name.param_groups
    assert group["params"] == [module.weight]
    assert isinstance(
        training.make_optimizer([module.weight], Phase("lbfgs", 1, memory=7)), torch.optim.LBFGS
    )
