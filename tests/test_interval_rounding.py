"""What a network computes lies inside its enclosure with rounding; the table of worst errors."""

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from flint import arb, ctx
from torch import nn

from soundgreeks import Interval, intervals, weights
from soundgreeks.arithmetic.intervals import functions, rounding

ROOT = Path(__file__).parents[1]
needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no longer than double here"
)


@pytest.fixture(autouse=True)
def precision():
    before, ctx.prec = ctx.prec, 100
    yield
    ctx.prec = before


@pytest.fixture(scope="module")
def ulps():
    spec = importlib.util.spec_from_file_location("ulps", ROOT / "benchmarks/ulps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Layers -----------------------------------------------------------------------------------------


def one_by_one(w, x, b):
    """w x + b in float32, in the order in which it is written."""
    total = np.float32(b)
    for u, v in zip(w, x, strict=True):
        total = np.float32(total + np.float32(u * v))
    return total


def test_the_bound_of_a_layer_is_reached_and_not_passed():
    """One, and then many half units: each is rounded away, which is the worst that can happen."""
    half = 2.0**-24
    for n in (1, 10, 1000):
        w, x = np.full(n, half, np.float32), np.ones(n, np.float32)
        off = 1 + n * half - float(one_by_one(w, x, 1.0))
        assert off == n * half
        weight, bias = torch.from_numpy(w)[None], torch.ones(1)
        bound = rounding.layer_error(Interval(torch.from_numpy(x)[None]), weight, bias).item()
        assert off <= bound <= off * (1 + 3 / n)


def test_products_that_underflow_are_within_the_bound():
    w = torch.full((1, 100), 2.0**-80)
    bound = rounding.layer_error(Interval(w), w).item()
    assert float(w[0] @ w[0]) == 0.0 and bound >= 100 * 2.0**-160


@pytest.mark.parametrize(
    "weight, words",
    [(torch.ones(1, 1).half(), "weight.dtype"), (torch.ones(1, 1).expand(1, 9_000_000), "rows")],
)
def test_what_has_no_bound_is_refused(weight, words):
    with pytest.raises(ValueError, match=words):
        rounding.layer_error(Interval(torch.ones(1, 1)), weight)


# Networks ---------------------------------------------------------------------------------------


def mlp(*sizes, activation=nn.SiLU, dtype=torch.float32):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def slopes(network, x):
    """What autograd returns, output by output: (n, outputs, inputs)."""
    x = x.clone().requires_grad_()
    y = network(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[1])]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", intervals.ACTIVATIONS)
def test_what_a_network_computes_lies_inside(activation, dtype):
    torch.manual_seed(0)
    network = mlp(5, 40, 40, 2, activation=activation, dtype=dtype)
    for p in network.parameters():
        p.data.mul_(2.0)
    x = 3 * torch.randn(2000, 5, dtype=dtype)
    half = 10 ** (-8 * torch.rand(2000, 1, dtype=dtype))
    half[:1000] = 0.0  # points: nothing but rounding is inside
    box = Interval(x.double() - half, x.double() + half)
    exact, computed = (intervals.trace(network, box, computed=c) for c in (False, True))
    y, slope = network(x).detach().double(), slopes(network, x).double()
    assert computed.k[-1].contains(y).all() and computed.n_bar[0].contains(slope).all()
    assert (
        exact.k[-1].subset(computed.k[-1]).all() and exact.n_bar[0].subset(computed.n_bar[0]).all()
    )
    if dtype == torch.float32:  # and without the rounding it is a different matter
        assert not exact.k[-1].contains(y)[:1000].all()
        share = ((y - computed.k[-1].mid).abs() / computed.k[-1].width)[:1000].max()
        assert share > 0.001  # the bound is no wild exaggeration
    one = intervals.forward(network, box, computed=True)
    assert (one == computed.k[-1]).all()


def test_the_share_of_the_activation_is_needed(monkeypatch):
    """Between two layers that do nothing, the error of GELU's slope is the largest there is."""
    network = mlp(1, 1, 1, activation=nn.GELU)
    for p, value in zip(network.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
        p.data.fill_(value)
    x = torch.linspace(-0.2, 0.2, 20_001)[:, None]
    slope, inside = slopes(network, x).double(), []
    for assumed in (rounding.ACTIVATION, 0.0):
        monkeypatch.setattr(rounding, "ACTIVATION", assumed)
        t = intervals.trace(network, Interval(x.double()), computed=True)
        inside.append(t.n_bar[0].contains(slope).all())
    assert inside == [True, False]


def test_a_stored_network_prints_nothing_outside():
    found, _ = weights.read_networks("pruned")
    network = found["IASA.0"].network
    generator = torch.Generator().manual_seed(1)
    x = 5 * torch.rand(100_000, 7, generator=generator) - 2.5
    t = intervals.trace(network, Interval(x.double()), computed=True)
    real = intervals.forward(network, Interval(x.double()))
    y = network(x).double()
    assert t.k[-1].contains(y).all() and t.n_bar[0].contains(slopes(network, x).double()).all()
    assert real.contains(y).double().mean() < 0.2


# The table of worst errors ----------------------------------------------------------------------


def ball(x):
    """A long double as a ball: two doubles hold it exactly."""
    high = float(x)
    return arb(high) + arb(float(x - np.longdouble(high)))


def arb_logistic(x):
    return 1 / (1 + (-x).exp())


def arb_cdf(x):
    return (-x / arb(2).sqrt()).erfc() / 2


def arb_pdf(x):
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


ARB = {
    "exp": arb.exp, "log": arb.log, "log1p": arb.log1p, "sin": arb.sin, "cos": arb.cos,
    "tanh": arb.tanh, "erf": arb.erf, "erfc": arb.erfc,
    "pow 1.75": lambda x: x ** arb(1.75), "pow 3": lambda x: x * x * x,
}  # fmt: skip
ARB_ACTIVATIONS = {
    nn.SiLU: (
        lambda x: x * arb_logistic(x), lambda x: arb_logistic(x) * (1 + x * arb_logistic(-x))
    ),
    nn.GELU: (lambda x: x * arb_cdf(x), lambda x: arb_cdf(x) + x * arb_pdf(x)),
    nn.Tanh: (arb.tanh, lambda x: 1 / x.cosh() ** 2),
    nn.Sigmoid: (arb_logistic, lambda x: arb_logistic(x) * arb_logistic(-x)),
    nn.Softplus: (lambda x: x.exp().log1p(), arb_logistic),
}  # fmt: skip


@needs_long_double
def test_the_reference_is_right_to_a_sixteenth_of_a_unit(ulps):
    generator = torch.Generator().manual_seed(0)
    ctx.prec = 200
    for dtype in (torch.float64, torch.float32):
        for name, (_, reference, *spans) in ulps.FUNCTIONS.items():
            x = ulps.arguments(600, spans[dtype == torch.float32], dtype, generator)
            for t, y in zip(x.double().tolist(), reference(ulps.long(x)), strict=True):
                truth = ARB[name](arb(t))
                assert abs(ball(y) - truth) <= abs(truth) * 2.0**-57, (name, t)
        for kind, (value, derivative, span) in ulps.ACTIVATIONS.items():
            x = ulps.arguments(600, span, dtype, generator)
            for reference, exact in zip((value, derivative), ARB_ACTIVATIONS[kind], strict=True):
                for t, y in zip(x.double().tolist(), reference(ulps.long(x)), strict=True):
                    assert abs(ball(y) - exact(arb(t))) <= (1 + abs(t)) * 2.0**-57, (kind, t)


@needs_long_double
def test_a_function_that_is_off_is_seen(ulps, monkeypatch):
    off = {"exp": (lambda x: torch.exp(x) * (1 + 5 * 2.0**-52), np.exp, (-9, 9), (-9, 9))}
    monkeypatch.setattr(ulps, "FUNCTIONS", off)
    monkeypatch.setattr(ulps, "ACTIVATIONS", {})
    double, single = ulps.measure(1000)
    assert 5 < double["worst"] < 11 and single["worst"] < 1


@needs_long_double
def test_torch_is_within_what_is_assumed(ulps):
    for row in ulps.measure(20_000, seed=1):
        name = row["function"]
        assumed = functions.KERNEL_ERFC if name == "erfc" else functions.KERNEL
        assumed = assumed if row["unit"] == "ulp" else rounding.ACTIVATION
        assert row["worst"] <= assumed, row


def test_the_stored_table_is_complete_and_within_what_is_assumed():
    table = json.loads((ROOT / "book/data/ulps.json").read_text())
    for device in table["devices"]:
        rows = [r for r in table["rows"] if r["device"] == device]
        assert len(rows) == 40 and min(r["points"] for r in rows) >= 10_000_000
        for row in rows:
            assumed = functions.KERNEL_ERFC if row["function"] == "erfc" else functions.KERNEL
            assumed = assumed if row["unit"] == "ulp" else rounding.ACTIVATION
            assert row["worst"] <= assumed, row
