"""Calibrations side by side: QuantLib's, one characteristic function a maturity, the operator.

Run `OMP_NUM_THREADS=1 python benchmarks/calibration.py [--write]`, with QuantLib from PyPI and a
C++ compiler. Heston's formula makes quotes on the 78 strikes and maturities up to a year of the
DAX of 5 July 2002. All fits begin at one start, minimise the same sum (price errors over the vega
of the quote) and stop when it no longer falls by 1e-8. One thread, processor time, best of several
repeats. QuantLib fits one surface at a time; the others also fit a thousand in a batch, all with
parameters of their own.
`--write` renews the chapter's table.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
import QuantLib as ql
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from soundgreeks import black_scholes, heston, weights
from soundgreeks.book import runner
from soundgreeks.calibration import FormulaSurface, Quotes, Surface, calibrate

SPOT, TRUTH = 4468.17, (0.13, 1.7, 0.06, 0.4, -0.65)  # nu, kappa, theta, sigma, rho
START = (0.1, 1.0, 0.1, 0.4, -0.5)  # that of QuantLib's tests
TOLERANCE = 1e-8
NODES = {"quantlib": 144, "quantlib_64": 64}  # 144 is its default


def grid():
    """Strikes, days and rates up to one year."""
    path = runner.find_root() / "book" / "data" / "dax_2002-07-05.csv"
    strike, days, rate, _ = np.genfromtxt(path, delimiter=",", comments="#", skip_header=3).T
    near = days <= 365
    return strike[near], days[near], rate[near]


def quotes(strike, days, rate, z: torch.Tensor) -> Quotes:
    """What the formula quotes for unknowns z (..., 5)."""
    x, tau, r = (torch.tensor(v) for v in (np.log(SPOT / strike), days / 365, rate))
    nu, *p = (v[..., None] for v in z.unbind(-1))
    k = x + r * tau
    price = heston.call(x, nu, tau, heston.Parameters(*p, r)) * torch.exp(r * tau)
    w = black_scholes.implied_variance(price, k.expand_as(price))
    return Quotes(x, tau, r, (w / tau).sqrt())


def in_quantlib(strike, days, rate, made: Quotes, scale, nodes: int):
    """A function that fits, and returns the unknowns and the number of evaluations."""
    today, year = ql.Date(5, 7, 2002), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    maturities, first = np.unique(days, return_index=True)
    dates = [today, *(today + int(d) for d in maturities)]
    rates = [float(v) for v in (rate[first][0], *rate[first])]
    curve = ql.YieldTermStructureHandle(ql.ZeroCurve(dates, rates, year))
    none = ql.YieldTermStructureHandle(ql.FlatForward(today, 0.0, year))
    importance = [float(1 / (s * k) ** 2) for s, k in zip(scale, strike, strict=True)]
    importance = [v / sum(importance) for v in importance]
    nu, kappa, theta, sigma, rho = START

    def fit():
        spot = ql.QuoteHandle(ql.SimpleQuote(SPOT))
        process = ql.HestonProcess(curve, none, spot, nu, kappa, theta, sigma, rho)
        model = ql.HestonModel(process)
        engine = ql.AnalyticHestonEngine(model, nodes)
        helpers = []
        for k, d, vol in zip(strike, days, made.volatility.tolist(), strict=True):
            helper = ql.HestonModelHelper(
                ql.Period(int(d), ql.Days), ql.NullCalendar(), SPOT, float(k),
                ql.QuoteHandle(ql.SimpleQuote(vol)), curve, none,
                ql.BlackCalibrationHelper.PriceError,
            )  # fmt: skip
            helper.setPricingEngine(engine)
            helpers.append(helper)
        method = ql.LevenbergMarquardt(TOLERANCE, TOLERANCE, TOLERANCE)
        end = ql.EndCriteria(1000, 100, TOLERANCE, TOLERANCE, TOLERANCE)
        model.calibrate(helpers, method, end, ql.NoConstraint(), importance)
        theta_, kappa_, sigma_, rho_, nu_ = model.params()
        return (nu_, kappa_, theta_, sigma_, rho_), model.functionEvaluation()

    return fit


def best(function, repeats: int) -> tuple[float, object]:
    """Processor time of the fastest of several runs in ms, and what it returned."""
    fastest, found = float("inf"), function()
    for _ in range(repeats):
        start = time.process_time()
        found = function()
        fastest = min(fastest, time.process_time() - start)
    return 1e3 * fastest, found


def thousand(strike, days, rate, count: int = 1000) -> Quotes:
    """Surfaces of parameters drawn from Table I that quote every option."""
    generator = torch.Generator().manual_seed(0)
    p = heston.sample_parameters(4 * count, generator=generator)
    nu = 0.02 + 0.38 * torch.rand(4 * count, generator=generator, dtype=torch.float64)
    made = quotes(strike, days, rate, torch.stack([nu, *list(p)[:4]], -1))
    k, w = made.x + made.r * made.tau, made.volatility**2 * made.tau
    seen = black_scholes.partials(k, w.log()).y > 1e-5
    kept = seen.all(1).nonzero().squeeze(1)[:count]
    return Quotes(*(v.expand_as(made.volatility)[kept] for v in made[:4]))


class Compiled(Surface):
    """Prices and derivatives of one market in one kernel, compiled by C++."""

    def __init__(self, price, model, quotes):
        super().__init__(price, model, quotes)
        middle = 0.5 * sum(self.box())[None]
        traced = make_fx(lambda *at: Surface.priced(self, *at))(middle, torch.zeros(1).long())
        self.kernel = torch.compile(traced, dynamic=False)

    def priced(self, z, rows):
        return self.kernel(z, rows)


def methods(start) -> dict:
    """Name, and from quotes a function that fits them, of every method of our own."""
    price = {name: weights.load(name).price for name in ("sound", "sound_small")}
    price["formula"] = heston.call
    value = weights.load("sound").value  # without the checks at the door

    def once(surface):
        return lambda q: partial(calibrate, surface(q), start, tolerance=TOLERANCE)

    def by(name):
        return lambda q: Surface(price[name], heston.MODEL, q)

    return {
        "autograd": ("formula, reverse mode", once(by("formula"))),
        "formula": ("formula, shared $\\varphi$", once(FormulaSurface)),
        "formula_40": (
            "the same, 40 nodes for 96", once(lambda q: FormulaSurface(q, nodes=40))
        ),
        "operator": ("`sound`", once(by("sound"))),
        "compiled": ("`sound`, compiled", once(lambda q: Compiled(value, heston.MODEL, q))),
        "small": ("`sound_small`", once(by("sound_small"))),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    at = grid()
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    one, many = quotes(*at, truth), thousand(*at)
    start = START[0], heston.Parameters(*START[1:], 0.0)
    judge = FormulaSurface(one)

    def residual(z) -> float:
        nu, *p = torch.as_tensor(z, dtype=torch.float64)
        z = judge.pack((nu,), heston.Parameters(*p, nu))[None]
        return 1e4 * float((judge.volatilities(z) - one.volatility).square().mean().sqrt())

    rows = []
    for key, nodes in NODES.items():
        fit = in_quantlib(*at, one, judge.scale[0].tolist(), nodes)
        ms, (z, calls) = best(fit, 3)
        name = f"QuantLib, {nodes} nodes"
        rows.append(dict(key=key, name=name, one_ms=ms, calls=calls, bp=residual(z), many_ms=None))
    for key, (name, method) in methods(start).items():
        fit_one = method(one)
        ms, fit = best(fit_one, 20)
        row = dict(key=key, name=name, one_ms=ms, calls=int(fit.calls), bp=residual(fit.values[0]))
        row["many_ms"] = None
        if key not in ("autograd", "compiled"):
            ms, _ = best(method(many), 1)
            row["many_ms"] = ms / len(many.volatility)
        rows.append(row)
    for row in rows:
        each = "" if row["many_ms"] is None else f"{row['many_ms']:8.3f} ms each of a thousand"
        one_ms, calls, bp = (row[k] for k in ("one_ms", "calls", "bp"))
        print(f"{row['name']:26} {one_ms:8.2f} ms {calls:4d} calls {bp:.1e} bp {each}")
    if write:
        record = {"made_by": "benchmarks/calibration.py --write", "quantlib": ql.__version__}
        record |= weights.environment() | {"rows": rows}
        path = runner.find_root() / "book" / "data" / "calibration_speed.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
