"""The whole way of part II from end to end: oversized network, pruning, Sobolev fine-tuning.

Run `OMP_NUM_THREADS=1 python benchmarks/pipeline.py [--seed N]`. Settings are those of chapters 7
and 10; nothing is loaded. One thread, processor time by stage, scores on 8,192 test points in
closed form. Fine-tuning is done twice from the same pruned network: on values and slopes of the
oversized one, and on pathwise payoffs and slopes.
"""

import argparse
import copy
import time
from itertools import count

import torch
from torch import nn

from soundgreeks import networks, significance, sobolev
from soundgreeks.arithmetic.intervals import Interval
from soundgreeks.models.bachelier import Basket

KEEP = [3, 3, 1, 2, 2, 2]
LARGE = dict(steps=4000, batch=1024, lr=3e-3, decay=1e-4)
BETWEEN = dict(steps=200, lr=0.01, decay=1e-3)  # retraining after each removal
LAST = dict(steps=6000, lr=0.03)  # of the pruned network, before fine-tuning
TUNE = dict(steps=6000, batch=2048, lr=0.05, lam=30.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)

    exact = Basket.random()
    basket = exact.to(dtype=torch.float32)
    test = exact.spots(8192, generator=torch.Generator().manual_seed(7))
    truth = exact.greeks(test)
    total, clock = 0.0, time.process_time()

    def report(stage, network=None, counts=True):
        nonlocal total, clock
        seconds = time.process_time() - clock
        total += seconds if counts else 0
        cells = (
            [f"{s.r2:.6f}" for s in sobolev.scores(network, test, truth)] if network else [""] * 3
        )
        print(f"| {stage} | {seconds:.1f} | " + " | ".join(cells) + " |", flush=True)
        clock = time.process_time()

    def pairs(n, generator):
        return basket.sample(n, scheme="antithetic", generator=generator)[:3]

    print(f"seed {seed}\n\n| stage | CPU seconds | value | Delta | Gamma |\n|---|--:|--:|--:|--:|")

    pilot = exact.sample(16_384, scheme="antithetic", generator=torch.Generator().manual_seed(99))
    frame = sobolev.Standardised(nn.Identity(), pilot.spots, pilot.payoff).to(torch.float32)
    x = (pilot.spots.to(frame.x_mean) - frame.x_mean) / frame.x_std
    torch.manual_seed(seed)
    large = frame.around(networks.plain(7, *[128] * 6, 1))
    sobolev.fit(large, pairs, lam=0.0, seed=seed, **LARGE)
    report("oversized, payoffs", large)

    rounds = count(1000 * seed)

    def retrain(network, layer):
        sobolev.fit(frame.around(network), pairs, lam=0.0, seed=next(rounds), **BETWEEN)

    quartiles = torch.tensor([0.25, 0.75])
    network = significance.prune_iteratively(
        copy.deepcopy(large.network), KEEP, retrain=retrain, factor=0.25, splits=16,
        box=Interval(*torch.quantile(x, quartiles, dim=0)), data=x[:4096],
    )  # fmt: skip
    small = frame.around(network.requires_grad_())
    sobolev.fit(small, pairs, lam=0.0, seed=next(rounds), **LAST)
    report("pruned, payoffs", small)

    spots = basket.spots(2**18, generator=torch.Generator().manual_seed(11))
    taught = sobolev.resample(sobolev.distil(large, spots))
    report("labels of the oversized", counts=False)
    for name, labels, counts in (("network's labels", taught, False), ("paths", pairs, True)):
        student = copy.deepcopy(small)
        sobolev.fit(student, labels, seed=seed, **TUNE)
        report(f"fine-tuned, {name}", student, counts)
    print(f"\noversized, pruned, fine-tuned on paths: {total:.0f} CPU seconds")


if __name__ == "__main__":
    main()
