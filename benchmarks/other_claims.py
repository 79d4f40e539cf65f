"""The judge of chapter 17: QuantLib's finite differences for barriers and early exercise.

Run `OMP_NUM_THREADS=1 python benchmarks/other_claims.py [--write]` (QuantLib from PyPI). Random
parameters of Table I under the Feller condition, each with one down-and-out call and one American
put. QuantLib's engines solve each on three grids, whose errors fall as the square of the refinement
(early exercise is checked at every step of time, which is of first order, so for the put those are
refined by the square); Richardson's extrapolation takes it away, and what its last stage changes
is written beside the values. The judge is judged twice: the same grids price a European put, which
has a formula, and every tenth vector is solved again on finer grids. `--write` renews the chapter's
table; it takes a quarter of an hour of processor time.
"""

import argparse
import json
import math
from importlib import metadata

import QuantLib as ql
import torch

from soundgreeks import heston
from soundgreeks._environment import environment
from soundgreeks.book import runner
from soundgreeks.models.finite_differences import extrapolated

SIZES = (1, 2, 3)  # of the refinement: 100 nodes in x and 25 in the variance for each
FINER = (2, 3, 4)  # every tenth time, to judge the judge
TODAY = ql.Date(2, 1, 2020)
LEVELS = 0.70, 0.95  # of the barrier, in units of strike


def draw(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Parameters, variance, whole days, barrier level, and where the spot is for either claim.

    Within two standard deviations of the strike for the put; for the barrier from its level to two
    standard deviations above the strike.
    """
    generator = torch.Generator().manual_seed(seed)
    p = heston.sample_parameters(n, generator=generator)
    u = torch.rand(5, n, generator=generator, dtype=torch.float64)
    nu = heston.TABLE_I.scale("nu", u[0])
    days = torch.floor(7 + 359 * u[1])
    level = LEVELS[0] + (LEVELS[1] - LEVELS[0]) * u[2]
    deviation = heston.expected_variance(nu, days / 365, p).sqrt()
    above = torch.log(level)
    points = dict(nu=nu, days=days, level=level)
    points["x_put"] = (4 * u[3] - 2) * deviation
    points["x_barrier"] = above + u[4] * (2 * deviation - above)
    return p._asdict() | points


def option(kind: str, x: float, row: dict[str, float]):
    """QuantLib's model and instrument, strike 1."""
    ql.Settings.instance().evaluationDate = TODAY
    year, end = ql.Actual365Fixed(), TODAY + int(row["days"])
    curves = [
        ql.YieldTermStructureHandle(ql.FlatForward(TODAY, rate, year)) for rate in (row["r"], 0.0)
    ]
    spot = ql.QuoteHandle(ql.SimpleQuote(math.exp(x)))
    five = [row[name] for name in ("nu", "kappa", "theta", "sigma", "rho")]
    model = ql.HestonModel(ql.HestonProcess(*curves, spot, *five))
    european = ql.EuropeanExercise(end)
    if kind == "barrier":
        call = ql.PlainVanillaPayoff(ql.Option.Call, 1.0)
        return model, ql.BarrierOption(ql.Barrier.DownOut, row["level"], 0.0, call, european)
    put = ql.PlainVanillaPayoff(ql.Option.Put, 1.0)
    exercise = ql.AmericanExercise(TODAY, end) if kind == "american" else european
    return model, ql.VanillaOption(put, exercise)


def solve(
    kind: str, x: float, row: dict[str, float], sizes=SIZES
) -> tuple[list[float], list[float]]:
    """Price, Delta and Gamma in the limit, and what the last stage of extrapolation changed."""
    model, instrument = option(kind, x, row)
    engine = ql.FdHestonBarrierEngine if kind == "barrier" else ql.FdHestonVanillaEngine
    found = []
    for n in sizes:
        times = 25 * n * n if kind == "american" else 25 * n
        instrument.setPricingEngine(engine(model, times, 100 * n, 25 * n, 0))
        greeks = instrument.NPV(), instrument.delta(), instrument.gamma()
        found.append(torch.tensor(greeks, dtype=torch.float64))
    value, moved = extrapolated(found, sizes)
    return value.tolist(), moved.tolist()


def formula(row: dict[str, float]) -> torch.Tensor:
    """The European put's price, Delta and Gamma."""
    p = heston.Parameters(*(row[name] for name in heston.Parameters._fields))
    tau = row["days"] / 365
    price, delta, gamma = heston.price_delta_gamma(row["x_put"], row["nu"], tau, p)
    return torch.stack([price - math.exp(row["x_put"]) + math.exp(-p.r * tau), delta - 1, gamma])


def judge(n: int, seed: int) -> dict:
    """Everything about `n` parameter vectors: inputs, and three numbers of each claim.

    QuantLib's grid does not hold every variance; a vector that it refuses is drawn anew.
    """
    drawn = draw(2 * n, seed)
    kinds = "european", "american", "barrier"
    values, moved, finer, kept, tried = [], [], [], [], 0
    kinds_again = (("american", "put"), ("barrier", "barrier"))
    while len(kept) < n:
        row = {k: float(v[tried]) for k, v in drawn.items()}
        tried += 1
        try:
            solved = [solve(k, row["x_barrier" if k == "barrier" else "x_put"], row) for k in kinds]
        except RuntimeError as error:
            if "extrapolation" not in str(error):
                raise
            continue
        values.append([value for value, _ in solved])
        moved.append([change for _, change in solved])
        values[-1][0] = (torch.tensor(values[-1][0]) - formula(row)).tolist()
        kept.append(tried - 1)
        if len(kept) % 10 == 0:
            again = [solve(k, row[f"x_{n}"], row, FINER)[0] for k, n in kinds_again]
            finer.append((torch.tensor(again) - torch.tensor(values[-1][1:])).tolist())
            print(f"{len(kept)} of {n}", flush=True)
    by_kind = [dict(zip(kinds, zip(*rows, strict=True), strict=True)) for rows in (values, moved)]
    errors = by_kind[0].pop("european")
    inputs = {k: v[kept].tolist() for k, v in drawn.items()}
    table = dict(inputs=inputs, values=by_kind[0], moved=by_kind[1], european_error=errors)
    finer = dict(zip(kinds[1:], zip(*finer, strict=True), strict=True))
    return table | {"finer": finer, "refused": tried - n}


def main() -> None:
    """Solve, print how far the judge is to be trusted, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="book/data/other_claims.json")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = judge(arguments.count, arguments.seed)
    for kind, rows in table["moved"].items():
        print(f"{kind}: the last stage moves the price by {max(r[0] for r in rows):.1e} at most")
    for kind, rows in table["finer"].items():
        print(f"{kind}: finer grids move it by {max(abs(r[0]) for r in rows):.1e} at most")
    off = max(abs(r[0]) for r in table["european_error"])
    print(f"{table['refused']} vectors were not on its grids")
    print(f"the same grids miss the European formula by {off:.1e} at most")
    if arguments.write:
        made_by = f"benchmarks/other_claims.py --write --count {arguments.count}"
        about = dict(made_by=f"{made_by} --seed {arguments.seed}", sizes=SIZES, finer_sizes=FINER)
        about |= {"quantlib": metadata.version("QuantLib")} | environment()
        path = runner.find_root() / "book" / "data" / "other_claims.json"
        path.write_text(json.dumps(about | table) + "\n")


if __name__ == "__main__":
    main()
