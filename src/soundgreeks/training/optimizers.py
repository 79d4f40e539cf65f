r"""First-order optimisers and L-BFGS, as torch has them, driven through one small interface.

Every optimiser here, in `broyden` and in `gauss_newton`

- is made by ``Kind(weights, phase)``;
- ``advance(step, problem)`` moves the weights and returns how many steps that took;
- ``stalled`` turns true when it finds no lower loss, which ends its phase;
- ``state_dict`` and ``load_state_dict`` carry it through a checkpoint to the same bits.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from .phases import Phase

UNIT = 20  # line-search iterations between checkpoints, log lines and changes of the points
# torch's L-BFGS drops pairs with y's <= 1e-10, an absolute number: of a loss of 1e-6 it would drop
# most, and be steepest descent. A power of two scales the loss without rounding.
_LBFGS_SCALE = 2.0**20

Residual = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A function of the weights and one row, and the rows: see `training.Loss.residuals`."""


class Problem(Protocol):
    """What the engine offers an optimiser: the loss of the module's present weights."""

    finite_gradient: bool
    """Whether the gradients of the last evaluation are finite."""

    def evaluate(self, *, trial: bool = False, backward: bool = True) -> float:
        """The loss, with its gradients in the weights' ``grad`` unless `backward` is False.

        Not finite, it is an error that says where, or infinity in a trial step of a line search.
        """

    def may_update(self) -> bool:
        """Whether to update the weights: not, if a gradient is not finite, and that is counted."""

    def residuals(self) -> Iterable[Residual]: ...


class FirstOrder:
    """One evaluation, one update, at the phase's learning rate."""

    stalled = False
    phase: Phase

    def advance(self, step: int, problem: Problem) -> int:
        for group in self.param_groups:
            group.update(self.phase.settings_at(step))
        problem.evaluate()
        if problem.may_update():
            self.step()
        return 1


class Adam(FirstOrder, torch.optim.Adam):
    """Kingma and Ba (2015), all weights in one kernel."""

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        super().__init__(trainable(weights), phase.rate, weight_decay=phase.decay, fused=True)
        self.phase = phase


class LBFGS(torch.optim.LBFGS):
    """Liu and Nocedal (1989) with a strong-Wolfe line search, `UNIT` iterations at a time."""

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        super().__init__(
            trainable(weights),
            lr=1.0,
            history_size=phase.memory,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self.phase, self.stalled = phase, False

    def advance(self, step: int, problem: Problem) -> int:
        (group,) = self.param_groups
        group["max_iter"] = min(UNIT, self.phase.steps - step)
        group["max_eval"] = 25 * group["max_iter"]
        weights = group["params"]
        start, trial = flat(weights), False

        def closure() -> float:
            nonlocal trial
            value, trial = problem.evaluate(trial=trial), True
            torch._foreach_mul_([w.grad for w in weights if w.grad is not None], _LBFGS_SCALE)
            return value * _LBFGS_SCALE

        self.step(closure)
        # The line search finds no lower point in this precision.
        self.stalled = torch.equal(start, flat(weights))
        return group["max_iter"]


def trainable(weights: dict[str, Tensor]) -> list[Tensor]:
    return [w for w in weights.values() if w.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers in one vector, a copy without a graph."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def make_optimizer(weights: list[Tensor] | dict[str, Tensor], phase: Phase):
    """The phase's optimiser, at its first step.

    Parameters
    ----------
    weights : tensors that require gradients, or a dictionary named as `module.named_parameters()`,
        of which frozen ones stay as they are. Gauss-Newton hands the names on to the residuals.

    Returns
    -------
    An object with `advance`; "adam", "soap" and "lbfgs" are also torch optimisers with `step`.
    """
    if not isinstance(weights, dict):
        weights = {str(i): w for i, w in enumerate(weights)}
    if phase.optimizer == "adam":
        return Adam(weights, phase)
    if phase.optimizer == "soap":
        from .soap import Soap  # its package takes a second to import

        return Soap(weights, phase)
    if phase.optimizer == "lbfgs":
        return LBFGS(weights, phase)
    if phase.optimizer == "broyden":
        from .broyden import Broyden

        return Broyden(weights, phase)
    from .gauss_newton import GaussNewton

    return GaussNewton(weights, phase)
