"""Price, Delta and Gamma of one option, of 10^3 and of 10^6: operators, formula and QuantLib.

One thread, processor time, the best of some repeats. Every option has parameters of its own,
except in the rows marked "grid": there 10^3 parameter vectors meet 10^3 points, which a DeepONet
evaluates with 10^3 trunk and 10^3 branch passes. QuantLib is asked one option at a time, as its
interface has it, at three spots, for it has no Delta or Gamma of the Heston model; of 10^6 options
it prices 2,000, and the time is scaled. The last column is the RMSE of the price in units of
strike against the core's semi-analytic price, over the first 10^3 options.

    python benchmarks/evaluation.py [--seed N] [--without-quantlib]
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from soundgreeks import collocation, heston, weights
from soundgreeks.models.model import Greeks

SIZES = (1, 1_000, 1_000_000)
_FEW = 2_000


def best(function, repeats: int) -> tuple[float, object]:
    """Seconds of processor time of the fastest repeat, and the result."""
    fastest = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        fastest = min(fastest, time.process_time() - start)
    return fastest, result


def with_quantlib(x, nu, tau, p) -> Greeks:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from oracles import quantlib_heston_many

    h = 1e-3
    low, mid, high = (
        torch.as_tensor(quantlib_heston_many(x + shift, nu, tau, p)) for shift in (-h, 0.0, h)
    )
    ux, uxx = (high - low) / (2 * h), (high - 2 * mid + low) / h**2
    e = torch.exp(-x)
    return Greeks(mid, e * ux, e * e * (uxx - ux), None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--without-quantlib", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator()
    seed = generator.seed() if arguments.seed is None else arguments.seed
    generator.manual_seed(seed % 2**31)
    domain = heston.TABLE_I | {"tau": (0.005, 1.0)}
    points = collocation.draw(max(SIZES), x_map="uniform", domain=domain, generator=generator)
    grid = collocation.draw((1000, 1000), x_map="uniform", domain=domain, generator=generator)
    truth = heston.call(*(v[:1000] for v in (points.x, points.nu, points.tau)), points.p[:1000])

    rows = []
    for name in ("sound", "deepsvm"):
        if name in weights.available():
            for dtype in (torch.float32, torch.float64):
                operator = weights.load(name, dtype=dtype)
                rows.append((f"{name}, {str(dtype)[6:]}", operator.greeks))
    formula = lambda *a: Greeks(*heston.price_delta_gamma(*a), None, None)  # noqa: E731
    rows.append(("semi-analytic", formula))
    if not arguments.without_quantlib:
        rows.append(("QuantLib", with_quantlib))

    print(f"seed {seed}; microseconds an option, price, Delta and Gamma, one thread\n")
    print("| method | " + " | ".join(f"{n:,}" for n in SIZES) + " | grid | RMSE |")
    print("|---|" + "---:|" * (len(SIZES) + 2))
    for name, function in rows:
        cells, error = [], float("nan")
        for n in SIZES:
            used = min(n, _FEW) if name == "QuantLib" else n
            part = points.select(slice(0, used))
            repeats = {1: 20, 1_000: 3 if name == "QuantLib" else 10}.get(n, 1)
            a = part.x, part.nu, part.tau, part.p
            seconds, found = best(lambda f=function, a=a: f(*a), repeats)
            cells.append(f"{1e6 * seconds / used:,.2f}")
            if n == 1_000:
                error = (found.price.double() - truth).square().mean().sqrt().item()
        separable = name.startswith("deepsvm")
        if separable:
            a = grid.x, grid.nu, grid.tau, grid.p
            seconds, _ = best(lambda f=function, a=a: f(*a), 2)
        cells.append(f"{1e6 * seconds / grid.count:,.3f}" if separable else "")
        print(f"| {name} | " + " | ".join(cells) + f" | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
