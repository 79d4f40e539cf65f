r"""The kernel of rough volatility as a sum of exponentials.

.. math:: K(t) = \frac{t^{H - 1/2}}{\Gamma(H + \tfrac12)} \approx \sum_i c_i e^{-x_i t}

turns a process with memory into one of a few factors (Abi Jaber and El Euch 2019; Bayer and Breneis
2023). What should be near, and in which norm? A kick of the variance at time 0 adds
:math:`\int_0^t K` to the total variance at t, and of the variance prices see nothing else. So that
integral is fitted, relatively, evenly in the logarithm of t between the shortest and the longest
maturity that matter.
"""

import math
from typing import NamedTuple

import numpy as np

from .._validate import require


class Lift(NamedTuple):
    """Speeds x_i, 1/year, and weights c_i, year^(H - 1/2), each of shape (n,).

    >>> from soundgreeks.models import rough_kernel
    >>> found = rough_kernel.integrated(rough_kernel.lift(2), 1.0)
    >>> round(float((found / rough_kernel.integrated(None, 1.0))[0]), 3)
    0.981
    """

    speeds: np.ndarray
    weights: np.ndarray


def integrated(lift: Lift | None, t, hurst: float = 0.1) -> np.ndarray:
    """The integral of the kernel to times t (m,), in years; of the rough one without a lift.

    >>> from soundgreeks.models import rough_kernel
    >>> rough_kernel.integrated(None, 1.0, hurst=0.5)  # K = 1
    array([1.])
    """
    t = np.atleast_1d(np.asarray(t, dtype=float))
    if lift is None:
        return t ** (hurst + 0.5) / math.gamma(hurst + 1.5)
    return _columns(lift.speeds, t) @ lift.weights


def lift(
    factors: int, hurst: float = 0.1, *, shortest: float = 0.02, longest: float = 2.0,
    resting: bool = True,
) -> Lift:  # fmt: skip
    """Speeds and weights of the best lift between two maturities, in years.

    The weights are least squares for given speeds; the speeds' logarithms are found by
    Levenberg and Marquardt's method from geometric ones.

    Parameters
    ----------
    factors : how many, from 1 to 6
    hurst : H, in (0, 1/2)
    resting : whether the slowest speed is held at 0, so that one factor only ever remembers

    Raises
    ------
    ValueError
        A number outside its range.
    """
    from scipy.optimize import least_squares  # here, since it takes as long as all of this library

    require(factors in range(1 + resting, 7), "factors", factors, f"from {1 + resting} to 6")
    require(0 < hurst < 0.5, "hurst", hurst, "in (0, 1/2)")
    require(0 < shortest < longest < math.inf, "shortest", shortest, "positive, below longest")
    t = np.geomspace(shortest, longest, 200)
    target = integrated(None, t, hurst)

    def speeds(q):
        return np.concatenate([np.zeros(int(resting)), np.exp(np.clip(q, -10, 12))])

    def weights(q):
        columns = _columns(speeds(q), t) / target[:, None]
        c, *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
        return c, columns @ c - 1

    n = factors - resting
    start = np.log(np.geomspace(1 / longest, 1 / shortest, n + 2)[1:-1])
    found = least_squares(lambda q: weights(q)[1], start, method="lm", xtol=1e-12, ftol=1e-12)
    q = np.sort(found.x)
    return Lift(speeds(q), weights(q)[0])


def geometric(factors: int, hurst: float = 0.1, fastest: float = 1e7) -> Lift:
    """The lift by the kernel's own Laplace measure, cut into geometric cells: it converges.

    K is a mixture of exponentials of all speeds, with density
    x^(-H - 1/2)/(Gamma(1/2 + H) Gamma(1/2 - H)); a cell keeps its mass and its mean speed.

    >>> from soundgreeks.models import rough_kernel
    >>> true = rough_kernel.integrated(None, 1.0)
    >>> [abs(float(rough_kernel.integrated(rough_kernel.geometric(n), 1.0)[0] / true[0]) - 1) < 5e-3
    ...  for n in (25, 100)]
    [False, True]
    """
    edges = np.geomspace(1e-4, fastest, factors)
    a = 0.5 - hurst
    scale = 1 / (math.gamma(0.5 + hurst) * math.gamma(a))
    mass = scale * np.diff(edges**a) / a
    mean = scale * np.diff(edges ** (a + 1)) / (a + 1) / mass
    slow = scale * edges[0] ** a / a  # slower than the first edge is at rest
    return Lift(np.append(0.0, mean), np.append(slow, mass))


def _columns(speeds: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The integral of each exponential, (m, n)."""
    x = np.where(speeds > 0, speeds, 1.0)
    return np.where(speeds > 0, -np.expm1(-np.outer(t, x)) / x, t[:, None])
