"""Chapter 1's reference numbers by other routes: thirty digits, QuantLib, a grid, a search."""

import itertools
import math

import mpmath as mp
import nbformat
import numpy as np
import pytest
import QuantLib as ql
import torch
from oracles import quantlib_heston
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from scipy.special import ndtr

from soundgreeks import heston
from soundgreeks.book import reference, runner
from soundgreeks.models.heston import TABLE_I, Parameters

INSIDE = Parameters(2.0, 0.04, 0.3, -0.7, 0.05)
ORDINARY = (0.1, 0.09, 0.5, 1.5, 0.1, 0.4, -0.6)  # k, nu, tau, kappa, theta, sigma, rho
SHORT = (0.005, 0.012, 0.025, 2.0, 0.02, 0.25, -0.9)


def agrees(key, value, evidence="independent"):
    """Whether `value` is the reference number `key`, as closely as the chapter has to meet it."""
    entry = reference.load()[f"heston.{key}"]
    assert entry.holds(float(value)), (key, float(value))
    assert entry.evidence == evidence, key


@pytest.fixture(scope="module")
def chapter():
    """The functions that the chapter defines for its grid."""
    path = next(
        p for n, p in runner.chapters(runner.find_root() / "book").items() if n.startswith("01")
    )
    names, room = ("differences", "solve_on_a_grid", "grid_greeks"), dict(np=np, math=math)
    room["heston"] = heston
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and any(f"def {name}(" in cell.source for name in names):
            exec(cell.source.split("\nsizes = ")[0], room)
    return room


# --- thirty digits ---------------------------------------------------------------------------


def exponent(z, tau, nu, kappa, theta, sigma, rho, bad=False):
    """ln E[e^{izX}] at the working precision, the logarithm the principal one."""
    b = kappa - mp.mpc(0, 1) * rho * sigma * z
    d = mp.sqrt(b * b + sigma**2 * (z * z + mp.mpc(0, 1) * z)) * (-1 if bad else 1)
    g, decay = (b - d) / (b + d), mp.exp(-d * tau)
    log = mp.log((1 - g * decay) / (1 - g))
    slope = (b - d) / sigma**2 * (1 - decay) / (1 - g * decay)
    return kappa * theta / sigma**2 * ((b - d) * tau - 2 * log) + slope * nu


def price_and_gamma(k, nu, tau, kappa, theta, sigma, rho):
    """Both over the strike, without interest: two probabilities and a density by Gil-Pelaez."""
    i, spread = mp.mpc(0, 1), mp.sqrt(tau * max(nu, theta))
    step = 2 * mp.pi / (k + 60 * spread)  # the midpoint rule repeats the law at this distance
    first, second, density = mp.mpf(1) / 2, mp.mpf(1) / 2, mp.mpf(0)
    for j in range(100_000):
        u = (j + mp.mpf(1) / 2) * step
        terms = [
            mp.exp(i * u * k + exponent(z, tau, nu, kappa, theta, sigma, rho)) * step / mp.pi
            for z in (u - i, u)
        ]
        first, second = first + (terms[0] / (i * u)).real, second + (terms[1] / (i * u)).real
        density += terms[0].real
        if abs(terms[1]) < mp.mpf(10) ** -24:
            break
    return mp.exp(k) * first - second, mp.exp(-k) * density


def by_rule(cut, n, k, nu, tau, kappa, theta, sigma, rho, gamma=False):
    """Price or Gamma from n Gauss-Legendre nodes on [0, cut], without control variate."""
    total = mp.mpf(0)
    for node, weight in zip(*np.polynomial.legendre.leggauss(n), strict=True):
        u = cut / 2 * (mp.mpf(node) + 1)
        phi = mp.exp(exponent(u - 0.5j, tau, nu, kappa, theta, sigma, rho) + mp.mpc(0, 1) * u * k)
        total += cut / 2 * mp.mpf(weight) * phi.real / (1 if gamma else u * u + 0.25)
    if gamma:
        return mp.exp(-1.5 * k) / mp.pi * total
    return mp.exp(k) - mp.exp(k / 2) / mp.pi * total


def digits(numbers):
    return [mp.mpf(str(v)) for v in numbers]


def test_a_fixed_rule_in_thirty_digits():
    with mp.workdps(30):
        price, gamma = price_and_gamma(*digits(ORDINARY))
        agrees("fixed_rule.ordinary_price", price)
        agrees("fixed_rule.ordinary_gamma", gamma)
        agrees("fixed_rule.ordinary_gamma_wider", gamma)
        price, gamma = price_and_gamma(*digits(SHORT))
        agrees("fixed_rule.short_gamma_wider", gamma)
        off = by_rule(200, 300, *digits(SHORT), gamma=True) - gamma
        agrees("fixed_rule.short_gamma", abs(off))
        # the chapter's rule integrates the difference to Black-Scholes: the same on [0, 200]
        w = 0.0003 + (0.012 - 0.02) * (-math.expm1(-2.0 * 0.025) / 2.0 - 0.025)
        d = 0.005 / math.sqrt(w) - math.sqrt(w) / 2
        anchor = math.exp(0.005) * ndtr(d + math.sqrt(w)) - ndtr(d)
        nodes, weights = np.polynomial.legendre.leggauss(300)
        u = 100 * (nodes + 1)
        kept = np.exp(-w * (u**2 + 0.25) / 2) * np.cos(u * 0.005) / (u**2 + 0.25)
        tail = anchor - (math.exp(0.005) - math.exp(0.0025) / math.pi * 100 * float(weights @ kept))
        agrees("fixed_rule.short_price", abs(by_rule(200, 300, *digits(SHORT)) + tail - price))


def growing(u, tau, nu, kappa, theta, sigma, rho):
    """Heston's own formula: the number whose logarithm is taken, and the integrand."""
    z = u - 0.5j
    b = kappa - 1j * rho * sigma * z
    d = np.sqrt(b * b + sigma**2 * (z * z + 1j * z))
    g, grown = (b + d) / (b - d), np.exp(d * tau)
    inner = (1 - g * grown) / (1 - g)
    c = kappa * theta / sigma**2 * ((b + d) * tau - 2 * np.log(inner))
    slope = (b + d) / sigma**2 * (1 - grown) / (1 - g * grown)
    return inner, np.exp(c + nu * slope).real / (u * u + 0.25)


def test_the_bad_branch_by_another_rule():
    """Adaptive quadrature between the places where the logarithm jumps."""
    lord = (10.0, 0.0175, 1.5768, 0.0398, 0.5751, -0.5711)
    u = np.linspace(1e-6, 60, 60_001)
    inner = growing(u, *lord)[0]
    jumps = np.flatnonzero((np.diff(np.sign(inner.imag)) != 0) & (inner.real[1:] < 0))
    places = [brentq(lambda v: growing(v, *lord)[0].imag, u[i], u[i + 1]) for i in jumps]
    assert len(places) == 2  # as the figure shows
    pieces = itertools.pairwise([0.0, *places, 60.0])
    integral = sum(
        quad(lambda v: growing(v, *lord)[1], low + 1e-12, high - 1e-12, epsabs=1e-12, limit=200)[0]
        for low, high in pieces
    )
    right = reference.load()["heston.bad_branch.good_price"].value
    assert right == reference.load()["heston.fang_oosterlee.year_10"].value
    agrees("bad_branch.bad_error", 100 * (1 - integral / math.pi) - right)
    agrees("exercise.blind.bad_branch_error", 1 - integral / math.pi - right / 100)


def test_ten_nodes_in_thirty_digits():
    """u = e^{-r tau} F(r tau), and the exact price is a reference number of its own."""
    with mp.workdps(30):
        numbers = digits(("0.05", "0.04", "1", "2", "0.04", "0.3", "-0.7"))
        few = mp.exp(-mp.mpf("0.05")) * by_rule(20, 10, *numbers)
    exact = reference.load()["heston.inside.price"].value / 100
    agrees("exercise.blind.few_nodes_error", few - exact)


# --- the edges: a search over all arguments, and QuantLib --------------------------------------

WORST = {  # x, nu, tau, kappa, theta, sigma, rho, r: where the chapter's search over kappa ends
    "right": (2.0, 0.4, 1.0, 1.2403, 0.2, math.sqrt(0.4 * 1.2403), -0.95, 0.0),
    "left": (-2.0, 0.4, 1.0, 0.7226, 0.2, math.sqrt(0.4 * 0.7226), -0.05, 0.08),
    "right, flat": (2.0, 0.4, 1.0, 0.8533, 0.2, math.sqrt(0.4 * 0.8533), 0.0, 0.0),
    "left, flat": (-2.0, 0.4, 1.0, 0.8533, 0.2, math.sqrt(0.4 * 0.8533), 0.0, 0.0),
}


def distance(price, x, tau, r):
    """From what the conditions at the ends say."""
    return price - (math.exp(x) - math.exp(-r * tau) if x > 0 else 0.0)


def test_quantlib_at_the_worst_places():
    found = {k: distance(quantlib_heston(*v), v[0], v[2], v[-1]) for k, v in WORST.items()}
    agrees("edge_right", found["right"], "external")
    agrees("edge_left", found["left"], "external")
    agrees("edge_skew", found["right"] / found["right, flat"], "external")
    assert reference.load()["heston.edge_unit"].value == pytest.approx(math.exp(2), abs=1e-15)
    assert found["right, flat"] / found["left, flat"] == pytest.approx(math.exp(2), rel=1e-9)


@pytest.mark.parametrize("side, x", [("edge_right", 2.0), ("edge_left", -2.0)])
def test_no_place_in_table_i_is_worse(side, x):
    names = ("nu", "tau", "kappa", "theta", "rho", "r")
    box = [TABLE_I[n] for n in names] + [(0.0, 1.0)]  # sigma between 0.1 and what Feller allows

    def found(y):
        nu, tau, kappa, theta, rho, r, share = torch.unbind(y)
        sigma = 0.1 + share * ((2 * kappa * theta).sqrt().clamp(max=1.0) - 0.1)
        price = heston.call(x, nu, tau, Parameters(kappa, theta, sigma, rho, r))
        return price - (math.exp(2) - torch.exp(-r * tau) if x > 0 else 0.0)

    def loss(y):  # the logarithm: a price of 1e-8 has a slope too
        y = torch.tensor(y, dtype=torch.float64, requires_grad=True)
        value = -found(y).clamp(min=1e-13).log()
        value.backward()
        return value.item(), y.grad.numpy()

    low, high = np.array(box).T
    starts = np.random.default_rng(0).uniform(0.4, 0.9, (4, len(box)))
    ends = [minimize(loss, low + (high - low) * s, jac=True, bounds=box) for s in starts]
    worst = max(float(found(torch.tensor(e.x))) for e in ends)
    agrees(side, worst, "external")


# --- the market, by QuantLib's own calibration -------------------------------------------------


def quantlib_market(jumps=False, error=ql.BlackCalibrationHelper.ImpliedVolError):
    """Heston model (with `jumps`, Bates') and calibration helpers of the DAX quotes, exact days."""
    path = runner.find_root() / "book" / "data" / "dax_2002-07-05.csv"
    strike, days, rate, vol = np.genfromtxt(path, delimiter=",", comments="#", skip_header=3).T
    today, year, spot = ql.Date(5, 7, 2002), ql.Actual365Fixed(), 4468.17
    ql.Settings.instance().evaluationDate = today
    maturities, first = np.unique(days, return_index=True)
    dates, rates = [today, *(today + int(d) for d in maturities)], rate[first]
    curve = ql.YieldTermStructureHandle(ql.ZeroCurve(dates, [rates[0], *rates], year))
    none = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, year))
    quote = ql.QuoteHandle(ql.SimpleQuote(spot))
    first_guess = (curve, none, quote, 0.1, 1.0, 0.1, 0.4, -0.5)
    if jumps:
        model = ql.BatesModel(ql.BatesProcess(*first_guess, 0.3, -0.1, 0.15))
        engine = ql.BatesEngine(model, 160)
    else:
        model = ql.HestonModel(ql.HestonProcess(*first_guess))
        engine = ql.AnalyticHestonEngine(model, 64)
    helpers = []
    for k, d, v in zip(strike, days, vol, strict=True):
        helper = ql.HestonModelHelper(
            ql.Period(int(d), ql.Days), ql.NullCalendar(), spot, k,
            ql.QuoteHandle(ql.SimpleQuote(v)), curve, none,
            error,
        )  # fmt: skip
        helper.setPricingEngine(engine)
        helpers.append(helper)
    return model, helpers


def distance_of(helpers):
    return math.sqrt(np.mean([(100 * h.calibrationError()) ** 2 for h in helpers]))


def test_the_market_by_quantlibs_own_calibration():
    (model, helpers), small = quantlib_market(), 1e-10
    method = ql.LevenbergMarquardt(small, small, small)
    model.calibrate(helpers, method, ql.EndCriteria(1000, 100, small, small, small))
    theta, kappa, sigma, rho, nu = model.params()
    agrees("dax_rmse", distance_of(helpers), "external")
    found = dict(nu=nu, kappa=kappa, theta=theta, sigma=sigma, rho=rho)
    for name, value in found.items():
        agrees(f"dax_{name}", value, "external")
    agrees("dax_feller_ratio", 2 * kappa * theta / sigma**2, "external")


def test_the_market_with_jumps_by_quantlibs_own_calibration():
    (model, helpers), small = quantlib_market(jumps=True), 1e-8
    method = ql.LevenbergMarquardt(small, small, small)
    model.calibrate(helpers, method, ql.EndCriteria(400, 50, small, small, small))
    agrees("exercise.jumps", distance_of(helpers), "external")


def test_the_closest_model_of_table_i_by_quantlibs_prices():
    """The Feller condition as a constraint, not as a change of variables."""
    model, helpers = quantlib_market()

    def distance(y):
        model.setParams(ql.Array(list(y)))
        return distance_of(helpers)

    bounds = [TABLE_I[n] for n in ("theta", "kappa", "sigma", "rho", "nu")]
    feller = dict(type="ineq", fun=lambda y: 2 * y[0] * y[1] - y[2] ** 2)
    start = (0.06, 2.0, 0.4, -0.7, 0.1)
    end = minimize(
        distance, start, method="SLSQP", bounds=bounds, constraints=feller, options=dict(ftol=1e-12)
    )
    agrees("dax_table_i", end.fun, "external")


# --- the grid ----------------------------------------------------------------------------------


def on_the_grid(chapter, p, sizes=(120, 240)):
    """x, nu, and price, Delta, Gamma extrapolated from two grids."""
    (x, nu, coarse), (_, _, fine) = (chapter["grid_greeks"](p, n, sizes[0]) for n in sizes)
    return torch.tensor(x), torch.tensor(nu)[:, None], (4 * fine - coarse) / 3


def far(found, wanted):
    return [float(np.abs(a - b.numpy()).max()) for a, b in zip(found, wanted, strict=False)]


@pytest.mark.parametrize("i", range(5))
def test_the_grid_meets_models_drawn_from_table_i(chapter, i):
    p = heston.sample_parameters(8, generator=torch.Generator().manual_seed(1))[i]
    p = Parameters(*map(float, p))
    x, nu, found = on_the_grid(chapter, p)
    price, delta, gamma = far(found, heston.greeks(x, nu, 1.0, p))
    print(p, price, delta, gamma)
    assert price < 2e-5 and delta < 1e-3 and gamma < 0.05


FAULTS = {
    "one percent": lambda g, p: [v * 1.01 for v in g[:3]],
    "a dropped u_x in Gamma": lambda g, p: [g.price, g.delta, g.gamma + g.delta],
    "swapped Greeks": lambda g, p: [g.price, g.vega, g.gamma],
}


def test_the_grid_sees_planted_faults(chapter):
    x, nu, found = on_the_grid(chapter, INSIDE)
    right = heston.greeks(x, nu, 1.0, INSIDE)
    limits = np.array([2e-6, 1e-4, 3e-3])
    assert (far(found, right) < limits).all(), far(found, right)
    for name, fault in FAULTS.items():
        assert (far(found, fault(right, INSIDE)) > 5 * limits).any(), name
    for change in (dict(rho=0.7), dict(sigma=0.303), dict(kappa=2.02), dict(r=0.0505)):
        wrong = heston.greeks(x, nu, 1.0, INSIDE._replace(**change))
        assert far(found, wrong)[0] > 5 * limits[0], change
