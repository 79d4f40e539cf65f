"""How every chapter begins and ends: its parameters, its seed, its sentinel."""

import torch

from .._validate import require
from . import reference

PROFILES = ("read", "smoke", "full")
"""`read` loads shipped weights, `smoke` trains at toy size, `full` trains from scratch."""

SENTINEL = "chapter complete"


def select_device(device: str = "auto") -> torch.device:
    """The device to compute on; ``"auto"`` is CUDA where there is one, otherwise the CPU.

    Raises
    ------
    ValueError
        Not a device, or a GPU that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if gpus else "cpu")
    allowed = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    require(
        device in allowed,
        "device",
        repr(device),
        f"'auto' or one of {', '.join(map(repr, allowed))} on this machine",
    )
    return torch.device(device)


def validate(profile: str, device: str, seed: int) -> torch.device:
    """The device of a chapter's three parameters, if they are what they must be.

    Raises
    ------
    ValueError
        An unknown profile, an absent device, a seed that is not a non-negative integer.
    """
    require(profile in PROFILES, "profile", repr(profile), f"one of {', '.join(PROFILES)}")
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**31, "seed", repr(seed), "an integer in [0, 2**31)")
    return select_device(device)


def begin(profile: str = "read", device: str = "auto", seed: int = 0) -> torch.device:
    """Validate a chapter's parameters, set the seed and the figure style, return the device."""
    from . import plotting

    selected = validate(profile, device, seed)
    torch.manual_seed(seed)
    reference.profile = profile
    plotting.style()
    return selected


def end() -> None:
    """The last cell of a chapter: the runner takes a notebook without it for unfinished."""
    print(SENTINEL)
