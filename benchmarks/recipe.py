"""What each part of the recipe of chapter 11b buys, and whether a second order polishes it further.

Run `OMP_NUM_THREADS=1 python benchmarks/recipe.py [--write] [--only ablation|wide|polish]`, about
an hour on one core; finished runs are kept in `build/recipe.json`, so that a stopped run goes on.

Ablation: the recipe of `sound_log` in small (48 wide, 1,500 steps of 2,048 points), and the same
with one part taken out, three seeds each. Adam gets as much processor time as SOAP, at the rate of
four that is best for the first seed.

Wide: `sound_wide` in small (64 wide, 1,500 steps of 2,048 points), with its coordinate of the
variance, smooth at 0, or a logarithm; with its loss, or mean squares.

Polish: an operator 32 wide after 1,500 steps of SOAP; then each method has the same
processor time, in float64 on fixed points (four and more times as many as weights) but for SOAP,
which goes on with fresh points in float32. `--write` renews the table of chapter 11b.
"""

import argparse
import copy
import json
import time
from dataclasses import replace

import torch

from soundgreeks import Domain, heston
from soundgreeks.book import runner
from soundgreeks.models.model import register
from soundgreeks.operators import PRESETS, Config, Operator, PricingProblem, evaluation
from soundgreeks.training import Phase, train
from soundgreeks.weights import environment

SEEDS = (0, 1, 2)
STEPS = 1500
NEAR = heston.TABLE_I | {"nu": (1e-4, 0.8), "x": (-2.5, 2.5), "tau": (5e-4, 1.0)}
BASE = replace(
    PRESETS["sound_log"], name="recipe", width=48, points=2048,
    phases=(Phase("soap", STEPS, 2e-2, warmup=100, epsilon=1e-15),),
)  # fmt: skip
WITHOUT = {
    "nothing taken out": BASE,
    "smile in the anchor": replace(BASE, ansatz="implied_scaled"),
    "similarity coordinates": replace(BASE, network="deeponet", latent=48),
    "the domain that paths visit": replace(BASE, domain=NEAR),
    "points far from the money": replace(BASE, spread=1.6, tau_power=2.0),
    "parameters near the edge": replace(BASE, edge_share=0.0),
    "less weight in the last days": replace(BASE, early=0.0),
    "the logarithm of the variance": replace(BASE, model="heston_smooth"),
    "the small epsilon": replace(BASE, phases=(replace(BASE.phases[0], epsilon=1e-8),)),
}
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SMALL = replace(
    BASE, width=32, phases=(Phase("soap", 1500, 2e-2, warmup=100, epsilon=1e-15),)
)  # fmt: skip
BUDGET = 40.0  # seconds of processor time for the polish
POLISH_POINTS = 16_384


class Logarithmic(heston.HestonWide):
    """Beyond Feller with the coordinates that suit Table I."""

    name = "logarithmic"
    features = heston.Heston.features  # type: ignore[assignment]


register(Logarithmic())
_WIDE = replace(
    PRESETS["sound_wide"], width=64, points=2048,
    phases=(Phase("soap", STEPS, 2e-2, warmup=100, epsilon=1e-15),),
)  # fmt: skip
WIDE = {
    f"{coordinate}, {loss}": replace(_WIDE, model=model, robust=robust)
    for coordinate, model in (("smooth", "heston_wide"), ("logarithm", "logarithmic"))
    for loss, robust in (("pseudo-Huber", _WIDE.robust), ("squares", 0.0))
}


def statistics(operator: Operator, domain: Domain = heston.TABLE_I) -> dict[str, float]:
    """Errors over the whole domain, and the worst of any region."""
    operator = operator.double().requires_grad_(False)
    data = evaluation.draw(2024, 20_000, operator.model, domain)
    table = evaluation.errors(operator, data)
    row = {k: v for k, v in table["all"].items() if k != "points"}
    return row | {"worst of all regions": max(r["price worst"] for r in table.values())}


def fit(config: Config) -> tuple[Operator, float]:
    """A trained operator, and the seconds of processor time that it took."""
    operator, start = Operator(config), time.process_time()
    train(operator, PricingProblem(operator), config.phases, progress=False)
    return operator, time.process_time() - start


def ablation(rows: dict, keep) -> None:
    """Fill `rows`: name, seed -> statistics and seconds."""
    rate = ADAM_RATES[0]
    for seed in SEEDS:
        for name, config in WITHOUT.items():
            if (key := f"{name}, seed {seed}") not in rows:
                operator, seconds = fit(replace(config, seed=seed))
                rows[key] = statistics(operator) | {"seconds": seconds}
                keep()
        rates = ADAM_RATES if seed == SEEDS[0] else [rate]  # the first seed's best for the others
        for trial in rates:
            if (key := f"Adam at {trial:g}, seed {seed}") not in rows:
                phase = Phase("adam", 100, trial, warmup=20)
                pilot = min(fit(replace(BASE, seed=seed, phases=(phase,)))[1] for _ in range(3))
                time_of_soap = rows[f"nothing taken out, seed {seed}"]["seconds"]
                phase = replace(phase, steps=int(100 * time_of_soap / pilot), warmup=100)
                operator, seconds = fit(replace(BASE, seed=seed, phases=(phase,)))
                rows[key] = statistics(operator) | {"seconds": seconds, "steps": phase.steps}
                keep()
        rate = min(rates, key=lambda v: rows[f"Adam at {v:g}, seed {seed}"]["price rmse"])


def wide(rows: dict, keep) -> None:
    """Fill `rows` as `ablation` does, for the wide domain."""
    for seed in SEEDS:
        for name, config in WIDE.items():
            if (key := f"{name}, seed {seed}") not in rows:
                operator, seconds = fit(replace(config, seed=seed))
                rows[key] = statistics(operator, heston.WIDE) | {"seconds": seconds}
                keep()


class _Enough(Exception):
    """The budget is spent."""


def polished(config: Config, weights: dict, phase: Phase) -> dict:
    """Statistics after one more phase from these weights, at most BUDGET seconds of it."""
    operator = Operator(config)
    operator.load_state_dict(weights)
    operator.to(getattr(torch, config.dtype))
    problem, start, taken = PricingProblem(operator), time.process_time(), [0]
    renew, best = problem.begin, [weights]

    def begin(phase, number, step):
        best[0], taken[0] = copy.deepcopy(operator.state_dict()), step
        if time.process_time() - start > BUDGET:
            raise _Enough
        renew(phase, number, step)

    problem.begin = begin  # type: ignore[method-assign]
    try:
        train(operator, problem, [phase], progress=False)
    except _Enough:
        operator.load_state_dict(best[0])
    seconds = time.process_time() - start
    return statistics(operator) | {"seconds": seconds, "steps": taken[0] + 1}


def polish(rows: dict, keep) -> None:
    """Fill `rows` as `ablation` does; "before" is the operator that all start from."""
    double = dict(dtype="float64", points=POLISH_POINTS)
    for seed in SEEDS:
        if f"broyden, seed {seed}" in rows:  # the last of the arms
            continue
        config = replace(SMALL, seed=seed)
        operator, seconds = fit(config)
        weights = copy.deepcopy(operator.state_dict())
        rows[f"before, seed {seed}"] = statistics(operator) | {"seconds": seconds}
        pilot = polished(config, weights, Phase("soap", 40, 1e-6, epsilon=1e-15))
        steps = int(40 * BUDGET / pilot["seconds"])
        arms: dict[str, tuple[Config, Phase]] = {
            f"SOAP at {rate:g}": (config, Phase("soap", steps, rate, warmup=100, epsilon=1e-15))
            for rate in (2e-2, 4e-3)
        }
        for name in ("gauss-newton", "broyden"):
            arms[name] = (replace(config, **double), Phase(name, 100_000))
        for name, (changed, phase) in arms.items():
            if (key := f"{name}, seed {seed}") not in rows:
                rows[key] = polished(changed, weights, phase)
                keep()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("ablation", "wide", "polish"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = runner.find_root()
    path = root / "build" / "recipe.json"
    path.parent.mkdir(exist_ok=True)
    found = json.loads(path.read_text()) if path.exists() else {}

    def keep() -> None:
        path.write_text(json.dumps(found, indent=1) + "\n")

    for part in (ablation, wide, polish):
        if options.only in (None, part.__name__):
            part(found.setdefault(part.__name__, {}), keep)
    for part in found.values():
        for key, row in part.items():
            print(
                f"{key:45s} {row['price rmse']:.2e} {row['price worst']:.1e} {row['seconds']:.0f} s"
            )
    if options.write:
        record = runner.find_root() / "book" / "data" / "recipe.json"
        about = {"made_by": "benchmarks/recipe.py --write"} | environment()
        about |= {"steps": STEPS, "budget": BUDGET, "polish_points": POLISH_POINTS}
        record.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
