"""Models without a formula: what chapter 16 compares its networks with, and their calibrations.

Run `OMP_NUM_THREADS=1 python benchmarks/no_formula.py PART --write`, one thread. PART is
- `lognormal`: finite differences at random options, minutes;
- `rough`: the transform of the lifted model at random options, a minute;
- `lift`: lifts of ever more factors against the published prices of rough Heston, minutes;
- `dax`: each operator fitted to the DAX of 5 July 2002, its own error at the optimum, the time;
- `free`: the same models fitted in a far larger box by what judges the networks, finite
  differences and the transform, with differences for a Jacobian; minutes.
Without `--write` it prints and keeps nothing.
"""

import argparse
import json
import time

import numpy as np
import torch
from scipy.optimize import least_squares

from soundgreeks import (
    black_scholes,
    calibration,
    garch,
    heston,
    lifted_heston,
    lognormal,
    weights,
)
from soundgreeks._environment import environment
from soundgreeks.book import runner
from soundgreeks.models import finite_differences, lifted_heston_integral, rough_kernel

FOLDER = runner.find_root() / "book" / "data"
PUBLISHED = {  # QuantLib's test suite: S = 100, V0 = theta, strikes 75, 100, 130
    0.25: (25.762400, 3.793313, 0.001586),
    1.0: (28.394103, 8.336634, 0.202295),
    2.0: (31.520600, 12.722717, 1.285820),
}
ROUGH = lifted_heston.Parameters(kappa=0.3, theta=0.04, sigma=0.4, rho=-0.7, r=0.03)
GRIDS = (24, 36, 48)
FREE = ((1e-3, 1.0), (0.1, 40.0), (1e-3, 1.0), (0.05, 8.0), (-0.999, 0.5))  # nu, kappa, ...


def options(model, n: int, seed: int = 16):
    """x, variance, time and parameters, uniform in the model's domain; tau from .005."""
    source = torch.Generator().manual_seed(seed)
    p = model.sample(n, generator=source)
    u = torch.rand(3, n, generator=source, dtype=torch.float64)
    tau = 0.005 + (model.domain["tau"][1] - 0.005) * u[2]
    return model.domain.scale("x", u[0]), model.domain.scale("nu", u[1]), tau, p


def of_lognormal(n: int = 100) -> dict:
    """Rows: price, Delta, Gamma and their errors."""
    x, nu, tau, p = options(lognormal.MODEL, n)
    rows = []
    for i in range(n):
        at = float(x[i]), float(nu[i]), float(tau[i]), p[i]
        found = finite_differences.price(lognormal.MODEL, *at, grids=GRIDS)
        rows.append([float(v) for v in found])
    return {"grids": GRIDS, "rows": rows}


def of_rough(n: int = 1000) -> dict:
    """Rows: price, Delta and Gamma of the lifted model."""
    found = lifted_heston_integral.price(*options(lifted_heston.MODEL, n))
    return {"rows": torch.stack(list(found), 1).tolist()}


def of_lifts() -> dict:
    """For each lift its factors and its prices less the published ones, S = 100."""
    strikes = torch.tensor([75.0, 100.0, 130.0], dtype=torch.float64)
    tau = torch.tensor(list(PUBLISHED), dtype=torch.float64)[:, None]
    true = torch.tensor(list(PUBLISHED.values()), dtype=torch.float64)
    rows = []
    for name, lift in [
        *((f"fitted {n}", rough_kernel.lift(n)) for n in (2, 3, 4, 5)),
        *((f"geometric {n}", rough_kernel.geometric(n)) for n in (25, 50, 100)),
    ]:
        x = (100 / strikes).log()
        found = lifted_heston_integral.price(x, 0.04, tau, ROUGH, lift, steps=(60, 120))
        rows.append([name, len(lift.speeds), (strikes * found.price - true).tolist()])
        print(name, float((found.price - true / strikes).abs().max()), flush=True)
    return {"rows": rows}


def market() -> calibration.Quotes:
    """The quotes up to one year."""
    strike, days, rate, vol = np.genfromtxt(
        FOLDER / "dax_2002-07-05.csv", delimiter=",", comments="#", skip_header=3
    ).T
    near = days <= 365
    given = np.log(4468.17 / strike), days / 365, rate, vol
    return calibration.Quotes(*(torch.tensor(v[near]) for v in given))


def of_free() -> dict:
    """Fits in `FREE` from the edges of the networks' fits: values, RMSE in bp, prices asked for."""
    quotes, rows = market(), []
    like = calibration.Surface(lambda *_: None, heston.MODEL, quotes)
    k, growth = quotes.x + quotes.r * quotes.tau, torch.exp(quotes.r * quotes.tau)

    def by_grid(module):
        def price(z):
            found = torch.empty_like(quotes.x)
            for tau in quotes.tau.unique():
                at = quotes.tau == tau
                p = module.Parameters(*z[1:], float(quotes.r[at][0]))
                x = quotes.x[at]
                found[at] = finite_differences.price(
                    module.MODEL, x, z[0], float(tau), p, grids=(16, 24, 32)
                ).price
            return found

        return price

    def by_transform(z):
        p = lifted_heston.Parameters(*z[1:], quotes.r)
        how = dict(steps=(40, 80), nodes=160)
        return lifted_heston_integral.price(quotes.x, z[0], quotes.tau, p, **how).price

    for name, price, start in (
        ("garch", by_grid(garch), (0.15, 3.0, 0.05, 1.5, -0.8)),
        ("lognormal", by_grid(lognormal), (0.15, 4.0, 0.03, 2.4, -0.8)),
        ("rough_heston", by_transform, (0.17, 3.0, 0.04, 0.55, -0.65)),
    ):
        calls, begun = [0], time.process_time()

        def residuals(z, price=price, calls=calls):
            calls[0] += 1
            return ((price(z.tolist()) - like.quoted[0]) / like.scale[0]).numpy()

        low, high = np.array(FREE).T
        fit = least_squares(residuals, start, bounds=(low, high), x_scale=np.abs(start),
                            diff_step=1e-4, xtol=1e-5, ftol=1e-5, max_nfev=25)  # fmt: skip
        w = black_scholes.implied_variance(price(fit.x.tolist()) * growth, k)
        off = (w / quotes.tau).sqrt() - quotes.volatility
        rows.append({
            "name": name, "values": fit.x.tolist(), "bp": float(1e4 * off.square().mean().sqrt()),
            "worst": float(1e4 * off.abs().max()), "calls": calls[0],
            "edge": [int(v) for v in fit.active_mask], "s": time.process_time() - begun,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"box": FREE, "rows": rows}


def of_dax() -> dict:
    """Each operator's fit from eight starts: what is left, at what cost, and its own error."""
    quotes, rows = market(), []
    for name, model in (
        ("sound", heston.MODEL), ("garch", garch.MODEL), ("lognormal", lognormal.MODEL),
        ("rough_heston", lifted_heston.TODAY),
    ):  # fmt: skip
        operator = weights.load(name)
        surface = calibration.Surface(operator.price, model, quotes)
        calibration.calibrate(surface, starts=2)  # warm
        seconds = []
        for _ in range(3):
            start = time.process_time()
            fit = calibration.calibrate(surface, starts=8)
            seconds.append(time.process_time() - start)
        at = quotes.x, fit.state[0].expand_as(quotes.x), quotes.tau, fit.p._replace(r=quotes.r)
        plain = operator.price(*at)
        corrected = operator.price(*at, with_error=True, paths=2**11)
        off = (plain - corrected.price) / surface.scale[0]
        rows.append({
            "name": name, "bp": float(1e4 * fit.rmse), "worst": float(1e4 * fit.worst),
            "values": dict(zip(fit.names, fit.values[0].tolist(), strict=True)),
            "edge": [n for n, held in zip(fit.names, fit.edge[0], strict=True) if held],
            "calls": int(fit.calls), "ms": 1e3 * min(seconds),
            "own_bp": float(1e4 * off.square().mean().sqrt()),
            "own_error": float(1e4 * (corrected.error / surface.scale[0]).square().mean().sqrt()),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"rows": rows}


PARTS = {
    "lognormal": of_lognormal, "rough": of_rough, "lift": of_lifts, "dax": of_dax, "free": of_free,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--write", action="store_true", help="renew the chapter's file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = {"made_by": f"benchmarks/no_formula.py {arguments.part}"} | PARTS[arguments.part]()
    if arguments.write:
        file = FOLDER / f"no_formula_{arguments.part}.json"
        file.write_text(json.dumps(record | environment()) + "\n")


if __name__ == "__main__":
    main()
