"""Interval adjoint significance of a 6 x 128 SiLU network: ours beside other interval arithmetic.

Run `OMP_NUM_THREADS=1 python benchmarks/significance.py`. The job is eq. 3 for all 768 hidden
nodes: interval values forward, interval adjoints backward. The rivals get the same job on one box:

- python-flint: ball arithmetic of the Arb library at 53 bits, matrices in C, activations in a loop;
- mpmath.iv: the interval type of the standard scientific stack, number by number (12 wide, scaled
  up by the number of weights, for it takes minutes otherwise).

Neither knows where SiLU turns, so they evaluate its formula and overestimate. Absolute times depend
on the machine; ratios are measured side by side in one run, best of several in CPU time.
"""

import time

import torch
from flint import arb, arb_mat, ctx
from mpmath import iv
from torch import nn

from soundgreeks import significance
from soundgreeks.arithmetic.intervals import Interval


def best(function, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def mlp(width, hidden=6, inputs=7):
    torch.manual_seed(0)
    modules, sizes = [], [inputs] + [width] * hidden + [1]
    for a, b in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        modules += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def by_flint(network, half):
    """Eq. 3 with balls; a list of lists of floats."""
    ctx.prec = 53
    weights = [arb_mat(m.weight.tolist()) for m in network[::2]]
    biases = [arb_mat([[b] for b in m.bias.tolist()]) for m in network[::2]]
    k = weights[0] * arb_mat([[arb(0, half)]] * weights[0].ncols()) + biases[0]
    nodes, slopes = [], []
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = [k[i, 0] for i in range(k.nrows())]
        s = [1 / (1 + (-t).exp()) for t in x]
        nodes.append([t * u for t, u in zip(x, s, strict=True)])
        slopes.append([u * (1 + t * (1 - u)) for t, u in zip(x, s, strict=True)])
        k = weight * arb_mat([[t] for t in nodes[-1]]) + bias
    bar, result = weights[-1], []
    for i in range(len(nodes) - 1, -1, -1):
        score = [2 * float(n.rad()) * float(bar[0, j].abs_upper()) for j, n in enumerate(nodes[i])]
        result.append(score)
        bar = arb_mat([[bar[0, j] * d for j, d in enumerate(slopes[i])]]) * weights[i]
    return result[::-1]


def by_mpmath(network, half):
    """Eq. 3 with mpmath's intervals."""
    weights = [[[iv.mpf(w) for w in row] for row in m.weight.tolist()] for m in network[::2]]
    biases = [[iv.mpf(b) for b in m.bias.tolist()] for m in network[::2]]

    def apply(weight, x, bias):
        return [sum((w * t for w, t in zip(row, x, strict=True)), b)
                for row, b in zip(weight, bias, strict=True)]  # fmt: skip

    k, nodes, slopes = apply(weights[0], [iv.mpf([-half, half])] * 7, biases[0]), [], []
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        s = [1 / (1 + iv.exp(-t)) for t in k]
        nodes.append([t * u for t, u in zip(k, s, strict=True)])
        slopes.append([u * (1 + t * (1 - u)) for t, u in zip(k, s, strict=True)])
        k = apply(weight, nodes[-1], bias)
    bar, result = weights[-1][0], []
    for n, d, weight in zip(nodes[::-1], slopes[::-1], weights[-2::-1], strict=True):
        result.append([float(t.delta) * float(abs(b).b) for t, b in zip(n, bar, strict=True)])
        bar = [b * e for b, e in zip(bar, d, strict=True)]
        bar = [
            sum(b * row[j] for b, row in zip(bar, weight, strict=True))
            for j in range(len(weight[0]))
        ]
    return result[::-1]


def main():
    torch.set_num_threads(1)
    network, half = mlp(128), 0.01
    ends = torch.full((7,), half)
    box = Interval(-ends, ends)
    print("6 x 128 SiLU network, 7 inputs, one thread, CPU seconds")
    one = best(lambda: significance.of_nodes(network, box), 20)
    print(f"one box            {one * 1e3:9.2f} ms   target 10 ms")
    for splits in (64, 512, 4096):
        many = best(lambda s=splits: significance.of_nodes(network, box, s), 3)
        print(
            f"{splits:5d} boxes        {many * 1e3:9.2f} ms" + " target 1000 ms" * (splits == 4096)
        )

    ours = significance.of_nodes(network, box)
    theirs = by_flint(network, half)
    ratio = sum(theirs[0]) / ours[0].sum(), sum(theirs[-1]) / ours[-1].sum()
    flint = best(lambda: by_flint(network, half), 3)
    print(f"python-flint : ours, one box     {flint / one:8.1f} times the time")
    print(f"  its significances              {ratio[0]:8.1f} (first layer), {ratio[1]:.1f} (last)")
    print(f"python-flint : ours, 4,096 boxes {4096 * flint / many:8.1f} times the time")

    small = mlp(12)
    scale = sum(m.weight.numel() for m in network[::2]) / sum(m.weight.numel() for m in small[::2])
    mpmath = best(lambda: by_mpmath(small, half), 2) * scale
    print(f"mpmath.iv : ours, one box        {mpmath / one:8.0f} times the time (extrapolated)")
    agree = max(
        abs(a / b - 1) for x, y in zip(by_mpmath(small, half), by_flint(small, half), strict=True)
        for a, b in zip(x, y, strict=True)
    )  # fmt: skip
    print(f"the rivals agree to {agree:.1e} (12 wide)")


if __name__ == "__main__":
    main()
