"""Typed numbers of chapter 8 that follow from closed forms, by quadrature over the path's end."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr

from soundgreeks import bachelier
from soundgreeks.book import reference

START, STRIKE, BARRIER = 100.0, 110.0, 150.0
BASKET = bachelier.Basket.random(dim=7, seed=0)
SPREAD = float(BASKET.volatility)  # over one year
PATHS = 2**20  # of the profile read


def z(b):
    return (b - START) / SPREAD


def mean(f, low=-math.inf, high=math.inf):
    """E[f(B_T)] for the paths that end between `low` and `high`."""
    low, high = max(low, START - 12 * SPREAD), min(high, START + 12 * SPREAD)
    breaks = [k for k in (STRIKE - 1, STRIKE, STRIKE + 1, BARRIER) if low < k < high]
    value, error = quad(
        lambda b: f(b) * math.exp(-(z(b) ** 2) / 2),
        low,
        high,
        points=breaks,
        limit=200,
        epsabs=1e-12,
        epsrel=1e-12,
    )
    assert error < 1e-9
    return value / math.sqrt(2 * math.pi) / SPREAD


def fault(sample, paths=PATHS):
    """Four standard errors of the mean of sample(B_T), as a share of that mean."""
    first, second = mean(sample), mean(lambda b: sample(b) ** 2)
    return 4 * math.sqrt((second - first**2) / paths) / abs(first)


def relu(x):
    return max(x, 0.0)


def survival(b):
    return -math.expm1(-2 * relu(BARRIER - START) * relu(BARRIER - b) / SPREAD**2)


def survival_slope(b):
    """Its derivative when start and end move together."""
    if b >= BARRIER:
        return 0.0
    return -2 * (2 * BARRIER - START - b) / SPREAD**2 * (1 - survival(b))


def knocked(b):
    """The conditioned pathwise Delta of the up-and-out call."""
    return (b > STRIKE) * (survival(b) + (b - STRIKE) * survival_slope(b))


def scores_fault():
    """By the scores of all assets: the basket's own, and noise that knows nothing of it."""
    covariance = BASKET.factor @ BASKET.factor.T
    weights, ones = BASKET.weights, torch.ones(7, dtype=torch.float64)
    inverse = torch.linalg.solve(covariance, ones)
    along = float(weights @ covariance @ weights)
    rest = float(ones @ inverse) - 1 / along  # variance of what is left of 1' S^-1 (S_T - S_0)
    second = mean(lambda b: (b > STRIKE) * ((z(b) / SPREAD) ** 2 + rest))
    first = mean(lambda b: (b > STRIKE) * z(b) / SPREAD)
    return 4 * math.sqrt((second - first**2) / (4 * PATHS)) / first


def call_fault():
    return max(fault(lambda b: relu(b - STRIKE)), fault(lambda b: float(b > STRIKE)))


def barrier_fault():
    """A path lives or dies: the second moment is that of the payoff times the chance to live."""
    first = mean(lambda b: relu(b - STRIKE) * survival(b))
    second = mean(lambda b: relu(b - STRIKE) ** 2 * survival(b))
    return 4 * math.sqrt((second - first**2) / PATHS) / first


def repaired_fault():
    faults = [
        fault(lambda b: (abs(b - STRIKE) <= 1) / 2, 4 * PATHS),
        fault(lambda b: relu(b - STRIKE) * (z(b) ** 2 - 1) / SPREAD**2, 4 * PATHS),
        fault(lambda b: (b > STRIKE) * z(b) / SPREAD, 4 * PATHS),
        scores_fault(),
        fault(knocked, 4 * PATHS),
    ]
    return max(faults)


def naive_ratio():
    """The chance to end alive in the money, by reflection, over the true Delta."""

    def between(start):
        return ndtr((BARRIER - start) / SPREAD) - ndtr((STRIKE - start) / SPREAD)

    return (between(START) - between(2 * BARRIER - START)) / mean(knocked)


EXACT = {
    "pathwise.call_fault": call_fault,
    "pathwise.barrier_fault": barrier_fault,
    "pathwise.repaired_fault": repaired_fault,
    "pathwise.barrier_delta_naive": naive_ratio,
}


@pytest.mark.parametrize("key", EXACT)
def test_typed_values_follow_from_closed_forms(key):
    assert EXACT[key]() == pytest.approx(reference.load()[key].value, rel=1e-4)


def test_the_quadrature_knows_the_closed_forms():
    spots = torch.full((1, 7), START, dtype=torch.float64)
    exact = BASKET.greeks(spots)
    assert mean(lambda b: relu(b - STRIKE)) == pytest.approx(float(exact.price[0]), rel=1e-10)
    price = float(BASKET.up_and_out(spots, BARRIER)[0])
    assert mean(lambda b: relu(b - STRIKE) * survival(b)) == pytest.approx(price, rel=1e-9)
    step = torch.full((1, 7), 1e-3, dtype=torch.float64)
    up, down = (float(BASKET.up_and_out(spots + s, BARRIER)[0]) for s in (step, -step))
    assert mean(knocked) == pytest.approx((up - down) / 2e-3, rel=1e-6)
