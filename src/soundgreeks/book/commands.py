"""The commands ``soundgreeks train``, ``soundgreeks correct`` and ``soundgreeks evaluate``."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from .. import weights
from .._environment import device_name, select_device
from .._validate import require
from ..operators import PRESETS, evaluation, learned, train_operator
from .runner import require_room


def add_commands(subparsers) -> None:
    """Add them to an ``argparse`` set of sub-parsers; each sets ``run``, called with its arguments.

    >>> arguments = parser.parse_args(); arguments.run(arguments)  # doctest: +SKIP
    """
    parser = subparsers.add_parser("train", help="train an operator, or resume its training")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and its weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--evaluation-seed", type=int, default=1)
    parser.add_argument("--note", default="", help="a sentence for the provenance")
    parser.set_defaults(run=train)
    parser = subparsers.add_parser("correct", help="learn an operator's error from single paths")
    parser.add_argument("weights", help=f"one of {', '.join(operators())} or a file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--name", help="of the file; by default NAME_corrected")
    parser.add_argument("--count", type=int, default=2**21, help="options, one path each")
    parser.add_argument("--steps", type=int, default=6000, help="of the fit")
    parser.add_argument("--slopes", type=float, default=0.0, help="weight of the slope labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--evaluation-seed", type=int, default=1)
    parser.add_argument("--note", default="", help="a sentence for the provenance")
    parser.set_defaults(run=correct)
    parser = subparsers.add_parser("evaluate", help="measure an operator against the truth")
    parser.add_argument("weights", help=f"one of {', '.join(operators())} or a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--points", type=int, help="how many; 20,000 where there is a formula")
    parser.set_defaults(run=evaluate)


def operators() -> list[str]:
    """Names of the shipped files that hold an operator, by the kind in their provenance."""
    return [name for name in weights.available() if _kind(name) == "operator"]


def _kind(name: str) -> str | None:
    try:
        return json.loads((weights.SHIPPED / f"{name}.json").read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged; `weights.load` says how


def train(arguments: argparse.Namespace) -> None:
    """Train, measure, and write OUT/PRESET.safetensors with its provenance.

    Raises
    ------
    ValueError
        No such device here, a folder that cannot be written to or holds another run.
    KeyboardInterrupt
        Stopped; a note says whether there is a checkpoint to go on from.
    """
    device = select_device(arguments.device)
    for name in ("seed", "evaluation_seed"):
        require_seed(name, getattr(arguments, name))
    require_room(arguments.out)
    try:
        _train(arguments, device)
    except KeyboardInterrupt as stop:
        saved = (arguments.out / "checkpoint.pt").is_file()
        stop.add_note(
            f"{arguments.out}/checkpoint.pt is saved: the same command goes on from there."
            if saved
            else f"There is no checkpoint in {arguments.out} yet."
        )
        raise


def _train(arguments: argparse.Namespace, device: torch.device) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    config = replace(PRESETS[arguments.preset], seed=arguments.seed)
    operator, summary = train_operator(config, arguments.out, device=device)
    if not dist.is_initialized() or dist.get_rank() == 0:
        operator = operator.cpu()
        table = evaluation.evaluate(operator.double(), arguments.evaluation_seed)
        print(evaluation.format_table(table))
        weights.save(
            operator.to(getattr(torch, config.dtype)),
            arguments.out / config.name,
            {
                "profile": "full",
                "preset": config.name,
                "device": device_name(device),
                "processes": dist.get_world_size() if dist.is_initialized() else 1,
                "note": arguments.note,
                "training": summary,
                "phases_taken": steps_taken(arguments.out / "log.jsonl", config.phases),
                "evaluation_seed": arguments.evaluation_seed,
                "metrics": table,
                "history": history(arguments.out / "log.jsonl"),
            },
        )
    if dist.is_initialized():
        dist.destroy_process_group()


def correct(arguments: argparse.Namespace) -> None:
    """`operators.learned.learn`, measure, and write OUT/NAME_corrected with its provenance.

    Raises
    ------
    ValueError
        No such device here, no operator, one whose error its residual does not know, a number
        outside its range, a folder that cannot be written to.
    """
    device = select_device(arguments.device)
    for name in ("seed", "evaluation_seed"):
        require_seed(name, getattr(arguments, name))
    require_room(arguments.out)
    operator = weights.load(arguments.weights)
    options = {k: getattr(arguments, k) for k in ("count", "steps", "slopes", "seed")}
    found = learned.learn(operator.to(device), **options).cpu()
    table = evaluation.evaluate(found, arguments.evaluation_seed)
    print(evaluation.format_table(table))
    about = {
        "profile": "full",
        "preset": operator.config.name,
        "corrected": {"of": operator.provenance["sha256"], **options},
        "device": device_name(device),
        "note": arguments.note,
        "evaluation_seed": arguments.evaluation_seed,
        "metrics": table,
    }
    name = arguments.name or f"{Path(arguments.weights).stem}_corrected"
    weights.save(found.to(getattr(torch, operator.config.dtype)), arguments.out / name, about)


def steps_taken(log: Path, phases) -> list[str]:
    """For every phase the steps taken and those asked for: L-BFGS may end before its time."""
    last = {}
    for line in map(json.loads, log.read_text().splitlines()):
        last[line["phase"]] = line["step"]
    return [f"{p.optimizer}: {last.get(i, 0)} of {p.steps} steps" for i, p in enumerate(phases)]


def history(log: Path, lines: int = 300) -> dict[str, list]:
    """At most about `lines` lines of a training log, as columns; what a line lacks is None."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = rows[:: -(-len(rows) // lines)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the whole table.

    Raises
    ------
    ValueError
        No such device here, no operator, a negative seed or no points.
    """
    device = select_device(arguments.device)
    require_seed("seed", arguments.seed)
    fewest = arguments.points is None or arguments.points >= 100
    require(fewest, "points", arguments.points, "at least 100")
    operator = weights.load(arguments.weights).to(device)
    table = evaluation.evaluate(operator, arguments.seed, arguments.points)
    print(evaluation.format_table(table))


def require_seed(name: str, seed: int) -> None:
    """Raise `ValueError` unless the argument called `name` is a seed, in [0, 2**31)."""
    require(0 <= seed < 2**31, name, seed, "an integer in [0, 2**31)")
