"""The basket against QuantLib, quadrature, AD and Monte Carlo with its own standard error."""

import math
from dataclasses import replace

import pytest
import QuantLib as ql
import torch
from torch.autograd import grad, gradcheck
from torch.autograd.functional import hessian

from soundgreeks import bachelier, heston, paths
from soundgreeks.models.bachelier import Basket


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def basket():
    return Basket.random()


@pytest.fixture(scope="module")
def spots(basket):
    return basket.spots(200, generator=seeded())


def within(samples, truth, sigmas=4.0):
    """Whether the mean of the samples meets the truth within so many standard errors."""
    error = samples.std(dim=0) / math.sqrt(len(samples))
    return bool(((samples.mean(dim=0) - truth).abs() <= sigmas * error + 1e-12).all())


# The problem setting


def test_the_problem_setting_is_the_stated_one(basket):
    assert basket.dim == 7
    assert basket.weights.sum().item() == pytest.approx(1, abs=1e-14)
    assert basket.volatility.item() == pytest.approx(20, abs=1e-12)
    assert (basket.strike, basket.maturity) == (110.0, 1.0)
    level = basket.level(basket.spots(2**16, scheme="sobol", generator=seeded()))
    assert level.mean().item() == pytest.approx(100, abs=0.02)
    assert level.std().item() == pytest.approx(30, abs=0.05)


def test_a_seed_means_the_same_basket_on_every_machine(basket):
    assert basket.weights[0].item() == pytest.approx(0.1594437755483618, abs=1e-12)
    assert basket.vols[0].item() == pytest.approx(64.14725141605493, abs=1e-10)
    again, other = Basket.random(seed=0), Basket.random(seed=1)
    assert torch.equal(again.correlation, basket.correlation)
    assert not torch.equal(other.correlation, basket.correlation)


@pytest.mark.parametrize("dim", [1, 2, 50, 1000])
def test_any_dimension(dim):
    basket = Basket.random(dim)
    sample = basket.sample(64, scheme="antithetic", generator=seeded())
    assert basket.volatility.item() == pytest.approx(20, abs=1e-10)
    assert sample.deltas.shape == sample.spots.shape == (64, dim)
    assert basket.greeks(sample.spots).deltas.shape == (64, dim)


# Closed forms


@pytest.mark.parametrize("maturity", [1.0, 0.25])
def test_call_matches_quantlib(basket, spots, maturity):
    basket = replace(basket, maturity=maturity)
    deviation = float(basket.volatility) * math.sqrt(maturity)
    levels = basket.level(spots).tolist()
    oracle = [ql.bachelierBlackFormula(ql.Option.Call, 110.0, b, deviation) for b in levels]
    assert basket.call(spots).tolist() == pytest.approx(oracle, abs=1e-12, rel=1e-12)


def test_delta_and_gamma_match_quantlib(basket, spots):
    greeks = basket.greeks(spots)
    payoff = ql.PlainVanillaPayoff(ql.Option.Call, 110.0)
    for level, delta, gamma in zip(basket.level(spots), greeks.delta, greeks.gamma, strict=True):
        oracle = ql.BachelierCalculator(payoff, float(level), float(basket.volatility), 1.0)
        assert delta.item() == pytest.approx(oracle.deltaForward(), abs=1e-12)
        assert gamma.item() == pytest.approx(oracle.gammaForward(), abs=1e-12)


def test_greeks_are_the_derivatives_of_the_price(basket, spots):
    spots = spots[:20].clone().requires_grad_()
    greeks = basket.greeks(spots)
    (deltas,) = grad(basket.call(spots).sum(), spots)
    assert torch.allclose(greeks.deltas, deltas, atol=1e-14)
    assert torch.allclose(greeks.delta, deltas.sum(-1), atol=1e-14)
    for i in range(3):
        full = hessian(basket.call, spots[i].detach())
        assert greeks.gamma[i].item() == pytest.approx(full.sum().item(), abs=1e-14)


def test_far_out_of_the_money_keeps_relative_accuracy(basket):
    import mpmath as mp

    spots = torch.full((7,), 110.0 - 20.0 * 8, dtype=torch.float64)
    with mp.workdps(40):
        exact = 20 * (mp.npdf(8) - 8 * mp.ncdf(-8))
    assert basket.call(spots).item() == pytest.approx(float(exact), rel=1e-11)


def test_digital_and_barrier_against_quadrature(basket):
    """The image formula against the density of a killed Brownian motion, integrated numerically."""
    barrier, start = 140.0, 95.0
    spots = torch.full((7,), start, dtype=torch.float64)
    end = torch.linspace(110.0, barrier, 20001, dtype=torch.float64)
    normal = torch.distributions.Normal(start, 20.0)
    density = (normal.log_prob(end)).exp() - normal.log_prob(2 * barrier - end).exp()
    oracle = torch.trapezoid((end - 110.0) * density, end)
    assert basket.up_and_out(spots, barrier).item() == pytest.approx(oracle.item(), abs=1e-7)
    assert basket.up_and_out(spots * 2, barrier).item() == 0
    assert basket.digital(spots).item() == pytest.approx(ql.CumulativeNormalDistribution()(-0.75))


def test_a_barrier_out_of_reach_leaves_the_plain_call(basket, spots):
    call = basket.call(spots)
    for barrier in (math.inf, 1e308, 1e200, 1e15, 1e3):  # large numbers do not cancel
        assert torch.allclose(basket.up_and_out(spots, barrier), call, atol=1e-12, rtol=1e-12)
    spots = spots.clone().requires_grad_()
    for barrier in (math.inf, 1e200):
        (deltas,) = grad(basket.up_and_out(spots, barrier).sum(), spots)
        assert torch.allclose(deltas, basket.greeks(spots).deltas, atol=1e-12)
    assert basket.up_and_out(spots, 111.0).min() >= -1e-13
    with pytest.raises(ValueError, match=r"above the strike .*, got nan"):
        basket.up_and_out(spots, math.nan)


def test_closed_forms_at_the_ends_of_the_line(basket):
    """Far out all is zero, far in it is the forward; nothing is NaN, nothing negative."""
    for level in (-math.inf, -1e308, -1e10, -700.0, 110.0, 1e10, 1e300, math.inf):
        spots = torch.full((7,), level, dtype=torch.float64, requires_grad=True)
        greeks = basket.greeks(spots)
        assert greeks.price >= 0 and greeks.gamma >= 0 and not greeks.deltas.isnan().any()
        assert torch.equal(basket.call(spots), greeks.price)
        if level < 0:
            assert greeks.price < 1e-300 and greeks.delta < 1e-300
            assert basket.up_and_out(spots, 140.0) < 1e-300
        if level > 110:
            assert greeks.price.item() == pytest.approx(level - 110.0) and greeks.delta == 1
            assert basket.up_and_out(spots, 140.0) == 0
        if math.isfinite(level):
            (deltas,) = grad(basket.call(spots), spots)
            assert torch.allclose(deltas, greeks.deltas, atol=1e-14)
    z = torch.linspace(-45, 45, 9001, dtype=torch.float64)[:, None].expand(-1, 7)
    assert basket.call(110.0 + 20.0 * z).min() >= 0


# Noise


@pytest.mark.parametrize("scheme", paths.SCHEMES)
def test_increments_have_the_stated_covariance(basket, scheme):
    start = torch.zeros(2**15, 7, dtype=torch.float64)
    walk = basket.paths(start, steps=3, scheme=scheme, generator=seeded())
    covariance = basket.factor @ basket.factor.T
    expected = basket.vols[:, None] * basket.correlation * basket.vols
    assert walk.shape == (2**15, 4, 7)
    assert torch.allclose(covariance, expected, atol=1e-10)
    assert torch.allclose(walk[:, -1].T.cov(), expected, atol=0.03 * expected.max().item())
    assert torch.allclose(walk[:, 1].T.cov(), expected / 3, atol=0.01 * expected.max().item())


def test_sobol_beats_plain_by_far(basket):
    spots = torch.full((2**14, 7), 100.0, dtype=torch.float64)
    truth = basket.call(spots[0])

    def error(scheme):
        ends = (basket.paths(spots, scheme=scheme, generator=seeded(s))[:, -1] for s in range(8))
        errors = [torch.relu(basket.level(end) - 110).mean() - truth for end in ends]
        return torch.stack(errors).square().mean().sqrt()

    assert error("sobol") < 0.3 * error("plain")


def test_antithetic_normals_mirror():
    z = paths.normals(10, 3, scheme="antithetic", generator=seeded())
    assert torch.equal(z[:5], -z[5:])


def test_noise_repeats_with_its_seed_and_only_then():
    for scheme in paths.SCHEMES:
        first, again, other = (
            paths.normals(8, 2, scheme=scheme, generator=seeded(s)) for s in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)


# Pathwise derivatives


@pytest.mark.parametrize("scheme", paths.SCHEMES)
@pytest.mark.parametrize("maturity", [1.0, 2.5])
def test_samples_are_unbiased(basket, scheme, maturity):
    """Payoff and delta minus their truth at the sampled spot average to zero."""
    basket = replace(basket, maturity=maturity)
    sample = basket.sample(2**17, scheme=scheme, generator=seeded(3))
    truth = basket.greeks(sample.spots)
    assert within(sample.payoff - truth.price, 0.0)
    assert within(sample.deltas - truth.deltas, 0.0)
    assert sample.gamma.abs().max() == 0 < truth.gamma.mean()


@pytest.mark.parametrize("scheme", paths.SCHEMES)
def test_samples_come_from_the_training_distribution(basket, scheme):
    level = basket.level(basket.sample(2**16, scheme=scheme, generator=seeded()).spots)
    assert level.mean().item() == pytest.approx(100, abs=0.5)
    assert level.std().item() == pytest.approx(30, abs=0.5)


def test_an_antithetic_label_is_the_mean_over_a_path_and_its_mirror(basket):
    """Deep in the money the payoff is linear, so the mirror cancels the noise wholly."""
    basket = replace(basket, strike=-1000.0)
    sample = basket.sample(100, scheme="antithetic", generator=seeded())
    assert torch.allclose(sample.payoff, basket.level(sample.spots) + 1000, atol=1e-10)


@pytest.mark.parametrize("width", [0.0, 5.0])
def test_pathwise_by_hand_is_pathwise_by_ad(basket, width):
    generator = seeded(5)
    sample = basket.sample(500, width=width, generator=generator)
    noise = paths.normals(500, 14, generator=seeded(5))[:, 7:]

    def payoff(spots):
        end = spots + noise @ basket.factor.T
        return paths.ramp(basket.level(end) - basket.strike, width).value

    values, deltas = paths.pathwise(payoff, sample.spots)
    assert torch.allclose(values, sample.payoff, atol=1e-10)
    assert torch.allclose(deltas, sample.deltas, atol=1e-12)


@pytest.mark.parametrize("kind", paths.SMOOTHINGS)
def test_smoothed_gamma_meets_the_smoothed_price(basket, kind):
    """The mean pathwise Gamma is the kernel's average of the true Gamma, here by quadrature."""
    width = 6.0
    x = torch.linspace(-300, 300, 60001, dtype=torch.float64)
    normal = torch.distributions.Normal(100.0 - 110.0, 20.0)
    truth = torch.trapezoid(paths.ramp(x, width, kind).curvature * normal.log_prob(x).exp(), x)
    spots = torch.full((2**17, 7), 100.0, dtype=torch.float64)
    end = basket.paths(spots, generator=seeded(8))[:, -1]
    gamma = paths.ramp(basket.level(end) - 110, width, kind).curvature
    assert within(gamma, truth)


def test_gaussian_smoothing_is_extra_volatility(basket):
    spots = torch.full((2**17, 7), 100.0, dtype=torch.float64)
    end = basket.paths(spots, generator=seeded(9))[:, -1]
    width = 10.0
    wide = Basket.random(volatility=math.hypot(20.0, width)).greeks(spots[0])
    value, slope, curvature = paths.ramp(basket.level(end) - 110, width, "gaussian")
    assert within(value, wide.price) and within(slope, wide.delta) and within(curvature, wide.gamma)


@pytest.mark.parametrize("kind", paths.SMOOTHINGS)
def test_ramps_are_differentiated_right(kind):
    x = torch.linspace(-3.01, 2.97, 41, dtype=torch.float64, requires_grad=True)
    value, slope, curvature = paths.ramp(x, 0.7, kind)
    (first,) = grad(value.sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)
    assert torch.allclose(slope, first, atol=1e-13)
    assert torch.allclose(curvature, second, atol=1e-13)
    assert gradcheck(lambda t: paths.ramp(t, 0.7, kind).value, (x,))


@pytest.mark.parametrize(
    "kind, moment",
    [
        ("sigmoid", -(math.pi**2) / 3),
        ("softplus", math.pi**2 / 3),
        ("gaussian", 1),
        ("uniform", 1 / 3),
    ],
)
def test_kernels_have_mass_one_and_the_stated_moment(kind, moment):
    x = torch.linspace(-80, 80, 400001, dtype=torch.float64)
    kernel = paths.ramp(x, 1.0, kind).curvature
    assert torch.trapezoid(kernel, x).item() == pytest.approx(1, abs=1e-3)
    assert torch.trapezoid(x**2 * kernel, x).item() == pytest.approx(moment, abs=1e-3)


def test_the_sigmoidal_payoff_is_the_papers():
    x = torch.tensor([-0.1, 0.0, 0.02], dtype=torch.float64)
    paper = x / (1 + torch.exp(-x / 0.05))
    assert torch.allclose(paths.ramp(x, 0.05, "sigmoid").value, paper, atol=1e-16)


def test_an_indicator_has_a_pathwise_derivative_of_zero(basket, spots):
    values, deltas = paths.pathwise(lambda s: (basket.level(s) > 110).double(), spots)
    assert 0 < values.mean() < 1 and deltas.abs().max() == 0


# Heston paths

FELLER = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)


def test_heston_paths_meet_the_published_price_and_greeks():
    """First value inside Table I; conditioning on the variance path smooths the payoff."""
    generator, n, steps = seeded(2), 2**15, 32
    noise = paths.normals(n, steps, scheme="antithetic", generator=generator).T

    def conditional(x, nu):
        integrated, martingale = paths.heston(nu, 1.0, FELLER, noise)
        shifted = x + FELLER.rho * martingale - FELLER.rho**2 * integrated / 2
        w = (1 - FELLER.rho**2) * integrated
        k = shifted + FELLER.r
        d = k / w.sqrt() + w.sqrt() / 2
        ndtr = torch.special.ndtr
        return torch.exp(shifted) * ndtr(d) - math.exp(-0.05) * ndtr(d - w.sqrt())

    x, nu = torch.zeros(n, dtype=torch.float64), torch.full((n,), 0.04, dtype=torch.float64)
    price, delta, vega = paths.pathwise(conditional, x, nu)
    # Four standard errors; the scheme's own error at this step is below one.
    for sample, truth in (
        (price, 0.103942185651502),
        (delta, 0.69186721933),
        (vega, 0.392130484118),
    ):
        pairs = sample.view(2, -1).mean(0)  # a path and its mirror image are one draw
        assert within(pairs, truth)


def test_heston_paths_are_a_martingale():
    n = 2**14
    noise = paths.normals(n, 16, generator=seeded(4)).T
    integrated, martingale = paths.heston(0.04, 1.0, FELLER, noise)
    z = paths.normals(n, 1, generator=seeded(6))[:, 0]
    log = FELLER.rho * martingale + ((1 - FELLER.rho**2) * integrated).sqrt() * z - integrated / 2
    assert within(log.exp(), 1.0) and within(martingale, 0.0)
    assert integrated.min() > 0


def test_heston_variance_stays_positive_at_any_step():
    noise = paths.normals(2**12, 1, generator=seeded(4)).T * 3
    assert paths.heston(1e-8, 1.0, FELLER, noise).integrated.min() > 0
    with pytest.raises(ValueError, match="4 kappa theta"):
        paths.heston(0.04, 1.0, heston.Parameters(1.0, 0.01, 1.0, 0.0, 0.0), noise)


def test_heston_variance_path_is_differentiated_right():
    noise = paths.normals(3, 5, generator=seeded()).T
    nu = torch.tensor([0.02, 0.05, 0.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: paths.heston(v, 0.5, FELLER, noise), (nu,))


# Devices, dtypes, bad input


def test_float32_follows_float64(basket, spots):
    single = basket.to(dtype=torch.float32)
    assert single.sample(16, generator=seeded()).deltas.dtype == torch.float32
    greeks, exact = single.greeks(spots.float()), basket.greeks(spots)
    for name in bachelier.Greeks._fields:
        assert torch.allclose(getattr(greeks, name).double(), getattr(exact, name), atol=2e-5)


def test_the_spots_decide_the_dtype(basket, spots):
    for greeks in (basket.greeks(spots.float()), basket.to(dtype=torch.float32).greeks(spots)):
        assert len({t.dtype for t in greeks}) == 1
    assert basket.greeks(spots.float()).price.dtype == torch.float32


def test_bad_input_is_named(basket, spots):
    for change, name in [
        ({"vols": -basket.vols}, "vols"),
        ({"vols": basket.vols * math.inf}, "vols must be positive and finite, got inf"),
        ({"vols": basket.vols * 1e-200}, "basket's volatility must be positive and finite"),
        ({"vols": basket.vols * 1e200}, "basket's volatility must be positive and finite"),
        ({"weights": 2 * basket.weights}, "weights"),
        ({"weights": basket.weights[:3]}, "vols"),
        ({"correlation": -basket.correlation}, "correlation"),
        ({"correlation": torch.ones(7, 7, dtype=torch.float64)}, "positive definite"),
        ({"maturity": 0.0}, "maturity"),
        ({"strike": math.nan}, "strike"),
        ({"spread": -1.0}, "spread"),
    ]:
        with pytest.raises(ValueError, match=name):
            replace(basket, **change)
    for call, name in [
        (lambda: basket.call(spots[:, :3]), r"\(\.\.\., 7\)"),
        (lambda: basket.up_and_out(spots, 100.0), "barrier"),
        (lambda: basket.sample(0), "n must"),
        (lambda: basket.sample(8, scheme="latin"), "latin"),
        (lambda: basket.sample(8, width=-1.0), "width"),
        (lambda: paths.normals(7, 1, scheme="antithetic"), "even"),
        (lambda: paths.normals(8, 30000, scheme="sobol"), "dim"),
        (lambda: paths.ramp(spots, 1.0, "cubic"), "cubic"),
        (lambda: Basket.random(0), "dim"),
        (lambda: paths.heston(-0.1, 1.0, FELLER, torch.zeros(2, 2)), "nu"),
        (lambda: paths.heston(0.1, 0.0, FELLER, torch.zeros(2, 2)), "tau"),
    ]:
        with pytest.raises(ValueError, match=name):
            call()
