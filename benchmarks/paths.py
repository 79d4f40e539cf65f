"""Pathwise samples a second: our batched sampler beside the same payoff under AD and a path loop.

Run `OMP_NUM_THREADS=1 python benchmarks/paths.py`. Absolute times depend on the machine; the
ratios are measured side by side in one run, best of five in CPU time.
"""

import time

import torch

from soundgreeks.models.bachelier import Basket
from soundgreeks.models.paths import SCHEMES, pathwise

N = 1_000_000


def best(function, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def by_ad(basket, n):
    """Payoff and gradient with every asset simulated, the gradient by reverse mode."""
    spots = basket.spots(n)
    noise = basket.paths(torch.zeros_like(spots))[:, -1]
    return pathwise(lambda s: torch.relu(basket.level(s + noise) - basket.strike), spots)


def one_by_one(basket, n):
    """The textbook loop: one path after the other."""
    for _ in range(n):
        spots = basket.centre + basket.spread * (basket.factor @ torch.randn(basket.dim))
        end = spots + basket.factor @ torch.randn(basket.dim)
        payoff = max(float(basket.weights @ end) - basket.strike, 0.0)
        basket.weights * (payoff > 0)


def main():
    torch.set_num_threads(1)
    print(f"{N:,} samples (spots, payoff, gradient), one thread, CPU seconds")
    for dim in (7, 100):
        for dtype in (torch.float32, torch.float64):
            basket = Basket.random(dim).to(dtype=dtype)
            n = N if dim == 7 else N // 10
            for scheme in SCHEMES:
                seconds = best(lambda b=basket, n=n, s=scheme: b.sample(n, scheme=s))
                print(f"dim {dim:4d} {str(dtype)[6:]} {scheme:10s} n = {n:9,d} {seconds:7.3f} s")
    basket = Basket.random().to(dtype=torch.float32)
    ours = best(lambda: basket.sample(N))
    print(f"AD over all assets : ours  {best(lambda: by_ad(basket, N)) / ours:8.1f} times")
    loop = best(lambda: one_by_one(basket, N // 1000), repeats=3) * 1000
    print(f"path by path : ours        {loop / ours:8.1f} times")


if __name__ == "__main__":
    main()
