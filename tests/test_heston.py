"""The semi-analytic Heston price against published values, QuantLib, and mathematics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import quantlib_heston, quantlib_heston_many

from soundgreeks import heston
from soundgreeks.models import heston_integral
from soundgreeks.models.heston import TABLE_I, Parameters

F64 = torch.float64


def fresh_seed():
    """Another one on every run: to be shown by the assertion that fails."""
    return torch.Generator().seed() % 2**31


def draw(n, seed=0, tau_min=0.01):
    """Draws of Table I under Feller: x, nu, tau, parameters."""
    generator = torch.Generator().manual_seed(seed)
    p = heston.sample_parameters(n, generator=generator)
    unit = torch.rand(3, n, dtype=F64, generator=generator)
    low, high = torch.tensor([TABLE_I["x"], TABLE_I["nu"], (tau_min, 1.0)], dtype=F64).T[..., None]
    return *(low + (high - low) * unit), p


# --- published values ------------------------------------------------------------------------

# S, K, T, r, q, v0, kappa, theta, sigma, rho -> call, and half a unit of its last printed digit
LEWIS = (1.0, 0.01, 0.02, 0.04, 4.0, 0.25, 1.0, -0.5)
FANG_OOSTERLEE = (0.0, 0.0, 0.0175, 1.5768, 0.0398, 0.5751, -0.5711)
INSIDE = (1.0, 0.05, 0.0, 0.04, 2.0, 0.04, 0.3, -0.7)
PUBLISHED = [
    (100, 80, *LEWIS, 26.774758743998854221),
    (100, 90, *LEWIS, 20.933349000596710388),
    (100, 100, *LEWIS, 16.070154917028834278),
    (100, 110, *LEWIS, 12.132211516709844868),
    (100, 120, *LEWIS, 9.024913483457835637),
    (100, 100, 1.0, *FANG_OOSTERLEE, 5.785155434376),
    (100, 100, 10.0, *FANG_OOSTERLEE, 22.31894579115),
    (100, 100, *INSIDE, 10.3942185651502),
    (100, 120, 0.25, 0.0, 0.0, 0.04, 3.0, 0.1, 0.7, -0.9, 0.0063975460535),
]
PUTS = {80: 7.958878113256768285, 90: 12.017966707346304988, 100: 17.055270961270109414,
        110: 23.017825898442800539, 120: 29.811026202682471843}  # fmt: skip


def dollars(s, k, t, r, q, v0, kappa, theta, sigma, rho):
    """A call in dollars with a dividend yield: e^{-qT} times the price with rate r - q."""
    model = Parameters(kappa, theta, sigma, rho, r - q)
    x = torch.log(torch.as_tensor(s, dtype=F64) / k)
    return k * heston.call(x, v0, t, model) * torch.exp(-q * torch.as_tensor(t, dtype=F64))


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_calls(row):
    *inputs, expected = row
    digits = len(repr(expected).split(".")[1].split("e")[0])
    assert float(dollars(*inputs)) == pytest.approx(expected, abs=max(1e-13, 0.5 * 10.0**-digits))


@pytest.mark.parametrize("strike", PUTS)
def test_published_puts(strike):
    t, r, q = LEWIS[:3]
    put = dollars(100, strike, *LEWIS) - 100 * math.exp(-q * t) + strike * math.exp(-r * t)
    assert float(put) == pytest.approx(PUTS[strike], abs=2e-14 * strike)


# Delta, Gamma, dV/dv0, d2V/dv0^2, d2V/dSdv0, dV/dT, dV/dr; the last of Lewis's row to ten decimals
# from 30-digit arithmetic (43.87697765797398), which agrees with T (S Delta - V)
GREEKS = [
    (LEWIS, ".59947132575 .00928753738 10.1792654045 -6.06315955 .04668901613 "
            "9.43327631833 43.8769776580"),
    ((1.0, *FANG_OOSTERLEE), ".62491649563 .03055334182 54.5653308932 -342.248924 .07108384145 "
                             "3.56076182472 56.7064941282"),
    (INSIDE, ".69186721933 .01740918003 39.2130484118 -189.238148 -.43784297980 "
             "6.44862061087 58.7925033676"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "printed"), GREEKS)
def test_published_greeks_by_autograd_and_under_the_integral(model, printed):
    t, r, q, v0, *rest = model
    s, v0, t, r = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (100.0, v0, t, r))
    value = 100 * heston.call(torch.log(s / 100), v0, t, Parameters(*rest, r - q))
    value = value * torch.exp(-q * t)
    d_s, d_v, d_t, d_r = torch.autograd.grad(value, (s, v0, t, r), create_graph=True)
    d_ss, d_sv = torch.autograd.grad(d_s, (s, v0), retain_graph=True)
    (d_vv,) = torch.autograd.grad(d_v, v0)
    by_autograd = [d_s, d_ss, d_v, d_vv, d_sv, d_t, d_r]
    p = Parameters(*rest, r.item() - q)
    g, d = (
        heston.greeks(0.0, v0.item(), t.item(), p),
        heston.derivatives(0.0, v0.item(), t.item(), p),
    )
    dividend = math.exp(-q * t.item())
    by_integral = [g.delta, g.gamma / 100, 100 * g.vega, 100 * d.nunu, d.xnu,
                   100 * (-g.theta - q * g.price)]  # fmt: skip
    for text, auto, *integral in zip(
        printed.split(), by_autograd, [*by_integral, None], strict=True
    ):
        unit = 10.0 ** -len(text.split(".")[1])
        assert auto.item() == pytest.approx(float(text), abs=0.51 * unit)
        if integral[0] is not None:
            assert dividend * float(integral[0]) == pytest.approx(float(text), abs=0.51 * unit)


# --- QuantLib on fresh draws -------------------------------------------------------------------


def test_prices_against_quantlib_over_table_i():
    seed = fresh_seed()
    x, nu, tau, p = draw(10_000, seed)
    ours = heston.call(x, nu, tau, p).numpy()
    oracle = quantlib_heston_many(x, nu, tau, p)
    given_up = np.isnan(oracle)  # its adaptive rule runs out of evaluations now and then
    assert given_up.mean() < 0.01, seed
    far = np.flatnonzero(~(np.abs(ours - oracle) <= 1e-12) & ~given_up)
    assert len(far) <= 3, seed  # that rule is off by more once in some hundred thousand
    second = quantlib_heston_many(x[far], nu[far], tau[far], p[far], "andersen-piterbarg")
    assert (np.abs(ours[far] - second) <= 1e-12).all(), seed


def draw_far_outside(n, seed):
    """Feller violated or not, any rho, r of both signs, days to 15 years, variances from 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(8, n, dtype=F64, generator=generator)

    def log_uniform(i, low, high):
        return torch.exp(math.log(low) + math.log(high / low) * unit[i])

    x, rho, r = -1.5 + 3 * unit[0], -1 + 2 * unit[1], -0.1 + 0.3 * unit[2]
    nu, tau = log_uniform(3, 1e-4, 2.0), log_uniform(4, 0.002, 15.0)
    kappa, theta, sigma = (
        log_uniform(5, 0.01, 10),
        log_uniform(6, 1e-3, 1),
        log_uniform(7, 0.01, 4),
    )
    return x, nu, tau, Parameters(kappa, theta, sigma, rho, r)


def test_prices_against_quantlib_far_outside_table_i():
    seed = fresh_seed()
    x, nu, tau, p = draw_far_outside(300, seed)
    ours = heston.call(x, nu, tau, p).numpy()
    first, second = (
        quantlib_heston_many(x, nu, tau, p, e) for e in ("adaptive", "andersen-piterbarg")
    )
    # out here either engine can be off by 1e-6 or give up: an oracle is where the two agree
    agreed = np.abs(first - second) < 1e-10
    assert agreed.mean() > 0.8, seed
    assert np.abs(ours - first)[agreed].max() <= 1e-9, seed


def test_straight_and_bent_contour_agree(monkeypatch):
    x, nu, tau, p = draw_far_outside(1_000, seed=0)
    bent = heston.call(x, nu, tau, p)
    monkeypatch.setattr(heston_integral, "_STRAIGHT_NODES", 20_000)
    assert (heston.call(x, nu, tau, p) - bent).abs().max() < 1e-13


def test_greeks_against_quantlib_by_finite_differences():
    x, nu, tau, p = draw(100, tau_min=0.05)
    d = heston.derivatives(x, nu, tau, p)
    first = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}  # central differences of sixth order
    second = {0: -49 / 18, 1: 3 / 2, 2: -3 / 20, 3: 1 / 90}
    scale = heston.expected_variance(nu, tau, p).sqrt()
    for coordinate, step, ours_1, ours_2 in (
        (0, 0.1 * scale, d.x, d.xx), (1, 0.06 * nu, d.nu, d.nunu), (2, 0.06 * tau, d.tau, None),
    ):  # fmt: skip

        def price(j, coordinate=coordinate, step=step):
            point = [x, nu, tau]
            point[coordinate] = point[coordinate] + j * step
            return torch.from_numpy(quantlib_heston_many(*point, p))

        values = {j: price(j) for j in range(-3, 4)}
        diff_1 = sum(c * (values[j] - values[-j]) for j, c in first.items()) / step
        assert (diff_1 - ours_1)[~diff_1.isnan()].abs().max() < 2e-6
        if ours_2 is not None:
            diff_2 = sum(c * (values[j] + values[-j]) for j, c in second.items() if j)
            diff_2 = (diff_2 + second[0] * values[0]) / step**2
            # rounding of the oracle, 1e-15, is divided by the step squared
            tolerance = 1e-5 * (1 + ours_2.abs()) + 1e-13 / step**2
            assert ((diff_2 - ours_2).abs() <= tolerance)[~diff_2.isnan()].all()


# --- mathematics -------------------------------------------------------------------------------


def test_derivatives_are_those_of_the_price_and_satisfy_the_pde():
    """The second half alone would prove little: a price from too few nodes satisfies it too."""
    x, nu, tau, p = draw(500)
    x, nu, tau = (v.requires_grad_() for v in (x, nu, tau))
    u = heston.call(x, nu, tau, p)
    u_x, u_nu, u_tau = torch.autograd.grad(u.sum(), (x, nu, tau), create_graph=True)
    u_xx, u_xnu = torch.autograd.grad(u_x.sum(), (x, nu), retain_graph=True)
    (u_nunu,) = torch.autograd.grad(u_nu.sum(), nu)
    channels = (u, u_x, u_nu, u_tau, u_xx, u_xnu, u_nunu)
    for ours, auto in zip(heston.derivatives(x, nu, tau, p), channels, strict=True):
        assert (ours - auto).abs().max() < 1e-11
    operator = (
        (p.r - nu / 2) * u_x + p.rho * p.sigma * nu * u_xnu + p.sigma**2 * nu / 2 * u_nunu
        + nu / 2 * u_xx + p.kappa * (p.theta - nu) * u_nu - p.r * u
    )  # fmt: skip
    assert (u_tau - operator).abs().max() < 1e-9


def test_gradient_in_every_argument():
    x, nu, tau, p = draw(3, seed=1, tau_min=0.1)
    arguments = [v.detach().clone().requires_grad_() for v in (x, nu, tau, *p)]

    def price(*a):
        return heston.call(*a[:3], Parameters(*a[3:]))

    assert torch.autograd.gradcheck(price, arguments, atol=1e-7)


def test_delta_and_gamma_are_the_derivatives_by_the_spot():
    """Away from the money too, where e^-x and e^-2x are no longer one."""
    x, nu, tau, p = draw(60, seed=2, tau_min=0.3)
    spot = x.exp().requires_grad_()
    (delta,) = torch.autograd.grad(
        heston.call(spot.log(), nu, tau, p).sum(), spot, create_graph=True
    )
    (gamma,) = torch.autograd.grad(delta.sum(), spot)
    found = heston.greeks(x, nu, tau, p)
    torch.testing.assert_close(found.delta, delta.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.gamma, gamma, rtol=0, atol=1e-9)
    assert gamma[x.abs() > 0.3].max() > 0.1  # the comparison means something


def test_shortcuts_agree():
    x, nu, tau, p = draw(300)
    g = heston.greeks(x, nu, tau, p)
    for a, b in zip(heston.price_delta_gamma(x, nu, tau, p), g[:3], strict=True):
        assert torch.equal(a, b)
    assert (heston.call(x, nu, tau, p) - g.price).abs().max() < 1e-14


ranges = {k: st.floats(*v) for k, v in TABLE_I.items()} | {"tau": st.floats(0.01, 1.0)}


def tensors(*numbers):
    return Parameters(*torch.tensor(numbers, dtype=F64))


models = st.builds(tensors, *(ranges[k] for k in ("kappa", "theta", "sigma", "rho", "r")))
points = st.tuples(ranges["x"], ranges["nu"], ranges["tau"])


@settings(deadline=None)
@given(points, models)
def test_bounds_monotonicity_convexity(point, p):
    x, nu, tau = point
    strikes = torch.exp(torch.linspace(-0.2, 0.2, 9, dtype=F64))
    price = strikes * heston.call(x - strikes.log(), nu, tau, p)  # per unit of x's own strike
    lower = (math.exp(x) - strikes * torch.exp(-p.r * tau)).clamp(min=0)
    assert (price >= lower - 1e-13).all()
    assert (price <= math.exp(x) + 1e-13).all()
    slopes = price.diff() / strikes.diff()
    assert (slopes <= 1e-12).all()  # decreasing in strike
    assert (slopes >= -torch.exp(-p.r * tau) - 1e-12).all()
    assert (slopes.diff() >= -1e-11).all()  # convex in strike
    g = heston.greeks(x, nu, tau, p)
    assert 0 - 1e-12 <= g.delta <= 1 + 1e-12
    assert g.gamma >= -1e-10


@settings(deadline=None)
@given(points, models)
def test_put_call_parity_through_the_measure_change(point, p):
    """A put priced by itself: put-call symmetry maps it to a call of another Heston model."""
    x, nu, tau = point
    kappa = p.kappa - p.rho * p.sigma
    assume(float(kappa) > 0.01)
    k = x + float(p.r) * tau
    dual = Parameters(kappa, p.kappa * p.theta / kappa, p.sigma, -p.rho, 0.0)
    put = math.exp(x) * heston.call(-k, nu, tau, dual)  # exchange of asset and strike
    parity = heston.call(x, nu, tau, p) - math.exp(x) + math.exp(-float(p.r) * tau)
    assert float(put) == pytest.approx(float(parity), abs=2e-13 * math.exp(abs(x)))


@settings(deadline=None)
@given(points, models)
def test_rate_identity(point, p):
    """u(x; r) = e^{-r tau} F(x + r tau), as `call` is written; chapter 1's grid tests it."""
    x, nu, tau = point
    r = float(p.r)
    zero = Parameters(*list(p)[:4], 0.0)
    forward = math.exp(-r * tau) * heston.call(x + r * tau, nu, tau, zero)
    assert float(heston.call(x, nu, tau, p)) == pytest.approx(float(forward), abs=1e-14)


@settings(deadline=None)
@given(points, models, st.floats(0.01, 1000.0))
def test_homogeneity_in_strike(point, p, strike):
    x, nu, tau = point
    spot = strike * math.exp(x)
    here = strike * heston.call(math.log(spot / strike), nu, tau, p)
    scaled = 7 * strike * heston.call(math.log(7 * spot / (7 * strike)), nu, tau, p)
    assert float(scaled) == pytest.approx(7 * float(here), rel=1e-11, abs=1e-12 * strike)


def black_scholes(x, w, discount):
    root = math.sqrt(w)
    k = x - math.log(discount)
    ndtr = lambda z: 0.5 * math.erfc(-z / math.sqrt(2))  # noqa: E731
    return discount * (math.exp(k) * ndtr(k / root + root / 2) - ndtr(k / root - root / 2))


@settings(deadline=None)
@given(points, models)
def test_limit_of_no_volatility_of_variance(point, p):
    x, nu, tau = point
    still = Parameters(p.kappa, p.theta, 0.0, p.rho, p.r)
    w = float(heston.expected_variance(nu, tau, still))
    expected = black_scholes(x, w, math.exp(-float(p.r) * tau))
    assert float(heston.call(x, nu, tau, still)) == pytest.approx(
        expected, abs=1e-14 * math.exp(x) + 1e-14
    )
    small = Parameters(p.kappa, p.theta, 1e-5, p.rho, p.r)
    assert float(heston.call(x, nu, tau, small)) == pytest.approx(expected, abs=1e-5)


@settings(deadline=None)
@given(points, models)
def test_limit_of_no_time(point, p):
    x, nu, _ = point
    payoff = max(math.exp(x) - 1, 0.0)
    assert float(heston.call(x, nu, 0.0, p)) == pytest.approx(payoff, abs=1e-15)
    for tau in (1e-4, 1e-8, 1e-12):
        # the time value is at most that of Black-Scholes, about .4 sqrt(w), plus the interest
        bound = math.sqrt(float(heston.expected_variance(nu, tau, p))) * math.exp(max(x, 0)) + tau
        slack = 1e-13  # the pricer is off by 2e-14 at places so far outside Table I
        assert -slack <= float(heston.call(x, nu, tau, p)) - payoff <= bound + slack


# --- sampling, shapes, bad input -------------------------------------------------------------


def test_sampling_is_seeded_uniform_and_feller():
    p = heston.sample_parameters(4096, generator=torch.Generator().manual_seed(3))
    q = heston.sample_parameters(4096, generator=torch.Generator().manual_seed(3))
    assert torch.equal(p.stack(), q.stack())
    assert heston.satisfies_feller(p).all()
    for name in ("kappa", "theta", "sigma", "rho", "r"):
        low, high = TABLE_I[name]
        value = getattr(p, name)
        assert low <= value.min() and value.max() <= high
    # rho and r are untouched by the condition: Sobol means are close to the middle
    assert float(p.rho.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(p.r.mean()) == pytest.approx(0.04, abs=0.001)


def test_shapes_dtypes_and_broadcasting():
    p = heston.sample_parameters(4)[:, None]
    x = torch.linspace(-1, 1, 5, dtype=F64)
    surface = heston.call(x, 0.04, 0.5, p)
    assert surface.shape == (4, 5)
    assert float(surface[2, 3]) == float(heston.call(x[3], 0.04, 0.5, p[2, 0]))
    single = heston.call(x.float(), 0.04, 0.5, Parameters(2.0, 0.04, 0.3, -0.7, 0.05))
    assert single.dtype == torch.float32
    assert heston.call(torch.zeros(0), 0.04, 0.5, p[0, 0]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa": 0.0}, "kappa must be positive, got 0.0"),
        ({"theta": -0.1}, "theta must be non-negative, got -0.1"),
        ({"sigma": -1.0}, "sigma must be non-negative, got -1.0"),
        ({"rho": 1.5}, r"rho must be in \[-1, 1\], got 1.5"),
        ({"r": math.nan}, "r must be finite, got nan"),
        ({"nu": -0.01}, "nu must be non-negative and finite, got -0.01"),
        ({"tau": -1.0}, "tau must be non-negative and finite, got -1.0"),
        ({"x": math.inf}, "x must be finite, got inf"),
        ({"nu": torch.tensor([0.1, math.nan])}, "nu must be non-negative and finite, got nan"),
        ({"x": torch.zeros(2), "nu": torch.ones(3)}, "shapes do not broadcast: x .2,., nu .3,."),
        ({"kappa": torch.ones(2), "rho": torch.zeros(3)}, "shapes do not broadcast"),
    ],
)
def test_bad_values_raise_one_clear_error(change, message):
    inputs = dict(x=0.0, nu=0.04, tau=1.0, kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    inputs |= change
    with pytest.raises(ValueError, match=message):
        heston.greeks(inputs.pop("x"), inputs.pop("nu"), inputs.pop("tau"), Parameters(**inputs))


@pytest.mark.parametrize("bad", ["0.1", None, torch.tensor([1, 2]), 1j])
def test_bad_types_raise_one_clear_error(bad):
    with pytest.raises(TypeError, match="sigma"):
        heston.call(0.0, 0.04, 1.0, Parameters(2.0, 0.04, bad, -0.7, 0.05))


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match=r"x must be of float32 or float64, got torch\.float16"):
        heston.call(torch.zeros(2, dtype=torch.float16), 0.04, 1.0, inside())


def inside():
    return Parameters(2.0, 0.04, 0.3, -0.7, 0.05)


@pytest.mark.parametrize(
    "change",
    [dict(x=1000.0), dict(x=-1000.0), dict(nu=1e6), dict(tau=1e4), dict(nu=1e-300, tau=1e-300),
     dict(kappa=1e6), dict(sigma=1e3), dict(theta=1e5), dict(kappa=1e-20), dict(r=-50.0)],
)  # fmt: skip
def test_extreme_arguments_give_a_price_or_one_clear_error(change):
    """Never NaN: within the bounds of no arbitrage, or refused."""
    a = dict(x=0.1, nu=0.04, tau=1.0) | inside()._asdict() | change
    try:
        price = heston.call(a["x"], a["nu"], a["tau"], Parameters(*list(a.values())[3:]))
    except FloatingPointError as error:
        assert "double precision cannot hold the price at x = " in str(error)
        return
    bound = max(math.exp(min(a["x"], 700)) - math.exp(-a["r"] * a["tau"]), 0)
    assert bound * (1 - 1e-9) - 1e-9 <= float(price) <= math.exp(min(a["x"], 700)) * (1 + 1e-9)


def test_parameters_are_a_light_tuple():
    """vmap and compile take them; numbers stay numbers until something is priced."""
    p = inside()
    assert p.kappa == 2.0 and p.shape == () and p._replace(r=0.0).r == 0.0
    many = heston.sample_parameters(5)
    variance = torch.func.vmap(lambda q: heston.MODEL.expected_variance(q, 0.5, q.theta))(many)
    torch.testing.assert_close(variance, 0.5 * many.theta)
    traced = torch.compile(lambda q: q.kappa * q.theta, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(many), many.kappa * many.theta)
    assert many[1:3].shape == (2,) and many[:, None].shape == (5, 1)
    mixed = Parameters(2.0, many.theta, 0.3, -0.7, 0.05)
    assert mixed[2].theta == many.theta[2] and mixed.stack().shape == (5, 5)


@pytest.mark.parametrize("n", [0, -3, 2.5])
def test_bad_sample_size(n):
    with pytest.raises(ValueError, match="n must be a positive integer"):
        heston.sample_parameters(n)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_prices():
    x, nu, tau, p = draw(1000)
    there = heston.call(*(v.cuda() for v in (x, nu, tau)), Parameters(*(v.cuda() for v in p)))
    assert (there.cpu() - heston.call(x, nu, tau, p)).abs().max() < 1e-13


def test_the_oracle_itself():
    """The adapter's scaling of time, against a published value."""
    price = quantlib_heston(0.0, 0.0175, 1.0, 1.5768, 0.0398, 0.5751, -0.5711, 0.0)
    assert 100 * price == pytest.approx(5.785155434376, abs=1e-11)
