"""What training asks of a loss, and what it offers an optimiser."""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from .phases import Phase

Residual = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A function of the weights and one row, and the rows: see `CompleteLoss.residuals`."""


class Loss(Protocol):
    """What `train` minimises: a sum of named terms, evaluated in parts to bound memory.

    This much is enough; for checkpoints and Gauss-Newton see `CompleteLoss`.
    """

    def begin(self, phase: Phase, number: int, step: int) -> None:
        """Called before each step of phase `number`: the place to renew points.

        Line searches make `optimizers.UNIT` steps of one call. If ``phase.fixed_points``, the
        optimiser compares losses, and the points should stay.
        """

    def parts(self) -> Iterable[dict[str, Tensor]]:
        """Dictionaries of scalar terms; the loss is the sum of all terms of all parts."""


class CompleteLoss(Loss, Protocol):
    """What a loss may also offer: to checkpoints, to Gauss-Newton, and to who reads an error."""

    def state_dict(self) -> dict:
        """All that `begin` and `parts` change; tensors and plain values."""

    def load_state_dict(self, state: dict) -> None:
        """Tensors come on the module's device; a generator's state must be moved to the CPU."""

    def residuals(self) -> Iterable[Residual]:
        """Pairs ``(function, inputs)``; the loss is the sum of the squares of all residuals.

        ``function(weights, *row)`` returns the scalar residual of one row of `inputs`, tensors
        batched along their first dimension, with its weight in the loss and 1/sqrt(n) of a mean
        in it; `weights` is a dictionary named as ``module.named_parameters()``. It goes through
        `torch.func.vmap` and `grad`. Without inputs, ``()``, it returns a whole vector.
        """

    def locate(self) -> str:
        """Where the loss is not finite, in words."""


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


class Optimizer(Protocol):
    """What the engine asks of an optimiser; made by ``Kind(weights, phase)``.

    With `state_dict` and `load_state_dict` it goes through a checkpoint to the same bits.
    """

    stalled: bool
    """It finds no lower loss; that ends its phase."""

    def advance(self, step: int, problem: Problem) -> int:
        """Move the weights from step 0, 1, ... of the phase on; how many steps that took."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...
