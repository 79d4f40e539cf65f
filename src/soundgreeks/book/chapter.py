"""How every chapter begins and ends: its parameters, its seed, its sentinel."""

import torch

from .._environment import select_device
from .._validate import require
from . import reference

PROFILES = ("read", "smoke", "full")
"""`read` loads shipped weights, `smoke` trains at toy size, `full` trains from scratch."""

SENTINEL = "chapter complete"


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
