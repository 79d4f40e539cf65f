"""First-order optimisers and L-BFGS, as torch has them, behind the interface `Optimizer`."""

from collections.abc import Iterable
from inspect import unwrap

import torch
from torch import Tensor

from .phases import Phase
from .protocols import Optimizer, Problem

UNIT = 20  # line-search iterations between checkpoints, log lines and changes of the points
# torch's L-BFGS drops pairs with y's <= 1e-10, an absolute number: of a loss of 1e-6 it would drop
# most, and be steepest descent. A power of two scales the loss without rounding.
_LBFGS_SCALE = 2.0**20


class _Bare(torch.optim.Optimizer):
    """torch's methods as they are inside what hides them from its compiler.

    The first call of one of these would import that compiler, which takes as long as torch itself.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class Adam(torch.optim.Adam, _Bare):
    """Kingma and Ba (2015), all weights in one kernel.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> w.grad = torch.tensor([5.0, -0.1])
    >>> Adam({"w": w}, Phase("adam", 1, 0.1)).step()  # the first step: the rate, whatever the size
    >>> w.detach()
    tensor([0.9000, 1.1000])
    """

    stalled = False
    _step = torch.no_grad()(unwrap(torch.optim.Adam.step))

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        super().__init__(trainable(weights), phase.rate, weight_decay=phase.decay, fused=True)
        self.phase = phase

    def step(self, closure=None):
        return self._step(closure)

    def advance(self, step: int, problem: Problem) -> int:
        return descend(self, self.phase, step, problem)


class LBFGS(torch.optim.LBFGS, _Bare):
    """Liu and Nocedal (1989) with a strong-Wolfe line search, `UNIT` iterations at a time.

    >>> from types import SimpleNamespace as Loss
    >>> w = torch.nn.ParameterList([torch.zeros(1)])
    >>> square = Loss(begin=lambda *_: 0, parts=lambda: [{"": (w[0] - 3).square().sum()}])
    >>> _ = training.train(w, square, [Phase("lbfgs", 20)], progress=False)
    >>> round(w[0].item(), 3)
    3.0
    """

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


def descend(optimizer: torch.optim.Optimizer, phase: Phase, step: int, problem: Problem) -> int:
    """One evaluation, one update, at the phase's learning rate.

    >>> from types import SimpleNamespace
    >>> w, phase = torch.tensor([1.0], requires_grad=True), Phase("adam", 1, 0.1)
    >>> w.grad = torch.tensor([5.0])
    >>> problem = SimpleNamespace(evaluate=lambda: 5.0, may_update=lambda: True)
    >>> descend(Adam({"w": w}, phase), phase, 0, problem), w.detach()
    (1, tensor([0.9000]))
    """
    for group in optimizer.param_groups:
        group.update(phase.settings_at(step))
    problem.evaluate()
    if problem.may_update():
        optimizer.step()
    return 1


def trainable(weights: dict[str, Tensor]) -> list[Tensor]:
    """Those that are not frozen.

    >>> len(trainable({"free": torch.ones(2, requires_grad=True), "frozen": torch.ones(2)}))
    1
    """
    return [w for w in weights.values() if w.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers in one vector, a copy without a graph.

    >>> flat([torch.ones(1, 2), torch.zeros(1)])
    tensor([1., 1., 0.])
    """
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def make_optimizer(weights: list[Tensor] | dict[str, Tensor], phase: Phase) -> Optimizer:
    """The phase's optimiser, at its first step.

    >>> make_optimizer([torch.ones(2, requires_grad=True)], Phase("lbfgs", 40)).phase.steps
    40

    Parameters
    ----------
    weights : tensors that require gradients, or a dictionary named as `module.named_parameters()`,
        of which frozen ones stay as they are. Gauss-Newton hands the names on to the residuals.

    Returns
    -------
    "adam", "soap" and "lbfgs" are also optimisers of torch's kind, with `step`.
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
