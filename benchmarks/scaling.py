"""One process against two: training steps, prices with Greeks, calibrations.

Run `OMP_NUM_THREADS=1 python benchmarks/scaling.py [--write]` on a machine with two quiet cores.
Every process has one thread and its share of the work: of the points of a training step (gradients
are averaged by gloo), of a million options, of a thousand options with their errors from 512 paths,
of a thousand surfaces. Seconds of wall time until the
last has finished, the least of three runs, one and two processes in turn. `--write` renews the
table of chapter 15.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

import torch
import torch.distributed as dist
from calibration import START, TOLERANCE, grid, thousand

from soundgreeks import evaluation, heston, weights
from soundgreeks.book import runner
from soundgreeks.calibration import Quotes, Surface, calibrate
from soundgreeks.operators import PRESETS, Operator, PricingProblem
from soundgreeks.training import Phase, train

REPEATS, STEPS, OPTIONS = 3, 40, 1_000_000


def timed(function) -> float:
    """Seconds until every process has finished."""
    dist.barrier()
    start = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - start


def share(count: int) -> slice:
    """This process's part of `count` items."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return slice(rank * count // world, (rank + 1) * count // world)


def work() -> None:
    """What one of several processes does; the first prints the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    phase = Phase("soap", STEPS, 1e-3, warmup=1, epsilon=1e-15)
    operator = Operator(replace(PRESETS["sound"], phases=(phase,)))
    problem = PricingProblem(operator, rank=dist.get_rank(), world=dist.get_world_size())
    train(operator, problem, [replace(phase, steps=5)], progress=False)  # warm
    found = {"a training step": timed(lambda: train(operator, problem, [phase], progress=False))}
    found["a training step"] /= STEPS
    sound, mine = weights.load("sound"), share(OPTIONS)
    data = evaluation.draw(0, 10_000)
    index = torch.arange(OPTIONS)[mine] % len(data.x)
    at = [v[index].float() for v in (data.x, data.nu, data.tau)]
    p = data.p[index].map(lambda v: v.float())
    found["a million options"] = timed(lambda: sound.greeks(*at, p))
    mine, sound = share(1000), sound.double()
    at, p = [v[:1000][mine] for v in (data.x, data.nu, data.tau)], data.p[:1000][mine]
    found["a thousand certificates"] = timed(
        lambda: sound.price(*at, p, with_error=True, paths=2**9)
    )
    many = thousand(*grid())
    mine = share(len(many.volatility))
    surface = Surface(sound.price, heston.MODEL, Quotes(*(v[mine] for v in many[:4])))
    start = START[0], heston.Parameters(*START[1:], 0.0)
    found["a thousand surfaces"] = timed(lambda: calibrate(surface, start, tolerance=TOLERANCE))
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.work:
        return work()
    runs: dict[int, list[dict]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for processes, rows in runs.items():
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={processes}", __file__, "--work"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
    best = {n: {k: min(row[k] for row in rows) for k in rows[0]} for n, rows in runs.items()}
    rows = [{"what": k, "one": best[1][k], "two": best[2][k]} for k in best[1]]
    for row in rows:
        print(f"{row['what']:20} {row['one']:8.3f} s {row['two']:8.3f} s", end="  ")
        print(f"{row['one'] / row['two']:.2f} times")
    if options.write:
        record = {"made_by": "benchmarks/scaling.py --write"} | weights.environment()
        path = runner.find_root() / "book" / "data" / "scaling.json"
        path.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
