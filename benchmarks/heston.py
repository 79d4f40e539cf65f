"""Heston calls a second and their accuracy: the core beside QuantLib's engines, one thread.

Each engine prices the same fresh draws of Table I under Feller, every option with parameters of
its own. QuantLib is asked one option at a time, as its interface has it, and for the price alone;
the core also gives Delta and Gamma. The error is against the other camp: the core's against
QuantLib's adaptive engine, QuantLib's against the core.

    python benchmarks/heston.py [--options 20000] [--seed N]
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from oracles import ENGINES, quantlib_heston_many

from soundgreeks import heston


def draw(n, generator):
    p = heston.sample_parameters(n, generator=generator)
    low = torch.tensor([-2.0, 0.01, 0.01], dtype=torch.float64)[:, None]
    high = torch.tensor([2.0, 0.40, 1.0], dtype=torch.float64)[:, None]
    unit = torch.rand(3, n, dtype=torch.float64, generator=generator)
    return *(low + (high - low) * unit), p


def best_rate(function, n, repeats=5):
    """Options a second of processor time, the best of some repeats."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return n / best, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--options", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator()
    seed = generator.seed() if arguments.seed is None else arguments.seed
    generator.manual_seed(seed)
    n, few = arguments.options, min(arguments.options, 2000)
    x, nu, tau, p = draw(n, generator)

    rows = []
    for name, function in (
        ("core: price", lambda: heston.call(x, nu, tau, p)),
        ("core: price, Delta, Gamma", lambda: heston.price_delta_gamma(x, nu, tau, p)[0]),
        ("core: all seven channels", lambda: heston.derivatives(x, nu, tau, p).u),
    ):
        rate, core = best_rate(function, n)
        rows.append((name, rate, core[:few].numpy()))
    mine = rows[1][2]
    for name in ENGINES:
        rate, prices = best_rate(
            lambda name=name: quantlib_heston_many(x[:few], nu[:few], tau[:few], p[:few], name),
            few,
            1,
        )
        rows.append((f"QuantLib: {name}", rate, prices))
    adaptive = next(prices for name, _, prices in rows if name == "QuantLib: adaptive")
    print(f"seed {seed}, {n} options for the core, {few} for QuantLib, one thread\n")
    print("| engine | options/s | ratio | median error | worst error | gave up |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rate, prices in rows:
        error = np.abs(prices - (adaptive if name.startswith("core") else mine))
        print(
            f"| {name} | {rate:,.0f} | {rate / rows[1][1]:.3f} | {np.nanmedian(error):.1e} "
            f"| {np.nanmax(error):.1e} | {np.isnan(prices).sum()} |"
        )


if __name__ == "__main__":
    main()
