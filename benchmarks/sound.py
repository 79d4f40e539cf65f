"""The shipped operator from several seeds: trained, or resumed, and measured against the formula.

Run `OMP_NUM_THREADS=1 python benchmarks/sound.py [--write] [SEED ...]`, by default seeds 0, 2 and
3 (0 is shipped), 55 minutes each on one core, an hour more for the first. The runs are kept in
`build/runs/sound_SEED`, those without the last phase, where Gamma is free, in
`build/runs/sound_SEED_free`. For the first seed a last phase of an hour in place of the short one,
in `build/runs/sound_SEED_longer`, asks whether the error falls on. On 100,000 points that no
training has seen, uniform over Table I and tau from .005: errors of price, Delta, Gamma and implied
volatility; on a million more, negative Gammas; the same of the shipped correction,
`sound_corrected`. `--write` renews chapter 11's table.
"""

import argparse
import json
import shutil
from dataclasses import replace

import torch

from soundgreeks import black_scholes, heston, weights
from soundgreeks.book import runner
from soundgreeks.operators import PRESETS, evaluation, train_operator
from soundgreeks.training import Phase

LONGER = Phase("soap", 15_000, 3e-3, warmup=100, epsilon=1e-15)  # two hours in all
PLACES = (-0.3, -0.1, 0.0, 0.1, 0.25, 0.4, 0.6, 0.9, 1.2)  # of the peak, in standard deviations


def points(n: int, seed: int):
    """x, nu, tau and parameters, all uniform over Table I under its condition."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64)
    low = evaluation.TAU_LOW
    x, nu = (heston.TABLE_I.scale(name, v) for name, v in zip(("x", "nu"), u, strict=False))
    return x, nu, low + (1 - low) * u[2], heston.sample_parameters(n, generator=generator)


def peak(nu, tau, p) -> torch.Tensor:
    """The largest true Gamma of each curve, nearly."""
    deviation = heston.expected_variance(nu, tau, p).sqrt()
    found = [heston.price_delta_gamma(z * deviation, nu, tau, p)[2] for z in PLACES]
    return torch.stack(found).amax(0)


def statistics(operator, n: int = 100_000, gammas: int = 1_000_000) -> dict[str, float]:
    """RMS and worst errors: prices in strikes, Gammas in peaks, volatilities in bp."""
    x, nu, tau, p = points(n, 2024)
    price, delta, gamma = heston.price_delta_gamma(x, nu, tau, p)
    found = operator.greeks(x, nu, tau, p)
    k, growth = x + p.r * tau, torch.exp(p.r * tau)
    w = black_scholes.implied_variance(price * growth, k)
    ours = black_scholes.implied_variance(found.price * growth, k)
    vega = 2 * black_scholes.partials(k, w.log()).y / (w / tau).sqrt() / growth
    seen = vega > 1e-2
    off = {
        "price": found.price - price,
        "delta": found.delta - delta,
        "gamma": (found.gamma - gamma) / peak(nu, tau, p),
        "volatility": 1e4 * ((ours / tau).sqrt() - (w / tau).sqrt())[seen],
    }
    row = {f"{k} rmse": v.square().mean().sqrt().item() for k, v in off.items()}
    row |= {f"{k} worst": v.abs().max().item() for k, v in off.items()}
    x, nu, tau, p = points(gammas, 77)
    gamma = operator.greeks(x, nu, tau, p).gamma
    i = (gamma < 0).nonzero().squeeze(1)
    share = gamma[i] / peak(nu[i], tau[i], p[i])
    row["negative Gammas"] = int((share < -1e-7).sum())
    row["lowest Gamma"] = share.min().item() if len(i) else 0.0
    return row


def trained(seed: int, *, longer: bool):
    """The operator before and after the last phase; and after a longer one in its place."""
    config = replace(PRESETS["sound"], seed=seed)
    *first, last = config.phases
    free = replace(config, gamma_penalty=0.0, phases=tuple(first))
    folder = runner.find_root() / "build" / "runs" / f"sound_{seed}"
    start = folder.with_name(f"{folder.name}_free")
    yield train_operator(free, start)[0]
    ends = {folder: last} | ({folder.with_name(f"{folder.name}_longer"): LONGER} if longer else {})
    for place, phase in ends.items():
        if not (place / "checkpoint.pt").exists():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(start / "checkpoint.pt", place)
        yield train_operator(replace(config, phases=(*first, phase)), place)[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 2, 3])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list] = {"free": [], "rows": [], "longer": []}
    for seed in options.seeds:
        runs = trained(seed, longer=seed == options.seeds[0])
        for rows, operator in zip(found.values(), runs, strict=False):
            about = {"seed": seed, "steps": sum(phase.steps for phase in operator.config.phases)}
            rows.append(about | statistics(operator.double().requires_grad_(False)))
            print(rows[-1])
    corrected = weights.load("sound_corrected").requires_grad_(False)
    found["corrected"] = [{"seed": corrected.config.seed} | statistics(corrected)]
    print(found["corrected"][0])
    if options.write:
        record = {"made_by": "benchmarks/sound.py --write"} | weights.environment() | found
        path = runner.find_root() / "book" / "data" / "sound_seeds.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
