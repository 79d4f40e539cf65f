"""Residual and gradient: jets, the bilinear form, nested autograd and DeepXDE, side by side.

One step is the residual of eq. 5 at N points, the mean of its square, and the gradient in the
weights, for a DeepONet 128 wide in float32 on one thread. Grids are square: M = P = sqrt(N).
Every method runs in a process of its own, which gives its peak memory; times are processor
seconds, the best of some repeats, and every table ends with this machine's matrix-product rate
measured in the same run.

* jets: six channels through the trunk, one product a channel (printed ansatz, eq. 10);
* bilinear: the Black-Scholes anchor, u = A + tau N, as two products; with R[A], which depends on
  the points alone, computed once, and with R[A] in every step;
* nested: autograd of autograd on N aligned points, in pieces of 16,384;
* deepxde: its PDEOperatorCartesianProd with zero coordinate shift (`dde.zcs`), its fastest mode,
  on the same branch and trunk and the same points; for the anchor it is handed R[A] too, or,
  "fresh", its output transform is the anchor and it differentiates it itself.

DeepXDE is no dependency of the book. `pip install deepxde` in an environment of your own, or
leave `deepxde` out of --methods.

    python benchmarks/residual.py [--sizes 4096 16384 262144 1048576] [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DDE_BACKEND", "pytorch")

import torch

from soundgreeks import Jet, collocation, equation, heston
from soundgreeks.operators import Config, Operator

METHODS = (
    "jets", "bilinear", "bilinear fresh", "nested",
    "deepxde printed", "deepxde anchor", "deepxde anchor fresh",
)  # fmt: skip
SIZES = (4096, 16_384, 262_144, 1_048_576)
DOMAIN = heston.TABLE_I | {"tau": (0.01, 1.0)}


def points_for(n: int, aligned: bool):
    side = round(n**0.5)
    generator = torch.Generator().manual_seed(0)
    size = n if aligned else (side, side)
    return collocation.draw(size, domain=DOMAIN, generator=generator).to(dtype=torch.float32)


def operator_for(ansatz: str) -> Operator:
    return Operator(replace(Config(), ansatz=ansatz))


def mean_square(r):
    return torch.nn.functional.mse_loss(r, r.new_zeros(()).expand_as(r))


def jets_step(n: int):
    operator, q = operator_for("printed"), points_for(n, aligned=False)

    def step():
        u = operator.on(equation.coordinates(q.x, q.nu, q.tau), q.p)
        return mean_square(equation.short_residual(u, q.nu, q.p))

    return operator, [step]


def bilinear_step(n: int, fresh: bool):
    operator, q = operator_for("anchor"), points_for(n, aligned=False)
    fixed = None if fresh else equation.anchor_residual(q.x, q.nu, q.tau, q.p)

    def step():
        return mean_square(
            equation.bilinear_residual(operator.network, q.x, q.nu, q.tau, q.p, fixed=fixed)
        )

    return operator, [step]


def nested_step(n: int):
    operator, every = operator_for("printed"), points_for(n, aligned=True)

    def step(q):
        x, nu, tau = (v.clone().requires_grad_() for v in (q.x, q.nu, q.tau))

        def d(a, b):
            return torch.autograd.grad(a.sum(), b, create_graph=True)[0]

        u = operator.value(x, nu, tau, q.p)
        ux, unu = d(u, x), d(u, nu)
        jet = Jet(u, x=ux, nu=unu, tau=d(u, tau), xx=d(ux, x), xnu=d(ux, nu), nunu=d(unu, nu))
        return mean_square(equation.residual(jet, nu, q.p)) * (len(nu) / n)

    return operator, [lambda q=q: step(q) for q in every.chunks(16_384)]


def deepxde_step(n: int, ansatz: str, fresh: bool = False):
    import deepxde as dde
    from deepxde.zcs import LazyGrad, Model, PDEOperatorCartesianProd

    dde.config.set_default_float("float32")
    operator, q = operator_for(ansatz), points_for(n, aligned=False)
    ours, p = operator.network, q.p
    fixed = (
        equation.anchor_residual(q.x, q.nu, q.tau, p) if ansatz == "anchor" and not fresh else 0.0
    )

    class Trunk(torch.nn.Module):
        def forward(self, y):
            return ours.trunk(ours.trunk_scale(y))

    class Branch(torch.nn.Module):
        def forward(self, mu):
            return ours.embed(mu)

    plain = {"branch": "gelu", "trunk": lambda y: y}
    net = dde.nn.DeepONetCartesianProd([5, Branch()], [3, 8, 128], plain, "Glorot normal")
    net.trunk, net.b[0].requires_grad = Trunk(), False

    def transform(inputs, n):
        x, nu, tau = inputs[1].unbind(-1)
        if ansatz == "anchor" and not fresh:  # the derivatives of A are in R[A]
            return tau * n
        if ansatz == "anchor":
            s = heston.expected_variance(nu, tau, p).sqrt()
            k, cdf = x + p.r * tau, torch.special.ndtr
            price = torch.exp(x) * cdf(k / s + s / 2)
            return price - torch.exp(-p.r * tau) * cdf(k / s - s / 2) + tau * n
        return torch.relu(torch.expm1(x)) + tau * torch.nn.functional.softplus(n)

    net.apply_output_transform(transform)

    def pde(zcs, u, _):
        grad = LazyGrad(zcs, u)
        orders = dict(
            x=(1, 0, 0), nu=(0, 1, 0), tau=(0, 0, 1), xx=(2, 0, 0), xnu=(1, 1, 0), nunu=(0, 2, 0)
        )
        jet = Jet(u, **{k: grad.compute(v) for k, v in orders.items()})
        return equation.residual(jet, q.nu, p) + fixed

    data = PDEOperatorCartesianProd.__new__(PDEOperatorCartesianProd)  # our points, not its own
    data.pde = SimpleNamespace(pde=pde, num_bcs=[], bcs=[])
    data.num_func, data.batch_size = len(p.kappa), None
    inputs = p.stack()[:, 0], torch.stack([q.x, q.nu, q.tau], dim=-1)
    model = Model(data, net)
    model.compile("adam", lr=1e-3, verbose=0)

    def step():
        return model.outputs_losses_train(inputs, None, None)[1].sum()

    return operator, [step]


MAKE = {
    "jets": jets_step,
    "bilinear": lambda n: bilinear_step(n, fresh=False),
    "bilinear fresh": lambda n: bilinear_step(n, fresh=True),
    "nested": nested_step,
    "deepxde printed": lambda n: deepxde_step(n, "printed"),
    "deepxde anchor": lambda n: deepxde_step(n, "anchor"),
    "deepxde anchor fresh": lambda n: deepxde_step(n, "anchor", fresh=True),
}


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(method: str, n: int, repeats: int) -> dict:
    """In this process: seconds of the best repeat and peak megabytes of points and steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    MAKE[method](256)[1][0]().backward()  # imports and the first call's one-off costs
    before = resident_megabytes()
    operator, steps = MAKE[method](n)
    weights = list(operator.parameters())

    def once():
        for w in weights:
            w.grad = None
        start, total = time.process_time(), 0.0
        for step in steps:
            loss = step()
            loss.backward()
            total += float(loss.detach())
        return time.process_time() - start, total

    seconds, loss = once()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    runs = [seconds] if seconds > 60 else [once()[0] for _ in range(repeats)]
    norm = sum(w.grad.square().sum() for w in weights if w.grad is not None).sqrt()
    return {
        "method": method, "points": n, "seconds": min(runs), "megabytes": peak,
        "loss": loss, "gradient": float(norm),
    }  # fmt: skip


def floating_point_operations(method: str, n: int, width: int = 128) -> float:
    """Of the matrix products that a step needs, forward and backward (three times forward)."""
    side = n**0.5
    layers = 2 * width * width * 4
    trunk, branch = 6 * side * layers, side * layers
    if method != "jets":  # the trunk's last layer has moved to the branch
        trunk *= 3 / 4
    products = 2 * n * width * (6 if method == "jets" else 5)
    return 3 * (trunk + branch + products)


def product_rate() -> float:
    """Operations a second of a 2048^3 float32 matrix product on one thread, the best of ten."""
    torch.set_num_threads(1)
    a, b = torch.randn(2, 2048, 2048)
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * 2048**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nested-limit", type=int, default=16_384, help="largest size of nested")
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, n = arguments.one
        print("RESULT " + json.dumps(measure(method, int(n), arguments.repeats)))
        return
    rows = []
    for n in arguments.sizes:
        for method in arguments.methods:
            if method == "nested" and n > arguments.nested_limit:
                continue
            command = [sys.executable, __file__, "--repeats", str(arguments.repeats)]
            done = subprocess.run(
                [*command, "--one", method, str(n)], capture_output=True, text=True
            )
            found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
            if not found:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                print(f"{n:>9,} {method:<20} failed: {reason}", flush=True)
                continue
            rows.append(json.loads(found[0].removeprefix("RESULT ")))
            row = rows[-1]
            print(
                f"{n:>9,} {method:<20} {row['seconds']:>9.4f} s {row['megabytes']:>8.0f} MB   "
                f"loss {row['loss']:.6g}  |gradient| {row['gradient']:.6g}",
                flush=True,
            )
    rate = product_rate()
    print(f"\nmatrix product: {rate / 1e9:.0f} GFLOP/s")
    by = {(row["method"], row["points"]): row for row in rows}
    for (method, n), row in by.items():
        if method not in ("jets", "bilinear", "bilinear fresh"):
            continue
        share = floating_point_operations(method, n) / row["seconds"] / rate
        line = f"{n:>9,} {method:<20} {share:>5.0%} of that rate"
        rivals = ["nested"] + [m for m in METHODS if m.startswith("deepxde")]
        rivals = rivals[:2] if method == "jets" else rivals[2:]
        for other in rivals:
            if (other, n) in by:
                line += f", {by[other, n]['seconds'] / row['seconds']:.1f} x {other}"
        print(line)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"rows": rows, "product_rate": rate}, file, indent=1)


if __name__ == "__main__":
    main()
