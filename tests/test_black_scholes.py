"""The normalised Black-Scholes price against 40-digit arithmetic and its own equation."""

import math

import mpmath
import pytest
import torch

from soundgreeks import black_scholes

F64 = torch.float64


def exact(k, w):
    with mpmath.workdps(40):
        k, s = mpmath.mpf(k), mpmath.sqrt(mpmath.mpf(w))
        return mpmath.exp(k) * mpmath.ncdf(k / s + s / 2) - mpmath.ncdf(k / s - s / 2)


def scattered(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(2, n, generator=generator, dtype=F64)
    return 5 * u[0] - 2.5, 10 ** (5.5 * u[1] - 4.5)  # w from 3e-5 to 10


def test_against_forty_digits():
    k, w = scattered()
    price = black_scholes.call(k, w)
    for a, b, c in zip(k.tolist(), w.tolist(), price.tolist(), strict=True):
        e = exact(a, b)
        assert abs(c - e) <= 2e-15 * max(1.0, math.exp(a))
        if a < 0 and e > 1e-290:  # the tail keeps its relative precision
            assert abs(c / e - 1) < 1e-13 * (1 + 1 / math.sqrt(b)) + 2e-14 * a * a / b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_variance_gives_the_payoff_and_finite_gradients(dtype):
    k = torch.tensor([-2.0, -1e-6, 0.0, 1e-6, 2.0], dtype=dtype, requires_grad=True)
    w = torch.zeros_like(k, requires_grad=True)
    price = black_scholes.call(k, w)
    torch.testing.assert_close(price, torch.expm1(k).clamp_min(0), rtol=1e-6, atol=1e-7)
    first = torch.autograd.grad(price.sum(), (k, w), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (k, w))
    assert all(torch.isfinite(g).all() for g in first + second)
    assert all(
        torch.isfinite(g).all() for g in black_scholes.partials(k, torch.full_like(k, -torch.inf))
    )


def test_partials_are_the_derivatives_of_the_price():
    k, w = scattered(50, seed=1)
    w = w.clamp_min(1e-3)
    k = 2 * k * w.sqrt()  # within five deviations
    k.requires_grad_(), (y := w.log()).requires_grad_()
    price = black_scholes.call(k, y.exp())
    d = torch.autograd.grad(price.sum(), (k, y), create_graph=True)
    dk = torch.autograd.grad(d[0].sum(), (k, y), retain_graph=True)
    dy = torch.autograd.grad(d[1].sum(), (k, y))
    expected = price, d[0], d[1], dk[0], dk[1], dy[1]
    for a, b in zip(black_scholes.partials(k, y), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(black_scholes.call, (k[:5], y[:5].exp()))


def test_price_is_between_its_bounds_and_rises_with_variance():
    k = torch.linspace(-3, 3, 61, dtype=F64)[:, None]
    price = black_scholes.call(k, torch.logspace(-8, 1, 200, dtype=F64))
    assert (price >= torch.expm1(k).clamp_min(0)).all() and (price <= k.exp()).all()
    assert (price.diff(dim=1) >= -1e-15 * k.exp()).all()


def test_implied_variance_inverts_the_price():
    w = torch.logspace(-4, 0.5, 40, dtype=F64)
    k = torch.linspace(-4, 2, 13, dtype=F64)[:, None] * w.sqrt()
    found = black_scholes.implied_variance(black_scholes.call(k, w), k)
    torch.testing.assert_close(found, w.expand_as(found), rtol=1e-9, atol=0)
    outside = black_scholes.implied_variance(torch.tensor([-0.1, 0.6, 1.7], dtype=F64), 0.5)
    assert outside.isnan().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"w must be non-negative and finite, got -0\.1"):
        black_scholes.call(0.0, -0.1)
    with pytest.raises(ValueError, match="k must be finite, got nan"):
        black_scholes.call(math.nan, 0.1)
    for w in (math.inf, math.nan):
        with pytest.raises(ValueError, match="w must be non-negative and finite"):
            black_scholes.call(0.0, w)
    with pytest.raises(ValueError, match="iterations must be at least 1, got -1"):
        black_scholes.implied_variance(0.1, 0.0, iterations=-1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_slope_at_the_strike_is_delta(dtype):
    """Where the price changes sides, autograd of it gave twice the slope."""
    k = torch.zeros(3, dtype=dtype, requires_grad=True)
    y = torch.tensor([-6.0, -3.0, 0.0], dtype=dtype)
    for price in (black_scholes.call(k, y.exp()), black_scholes.partials(k, y).value):
        (slope,) = torch.autograd.grad(price.sum(), k)
        torch.testing.assert_close(slope, torch.special.ndtr(0.5 * torch.exp(0.5 * y)))


def test_extreme_arguments_are_never_nan():
    k = torch.tensor([-1e4, -300.0, -1.0, 0.0, 1.0, 700.0, 1e4], dtype=F64)[:, None]
    w = torch.tensor([0.0, 1e-300, 1e-8, 1.0, 1e3, 1e8, 1e300], dtype=F64)
    price = black_scholes.call(k, w)
    assert (price >= torch.expm1(k).clamp_min(0)).all()
    assert (price <= k.exp() * (1 + 1e-12)).all()
    torch.testing.assert_close(price[:6, -1], k[:6, 0].exp())


# torch's own forward mode imports what it deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_it_batches_and_differentiates_forward():
    k, w = scattered(20, seed=2)
    k = k * w.sqrt()
    one = torch.func.vmap(torch.func.grad(black_scholes.value, argnums=(0, 1)))(k, w)
    _, slope = torch.func.jvp(black_scholes.value, (k, w), (torch.ones_like(k), 0 * w))
    torch.testing.assert_close(slope, one[0])
    torch.testing.assert_close(one[1], black_scholes.partials(k, w.log()).y / w)
