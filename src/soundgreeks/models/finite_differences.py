r"""Prices without a formula or a network: finite differences for any model with one state.

In forward log-moneyness k = x + r tau the undiscounted price F solves F_tau = N[F] with

.. math:: N = \tfrac12 s^2 (\partial_{kk} - \partial_k) + c\,\partial_{k\nu}
          + \tfrac12 v\,\partial_{\nu\nu} + m\,\partial_\nu

(`model` has the names of the coefficients). The grid is uniform in :math:`\xi` and :math:`\eta`,

.. math:: k = a \sinh\xi, \qquad \nu = b^2 \sinh^2\eta,

fine at the strike, which is a node, and where the variance is small. Smooth functions of the
variance are even in :math:`\eta`, so at zero variance the grid is mirrored and no condition is
needed. Central differences and the steps of `march` leave errors in even powers of the step;
Richardson's extrapolation over three grids takes them away, and what its last stage changes is the
error stated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.interpolate import RectBivariateSpline
from scipy.sparse.linalg import splu
from torch import Tensor

from .._validate import floating, require
from . import claims
from .model import Model, delta_gamma

GRIDS = (24, 36, 48)  # nodes of the state; four times as many in moneyness, half as many steps
_REACH = 6.0  # standard deviations that the grid reaches beyond the state that is asked for
_SOLVES = 5  # of `march` a step
_POLE = 1 / np.polynomial.laguerre.lagroots([0] * _SOLVES + [1])[2]
# Powers of 1/(1 - pole z), weighted so that their Taylor series is that of e^z.
_WEIGHTS = np.linalg.solve(
    [[math.comb(j + i, i) * _POLE**i for j in range(_SOLVES)] for i in range(_SOLVES)],
    [1 / math.factorial(i) for i in range(_SOLVES)],
)


class Estimate(NamedTuple):
    """Price, Delta and Gamma of a call, and how far each is still from its limit; each (n,).

    >>> from soundgreeks.models import finite_differences
    >>> p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    >>> found = finite_differences.price(heston.MODEL, 0.0, 0.04, 1.0, p)
    >>> abs(float(found.price) - 0.10394219) < 1e-7 > float(found.price_error)  # the formula's
    True
    """

    price: Tensor
    delta: Tensor
    gamma: Tensor
    price_error: Tensor
    delta_error: Tensor
    gamma_error: Tensor


class Grid(NamedTuple):
    """Uniform nodes xi (n,), eta (m,) and the scales a, b of the two stretchings.

    >>> from soundgreeks.models.finite_differences import Grid
    >>> float(Grid(np.array([-1.0, 0.0, 1.0]), np.array([0.25, 0.75]), 0.2, 0.3).k[1])  # strike
    0.0
    """

    xi: np.ndarray
    eta: np.ndarray
    a: float
    b: float

    @property
    def k(self) -> np.ndarray:
        """Forward log-moneyness (n,)."""
        return self.a * np.sinh(self.xi)

    @property
    def nu(self) -> np.ndarray:
        """Variance (m,), 1/year."""
        return (self.b * np.sinh(self.eta)) ** 2


def price(model: Model, x, state, tau: float, p, *, grids: Sequence[int] = GRIDS) -> Estimate:
    """The call, its Delta and Gamma, extrapolated over `grids`, for one parameter vector.

    The put is solved for, which is bounded; the call is the put and a forward contract.

    >>> from soundgreeks.models import finite_differences
    >>> p = garch.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    >>> found = finite_differences.price(garch.MODEL, [-0.1, 0.1], 0.04, 0.5, p, grids=(16, 24, 32))
    >>> found.price, bool((found.price_error < 1e-6).all())
    (tensor([0.0242, 0.1459], dtype=torch.float64), True)

    Parameters
    ----------
    model : with one state, moved by one noise
    x, state : (n,) or numbers: log-moneyness ln(S/K); variance > 0, 1/year
    tau : years, positive, the same for all
    p : the model's parameters, numbers
    grids : nodes of the state, two grids or more, increasing; the finest decides the cost

    Raises
    ------
    ValueError
        A model with more states, an argument out of its range, or shapes that do not broadcast.
    """
    one = len(model.states) == 1 == len(model.noises)
    require(one, "model", model.name, "of one state and one noise")
    given = len(grids) > 1 and min(grids) >= 8 and list(grids) == sorted(set(grids))
    require(given, "grids", tuple(grids), "at least two numbers from 8 on, increasing")
    p = model.checked(p)
    require(p.shape == (), "p", tuple(p.shape), "one parameter vector")
    x, nu = (torch.as_tensor(v, dtype=torch.float64) for v in (x, state))
    x, nu = (v.reshape(-1) for v in floating(x=x, state=nu))
    require(torch.isfinite(x), "x", x, "finite")
    require((nu > 0) & torch.isfinite(nu), model.states[0], nu, "positive and finite")
    require(math.isfinite(tau) and tau > 0, "tau", tau, "positive and finite")
    k = x + p.r * tau
    found = []
    for n in grids:
        grid = _grid(model, p, float(k.abs().max()), nu, tau, n)
        values = _averages(grid, claims.PUT.payoff)
        start = np.tile(values, len(grid.eta))
        end = march(generator(model, p, grid), start, tau, -(-n // 2))
        put = _read(grid, end.reshape(len(grid.eta), -1), k.numpy(), nu.numpy())
        discount, e = math.exp(-float(p.r) * tau), torch.exp(k)
        u, u_x, u_xx = (discount * (v + w) for v, w in zip(put, (e - 1, e, e), strict=True))
        found.append(torch.stack([u, *delta_gamma(x, u_x, u_xx)]))
    best, error = extrapolated(found, grids)
    return Estimate(*best, *error)


def extrapolated(values: Sequence, sizes: Sequence[int]):
    """Limit of values whose errors go in even powers of 1 / size, and by how much it moved last.

    Neville's scheme. Values: numbers or tensors of one shape; so are the results.

    >>> from soundgreeks.models.finite_differences import extrapolated
    >>> value, error = extrapolated([1 + 1 / n**2 + 3 / n**4 for n in (2, 3, 4)], (2, 3, 4))
    >>> round(value, 12), round(error, 4)
    (1.0, 0.0208)
    """
    row, h = list(values), [1 / n**2 for n in sizes]
    for j in range(1, len(row)):
        before = row[-1]
        for i in range(len(row) - 1, j - 1, -1):
            row[i] = row[i] + (row[i] - row[i - 1]) * h[i] / (h[i - j] - h[i])
    return row[-1], abs(row[-1] - before)


def generator(model: Model, p, grid: Grid) -> sparse.csc_matrix:
    """N on the grid, acting on values (m n,) with k running fastest.

    At both ends of k the values stay what they are. At the largest variance they may be anything
    that the inside says: the drift leads inwards, and nothing diffuses.

    >>> from soundgreeks.models import finite_differences
    >>> p = heston.MODEL.checked(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    >>> grid = finite_differences.Grid(np.linspace(-2, 2, 9), np.linspace(0.1, 1.5, 8), 0.2, 0.2)
    >>> n = finite_differences.generator(heston.MODEL, p, grid)
    >>> bool(abs(n @ np.ones(72)).max() < 1e-10)  # a bond stays a bond
    True
    """
    first, second = _differences(grid.xi)
    for d in (first, second):
        d[[0, -1]] = 0
    slope = sparse.diags(1 / (grid.a * np.cosh(grid.xi)))
    by_k = slope @ first
    by_kk = slope @ slope @ (second - sparse.diags(np.tanh(grid.xi)) @ first)
    first, second = _differences(grid.eta)
    h = grid.eta[1] - grid.eta[0]
    first[0, 0], second[0, 0] = -1 / (2 * h), -1 / h**2  # half a step from zero: mirrored
    first[-1, -3:], second[-1] = np.array([1, -4, 3]) / (2 * h), 0
    slope = sparse.diags(1 / (grid.b**2 * np.sinh(2 * grid.eta)))
    by_nu = slope @ first
    by_nunu = slope @ slope @ (second - sparse.diags(2 / np.tanh(2 * grid.eta)) @ first)
    s2, c, v, m = (sparse.diags(w) for w in _coefficients(model, p, grid.nu))
    inner = np.ones(len(grid.xi))
    inner[[0, -1]] = 0
    return (
        sparse.kron(0.5 * s2, by_kk - by_k) + sparse.kron(c @ by_nu, by_k)
        + sparse.kron(0.5 * v @ by_nunu + m @ by_nu, sparse.diags(inner))
    ).tocsc()  # fmt: skip


def march(matrix, u: np.ndarray, tau: float, steps: int) -> np.ndarray:
    r"""exp(tau N) u by steps of fifth order, five solves each with one factorisation.

    A step is :math:`\sum_j w_j (1 - \gamma\,dt\,N)^{-j}` with the pole of Norsett (1974) that makes
    it L-stable: what a kink excites dies at once.

    >>> from soundgreeks.models.finite_differences import march
    >>> float(march(sparse.diags([-1.0, -1e6]).tocsc(), np.ones(2), 1.0, 8)[0])  # 1/e
    0.367879...
    """
    dt = tau / steps
    lu = splu((sparse.eye(len(u)) - _POLE * dt * matrix).tocsc())
    for _ in range(steps):
        v, total = u, np.zeros_like(u)
        for weight in _WEIGHTS:
            v = lu.solve(v)
            total += weight * v
        u = total
    return u


def _grid(model: Model, p, k: float, nu: Tensor, tau: float, n: int) -> Grid:
    """A grid of n variances that holds |k| and `nu`, and what they may become, with some room."""
    low, top, total = float(nu.min()), float(nu.max()), 0.0
    w = float(model.expected_variance(p, torch.tensor(tau).double(), torch.tensor(low).double()))
    room = 4 * top
    for _ in range(200):  # the path on which every step is a rise of as much
        _, _, v, m = (float(c[0]) for c in _coefficients(model, p, np.array([top])))
        top += tau / 200 * (m + _REACH * math.sqrt(v / tau))
        total += tau / 200 * top
    a, b = math.sqrt(w), 1.5 * math.sqrt(w / tau)
    reach = math.asinh((k + 0.5 * _REACH * math.sqrt(total)) / a)
    high = math.asinh(math.sqrt(max(top, room)) / b)
    return Grid(np.linspace(-reach, reach, 4 * n + 1), (np.arange(n) + 0.5) * high / n, a, b)


def _coefficients(model: Model, p, nu: np.ndarray) -> list[np.ndarray]:
    """s^2, c, v and m at variances (m,): each (m,)."""
    (name,), (noise,), at = model.states, model.noises, torch.as_tensor(nu)
    covariances = model.covariances(p, at)
    sums = [covariances["x", noise], covariances[noise, noise], model.drift(p, at)[name]]
    found = [model.variance(p, at), *(sum(f * g for f, g in terms) for terms in sums)]
    return [np.broadcast_to(np.asarray(v), nu.shape) for v in found]


def _differences(at: np.ndarray):
    """First and second central differences on uniform nodes; whoever calls mends the ends."""
    n, h = len(at), at[1] - at[0]
    first = sparse.diags([-1 / (2 * h), 1 / (2 * h)], [-1, 1], shape=(n, n)).tolil()
    second = sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(n, n)).tolil() / h**2
    return first, second.tolil()


def _averages(grid: Grid, payoff) -> np.ndarray:
    """The payoff's mean over the cell of each node (n,): Gauss nodes on either side of the kink."""
    q, weight = np.polynomial.legendre.leggauss(4)
    h = grid.xi[1] - grid.xi[0]
    offsets = np.concatenate([(q - 1), (q + 1)]) * h / 4
    at = grid.a * np.sinh(grid.xi[:, None] + offsets)
    return payoff(torch.as_tensor(at)).numpy() @ np.tile(weight / 4, 2)


def _read(grid: Grid, values: np.ndarray, k: np.ndarray, nu: np.ndarray) -> list[Tensor]:
    """Value and two derivatives in k at points (n,), by a spline of fifth degree."""
    spline = RectBivariateSpline(grid.eta, grid.xi, values, kx=5, ky=5)
    at = np.arcsinh(np.sqrt(nu) / grid.b), np.arcsinh(k / grid.a)
    value, first, second = (spline.ev(*at, dy=i) for i in range(3))
    slope = grid.a * np.cosh(at[1])  # dk / dxi
    first = first / slope
    second = second / slope**2 - np.tanh(at[1]) * first / slope
    return [torch.as_tensor(v) for v in (value, first, second)]
