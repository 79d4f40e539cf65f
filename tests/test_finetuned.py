"""The stored small networks of chapter 10 a second time: NumPy, forward mode by hand, SciPy's law.

Nothing of the core prices, differentiates or scores here. Weights are read, test points are drawn
as the chapter draws them, and each reference number that it checks must come out.
"""

import itertools
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from soundgreeks import bachelier, weights
from soundgreeks.book import reference

POINTS = 65_536
HALF = 50 * (1 + 0.5 * math.sqrt(6 / 12))
LAWS = {
    "wide": (110.0, None),
    "authors": (110.0, (100 - HALF, 100 + HALF)),
    "box_100": (100.0, (90.0, 110.0)),
    "box_110": (110.0, (90.0, 110.0)),
}
SHAPE = (7, 3, 3, 1, 2, 2, 2, 1)
DATA = Path(__file__).parents[1] / "book" / "data" / "table2.json"


@cache
def basket():
    b = bachelier.Basket.random()
    omega, vols, rho = (t.numpy() for t in (b.weights, b.vols, b.correlation))
    return omega, vols, rho, math.sqrt((omega * vols) @ rho @ (omega * vols))


def drawn(law, n, seed, dim=7):
    """Spots (n, 7) under a law."""
    generator = torch.Generator().manual_seed(seed)
    if LAWS[law][1] is None:
        _, vols, rho, _ = basket()
        noise = torch.randn(n, dim, generator=generator, dtype=torch.float64).numpy()
        return 100 + 1.5 * noise @ (vols[:, None] * np.linalg.cholesky(rho)).T
    low, high = LAWS[law][1]
    unit = torch.rand(n, dim, generator=generator, dtype=torch.float64).numpy()
    return low + (high - low) * unit


@cache
def quiz(law):
    """Test points under a law, and the answers by SciPy."""
    omega, _, _, sigma = basket()
    x = drawn(law, POINTS, 7)
    z = (x @ omega - LAWS[law][0]) / sigma
    return x, (sigma * (z * norm.cdf(z) + norm.pdf(z)), norm.cdf(z), norm.pdf(z) / sigma)


def carried(layers, frame, x):
    """Value, Delta and Gamma along the basket: each layer carries two derivatives forward."""
    x_mean, x_std, y_mean, y_std = frame
    h, d = (x - x_mean) / x_std, np.broadcast_to(1 / x_std, x.shape)
    dd = np.zeros_like(x)
    for k, (matrix, bias) in enumerate(layers):
        if k:
            s = 1 / (1 + np.exp(-h))
            first, second = s * (1 + h * (1 - s)), s * (1 - s) * (2 + h * (1 - 2 * s))
            h, d, dd = h * s, first * d, second * d**2 + first * dd
        h, d, dd = h @ matrix.T + bias, d @ matrix.T, dd @ matrix.T
    return y_mean + y_std * h[:, 0], y_std * d[:, 0], y_std * dd[:, 0]


def scored(layers, frame, law, strike=110.0):
    """R2 of value, Delta and Gamma, and the worst error of the value."""
    x, answers = quiz(law)
    ours = carried(layers, frame, x + strike - LAWS[law][0])
    r2 = [
        1 - ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum()
        for a, b in zip(ours, answers, strict=True)
    ]
    return np.array([*r2, np.abs(ours[0] - answers[0]).max()])


def taken(network):
    """Layers and standardisation of a stored network, in float64."""
    tensors = {k: v.double().numpy() for k, v in network.state_dict().items()}
    count = sum(k.endswith("weight") for k in tensors)
    layers = [(tensors[f"network.{2 * k}.weight"], tensors[f"network.{2 * k}.bias"])
              for k in range(count)]  # fmt: skip
    return layers, [tensors[k] for k in ("x_mean", "x_std", "y_mean", "y_std")]


@cache
def middle(row, law="wide", part="median"):
    """Scores of the ten stored networks of a row: the median, the lowest or the highest."""
    found, _ = weights.read_networks("finetuned")
    table = np.array([scored(*taken(found[f"{row}.{s}"]), law) for s in range(10)])
    return {"median": np.median, "min": np.min}[part](table, axis=0)


def holds(key, measured):
    """The reference number is the measured one, not only on its better side."""
    entry = reference.load()[key]
    assert measured == pytest.approx(entry.value, abs=max(entry.tolerance, 1e-12)), key


@pytest.mark.parametrize("labels", ["network", "model"])
def test_table_2_a_second_time(labels):
    found = middle(f"{labels}.sobolev.pruned")
    for k, quantity in enumerate(("value", "delta", "gamma")):
        holds(f"sobolev.{labels}_{quantity}", found[k])


@pytest.mark.parametrize("law", list(LAWS)[1:])
@pytest.mark.parametrize("labels", ["network", "model"])
def test_other_laws_a_second_time(labels, law):
    found = middle(f"{labels}.sobolev.pruned", law)
    for k, quantity in enumerate(("value", "delta", "gamma")):
        holds(f"sobolev.{law}.wide_{labels}_{quantity}", found[k])


def test_starts_a_second_time():
    pruned, random = (middle(f"model.sobolev.{start}") for start in ("pruned", "glorot"))
    holds("sobolev.start_gamma", middle("model.sobolev.pruned", part="min")[2])
    holds("sobolev.start_worst", random[3] / pruned[3])
    holds("sobolev.short_gamma", middle("model.sobolev.short")[2])
    holds("sobolev.gamma_gain", (1 - middle("model.value.pruned")[2]) / (1 - pruned[2]))


def framed(law):
    """The standardisation of the networks trained under a law, from the chapter's own draw."""
    omega, _, _, sigma = basket()
    generator = torch.Generator().manual_seed(99)
    low, high = LAWS[law][1]
    unit = torch.rand(16_384, 7, generator=generator, dtype=torch.float64).numpy()
    noise = torch.randn(16_384, generator=generator, dtype=torch.float64).numpy()
    x = low + (high - low) * unit
    start, move = x @ omega - LAWS[law][0], sigma * noise
    payoff = (np.maximum(start + move, 0) + np.maximum(start - move, 0)) / 2
    parts = x.mean(0), x.std(0, ddof=1), payoff.mean(), payoff.std(ddof=1)
    return [np.asarray(p, dtype=np.float32).astype(float) for p in parts]


def unpacked(numbers):
    layers, at = [], 0
    for inner, outer in itertools.pairwise(SHAPE):
        matrix = np.array(numbers[at : at + inner * outer]).reshape(outer, inner)
        at += inner * outer
        layers.append((matrix, np.array(numbers[at : at + outer])))
        at += outer
    assert at == len(numbers)
    return layers


@pytest.mark.parametrize("labels", ["network", "model"])
def test_networks_trained_under_another_law_a_second_time(labels):
    rows = json.loads(DATA.read_text())["rows"]
    for law in list(LAWS)[1:]:
        row, frame = rows[f"{law.replace('_', ' ')}, {labels}"], framed(law)
        table = [scored(unpacked(w), frame, law, LAWS[law][0]) for w in row["weights"]]
        for k, quantity in enumerate(("value", "delta", "gamma")):
            holds(f"sobolev.{law}.there_{labels}_{quantity}", np.median(table, axis=0)[k])
