"""The error learned from single paths: labels, a planted error, repetition, weights, bad input."""

import copy
from dataclasses import replace

import pytest
import torch

from soundgreeks import evaluation, garch, heston, weights
from soundgreeks.operators import PRESETS, Operator, correction, learned
from soundgreeks.operators.learned import Labels, draw, fit, label

QUICK = dict(width=4, hidden=1, rate=3e-3, progress=False)


@pytest.fixture(scope="module")
def sound():
    return weights.load("sound")


@pytest.fixture(scope="module")
def planted(sound):
    """`sound` with an error thousands of times its own, in the last layer of its network."""
    wrong = copy.deepcopy(sound)
    head = wrong.network.layers[-1]
    head.bias += 0.02
    head.weight[0, :8] += 0.01
    return wrong


def error(operator, data):
    n = 6 * (len(data.x) // 10)
    at = data.x[:n], data.nu[:n], data.tau[:n], data.p[:n]
    found = operator.greeks(*at)
    off = torch.stack([found.price - data.price[:n], found.delta - data.delta[:n]])
    return off.square().mean(1).sqrt()


def test_a_planted_error_is_found_and_removed(planted):
    data = evaluation.draw(8, 2000)
    before = error(planted, data)
    for slopes in (0.0, 1.0):
        found = learned.learn(planted, 2**14, slopes=slopes, steps=120, batch=2048, **QUICK)
        assert (error(found, data) < 0.6 * before).all()
    assert torch.equal(error(planted, data), before)  # the operator is as it was


def test_it_can_be_repeated(planted):
    data = evaluation.draw(8, 2000)
    once = learned.learn(planted, 2**13, steps=80, batch=1024, **QUICK)
    twice = learned.learn(once, 2**13, steps=80, batch=1024, seed=1, **QUICK)
    assert twice.shapes == [(4, 1), (4, 1)]
    assert error(twice, data)[0] < 0.85 * error(once, data)[0]


def test_samples_average_to_the_error(planted):
    x, nu, tau = (torch.full((2**12,), v, dtype=torch.float64) for v in (0.1, 0.04, 0.7))
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05).map(lambda v: torch.full_like(x, v))
    found = label(planted, learned.Points(x, nu, tau, p), slopes=True, seed=3)
    true = planted.greeks(0.1, 0.04, 0.7, p[0]), heston.greeks(0.1, 0.04, 0.7, p[0])
    off = true[0].price - true[1].price, (true[0].delta - true[1].delta) * torch.exp(x[0])
    for sample, wanted in zip((found.value, found.slope), off, strict=True):
        spread = sample.std() / len(x) ** 0.5
        assert abs(sample.mean() - wanted) < 4 * spread + 0.01 * abs(wanted)


def test_slopes_are_those_of_the_same_path(planted):
    """Central differences in x with the noise held."""
    points, h = draw(planted, 64, seed=2), 1e-4

    def moved(by):
        return label(planted, replace(points, x=points.x + by), seed=5).value

    slope = label(planted, points, slopes=True, seed=5).slope
    by_differences = (moved(h) - moved(-h)) / (2 * h)
    assert torch.allclose(slope, by_differences, rtol=1e-4, atol=1e-5 * slope.abs().max().item())


def test_the_tangent_is_how_the_price_answers(sound):
    points, h = draw(sound, 32, seed=4), 1e-5
    found = label(sound, points)

    def moved(by):
        other = copy.deepcopy(sound)
        other.network.layers[-1].bias += by
        greeks = other.greeks(points.x, points.nu, points.tau, points.p)
        return greeks.price, greeks.delta * points.x.exp()

    (up, up_x), (down, down_x) = moved(h), moved(-h)
    assert torch.allclose(found.tangent, (up - down) / (2 * h), rtol=1e-6, atol=1e-10)
    assert torch.allclose(found.bend, (up_x - down_x) / (2 * h), rtol=1e-5, atol=1e-8)


def test_labels_that_the_network_explains_cost_nothing(sound):
    """Values and slopes that are what a small M does to the operator, told by its own Greeks."""
    points = draw(sound, 256, seed=6)
    found = learned.Learned(sound.config, [(4, 1)]).double()
    found.load_state_dict(sound.state_dict(), strict=False)
    second = found.requires_grad_(False).seconds[0]
    second.scale.fill_(1e-4)
    at = points.x, points.nu, points.tau, points.p
    one, two = sound.greeks(*at), found.greeks(*at)
    off = one.price - two.price, (one.delta - two.delta) * points.x.exp()
    labels = label(sound, points)._replace(value=off[0], slope=off[1])
    known = learned.knows(sound, learned._at(sound, points.x, points.state, points.tau, points.p))
    loss = learned._Fit(second, known[0].data, labels, 1.0, 64, 0)
    loss.begin(learned.Phase("soap", 1), 0, 0)
    (terms,) = loss.parts()
    assert terms.keys() == {"values", "slopes"}
    assert all(term < 1e-4 for term in terms.values())  # labels of nothing but noise: 1


def test_the_same_seed_the_same_operator(planted):
    options = dict(steps=5, batch=64, slopes=0.5, **QUICK)
    one, two = (learned.learn(planted, 256, seed=7, **options) for _ in range(2))
    other = learned.learn(planted, 256, seed=8, **options)
    value = [o.price(0.1, 0.05, 0.5, heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
             for o in (one, two, other)]  # fmt: skip
    assert torch.equal(value[0], value[1]) and not torch.equal(value[0], value[2])


def test_jets_of_what_was_learned(planted):
    """Its Greeks are the derivatives of its prices, and its residual knows its error."""
    found = learned.learn(planted, 512, steps=20, batch=256, **QUICK)
    x = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    (slope,) = torch.autograd.grad(found.price(x, 0.04, 0.8, p), x)
    with torch.no_grad():
        assert (slope * torch.exp(-x)).item() == pytest.approx(
            found.greeks(x, 0.04, 0.8, p).delta.item(), rel=1e-9
        )
    x = x.detach()
    off = found.price(x, 0.04, 0.8, p) - heston.call(x, 0.04, 0.8, p)
    known = found.price(x, 0.04, 0.8, p, with_error=True, paths=2**11)
    assert abs(known.price - heston.call(x, 0.04, 0.8, p)) < 4 * known.error + 0.02 * abs(off)


def test_saved_and_loaded(planted, tmp_path):
    found = learned.learn(planted, 256, steps=2, **QUICK)
    found = learned.learn(found, 256, steps=2, width=8, hidden=2, progress=False)
    weights.save(found, tmp_path / "two", {})
    again = weights.load(tmp_path / "two")
    assert isinstance(again, learned.Learned) and again.shapes == [(4, 1), (8, 2)]
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    assert torch.equal(again.price(0.0, 0.04, 1.0, p), found.price(0.0, 0.04, 1.0, p))
    with pytest.raises(weights.WeightsError, match="edited"):
        record = tmp_path / "two.json"
        record.write_text(record.read_text().replace('"seconds"', '"thirds"'))
        weights.load(tmp_path / "two")


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (replace(PRESETS["garch"], width=8, hidden=2), 0.99),
        (replace(PRESETS["smoke"], ansatz="implied"), 0.95),  # a DeepONet
        (replace(PRESETS["smoke"], ansatz="anchor"), 0.75),
    ],
)
def test_other_models_and_networks(config, share):
    """New samples of the old error are explained: a fit that learned noise would add to them."""
    operator = Operator(config).double()
    options = QUICK | dict(width=8, rate=1e-2)
    found = learned.learn(operator, 2**12, steps=100, batch=1024, slopes=0.1, **options)
    points = draw(operator, 2000, seed=9, visited=0.0)
    at = points.x, points.state, points.tau, points.p
    sample = label(operator, points, seed=10).value
    left = sample + found.price(*at) - operator.price(*at)
    assert left.square().mean() < share * sample.square().mean()
    grid = found.price(points.x[:3], points.state[0][:3], points.tau[:3], points.p[:2][:, None])
    one = found.price(points.x[2], points.state[0][2], points.tau[2], points.p[1])
    assert grid.shape == (2, 3) and torch.allclose(grid[1, 2], one)


def test_garch_has_the_model_it_had():
    operator = Operator(replace(PRESETS["garch"], width=8, hidden=2)).double()
    found = learned.learn(operator, 64, steps=1, **QUICK)
    assert found.model is garch.MODEL and draw(found, 8).p._fields == garch.Parameters._fields


def test_precision_weighs_quiet_labels_up_to_the_floor():
    known = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    scale = torch.exp(3 * known[:, 0])
    noise = scale * torch.randn(4000, generator=torch.Generator().manual_seed(1))
    w = learned.precision(known, noise)
    assert (w * noise.square()).mean() == pytest.approx(1.0, rel=1e-4)
    floor = 0.15 * noise.square().mean().sqrt()
    loud, quiet = scale > 3 * floor, scale < 0.01 * floor
    rank = torch.corrcoef(torch.stack([w[loud].log(), scale[loud].log()]))[0, 1]
    assert loud.sum() > 40 and quiet.sum() > 40 and rank < -0.8
    assert w[quiet].min() > 2 * w[loud].max()
    assert w[quiet].max() / w[quiet].min() < 4  # the floor: their scales differ far more


def test_bad_input_is_one_clear_error(sound):
    kinked = Operator(PRESETS["smoke"]).double()
    with pytest.raises(ValueError, match=r"ansatz must be one of anchor.*no kink"):
        learned.learn(kinked, 64, **QUICK)
    with pytest.raises(ValueError, match="ansatz must be one of"):
        correction.require_identity(kinked)
    for count in (0, -1, 2.5):
        with pytest.raises(ValueError, match="count must be a whole number, at least 1"):
            draw(sound, count)
    with pytest.raises(ValueError, match="visited must be in"):
        draw(sound, 8, visited=1.5)
    points = draw(sound, 64)
    for steps in (0, 1.5):
        with pytest.raises(ValueError, match="steps must be a whole number"):
            label(sound, points, steps=steps)
    labels = label(sound, points)
    with pytest.raises(ValueError, match="labels must be one for each of 64"):
        fit(sound, points, labels.first(32), **QUICK)
    with pytest.raises(ValueError, match="slopes must be zero without such labels"):
        fit(sound, points, labels, slopes=1.0, **QUICK)
    for slopes in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="slopes must be finite"):
            fit(sound, points, labels, slopes=slopes, **QUICK)
    with pytest.raises(ValueError, match="batch must be a whole number"):
        fit(sound, points, labels, batch=0, **QUICK)
    grid = learned.Points(points.x, points.state, points.tau, points.p[:2][:, None])
    with pytest.raises(ValueError, match="points must be with parameters of their own"):
        label(sound, grid)


def test_labels_of_the_first_options(sound):
    labels = Labels(torch.arange(3.0), None, torch.ones(3), torch.zeros(3))
    assert labels.first(2).value.tolist() == [0, 1] and labels.first(2).slope is None
