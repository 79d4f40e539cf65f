"""The command ``soundgreeks``: chapters here, training and evaluation in `commands`."""

import argparse
import ast
import logging
import os
import signal
import sys
from pathlib import Path

from . import commands, runner
from .chapter import PROFILES


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, do what it asks, and return the exit status.

    What goes wrong is a line on standard error and a status: 2 for a bad argument or a file that
    cannot be read or written, 1 for work that failed, 128 + N for work that signal N stopped.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _stop)
    try:
        args = parser().parse_args(arguments)
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        print("\nStopped.", *getattr(stop, "__notes__", []), file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (runner.Unfinished, FloatingPointError) as error:
        return _fail(error, 1)
    except OSError as error:
        reason = error.strerror or error
        return _fail(f"{error.filename}: {reason}" if error.filename else reason, 2)
    except (ValueError, runner.Missing) as error:
        return _fail(error, 2)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _fail(reason: object, status: int) -> int:
    print(f"soundgreeks: {reason}", file=sys.stderr)
    return status


def _stop(number, frame):
    logging.disable()  # the last words of the kernel, which is stopped on purpose
    raise KeyboardInterrupt(number)


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command sets `run`, called with the parsed arguments."""
    parser = argparse.ArgumentParser(prog="soundgreeks", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    add_list(subparsers)
    add_run(subparsers)
    add_status(subparsers)
    commands.add_commands(subparsers)
    return parser


def add_list(subparsers) -> None:
    parser = subparsers.add_parser("list", help="the chapters, in the order of the book")
    parser.set_defaults(run=list_chapters)


def list_chapters(args) -> None:
    root = runner.find_root()
    for name, path in runner.chapters(root / "book").items():
        print(f"{name:28} {path.relative_to(root)}")


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


def run_chapters(args) -> None:
    root = runner.find_root()
    out = (args.out or runner.workspace(root) / "chapters").resolve()
    chosen = runner.select(root / "book", args.chapters)
    if out == root / "book" or root / "book" in out.parents:
        raise ValueError(f"out must lie outside the book, which only --promote changes, got {out}")
    given = {"profile": args.profile, "device": args.device, "seed": args.seed} | extras(args.extra)
    for path in chosen.values():
        runner.prepare(path, timeout=args.timeout, **given)
    runner.tool("papermill")
    runner.require_room(out)
    runner.require_room(runner.workspace(root), "build")
    for folder in {path.parent for path in chosen.values()} if args.promote else ():
        runner.require_room(folder, "book")
    done: list[str] = []
    failed: list[str] = []
    signal.signal(signal.SIGINT, _stop)  # our own, or asyncio would take its time over Ctrl-C
    for name, path in chosen.items():
        try:
            notebook = runner.run(name, path, root=root, timeout=args.timeout, **given)
            target = out / path.relative_to(root / "book")
            runner.write(notebook, target)
            line = f"{name}: finished, {target}"
            if args.promote:
                changed = runner.promote(notebook, path)
                line += f"; promoted to {path}" if changed else "; committed one unchanged"
        except KeyboardInterrupt as stop:
            stop.add_note(f"{name} did not finish; its committed notebook is as it was.")
            stop.add_note(f"Done before: {', '.join(done) or 'nothing'}.")
            raise
        except runner.Unfinished as error:  # the others run all the same
            failed.append(str(error))
            continue
        print(line, flush=True)
        done.append(name)
    if failed:
        raise runner.Unfinished("\n".join(failed))


def extras(pairs: list[str]) -> dict:
    """The ``NAME=VALUE`` of ``--set`` with literal values; a bare word is a string."""
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


def add_status(subparsers) -> None:
    parser = subparsers.add_parser("status", help="the last run of each chapter on this machine")
    parser.set_defaults(run=show_status)


def show_status(args) -> None:
    root = runner.find_root()
    for name, *fields in runner.status(root):
        print(name)
        print("    " + " | ".join(field for field in fields if field))


if __name__ == "__main__":
    sys.exit(main())
