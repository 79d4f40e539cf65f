"""The error that an operator knows: the identity, its estimate, its standard error."""

import math
from dataclasses import replace

import pytest
import torch

from soundgreeks import garch, heston, weights
from soundgreeks.models import smile
from soundgreeks.operators import PRESETS, Operator, correction, evaluation


@pytest.fixture(scope="module")
def untrained():
    """An operator that is wrong everywhere but at maturity."""
    return Operator(replace(PRESETS["sound"], width=8, hidden=2, seed=3)).double()


@pytest.fixture(scope="module")
def options():
    data = evaluation.draw(5, 100)
    part = slice(0, 24)
    return data.x[part] / 4, data.nu[part], data.tau[part], data.p[part]


def test_the_correction_is_the_error_and_so_are_its_derivatives(untrained, options):
    x, *_, p = options
    there = (*options[:3], p)
    off = correction.estimate(untrained, *there, paths=2**13, count=16, seed=1, order=2)
    ours = untrained.greeks(*there)
    price, delta, gamma = heston.price_delta_gamma(*there)
    e = torch.exp(-x)
    for error, found, sd, left in (
        (ours.price - price, off.value, off.value_error, 0.01),
        (ours.delta - delta, e * off.slope, e * off.slope_error, 0.01),
        (ours.gamma - gamma, e * e * off.bend, e * e * off.bend_error, 0.2),
    ):
        assert (error - found).square().mean() < left * error.square().mean()
        # the steps' bias is a share of the correction
        assert ((error - found).abs() < 4 * sd + 0.02 * error.abs().max()).all()


def test_prices_first_then_derivatives():
    """What pricing keeps from inference mode must serve where gradients are tracked."""
    smile._nodes.cache_clear()
    model = Operator(replace(PRESETS["sound"], width=8, hidden=2)).double()
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    model.price(0.0, 0.04, 1.0, p)
    nu = torch.tensor(0.04, dtype=torch.float64, requires_grad=True)
    (vega,) = torch.autograd.grad(model.price(0.0, nu, 1.0, p), nu)
    assert vega.item() == pytest.approx(model.greeks(0.0, 0.04, 1.0, p).vega.item(), rel=1e-9)


def test_standard_errors_are_what_seeds_vary_by(untrained, options):
    there = tuple(v[:6] for v in options)
    found = [correction.estimate(untrained, *there, paths=256, seed=s) for s in range(40)]
    spread = torch.stack([f.value for f in found]).std(0)
    stated = torch.stack([f.value_error for f in found]).square().mean(0).sqrt()
    assert ((stated / spread / correction._STUDENT).log().abs() < 0.45).all()  # forty seeds


def test_three_standard_errors_hold_what_they_should():
    """Of the mean of 32 normals, three stretched standard errors hold 99.73 %."""
    from scipy.stats import t

    n = correction.SCRAMBLES
    wanted = t.ppf(0.5 + 0.5 * math.erf(3 / math.sqrt(2)), n - 1) / 3
    assert correction._STUDENT == pytest.approx(wanted, abs=1e-4)


def test_prices_and_greeks_with_their_errors(untrained, options):
    x, nu, tau, p = (v[:4] for v in options)
    priced = untrained.price(x, nu, tau, p, with_error=True, paths=256, seed=2)
    off = correction.estimate(untrained, x, nu, tau, p, paths=256, seed=2)
    assert torch.allclose(priced.price, untrained.price(x, nu, tau, p) - off.value)
    assert torch.equal(priced.error, off.value_error)
    again = untrained.price(x, nu, tau, p, with_error=True, paths=256, seed=2)
    assert torch.equal(again.price, priced.price)
    other = untrained.price(x, nu, tau, p, with_error=True, paths=256, seed=3)
    assert not torch.equal(other.price, priced.price)
    greeks = untrained.greeks(x, nu, tau, p, with_error=True, paths=256, seed=2)
    assert torch.allclose(greeks.price, priced.price) and (greeks.gamma_error > 0).all()
    grid = untrained.price(x[:, None], nu, tau, p, with_error=True, paths=32)
    assert grid.price.shape == grid.error.shape == (4, 4)
    ended = untrained.price(x, nu, 0.0, p, with_error=True, paths=32)
    assert torch.equal(ended.price, torch.expm1(x).clamp_min(0)) and (ended.error == 0).all()


def test_a_model_without_formula():
    model = Operator(replace(PRESETS["garch"], width=8, hidden=2)).double()
    p = garch.MODEL.sample(4, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([-0.2, 0.0, 0.0, 0.2], dtype=torch.float64)
    found = model.price(x, 0.05, 0.5, p, with_error=True, paths=2**12)
    from soundgreeks import paths

    source = torch.Generator().manual_seed(1)
    true = paths.conditional_call(garch.MODEL, x, 0.05, 0.5, p, paths=2**15, generator=source)
    both = (found.error.square() + true.price_error.square()).sqrt()
    before = (model.price(x, 0.05, 0.5, p) - true.price).abs()
    assert ((found.price - true.price).abs() < 4 * both + 0.02 * before).all()


def test_where_the_identity_does_not_hold_is_one_clear_error(untrained):
    p = heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
    for name in ("printed", "smoothed"):
        kinked = Operator(replace(PRESETS["smoke"], ansatz=name)).double()
        with pytest.raises(ValueError, match=r"ansatz must be one of anchor.*no kink"):
            kinked.price(0.0, 0.04, 1.0, p, with_error=True)
    for paths in (0, 31, 100, -32):
        with pytest.raises(ValueError, match="paths must be a multiple of 32"):
            untrained.price(0.0, 0.04, 1.0, p, with_error=True, paths=paths)


def test_the_shipped_operator_is_corrected():
    sound, data = weights.load("sound").double(), evaluation.draw(3, 100)
    x, nu, tau, p = (v[:10] for v in (data.x, data.nu, data.tau, data.p))
    before = sound.price(x, nu, tau, p) - data.price[:10]
    found = sound.price(x, nu, tau, p, with_error=True, paths=2**11)
    after = found.price - data.price[:10]
    assert after.square().mean() < 0.05 * before.square().mean()
    assert (after.abs() < 4 * found.error + 1e-9).all()
