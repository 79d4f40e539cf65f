"""What pruning buys at evaluation: 6 x 128 beside 3-3-1-2-2-2, batch by batch.

Run `OMP_NUM_THREADS=1 python benchmarks/evaluate_pruned.py`. One thread, processor time, best of
several repeats, both networks in one run: value, and value with gradient by reverse mode. The last
column is the pruned network's value in plain NumPy, which has less to do around each call: for a
single spot the calls are what costs.
"""

import time

import numpy as np
import torch

from soundgreeks import sobolev, weights
from soundgreeks.models.bachelier import Basket

SIZES = (1, 64, 4096, 65_536)


def best(function, repeats: int) -> float:
    """Processor time of the fastest repeat, after one to warm up."""
    function()
    fastest = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        fastest = min(fastest, time.process_time() - start)
    return fastest


def in_numpy(network: sobolev.Standardised):
    """The same function of float32 spots (n, d), without PyTorch."""
    mean, std = network.x_mean.numpy(), network.x_std.numpy()
    layers = [(m.weight.numpy().T.copy(), m.bias.numpy()) for m in network.network[::2]]
    shift, scale = float(network.y_mean), float(network.y_std)

    def evaluate(x):
        x = (x - mean) / std
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = x / (1 + np.exp(-x))
        return shift + scale * (x @ layers[-1][0] + layers[-1][1])[:, 0]

    return evaluate


def main() -> None:
    torch.set_num_threads(1)
    large = weights.read_networks("oversized")[0]["decay"]
    small = weights.read_networks("finetuned")[0]["model.sobolev.pruned.0"]
    plain = in_numpy(small)
    print("microseconds a batch; ratio is oversized over pruned\n")
    head = [
        "batch",
        "value: 6 x 128",
        "pruned",
        "ratio",
        "and gradient: 6 x 128",
        "pruned",
        "ratio",
    ]
    print("| " + " | ".join([*head, "NumPy"]) + " |")
    print("|--:|" + "--:|" * 7)
    for count in SIZES:
        x = Basket.random().spots(count, generator=torch.Generator().manual_seed(1)).float()
        assert np.allclose(plain(x.numpy()), small(x).numpy(), rtol=1e-4, atol=1e-3)
        repeats = 300 if count < 1000 else 7
        value = [best(lambda n=n, x=x: n(x), repeats) for n in (large, small)]
        both = [best(lambda n=n, x=x: sobolev.differentiate(n, x), repeats) for n in (large, small)]
        numpy = best(lambda rows=x: plain(rows.numpy()), repeats)
        cells = [f"{count:,}"]
        for a, b in (value, both):
            cells += [f"{1e6 * a:,.0f}", f"{1e6 * b:,.0f}", f"{a / b:.1f}"]
        print("| " + " | ".join([*cells, f"{1e6 * numpy:,.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
