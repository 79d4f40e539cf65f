"""SOAP, from pytorch-optimizer."""

from pytorch_optimizer import SOAP
from torch import Tensor

from .optimizers import _Bare, descend, trainable
from .phases import Phase
from .protocols import Problem


class Soap(SOAP, _Bare):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., 2024), renewed every ten.

    >>> from types import SimpleNamespace as Loss
    >>> w = torch.nn.ParameterList([torch.zeros(1)])
    >>> square = Loss(begin=lambda *_: 0, parts=lambda: [{"": (w[0] - 3).square().sum()}])
    >>> _ = training.train(w, square, [Phase("soap", 200, 0.1)], progress=False)
    >>> round(w[0].item(), 1)
    3.0
    """

    stalled = False

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        super().__init__(
            trainable(weights),
            lr=phase.rate,
            weight_decay=0.0,
            precondition_frequency=10,
            eps=phase.epsilon,
        )
        self.phase = phase

    def advance(self, step: int, problem: Problem) -> int:
        return descend(self, self.phase, step, problem)
