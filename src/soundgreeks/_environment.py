"""What a result depends on besides its code: the device, the versions, the machine."""

import platform
from importlib import metadata

import torch

from ._validate import require

_PACKAGES = ("soundgreeks", "torch", "numpy", "scipy", "safetensors", "pytorch-optimizer")


def select_device(name: str = "auto") -> torch.device:
    """The device called `name`: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``, N counted from 0.

    ``"auto"`` is CUDA where there is one, otherwise the CPU.

    Raises
    ------
    ValueError
        Not one of these, or a GPU that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    allowed = ["cpu", *["cuda"] * bool(gpus), *(f"cuda:{i}" for i in range(gpus))]
    here = ", ".join(map(repr, allowed))
    require(name in allowed, "device", repr(name), f"'auto' or one of {here} on this machine")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """``cpu``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def environment() -> dict:
    """Python, the versions of those packages that are installed, threads and processor."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }
