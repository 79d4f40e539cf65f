"""The scores of chapter 7's networks by a second route, to which its reference numbers are pinned.

Nothing of the core but the reader of weights is used for what is judged: networks are products of
arrays, derivatives differences, prices scipy's, intervals written out.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm, spearmanr

from soundgreeks import bachelier, significance, weights
from soundgreeks.arithmetic.intervals import Interval
from soundgreeks.book import reference

STUDY = Path(__file__).parents[1] / "book" / "data" / "rivals.json"
SEEDS = range(10)


def silu(x):
    return x * expit(x)


@cache
def stored(file):
    """Arrays of a file's networks, by name: weights and biases in turn."""
    found, _ = weights.read_networks(file)
    arrays = {k: [p.double().numpy() for p in n.network.parameters()] for k, n in found.items()}
    frame = next(iter(found.values()))
    names = ("x_mean", "x_std", "y_mean", "y_std")
    return arrays, [getattr(frame, name).double().numpy() for name in names]


def small(name):
    """A network of the shipped rivals, by name, or of the study: ("row", "networks", *places)."""
    if isinstance(name, str):
        return stored("rivals")[0][name]
    record = json.loads(STUDY.read_text())["rows"]
    for place in name:
        record = record[place]
    sizes, flat, parts = record["sizes"], np.array(record["weights"]), []
    for a, b in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        parts += [flat[: a * b].reshape(b, a), flat[a * b : a * b + b]]
        flat = flat[a * b + b :]
    assert len(flat) == 0
    return parts


def values(parts, spots):
    """Prices of a network of arrays at raw spots (n, 7)."""
    x_mean, x_std, y_mean, y_std = stored("rivals")[1]
    h = (spots - x_mean) / x_std
    for k in range(0, len(parts), 2):
        h = (silu(h) if k else h) @ parts[k].T + parts[k + 1]
    return y_mean + y_std * h[:, 0]


@cache
def points(count, seed):
    """The chapter's test points, and their prices, Deltas and Gammas by scipy's normal law."""
    basket = bachelier.Basket.random()
    spots = basket.spots(count, generator=torch.Generator().manual_seed(seed)).numpy()
    w, v, c = (t.numpy() for t in (basket.weights, basket.vols, basket.correlation))
    deviation = np.sqrt((w * v) @ c @ (w * v))
    z = (spots @ w - 110) / deviation
    price = deviation * (z * norm.cdf(z) + norm.pdf(z))
    return spots, (price, norm.cdf(z), norm.pdf(z) / deviation)


def r2(ours, truth):
    return 1 - np.square(ours - truth).sum() / np.square(truth - truth.mean()).sum()


@cache
def scores(name, count=65_536, seed=8):
    """R2 of value, Delta and Gamma: derivatives by central differences of fourth order."""
    spots, truth = points(count, seed)
    parts, h = small(name), 0.02
    at = [values(parts, spots + k * h) for k in (-2, -1, 0, 1, 2)]
    delta = (at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h)
    gamma = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h**2)
    return [r2(a, b) for a, b in zip((at[2], delta, gamma), truth, strict=True)]


# --- The oversized networks: intervals, adjoints and ablation, written out in arrays -------------

LOWEST, STEEPEST = -1.2784645427610738, 2.3993572805154674  # of SiLU, and of its slope


def slope(x):
    s = expit(x)
    return s * (1 + x * (1 - s))


def enclosed(f, low, high, turns):
    """Range of f over [low, high]: at the ends, or at a turning point inside."""
    found = [f(low), f(high)]
    found += [np.where((low < t) & (t < high), f(np.clip(t, low, high)), found[0]) for t in turns]
    return np.min(found, axis=0), np.max(found, axis=0)


def product(w, low, high):
    """W [low, high], row by row."""
    plus, minus = np.maximum(w, 0), np.minimum(w, 0)
    return low @ plus.T + high @ minus.T, high @ plus.T + low @ minus.T


def node_bounds(parts, low, high):
    """Over boxes (cells, 7): each layer's value bounds, and largest slopes to the output."""
    before, after = [], []
    for k in range(0, len(parts) - 2, 2):
        low, high = (b + parts[k + 1] for b in product(parts[k], low, high))
        before.append(enclosed(slope, low, high, (-STEEPEST, STEEPEST)))
        low, high = enclosed(silu, low, high, (LOWEST,))
        after.append((low, high))
    down = up = np.ones((len(low), 1))
    slopes = []
    for k in range(len(parts) - 2, 0, -2):
        down, up = product(parts[k].T, down, up)
        slopes.append(np.maximum(np.abs(down), np.abs(up)))
        corners = [a * b for a in before[k // 2 - 1] for b in (down, up)]
        down, up = np.min(corners, axis=0), np.max(corners, axis=0)
    return after, slopes[::-1]


def significances(parts, low, high):
    """Equation 3 over the hull of the boxes, layer by layer."""
    after, slopes = node_bounds(parts, low, high)
    return [(b.max(0) - a.min(0)) * s.max(0) for (a, b), s in zip(after, slopes, strict=True)]


def layers(parts, x):
    """Values of every hidden layer at standardised rows."""
    found = []
    for k in range(0, len(parts) - 2, 2):
        x = silu(x @ parts[k].T + parts[k + 1])
        found.append(x)
    return found


def tail(parts, n, layer):
    for k in range(2 * layer + 2, len(parts), 2):
        n = n @ parts[k].T + parts[k + 1]
        n = silu(n) if k + 2 < len(parts) else n
    return n[:, 0]


def ablation(parts, x):
    """Root mean square change of the output when a node is held at its mean."""
    costs = []
    for layer, n in enumerate(layers(parts, x)):
        y = tail(parts, n, layer)
        held = [np.where(np.arange(n.shape[1]) == j, n.mean(0), n) for j in range(n.shape[1])]
        costs.append([np.sqrt(np.square(tail(parts, h, layer) - y).mean()) for h in held])
    return costs


@cache
def data():
    """The chapter's standardised sample, and its two boxes."""
    sample = bachelier.Basket.random().sample(
        16_384, scheme="antithetic", generator=torch.Generator().manual_seed(99)
    )
    x_mean, x_std, _, _ = stored("oversized")[1]
    x = (sample.spots.numpy() - x_mean) / x_std
    return x, {
        "all data": (x.min(0), x.max(0)),
        "middle half": tuple(np.quantile(x, (0.25, 0.75), axis=0)),
    }


def cells(name, region):
    """The 256 sub-boxes that the chapter cuts a box into; where to cut is the core's choice."""
    network = weights.read_networks("oversized")[0][name].network
    low, high = (torch.tensor(b).float() for b in data()[1][region])
    cut = significance.cells_of(network, Interval(low, high), 256)
    return cut.lo.double().numpy(), cut.hi.double().numpy()


@cache
def rank(name, region, cut):
    """Rank correlation of significance and ablation cost in the worst layer."""
    parts, (x, boxes) = stored("oversized")[0][name], data()
    low, high = cells(name, region) if cut else (b[None] for b in boxes[region])
    found, costs = significances(parts, low, high), ablation(parts, x[:1024])
    return min(spearmanr(a, b).statistic for a, b in zip(found, costs, strict=True))


@cache
def quarter_removed(name, region, kind):
    """R2 of the value after the least significant quarter of every layer is held at a constant."""
    parts, (x, boxes) = stored("oversized")[0][name], data()
    found = significances(parts, *cells(name, region))
    after, _ = node_bounds(parts, *(b[None] for b in boxes[region]))
    means = [n.mean(0) for n in layers(parts, x[:4096])]
    spots, truth = points(8192, 7)
    x_mean, x_std, y_mean, y_std = stored("oversized")[1]
    h = (spots - x_mean) / x_std
    for k in range(0, len(parts) - 2, 2):
        layer = k // 2
        h = silu(h @ parts[k].T + parts[k + 1])
        middle = (after[layer][0][0] + after[layer][1][0]) / 2
        constant = means[layer] if kind == "mean" else middle
        h = np.where(found[layer].argsort().argsort() < 32, constant, h)
    return r2(y_mean + y_std * (h @ parts[-2].T + parts[-1])[:, 0], truth[0])


# --- Held-out payoffs, and the example by quadrature ---------------------------------------------


@cache
def held():
    """Spots and payoffs that no network was trained on, and the oversized network's prices."""
    sample = bachelier.Basket.random().to(dtype=torch.float32)
    sample = sample.sample(2**17, scheme="antithetic", generator=torch.Generator().manual_seed(12))
    spots, payoff = sample.spots.double().numpy(), sample.payoff.double().numpy()
    return spots, payoff, values(stored("oversized")[0]["decay"], spots)


def excess(name):
    spots, payoff, theirs = held()
    gap = np.square(values(small(name), spots) - payoff) - np.square(theirs - payoff)
    return gap.mean() / theirs.var(ddof=1)


def example(turned, removed):
    """Mean squared error of Example 3.1's network over its box, by Gauss-Legendre quadrature."""
    network, _ = significance.example()
    w1, b1, w2, b2, w3, b3 = (p.detach().numpy() for p in network.parameters())
    t, weight = np.polynomial.legendre.leggauss(80)
    x, y = (v.ravel() for v in np.meshgrid(5.5 + 4.5 * t, 5.5 + 4.5 * t))
    n = w2 @ (w1 @ np.stack([x, y]) + b1[:, None]) + b2[:, None]  # every ReLU is open
    assert n.min() > 0
    if removed:  # the midpoint of the first node's enclosure: inputs, then first layer, at corners
        ends = [w1 @ v + b1 for v in (np.array([1.0, 1.0]), np.array([10.0, 10.0]))]
        ends[0][1] += 9 * w1[1, 1]  # the one negative weight
        ends[1][1] -= 9 * w1[1, 1]
        n[0] = w2[0] @ (ends[0] + ends[1]) / 2 + b2[0]
    truth = np.log(x + y) + np.cos(y / x if turned else x / y)
    return np.outer(weight, weight).ravel() @ np.square((w3 @ n + b3)[0] - truth) / 4


def slopes_of_the_example():
    w1, _, w2, _, w3, _ = (p.detach().numpy() for p in significance.example()[0].parameters())
    return 9 * np.abs(w3 @ w2 @ w1)[0]


# --- What the chapter's numbers are pinned to ----------------------------------------------------


def median(names, quantity):
    return np.median([scores(name)[quantity] for name in names])


def ten(method):
    return [f"{method}.{s}" for s in SEEDS]


def slopes(method, budget="tuned"):
    return [(f"{budget}, {method}", "networks", s) for s in SEEDS]


def random_starts(rate):
    return [(f"3-3 at random, {rate}", "networks", k) for k in range(30)]


def share(names, bar):
    return np.mean([scores(name)[0] > bar for name in names])


def one_point():
    """Share of the squared error of the value at the test point farthest out."""
    spots, truth = points(8192, 7)
    far = np.abs(spots @ bachelier.Basket.random().weights.numpy() - 100).argmax()
    errors = [np.square(values(small(n), spots) - truth[0]) for n in ten("scratch .03")]
    return np.median([e[far] / e.sum() for e in errors])


VALUE, GAMMA = 0, 2
SECOND = {
    "mse_printed_before": lambda: example(False, False),
    "mse_printed_after": lambda: example(False, True),
    "mse_turned_before": lambda: example(True, False),
    "mse_turned_after": lambda: example(True, True),
    "input_0": lambda: slopes_of_the_example()[0],
    "input_1": lambda: slopes_of_the_example()[1],
    "rank": lambda: rank("decay", "middle half", True),
    "rank_whole": lambda: rank("decay", "middle half", False),
    "rank_printed": lambda: rank("plain", "all data", False),
    "midpoint": lambda: quarter_removed("plain", "all data", "midpoint"),
    "mean": lambda: quarter_removed("decay", "middle half", "mean"),
    "one_point": one_point,
    "scratch_gamma": lambda: median(ten("IASA own"), GAMMA) - median(ten("scratch .03"), GAMMA),
    "lucky": lambda: share(ten("scratch 3-3-1"), 0.9999),
    "tuned_iasa": lambda: median(slopes("IASA own"), GAMMA),
    "tuned_data": lambda: median(slopes("data own"), GAMMA),
    "tuned_magnitude": lambda: median(slopes("magnitude own"), GAMMA),
    "tuned_random": lambda: median(slopes("random own"), GAMMA),
    "tuned_midpoint": lambda: median(slopes("as printed own"), GAMMA),
    "tuned_midpoint_mean": lambda: median(slopes("as printed, mean own"), GAMMA),
    "tuned_scratch": lambda: median(slopes("scratch .03"), GAMMA),
    "tuned_wins": lambda: sum(
        scores(a)[GAMMA] > scores(b)[GAMMA]
        for a, b in zip(slopes("random own"), slopes("IASA own"), strict=True)
    ),
    "quick_iasa": lambda: median(slopes("IASA own", "quick"), GAMMA),
    "quick_random": lambda: median(slopes("random own", "quick"), GAMMA),
    "three_random": lambda: share(random_starts("0.03"), 0.9999),
    "three_printed": lambda: share(random_starts("0.1"), 0.999296),
    "three_pruned": lambda: median([("3-3 pruned", "networks", s) for s in SEEDS], GAMMA),
    "found_excess": lambda: excess(("descend, IASA, 0", "chosen")),
    "found_value": lambda: scores(("shorten, 0", "tuned"))[0],
    "found_delta": lambda: scores(("shorten, 0", "tuned"))[1],
    "found_gamma": lambda: scores(("shorten, 0", "tuned"))[2],
    "grown_excess": lambda: max(excess(("ascend, 2", "stages", 5, s)) for s in SEEDS),
}


@pytest.mark.parametrize("key", SECOND)
def test_a_reference_value_by_a_second_route(key):
    entry, value = reference.load()[f"significance.{key}"], SECOND[key]()
    assert abs(value - entry.value) <= entry.tolerance and entry.evidence == "independent", value
