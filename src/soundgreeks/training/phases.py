"""Phases of a training: which optimiser, how many steps, at which learning rate."""

import math
from dataclasses import dataclass

from .._validate import require

OPTIMIZERS = ("adam", "soap", "lbfgs", "broyden", "gauss-newton")
SCHEDULES = ("cosine", "one-cycle")


@dataclass(frozen=True)
class Phase:
    """One optimiser run.

    >>> round(Phase("adam", 10, 1e-3, halve_every=3).rate_at(6), 6)
    0.00025

    Attributes
    ----------
    optimizer : "adam", "soap", "lbfgs", "broyden" or "gauss-newton", see `training.optimizers`,
        `training.broyden` and `training.gauss_newton`
    steps : iterations
    rate : learning rate after the warm-up, the peak of a one-cycle schedule; of "adam" and "soap"
        alone, the others find their own step lengths
    halve_every : halve the rate every so many steps; 0 to follow the schedule
    warmup : steps of linear increase; may exceed `steps`
    memory : pairs that L-BFGS keeps
    schedule : "cosine" (down to a hundredth) or "one-cycle" (Smith and Topin, 2019; "adam" alone):
        up from rate/25 during three tenths of the steps, then down to rate/10000, by half cosines,
        and Adam's first beta the other way, .95 to .85 and back
    epsilon : what "soap" adds to the root of its second moments. Where losses are 1e-9, gradients
        are not large beside the usual 1e-8, and the steps shrink: then a smaller one
    decay : L2 penalty ("adam" alone): `decay` times the weights is added to their gradients

    Raises
    ------
    ValueError
        An unknown name, or a number outside its range.
    """

    optimizer: str
    steps: int
    rate: float = 1e-3
    halve_every: int = 0
    warmup: int = 0
    memory: int = 20
    schedule: str = "cosine"
    decay: float = 0.0
    epsilon: float = 1e-8

    def __post_init__(self):
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {known}")
        for name, least in dict(steps=1, halve_every=0, warmup=0, memory=1).items():
            require_whole(name, getattr(self, name), least)
        require(is_real(self.rate) and self.rate > 0, "rate", self.rate, "finite and positive")
        require(is_real(self.epsilon) and self.epsilon > 0, "epsilon", self.epsilon, "positive")
        require(
            is_real(self.decay) and self.decay >= 0, "decay", self.decay, "finite and non-negative"
        )
        if self.optimizer != "adam":
            require(self.decay == 0, "decay", self.decay, f"0 for {self.optimizer}")
            require(self.schedule == "cosine", "schedule", self.schedule, "cosine but for adam")
        if self.schedule == "one-cycle":
            require(self.halve_every == 0, "halve_every", self.halve_every, "0 for one-cycle")
            require(self.warmup == 0, "warmup", self.warmup, "0 for one-cycle, which has its own")

    @property
    def fixed_points(self) -> bool:
        """Whether the optimiser compares losses between steps: it wants the same points in all."""
        return self.optimizer in ("lbfgs", "broyden", "gauss-newton")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if self.schedule == "one-cycle":
            return self._cycle(step, self.rate / 25, self.rate, self.rate / 25 / 400)
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.halve_every:
            return self.rate * 0.5 ** (step // self.halve_every)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def settings_at(self, step: int) -> dict:
        """What changes in the optimiser's parameter groups from step to step."""
        settings: dict[str, float | tuple[float, float]] = {"lr": self.rate_at(step)}
        if self.schedule == "one-cycle":
            settings["betas"] = (self._cycle(step, 0.95, 0.85, 0.95), 0.999)
        return settings

    def _cycle(self, step: int, start: float, peak: float, end: float) -> float:
        """Half a cosine from start to peak, half a one to the end; in torch's order of rounding."""
        top = 0.3 * (self.steps + 1) - 1
        if step <= top:
            return peak + (start - peak) / 2.0 * (math.cos(math.pi * (step / top)) + 1)
        progress = (step - top) / (self.steps - top)
        return end + (peak - end) / 2.0 * (math.cos(math.pi * progress) + 1)


def require_whole(name: str, value, least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`.

    >>> require_whole("steps", 3, 1)
    >>> require_whole("steps", 0, 1)
    Traceback (most recent call last):
        ...
    ValueError: steps must be a whole number, at least 1, got 0
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= least, name, value, f"a whole number, at least {least}")


def is_real(value) -> bool:
    """Whether `value` is a finite Python number.

    >>> is_real(0.5), is_real(float("inf"))
    (True, False)
    """
    return isinstance(value, int | float) and math.isfinite(value)
