"""Checkpoints written whole, one training for each, Ctrl-C between steps."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # not on Windows: no lock there
    fcntl = None  # type: ignore[assignment]

FORMAT = 2


def write(path: Path, state: dict) -> None:
    """Write to a temporary file first, so that a killed run leaves the last checkpoint whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.pt", {"step": 3})
    ...     print(*os.listdir(folder))  # no part is left
    a.pt

    Parameters
    ----------
    path : of the checkpoint; state : tensors and plain values, to which the format is added

    Raises
    ------
    OSError
        The file cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save(state | {"format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path: Path, device: torch.device) -> dict:
    """The checkpoint, its tensors on `device`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder) / "a.pt", {"step": 3})
    ...     read(Path(folder) / "a.pt", torch.device("cpu"))
    {'step': 3, 'format': 2}

    Raises
    ------
    ValueError
        The file is damaged, or of another version.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds
        raise unusable(path, "damaged") from error
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise unusable(path, "no checkpoint of this version")
    return state


def unusable(path: Path, why: str) -> ValueError:
    """The error that names the file and what to do about it.

    >>> unusable(Path("a.pt"), "damaged")
    ValueError('checkpoint a.pt is damaged: delete it to train anew, or put back a copy')
    """
    return ValueError(f"checkpoint {path} is {why}: delete it to train anew, or put back a copy")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the checkpoint for one training; the system lets go when the process ends or is killed.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, lock(Path(folder) / "a.pt"):
    ...     print(*os.listdir(folder))
    a.pt.lock

    Raises
    ------
    BlockingIOError
        Another training holds it.
    """
    if fcntl is None:
        yield
        return
    # The empty file stays: were it deleted, two processes could hold a lock on two files.
    with path.with_name(path.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"checkpoint {path} is in use by another training: wait for its end, stop it, "
                "or train in another folder"
            ) from error
        yield


class Interruption:
    """Whether Ctrl-C was pressed.

    >>> Interruption().asked
    False
    """

    asked = False


@contextmanager
def interrupts_wait(active: bool) -> Iterator[Interruption]:
    """Note the first Ctrl-C instead of raising KeyboardInterrupt; the second raises at once.

    Weights and optimiser change together only between steps: there is where to save. Where signals
    cannot be caught (in a thread) or someone else catches them, nothing changes.

    >>> with interrupts_wait(True) as interruption:  # nobody presses Ctrl-C
    ...     print(interruption.asked)
    False
    """
    interruption = Interruption()

    def note(number, frame):
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True
        if sys.stderr.isatty():
            os.write(2, b"\nfinishing the step, then saving; once more to stop at once\n")

    main = threading.current_thread() is threading.main_thread()
    if not (active and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield interruption
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
