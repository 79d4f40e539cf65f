"""Training in phases, with checkpoints that resume to the same weights.

Knows neither models nor points: it takes a module and a `Loss`. Under ``torchrun`` every process
evaluates the loss of its own share and gradients are averaged, so that two processes take the
steps that one would.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from .._validate import require

OPTIMIZERS = ("adam", "soap", "lbfgs")
_LBFGS_UNIT = 20  # L-BFGS iterations between checkpoints, log lines and changes of the points
_MAX_SKIPPED = 20
# torch's L-BFGS drops pairs with y's <= 1e-10, an absolute number: of a loss of 1e-6 it would drop
# most, and be steepest descent. A power of two scales the loss without rounding.
_LBFGS_SCALE = 2.0**20


@dataclass(frozen=True)
class Phase:
    """One optimiser run.

    Attributes
    ----------
    optimizer : "adam", "soap" (Vyas et al., 2024; from pytorch-optimizer) or "lbfgs"
    steps : iterations
    rate : learning rate after the warm-up (L-BFGS ignores it: its line search starts at 1)
    halve_every : halve the rate every so many steps; 0 for a cosine decay to a hundredth
    warmup : steps of linear increase
    memory : pairs that L-BFGS keeps

    Raises
    ------
    ValueError
        An unknown optimizer, or a number out of its range.
    """

    optimizer: str
    steps: int
    rate: float = 1e-3
    halve_every: int = 0
    warmup: int = 0
    memory: int = 20

    def __post_init__(self):
        require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, f"one of {OPTIMIZERS}")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.rate > 0, "rate", self.rate, "positive")
        require(self.memory >= 1, "memory", self.memory, "at least 1")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.halve_every:
            return self.rate * 0.5 ** (step // self.halve_every)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Loss(Protocol):
    """What `train` minimises: a sum of named terms, evaluated in parts to bound memory."""

    def begin(self, phase: Phase, number: int, step: int) -> None:
        """Called before each step of phase `number`: the place to renew points."""

    def parts(self) -> Iterable[dict[str, Tensor]]:
        """Dictionaries of scalar terms; the loss is the sum of all terms of all parts."""

    def locate(self) -> str:
        """Where the loss is not finite, in words."""

    def state_dict(self) -> dict:
        """All that `begin` changes; tensors and plain values."""

    def load_state_dict(self, state: dict) -> None: ...


def train(
    module: nn.Module,
    loss: Loss,
    phases: Iterable[Phase],
    *,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 200,
    log: Path | str | None = None,
    log_every: int = 20,
) -> dict:
    """Minimise the loss over the module's parameters, phase after phase.

    Parameters
    ----------
    checkpoint : file to resume from, if it exists, and to write every `checkpoint_every` steps;
        written to a temporary file first, so that a killed run leaves the last one whole
    log : file of JSON lines, one every `log_every` steps: phase, step, rate, terms, seconds

    Returns
    -------
    dict : the last log line's values, with "skipped", the number of updates that were left out
        because a gradient was not finite, and "seconds" of wall time over all resumed runs

    Raises
    ------
    FloatingPointError
        The loss is not finite (the message says where), or too many gradients in a row are not.
    """
    phases = tuple(phases)
    run = _Run(module, loss, Path(checkpoint) if checkpoint else None, Path(log) if log else None)
    run.log_every, run.checkpoint_every = log_every, checkpoint_every
    run.resume(phases)
    for number in range(run.phase, len(phases)):
        phase = phases[number]
        if run.phase != number or run.optimizer is None:
            run.enter(number, phase)
        hidden = not sys.stderr.isatty() or _rank() > 0
        with tqdm(total=phase.steps, initial=run.step, desc=phase.optimizer, disable=hidden) as bar:
            while run.step < phase.steps and not run.stalled:
                before = run.step
                run.advance(phase)
                bar.update(run.step - before)
                bar.set_postfix(loss=f"{run.terms['loss']:.3e}", refresh=False)
                if run.step // checkpoint_every > before // checkpoint_every:
                    run.save()
        run.phase, run.step, run.optimizer = number + 1, 0, None
        run.save()
    return dict(run.terms, skipped=run.skipped, seconds=run.elapsed())


class _Run:
    """The state of a training run: everything here is in the checkpoint."""

    def __init__(self, module, loss, checkpoint, log):
        self.module, self.loss, self.checkpoint, self.log = module, loss, checkpoint, log
        self.weights = [w for w in module.parameters() if w.requires_grad]
        self.phase = self.step = self.skipped = self.skipped_in_a_row = 0
        self.optimizer, self.stalled, self.terms = None, False, {}
        self.before, self.start = 0.0, time.monotonic()

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    def enter(self, number: int, phase: Phase) -> None:
        self.phase, self.step, self.stalled = number, 0, False
        self.optimizer = make_optimizer(self.weights, phase)

    def advance(self, phase: Phase) -> None:
        first = self.step
        self.loss.begin(phase, self.phase, first)
        if phase.optimizer == "lbfgs":
            self._lbfgs(phase)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = phase.rate_at(first)
            self._evaluate()
            if self._finite_gradient():
                self.optimizer.step()
            self.step += 1
        if self.step // self.log_every > first // self.log_every or self.step == phase.steps:
            self._write(phase)

    def _lbfgs(self, phase: Phase) -> None:
        group = self.optimizer.param_groups[0]
        group["max_iter"] = min(_LBFGS_UNIT, phase.steps - self.step)
        group["max_eval"] = 25 * group["max_iter"]
        start = [w.detach().clone() for w in self.weights]
        first = {}

        def closure():
            value = self._evaluate()
            first.setdefault("terms", self.terms)
            torch._foreach_mul_([w.grad for w in self.weights if w.grad is not None], _LBFGS_SCALE)
            return value * _LBFGS_SCALE

        self.optimizer.step(closure)
        self.step += group["max_iter"]
        if all(torch.equal(a, b) for a, b in zip(start, self.weights, strict=True)):
            self.stalled = True  # the line search finds no lower point in this precision
        self.terms = first["terms"]  # those at the weights the step began with

    def _evaluate(self) -> Tensor:
        """Loss and gradient, averaged over processes."""
        for w in self.weights:
            w.grad = None
        terms: dict[str, Tensor] = {}
        for part in self.loss.parts():
            sum(part.values()).backward()
            for name, value in part.items():
                terms[name] = terms.get(name, 0) + value.detach()
        average_over_processes(self.weights, terms)
        total = sum(terms.values())
        if not math.isfinite(float(total)):
            raise FloatingPointError(
                f"loss is {float(total)} at step {self.step} of phase {self.phase}: "
                + self.loss.locate()
            )
        self.terms = {"loss": float(total)} | {k: float(v) for k, v in terms.items()}
        return total

    def _finite_gradient(self) -> bool:
        norm = torch.stack([w.grad.abs().max() for w in self.weights if w.grad is not None]).max()
        if math.isfinite(float(norm)):
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

    def _write(self, phase: Phase) -> None:
        if self.log is None or _rank() > 0:
            return
        line = {"phase": self.phase, "optimizer": phase.optimizer, "step": self.step}
        line |= {"rate": phase.rate_at(self.step - 1)} if phase.optimizer != "lbfgs" else {}
        line |= self.terms | {"skipped": self.skipped, "seconds": round(self.elapsed(), 3)}
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        if self.checkpoint is None or _rank() > 0:
            return
        state = {
            "module": self.module.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "phase": self.phase, "step": self.step, "stalled": self.stalled,
            "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
            "terms": self.terms, "seconds": self.elapsed(),
            "log_bytes": self.log.stat().st_size if self.log and self.log.exists() else 0,
        }  # fmt: skip
        temporary = self.checkpoint.with_name(self.checkpoint.name + ".part")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint)

    def resume(self, phases: tuple[Phase, ...]) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            if self.log is not None and _rank() == 0:
                self.log.write_text("")
            return
        device = self.weights[0].device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.loss.load_state_dict(state["loss"])
        self.phase, self.step = state["phase"], state["step"]
        if state["optimizer"] is not None:
            self.optimizer = make_optimizer(self.weights, phases[self.phase])
            self.optimizer.load_state_dict(state["optimizer"])
        for name in ("stalled", "skipped", "skipped_in_a_row", "terms"):
            setattr(self, name, state[name])
        self.before = state["seconds"]
        if self.log is not None and self.log.exists() and _rank() == 0:
            os.truncate(self.log, state["log_bytes"])  # steps taken again are logged again


def make_optimizer(weights: list[Tensor], phase: Phase) -> torch.optim.Optimizer:
    """The phase's optimiser, at its first step."""
    if phase.optimizer == "adam":
        return torch.optim.Adam(weights, lr=phase.rate)
    if phase.optimizer == "soap":
        from pytorch_optimizer import SOAP

        return SOAP(weights, lr=phase.rate, weight_decay=0.0, precondition_frequency=10)
    return torch.optim.LBFGS(
        weights,
        lr=1.0,
        history_size=phase.memory,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )


def average_over_processes(weights: list[Tensor], terms: dict[str, Tensor]) -> None:
    """Replace gradients and loss terms by their means over the processes of torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    tensors = [w.grad for w in weights if w.grad is not None] + list(terms.values())
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([t.numel() for t in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
