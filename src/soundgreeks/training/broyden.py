r"""Self-scaled Broyden: quasi-Newton with a dense inverse Hessian that corrects its own size.

With the step :math:`s`, the change of gradient :math:`y`, :math:`b = s'H^{-1}s / s'y`,
:math:`h = y'Hy / s'y` and :math:`a = bh - 1 \ge 0`,

.. math:: H \leftarrow \frac1\tau \Big(H - \frac{Hy\,y'H}{y'Hy} + \varphi\,(y'Hy)\,vv'\Big)
    + \frac{ss'}{s'y}, \qquad v = \frac{s}{s'y} - \frac{Hy}{y'Hy},
    \qquad \varphi = \frac{1 - \theta}{1 + a\theta}.

:math:`\theta = 0, \tau = 1` is BFGS, :math:`\theta = 1, \tau = 1` DFP; every choice satisfies the
secant equation :math:`Hy = s`. `scaling` chooses as Urbán, Stefanou and Pons (2025, J. Comput.
Phys. 523, 113656, eqs. 13 to 23, "SSBroyden2") do, after Al-Baali and Khalfan (2005, "Wide interval
for efficient self-scaling quasi-Newton algorithms").
"""

import torch
from torch import Tensor
from torch.optim.lbfgs import _strong_wolfe

from .optimizers import UNIT, flat, trainable
from .phases import Phase
from .protocols import Problem

_SEARCHES = 25  # evaluations in a line search


def scaling(b: float, h: float, size: int) -> tuple[float, float]:
    """Which member phi of Broyden's family, and by what tau to divide the inverse Hessian.

    >>> scaling(1.0, 1.0, 10)  # the Hessian is right along s: BFGS, unscaled
    (1.0, 1.0)

    Parameters
    ----------
    b, h : s'Bs / s'y, B the inverse of H, and y'Hy / s'y; positive
    size : number of weights
    """
    a = max(b * h - 1, 1e-14)  # Cauchy-Schwarz: not below 0, where every member is the same
    c = (a / (1 + a)) ** 0.5
    least = min(1.0, h / ((1 + a) * (1 + c)))  # h (1 - c): how far the determinant may fall
    theta = max((least - 1) / a, min(1 / least, (1 - b) / b))
    volume = max(1 + a * theta, least)
    mean, shrink = volume ** (1 / (1 - max(size, 2))), min(1.0, 1 / b)
    tau = min(shrink * mean, volume) if theta <= 0 else shrink * min(mean, 1 / theta)
    return (1 - theta) / volume, tau


def update(inverse: Tensor, s: Tensor, y: Tensor, phi: float, tau: float) -> Tensor:
    """The equation above: the new inverse Hessian (n, n), written over the old one.

    >>> s, y = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    >>> update(torch.eye(2), s, y, 1.0, 1.0) @ y  # the secant equation: it is s
    tensor([1., 0.])

    Parameters
    ----------
    inverse : (n, n), symmetric and positive definite
    s, y : (n,), step and change of gradient, s'y > 0
    """
    hy, sy = inverse @ y, s @ y
    yhy = y @ hy
    columns = torch.stack([hy, s / sy - hy / yhy, s])
    sizes = torch.stack([-1 / (tau * yhy), phi / tau * yhy, 1 / sy])
    return inverse.addmm_(columns.T, sizes[:, None] * columns, beta=1 / tau)


class Broyden:
    """Minimise by self-scaled Broyden steps with a strong-Wolfe line search.

    The inverse Hessian is dense and float64: n weights take 8 n^2 bytes, of memory and of every
    checkpoint; 10,000 weights take 800 MB.

    >>> from types import SimpleNamespace as Loss
    >>> w = torch.nn.ParameterList([torch.zeros(1)])
    >>> square = Loss(begin=lambda *_: 0, parts=lambda: [{"": (w[0] - 3).square().sum()}])
    >>> _ = training.train(w, square, [Phase("broyden", 20)], progress=False)
    >>> round(w[0].item(), 3)
    3.0
    """

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        self.phase, self.weights, self.stalled = phase, trainable(weights), False
        self.inverse: Tensor | None = None  # the identity, before the first update

    def advance(self, step: int, problem: Problem) -> int:
        """`UNIT` iterations: the points are the same in all of them."""
        taken = min(UNIT, self.phase.steps - step)
        value, gradient = problem.evaluate(), self._gradient()
        for _ in range(taken):
            value, gradient = self._iterate(problem, value, gradient)
            if self.stalled:
                break
        return taken

    @torch.no_grad()
    def _iterate(self, problem: Problem, value: float, gradient: Tensor) -> tuple[float, Tensor]:
        inverse = self.inverse
        direction = -gradient if inverse is None else -(inverse @ gradient)
        slope = gradient @ direction
        start = flat(self.weights).double()

        def at(_, length, direction) -> tuple[float, Tensor]:
            place(self.weights, start + length * direction)
            with torch.enable_grad():
                found = problem.evaluate(trial=True)
            return found, self._gradient()

        first = 1.0 if inverse is not None else 1 / max(1.0, float(gradient.abs().sum()))
        found, new, length, _ = _strong_wolfe(
            at, None, first, direction, value, gradient, slope,
            tolerance_change=0.0, max_ls=_SEARCHES,
        )  # fmt: skip
        place(self.weights, start + length * direction)
        s = flat(self.weights).double() - start  # as rounded to the weights' own precision
        y = new - gradient
        sy, bs, ss, yy = torch.stack([s @ y, -length * (gradient @ s), s @ s, y @ y]).tolist()
        if not (found < value and ss > 0):
            place(self.weights, start)
            # What it has learnt misleads: forget it, and try once more along the gradient.
            self.stalled, self.inverse = inverse is None, None
            return value, gradient
        if sy > 0:
            self._learn(s, y, bs / sy, sy / yy)
        return found, new

    def _learn(self, s: Tensor, y: Tensor, b: float, size: float) -> None:
        inverse = self.inverse
        if inverse is None:  # Nocedal and Wright (2006), eq. 6.20
            inverse = size * torch.eye(len(s), dtype=s.dtype, device=s.device)
            b = b / size
        h = float(y @ inverse @ y / (s @ y))
        if b > 0 and h > 0:
            self.inverse = update(inverse, s, y, *scaling(b, h, len(s)))

    def _gradient(self) -> Tensor:
        zero = (torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights)
        return flat(zero).double()

    def state_dict(self) -> dict:
        return {"inverse": self.inverse}

    def load_state_dict(self, state: dict) -> None:
        inverse = state["inverse"]
        self.inverse = None if inverse is None else inverse.to(self.weights[0].device)


@torch.no_grad()
def place(weights: list[Tensor], point: Tensor) -> None:
    """Write the vector `point` over the weights, in their precision.

    >>> w = torch.zeros(2, 1)
    >>> place([w], torch.tensor([1.0, 2.0]))
    >>> w
    tensor([[1.],
            [2.]])
    """
    for w, piece in zip(weights, point.split([w.numel() for w in weights]), strict=True):
        w.copy_(piece.view_as(w))
