"""The command ``soundgreeks``: chapters here, training and evaluation in `commands`."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from . import commands, runner
from .chapter import PROFILES


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, do what it asks, and return the exit status."""
    parser = argparse.ArgumentParser(prog="soundgreeks", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    add_list(subparsers)
    add_run(subparsers)
    add_status(subparsers)
    commands.add_commands(subparsers)
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except (ValueError, FileNotFoundError) as error:
        print(f"soundgreeks: {error}", file=sys.stderr)
        return 2


def add_list(subparsers) -> None:
    parser = subparsers.add_parser("list", help="the chapters, in the order of the book")
    parser.set_defaults(run=list_chapters)


def list_chapters(args) -> int:
    root = runner.find_root()
    for name, path in runner.chapters(root / "book").items():
        print(f"{name:28} {path.relative_to(root)}")
    return 0


def add_run(subparsers) -> None:
    parser = subparsers.add_parser("run", help="execute chapters, all of them by default")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="a name, a path or a number")
    parser.add_argument("--profile", default="read", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="extra",
        help="another name of the chapter's parameters cell",
    )
    parser.add_argument("--out", type=Path, help="where results go (default build/chapters)")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds that one cell may take")
    parser.add_argument(
        "--promote",
        action="store_true",
        help="also replace the committed notebooks by the clean result",
    )
    parser.set_defaults(run=run_chapters)


def run_chapters(args) -> int:
    root = runner.find_root()
    out = (args.out or root / "build/chapters").resolve()
    chosen = runner.select(root / "book", args.chapters)
    given = {"profile": args.profile, "device": args.device, "seed": args.seed} | extras(args.extra)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)  # our own, or asyncio would take its time over Ctrl-C
    if out == root / "book" or root / "book" in out.parents:
        raise ValueError(f"out must lie outside the book, which only --promote changes, got {out}")
    done: list[str] = []
    try:
        for name, path in chosen.items():
            notebook = runner.run(name, path, root=root, timeout=args.timeout, **given)
            target = out / path.relative_to(root / "book")
            runner.write(notebook, target, root / "build/promoting")
            done.append(f"{name}: finished, {target}")
            if args.promote:
                changed = runner.promote(notebook, path, root)
                done[-1] += f"; promoted to {path}" if changed else "; committed one unchanged"
            print(done[-1], flush=True)
    except KeyboardInterrupt as stop:
        print(f"\nStopped in {name}. The committed notebook is as it was.", file=sys.stderr)
        print(
            "\n".join(["Done before:", *done] if done else ["Nothing was done before."]),
            file=sys.stderr,
        )
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except runner.Unfinished as error:
        print(f"soundgreeks: {error}", file=sys.stderr)
        return 1
    return 0


def extras(pairs: list[str]) -> dict:
    """The ``NAME=VALUE`` of ``--set`` with literal values; a bare word is a string."""
    import ast

    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {pair!r}")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def _stop(number, frame):
    logging.disable()  # the last words of the kernel, which is stopped on purpose
    raise KeyboardInterrupt(number)


def add_status(subparsers) -> None:
    parser = subparsers.add_parser("status", help="the last run of each chapter on this machine")
    parser.set_defaults(run=show_status)


def show_status(args) -> int:
    root = runner.find_root()
    for name, *fields in runner.status(root):
        print(name)
        print("    " + " | ".join(field for field in fields if field))
    return 0


if __name__ == "__main__":
    sys.exit(main())
