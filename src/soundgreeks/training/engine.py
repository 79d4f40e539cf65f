"""Training in phases, with checkpoints that resume to the same weights.

Knows neither models nor points: it takes a module and a `Loss`. Under ``torchrun`` every process
evaluates the loss of its own share and gradients are averaged, so that two processes take the
steps that one would.
"""

import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._validate import require
from . import checkpoint as files
from . import processes
from .optimizers import make_optimizer
from .phases import Phase, require_whole
from .protocols import Loss, Optimizer, Residual

_MAX_SKIPPED = 20


def train(
    module: nn.Module,
    loss: Loss,
    phases: Iterable[Phase],
    *,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 200,
    log: Path | str | None = None,
    log_every: int = 20,
    progress: bool = True,
) -> dict:
    """Minimise the loss over the module's parameters that require gradients, phase after phase.

    >>> from types import SimpleNamespace as Loss
    >>> w = torch.nn.ParameterList([torch.zeros(1)])
    >>> square = Loss(begin=lambda *_: 0, parts=lambda: [{"": (w[0] - 3).square().sum()}])
    >>> _ = train(w, square, [Phase("lbfgs", 20)], progress=False)
    >>> round(w[0].item(), 3)
    3.0

    Parameters
    ----------
    checkpoint : file to resume from, if it exists, and to write every `checkpoint_every` steps, at
        the end of each phase and, after the step in progress, on Ctrl-C
    log : file of JSON lines, one every `log_every` steps: phase, step, rate, terms, seconds. It is
        in the checkpoint too, and written anew on resuming.
    progress : show a bar, if a person sees it

    Returns
    -------
    dict : the last step's loss and terms, with "skipped", the number of updates that were left out
        because a gradient was not finite, and "seconds" of wall time over all resumed runs

    Raises
    ------
    ValueError
        No phase, a setting out of its range, a loss that lacks what these phases or checkpoints
        need, or a checkpoint that is damaged or of other phases.
    BlockingIOError
        Another training uses this checkpoint.
    FloatingPointError
        The loss is not finite (the message says where), or too many gradients in a row are not.
    """
    phases = tuple(phases)
    checkpoint, log = Path(checkpoint) if checkpoint else None, Path(log) if log else None
    require_whole("checkpoint_every", checkpoint_every, 1)
    require_whole("log_every", log_every, 1)
    _check(module, loss, phases, checkpoint)
    run = _Run(module, loss, phases, log, log_every)
    alone = not processes.distributed()
    with (
        files.lock(checkpoint) if checkpoint and processes.rank() == 0 else nullcontext(),
        files.interrupts_wait(checkpoint is not None and alone) as interruption,
    ):
        processes.meet()  # the first has written what it will, and the others may read
        if checkpoint and checkpoint.exists():
            run.resume(checkpoint)
        run.rewrite_log()
        for number in range(run.phase, len(phases)):
            phase, optimizer = phases[number], run.enter(number)
            hidden = not (progress and sys.stderr.isatty() and processes.rank() == 0)
            with tqdm(
                total=phase.steps, initial=run.step, desc=phase.optimizer, disable=hidden
            ) as bar:
                while run.step < phase.steps and not optimizer.stalled:
                    before = run.step
                    run.advance(optimizer)
                    if not hidden:
                        bar.set_postfix(loss=f"{run.value:.3e}", refresh=False)
                        bar.update(run.step - before)
                    if checkpoint and interruption.asked:
                        run.save(checkpoint)
                        raise KeyboardInterrupt
                    if checkpoint and run.step // checkpoint_every > before // checkpoint_every:
                        run.save(checkpoint)
            run.leave()
            if checkpoint:
                run.save(checkpoint)
    if interruption.asked:
        raise KeyboardInterrupt
    return run.values() | {"skipped": run.skipped, "seconds": run.elapsed()}


def _check(module: nn.Module, loss: Loss, phases: tuple[Phase, ...], checkpoint) -> None:
    """All that can be known to be wrong before the first step."""
    require(len(phases) > 0, "phases", phases, "one or more")
    free = [w for w in module.parameters() if w.requires_grad]
    require(len(free) > 0, "module", "none", "one with parameters that require gradients")
    needed = ["begin", "parts"]
    needed += ["state_dict", "load_state_dict"] if checkpoint else []
    if any(phase.optimizer == "gauss-newton" for phase in phases):
        needed += ["residuals"]
        many = f"{processes.world()} processes"
        require(not processes.distributed(), "gauss-newton", many, "run in one process")
    missing = [name for name in needed if not hasattr(loss, name)]
    require(not missing, "loss", f"one without {missing}", f"an object with {needed}")


class _Run:
    """The state of a training run: everything here is in the checkpoint."""

    def __init__(self, module, loss, phases, log, log_every):
        self.module, self.loss, self.phases = module, loss, phases
        self.log, self.log_every = log, log_every
        self.named = dict(module.named_parameters())
        self.weights = [w for w in self.named.values() if w.requires_grad]
        self.phase = self.step = self.skipped = self.skipped_in_a_row = 0
        self.optimizer: Optimizer | None = None
        self.value, self.finite_gradient = math.nan, True
        self.terms: dict[str, Tensor] = {}
        self.known = False
        self.lines: list[str] = []
        self.before, self.start = 0.0, time.monotonic()

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    def enter(self, number: int) -> Optimizer:
        if self.optimizer is None:
            self.phase, self.step = number, 0
            self.optimizer = make_optimizer(self.named, self.phases[number])
        return self.optimizer

    def leave(self) -> None:
        self.phase, self.step, self.optimizer = self.phase + 1, 0, None

    def advance(self, optimizer: Optimizer) -> None:
        phase, first = self.phases[self.phase], self.step
        self.loss.begin(phase, self.phase, first)
        self.known = False
        self.step += optimizer.advance(first, self)
        due = self.step // self.log_every > first // self.log_every
        if due or self.step == phase.steps or optimizer.stalled:
            self._write(phase)

    # -- what the optimiser sees -------------------------------------------------------------------

    def evaluate(self, *, trial: bool = False, backward: bool = True) -> float:
        """Loss and gradient, averaged over processes; one transfer from the device."""
        for w in self.weights:
            w.grad = None
        terms: dict[str, Tensor] = {}
        for part in self.loss.parts():
            if backward:
                _sum(part.values()).backward(inputs=self.weights)
            for name, value in part.items():
                value = value.detach()
                terms[name] = terms[name] + value if name in terms else value
        processes.average_over_processes(self.weights, terms)
        grads = [w.grad for w in self.weights if w.grad is not None]
        largest = torch._foreach_norm(grads, math.inf) if backward else ()
        value, *sizes = torch.stack([_sum(terms.values()), *largest]).tolist()
        self.finite_gradient = all(map(math.isfinite, sizes))
        if not math.isfinite(value):
            if not trial:
                raise FloatingPointError(self._where(value))
            # Without a slope the line search halves the step.
            torch._foreach_mul_(grads, math.nan)
            return math.inf
        if not self.known:  # those at the weights the step began with are logged
            self.value, self.terms, self.known = value, terms, True
        return value

    def may_update(self) -> bool:
        if self.finite_gradient:
            self.skipped_in_a_row = 0
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > _MAX_SKIPPED:
            raise FloatingPointError(
                f"{_MAX_SKIPPED} gradients in a row are not finite, at step {self.step} of phase "
                f"{self.phase}"
            )
        return False

    def residuals(self) -> Iterable[Residual]:
        return self.loss.residuals()

    def _where(self, value: float) -> str:
        locate = getattr(self.loss, "locate", lambda: "the loss does not say where")
        text = f"loss is {value} at step {self.step} of phase {self.phase}: {locate()}"
        phase = self.phases[self.phase]
        return text if phase.fixed_points else f"{text} (rate {phase.rate_at(self.step):.3g})"

    # -- what is kept ------------------------------------------------------------------------------

    def values(self) -> dict[str, float]:
        """The loss and its terms as numbers."""
        numbers = torch.stack(list(self.terms.values())).tolist()
        return {"loss": self.value} | dict(zip(self.terms, numbers, strict=True))

    def _write(self, phase: Phase) -> None:
        if self.log is None or processes.rank() > 0:
            return
        line = {"phase": self.phase, "optimizer": phase.optimizer, "step": self.step}
        line |= {} if phase.fixed_points else {"rate": phase.rate_at(self.step - 1)}
        line |= self.values() | {"skipped": self.skipped, "seconds": round(self.elapsed(), 3)}
        self.lines.append(json.dumps(line) + "\n")
        with self.log.open("a") as file:
            file.write(self.lines[-1])

    def rewrite_log(self) -> None:
        """As the checkpoint has it: steps taken again are logged again."""
        if self.log is not None and processes.rank() == 0:
            self.log.write_text("".join(self.lines))

    def save(self, path: Path) -> None:
        if processes.rank() > 0:
            return
        optimizer = self.optimizer
        state = {
            "module": self.module.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "stalled": optimizer is not None and optimizer.stalled,
            "loss": self.loss.state_dict(),
            "phases": [asdict(phase) for phase in self.phases],
            "phase": self.phase, "step": self.step,
            "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
            "value": self.value, "terms": dict(self.terms),
            "lines": self.lines, "seconds": self.elapsed(),
        }  # fmt: skip
        files.write(path, state)

    def resume(self, path: Path) -> None:
        state = files.read(path, self.weights[0].device)
        reached = state["phase"] + (state["optimizer"] is not None)
        ours = [asdict(phase) for phase in self.phases]
        if len(ours) < reached or state["phases"][:reached] != ours[:reached]:
            raise files.unusable(path, "of a run of other phases")
        try:
            self.module.load_state_dict(state["module"])
            self.loss.load_state_dict(state["loss"])
            if state["optimizer"] is not None:
                self.optimizer = make_optimizer(self.named, self.phases[state["phase"]])
                self.optimizer.load_state_dict(state["optimizer"])
                self.optimizer.stalled = state["stalled"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise files.unusable(path, f"of another module or loss ({error})") from error
        for name in ("phase", "step", "skipped", "skipped_in_a_row", "value", "terms", "lines"):
            setattr(self, name, state[name])
        self.before = state["seconds"]


def _sum(values: Iterable[Tensor]) -> Tensor:
    """From the first on, without the addition to zero that `sum` begins with."""
    first, *others = values
    for value in others:
        first = first + value
    return first
