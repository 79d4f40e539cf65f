"""Everything on a second device: what the core computes there, and whole chapters."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_device
import torch
from second_device import Far
from torch import nn

from soundgreeks import Interval, bachelier, intervals, networks, significance, sobolev
from soundgreeks.book import runner

CHAPTERS = runner.chapters(Path(__file__).parents[1] / "book")


@pytest.mark.chapter
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_whole_and_works_on_the_device(name):
    script = [sys.executable, second_device.__file__, CHAPTERS[name]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["work"]["far"] > 2 * report["work"]["cpu"]


@pytest.fixture
def there():
    """The device, and the work done so far."""
    with second_device.second_device() as both:
        yield both


def on(tree):
    """The devices of all tensors of an answer."""
    if isinstance(tree, Interval):
        tree = (tree.lo, tree.hi)
    tree = tree.values() if isinstance(tree, dict) else tree
    if isinstance(tree, torch.Tensor) or not hasattr(tree, "__iter__"):
        return {tree.device.type} if isinstance(tree, torch.Tensor) else set()
    return set().union(*map(on, tree))


def home(tree):
    """The same answer with every tensor on the CPU."""
    if isinstance(tree, Interval):
        return tree.to(device="cpu")
    return tree.cpu() if isinstance(tree, torch.Tensor) else [home(t) for t in tree]


# The emulation itself


def test_the_device_refuses_what_a_gpu_refuses(there):
    far, _ = there
    x, y = torch.ones(3, device=far), torch.ones(3)
    for mixed in (
        lambda: x + y,
        lambda: torch.cat([x, y]),
        lambda: x @ y,
        lambda: y.add_(x),
        lambda: y[torch.tensor([0, 1], device=far)],
        lambda: nn.functional.linear(x, torch.ones(2, 3)),
        lambda: torch.stack([x[0], y[0]]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    for draw in (
        lambda: torch.randn(3, device=far, generator=torch.Generator()),
        lambda: torch.rand(3, generator=torch.Generator(far)),
        lambda: torch.randint(3, (2,), device=far, generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            draw()
    for number in (lambda: x.numpy(), lambda: __import__("numpy").asarray(x)):
        with pytest.raises((RuntimeError, TypeError), match="numpy"):
            number()


def test_the_device_does_what_a_gpu_does(there):
    far, work = there
    x = torch.tensor([1.0, 2.0, 3.0], device=far)
    for ours, truth in (
        (x + torch.tensor(1.0), [2, 3, 4]),
        (x[torch.tensor([0, 2])], [1, 3]),
        (torch.where(x > 2, x, torch.tensor(0.0)), [0, 0, 3]),
        (x.new_tensor([5.0]), [5]),
        (x[None].T.squeeze(1), [1, 2, 3]),
        (torch.rand(2, device=far, generator=torch.Generator(far).manual_seed(0)) * 0, [0, 0]),
    ):
        assert isinstance(ours, Far) and ours.tolist() == truth
    assert isinstance(torch.tensor([x[0], 2.0]), torch.Tensor) and f"{x[1]:.1f}" == "2.0"
    torch.ones(3).copy_(x)
    copied = work["copies"]
    assert copied > 2  # made from numbers, and the copy home
    x.clone().add_(1.0)
    assert work["copies"] == copied
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(far)
    twin = copy.deepcopy(network).double()
    adam = torch.optim.Adam(twin.parameters(), 0.01, fused=True)
    before = twin(x.double()).item()
    twin(x.double()).sum().backward()
    adam.step()
    assert twin(x.double()).item() < before == pytest.approx(network(x).item(), abs=1e-6)
    assert network.cpu()[0].weight.device.type == "cpu"
    z = torch.complex(x, x + 1).detach().requires_grad_()
    (torch.exp(-z * x) / z.conj()).imag.sum().backward()
    twin = z.detach().cpu().requires_grad_()
    (torch.exp(-twin * x.cpu()) / twin.conj()).imag.sum().backward()
    assert torch.equal(z.grad.cpu(), twin.grad)
    work.clear()
    x[1:].exp(), torch.ones(4, 5).sum()
    assert work == {"far": 2, "cpu": 40}  # ones and their sum; the view is no work


# Intervals


def boxes(device="cpu"):
    centre = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(20, 3)
    half = torch.linspace(0, 2, 60, dtype=torch.float64).reshape(20, 3)
    return Interval(centre - half, centre + half).to(device=device)


FUNCTIONS = [name for name in intervals.__all__ if name.islower()]
FUNCTIONS = [f for f in FUNCTIONS if f not in ("forward", "layers_of", "trace", "values", "split")]
FUNCTIONS.remove("mean_value")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_intervals_are_the_same_there(there, name):
    far, work = there
    function = getattr(intervals, name)
    here, ours = function(boxes()), function(boxes(far))
    assert on(ours) == {"far"}
    assert (home(ours) == here).all()
    box = boxes(far)
    work.clear()
    function(box)
    ends = 10 if name in ("sin", "cos") else 2  # pi; the ends of a domain
    assert work["copies"] <= ends and work["cpu"] < 50  # and nothing a rounding


def test_arithmetic_of_intervals_is_the_same_there(there):
    far, work = there
    t = torch.linspace(1, 2, 3, dtype=torch.float64)
    for operation in (
        lambda a, t: a + t, lambda a, t: t - a, lambda a, t: a * a, lambda a, t: t / a,
        lambda a, t: a**3, lambda a, t: a @ a.mT, lambda a, t: a @ t[:, None], lambda a, t: a & a,
        lambda a, t: a.sum(0), lambda a, t: abs(a), lambda a, t: 2.0 * a + 1,
        lambda a, t: a.to(torch.float32), lambda a, t: a * torch.tensor(2.0, dtype=torch.float64),
    ):  # fmt: skip
        box, s = boxes(far), t.to(far)
        work.clear()
        ours = operation(box, s)
        assert work["copies"] <= 2 and work["cpu"] < 50  # numbers of Python's
        assert on(ours) == {"far"} and (home(ours) == operation(boxes(), t)).all()


def test_two_devices_are_one_clear_error(there):
    far, _ = there
    here, ours = boxes(), boxes(far)
    for mixed, words in (
        (lambda: here + ours, "operands must be on one device, got cpu and far:0"),
        (lambda: ours @ here.mT, "operands must be on one device, got far:0 and cpu"),
        (lambda: ours == here, "operands must be on one device, got far:0 and cpu"),
        (lambda: ours * torch.ones(3, dtype=torch.float64), "one device, got far:0 and cpu"),
        (lambda: Interval(ours.lo, here.hi), "lo and hi must be on one device, got far:0 and cpu"),
        (lambda: here * ours[0, 0], "one device, got cpu and far:0"),
    ):
        with pytest.raises(ValueError, match=words):
            mixed()
    assert on(ours * Interval(1.0, 2.0)) == on(Interval(1.0, 2.0) * ours) == {"far"}


# Significance


def small(device="cpu"):
    torch.manual_seed(0)
    return networks.plain(3, 6, 5, 2).double().to(device).requires_grad_(False)


def data(device="cpu"):
    draw = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw.to(device)


def analyses(device):
    """Everything significance knows about a network, on a device."""
    network, x = small(device), data(device)
    box = Interval.hull(x)
    yield intervals.forward(network, box)
    yield intervals.mean_value(network, intervals.split(box, 8))
    yield significance.kd_cells(x, 8)
    yield from significance.of_nodes(network, box, 4)
    yield significance.of_inputs(network, box)
    yield from significance.of_data(network, x)
    yield from significance.magnitude(network)
    yield from significance.ablation_cost(network, x)
    for kind in significance.COMPENSATIONS:
        yield from significance.stand_ins(network, kind, box=box, splits=4, data=x)
        yield from significance.prune(network, [3, 2], box=box, compensation=kind).parameters()
    scores = [torch.arange(6.0), torch.arange(5.0)]  # on the CPU
    yield from significance.prune(network, [3, 2], box=box, scores=scores).parameters()
    yield from significance.remove_layer(network, 1, x).parameters()
    smaller = significance.prune_iteratively(
        network, [2, 2], box=box, data=x, retrain=lambda net, _: net[0].bias.data.add_(0.1)
    )
    yield from smaller.parameters()


def test_significance_is_the_same_there(there):
    far, _ = there
    here, ours = list(analyses("cpu")), list(analyses(far))
    for a, b in zip(here, ours, strict=True):
        assert on(b) == {"far"}
        if isinstance(a, Interval):
            assert (a == home(b)).all()
        else:
            assert torch.allclose(a, home(b), atol=1e-14)
    example, box = significance.example()
    scores = significance.of_nodes(example.to(far), box.to(device=far))
    assert scores[1].tolist() == pytest.approx([0.21, 2.12], abs=0.005)


def test_a_gpu_is_filled_and_a_cache_is_not_flooded(there, monkeypatch):
    far, _ = there
    seen = []
    trace = significance.trace
    monkeypatch.setattr(significance, "trace", lambda n, c: seen.append(len(c)) or trace(n, c))
    for device, sizes in (("cpu", [256, 256]), (far, [512])):
        seen.clear()
        box = Interval.hull(data(device))
        significance.of_nodes(small(device), intervals.split(box, 512))
        assert seen == sizes


# The basket


def test_a_basket_computes_where_the_spots_are(there):
    far, _ = there
    here = bachelier.Basket.random()
    spots = here.spots(50, generator=torch.Generator().manual_seed(1))
    for basket, x in ((here, spots.to(far)), (here.to(far), spots), (here.to(far), spots.to(far))):
        for ours, truth in (
            (basket.call(x), here.call(spots)),
            (basket.greeks(x), here.greeks(spots)),
            (basket.digital(x), here.digital(spots)),
            (basket.up_and_out(x, 140.0), here.up_and_out(spots, 140.0)),
            (basket.up_and_out(x, math.inf), here.call(spots)),
            (basket.level(x), here.level(spots)),
        ):
            assert on(ours) == {x.device.type}
            pairs = zip(home(ours), truth, strict=True)
            assert all(torch.allclose(a, b, atol=1e-13) for a, b in pairs)
        walk = basket.paths(x, 2, generator=torch.Generator().manual_seed(2))
        truth = here.paths(spots, 2, generator=torch.Generator().manual_seed(2))
        assert on(walk) == {x.device.type} and torch.allclose(home(walk), truth)


@pytest.mark.parametrize("scheme", ["plain", "antithetic", "sobol"])
def test_a_generator_draws_where_it_is(there, scheme):
    far, _ = there
    here = bachelier.Basket.random()
    truth = here.sample(16, scheme=scheme, generator=torch.Generator().manual_seed(3))
    for place in ("cpu", far):
        generator = torch.Generator(place).manual_seed(3)
        ours = here.to(far).sample(16, scheme=scheme, generator=generator)
        assert on(ours) == {"far"}
        if place == "cpu":  # the same numbers for a seed on every machine
            pairs = zip(home(ours), truth, strict=True)
            assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)
    assert on(here.to(far).spots(4)) == {"far"}


# Sobolev training


def test_sobolev_training_stays_there(there):
    far, work = there
    basket = bachelier.Basket.random().to(far, torch.float32)
    pilot = basket.sample(256, generator=torch.Generator(far).manual_seed(0))
    members = [
        sobolev.Standardised(networks.plain(7, 4, 1).to(far), pilot.spots, pilot.payoff)
        for _ in range(2)
    ]

    def sampler(n, generator):
        return basket.sample(n, generator=generator)[:3]

    settings = dict(steps=3, batch=64, lam=1.0, pilot=128)
    assert sobolev.fit(members[0], sampler, **settings).isfinite().all()
    together = sobolev.Together(members)
    sobolev.fit(together, sampler, **settings)
    assert on(list(together.members()[1].parameters())) == {"far"}
    directions = sobolev.random_directions(
        2, 7, generator=torch.Generator(far).manual_seed(1), dtype=torch.float32
    )
    labels = sobolev.distil(members[0], pilot.spots, order=2, directions=directions)
    assert on(labels) == on(sobolev.principal_directions(labels.gradient)) == {"far"}
    curved = sobolev.resample(labels)
    sobolev.fit(members[1], curved, mu=1.0, **settings)
    truth = basket.greeks(pilot.spots)
    found = sobolev.scores(members[0], pilot.spots, truth)
    assert all(math.isfinite(score.r2) for score in found)
    assert on(sobolev.along(members[0], pilot.spots)) == {"far"}
    assert work["far"] > 10 * work["cpu"]
