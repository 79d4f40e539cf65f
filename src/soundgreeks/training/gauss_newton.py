r"""Gauss-Newton with Levenberg and Marquardt's damping, for losses that are sums of squares.

With residuals :math:`r` (N,) and their Jacobian :math:`J` (N, P) by the weights, the step is

.. math:: d = -(J'J + \lambda I)^{-1} J'r = -J'(JJ' + \lambda I)^{-1} r,

the left form where there are fewer weights than residuals, the right one else. :math:`\lambda`
follows the gain ratio, by how much the loss fell over how much the linear model promised
(Nielsen, 1999, "Damping parameter in Marquardt's method").
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from .._validate import require
from .broyden import place
from .optimizers import flat
from .phases import Phase
from .protocols import Problem, Residual

_NUMBERS = 2**24  # of the Jacobian held in one chunk: 128 MB in float64
_ROWS = 4096  # residuals evaluated at a time
_FIRST = 1e-3  # lambda at first, in mean curvatures
_TRIES = 20  # dampings tried in a step; the last is larger by 2^210


class GaussNewton:
    """Minimise a sum of squares; a step is one Jacobian and the first damping that lowers the loss.

    The Jacobian is taken in the weights' precision, rows together under `vmap`; sums, solves and
    gain ratios are float64. With n = min(N, P), memory goes with n P, time with n N P.

    >>> from types import SimpleNamespace as Loss
    >>> w = torch.nn.ParameterList([torch.zeros(1)])
    >>> square = Loss(begin=lambda *_: 0, parts=lambda: [{"": (w[0] - 3).square().sum()}])
    >>> square.residuals = lambda: [(lambda weights: weights["0"] - 3, ())]
    >>> _ = training.train(w, square, [Phase("gauss-newton", 20)], progress=False)
    >>> round(w[0].item(), 3)
    3.0

    Raises
    ------
    ValueError
        The squares of the residuals do not add up to the loss.
    """

    def __init__(self, weights: dict[str, Tensor], phase: Phase):
        self.free = {name: w for name, w in weights.items() if w.requires_grad}
        self.frozen = {name: w for name, w in weights.items() if not w.requires_grad}
        self.size = sum(w.numel() for w in self.free.values())
        self.damping: float | None = None
        self.growth, self.stalled = 2.0, False

    def advance(self, step: int, problem: Problem) -> int:
        total = problem.evaluate(backward=False)
        residuals = list(problem.residuals())
        r = self._values(residuals)
        old = float(r @ r)
        matrix, gradient, to_weights = self._equations(residuals, r)
        damping = self.damping
        if damping is None:
            adds_up = abs(old - total) <= 1e-3 * abs(total)
            require(adds_up, "residuals", f"{old:.6g}", f"those whose squares add to {total:.6g}")
            damping = _FIRST * float(matrix.diagonal().mean())
        weights = list(self.free.values())
        start = flat(weights)
        for _ in range(_TRIES):
            damped = matrix.clone()
            damped.diagonal().add_(damping)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                direction = to_weights(factor)
                place(weights, start + direction)
                new = float(self._values(residuals).square().sum())
                if new < old:  # false where it is not finite
                    promised = float(direction @ (damping * direction - gradient))
                    gain = (old - new) / promised
                    self.damping = damping * max(1 / 3, 1 - (2 * gain - 1) ** 3)
                    self.growth = 2.0
                    return 1
            damping *= self.growth
            self.growth *= 2
        place(weights, start)
        self.stalled = True
        return 1

    def _equations(
        self, residuals: list[Residual], r: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """J'J or JJ', the smaller; J'r; and the step from the Cholesky factor of it, damped."""
        gradient = r.new_zeros(self.size)
        if self.size <= len(r):
            matrix, first = r.new_zeros(self.size, self.size), 0
            for rows in self._jacobian(residuals):
                rows = rows.double()
                matrix.addmm_(rows.T, rows)
                gradient += rows.T @ r[first : first + len(rows)]
                first += len(rows)
            return matrix, gradient, lambda factor: -_solve(factor, gradient)
        chunks = list(self._jacobian(residuals))
        lengths = [len(rows) for rows in chunks]

        def transposed(z: Tensor) -> Tensor:
            pairs = zip(chunks, z.split(lengths), strict=True)
            return sum(rows.double().T @ piece for rows, piece in pairs)

        matrix = torch.cat(
            [torch.cat([a.double() @ b.double().T for b in chunks], dim=1) for a in chunks]
        )
        return matrix, transposed(r), lambda factor: -transposed(_solve(factor, r))

    def _jacobian(self, residuals: list[Residual]) -> Iterator[Tensor]:
        """Rows of J, (n, P) at a time."""
        count = max(1, _NUMBERS // self.size)
        free = {name: w.detach() for name, w in self.free.items()}
        for function, inputs in residuals:
            if not inputs:
                columns = jacrev(self._of_free(function), chunk_size=count)(free)
                yield self._join(columns)
            for rows in zip(*(x.split(count) for x in inputs), strict=True):
                axes = (None, *(0 for _ in rows))
                yield self._join(vmap(grad(self._of_free(function)), axes)(free, *rows))

    @torch.no_grad()
    def _values(self, residuals: list[Residual]) -> Tensor:
        """r (N,), in float64."""
        found = []
        free = {name: w.detach() for name, w in self.free.items()}
        for function, inputs in residuals:
            function = self._of_free(function)
            if inputs:
                axes = (None, *(0 for _ in inputs))
                found.append(vmap(function, axes, chunk_size=_ROWS)(free, *inputs))
            else:
                found.append(function(free).reshape(-1))
        return torch.cat(found).double()

    def _join(self, columns: dict[str, Tensor]) -> Tensor:
        """Derivatives by each weight, (n, *shape), side by side: (n, P)."""
        parts = [columns[name].reshape(-1, w.numel()) for name, w in self.free.items()]
        return torch.cat(parts, dim=1)

    def _of_free(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda free, *row: function(free | self.frozen, *row)

    def state_dict(self) -> dict:
        return {"damping": self.damping, "growth": self.growth}

    def load_state_dict(self, state: dict) -> None:
        self.damping, self.growth = state["damping"], state["growth"]


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[:, None], factor)[:, 0]
