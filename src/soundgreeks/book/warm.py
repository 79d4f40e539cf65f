"""Kernels that start warm: forked from a server that has imported what every chapter imports.

A cold kernel imports torch and matplotlib for seconds before its first cell, in every chapter, each
time the book is built or tested. Jupyter asks an environment variable who launches its kernels;
`prefer` names `Warm` there, whose kernels are children of Python's own fork server.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

INLINE = "module://matplotlib_inline.backend_inline"
PRELOAD = ["ipykernel.ipkernel", "ipykernel.kernelapp", "matplotlib.pyplot", "soundgreeks.book"]


def prefer() -> None:
    """Launch the kernels of this process warm, unless the environment names another way.

    On Linux alone: elsewhere the libraries below torch and matplotlib may not survive a fork.

    >>> prefer()
    >>> "JUPYTER_DEFAULT_PROVISIONER_NAME" in os.environ or sys.platform != "linux"
    True
    """
    if sys.platform == "linux":
        os.environ.setdefault("JUPYTER_DEFAULT_PROVISIONER_NAME", "soundgreeks-warm")


class Warm(LocalProvisioner):
    """Jupyter's local provisioner, but for how the process comes into being."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any):
        """Fork a kernel that does what `cmd`, python -m ipykernel_launcher ..., would do."""
        if "ipykernel_launcher" not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.cwd = kwargs.get("cwd") or os.getcwd()
        process = context.Process(
            target=_serve, args=(arguments, str(self.cwd), dict(kwargs.get("env") or os.environ))
        )
        # The kernel would import the program that wants it, and what has no guard would run again.
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = program
        self.process = _AsPopen(process)  # type: ignore[assignment]
        self.pid = self.pgid = process.pid  # it leads a group of its own
        return self.connection_info


def _serve(arguments: list[str], cwd: str, env: Mapping[str, str]) -> None:
    """The kernel, in its forked process, until it is shut down."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    # Kernels ask for it by a variable, which matplotlib reads when it is first imported.
    matplotlib.rcParams["backend"] = env.get("MPLBACKEND", INLINE)
    launch_new_instance(argv=arguments)


def _end_with_parent() -> None:
    """A killed run leaves no kernel behind. Its parent, to the system, is the server."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


class _AsPopen:
    """What the provisioner asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess):
        self.process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
