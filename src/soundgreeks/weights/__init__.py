"""Trained networks: safetensors with their provenance as JSON beside them.

Nothing in a weights file is executed when it is read.
"""

import hashlib
import json
import math
import platform
from importlib import metadata
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from ..operators import Config, Operator

SHIPPED = Path(__file__).parent
_FORMAT = "soundgreeks/1"
_PACKAGES = ("soundgreeks", "torch", "numpy", "safetensors", "pytorch-optimizer")


class WeightsError(ValueError):
    """A weights file that is missing, damaged or not ours."""


def available() -> list[str]:
    """Names of the networks shipped with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def environment() -> dict:
    """Versions and machine, for a provenance."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }


def write(path: Path | str, tensors: dict[str, Tensor], provenance: dict) -> None:
    """Write PATH.safetensors and PATH.json, the latter with the former's SHA-256.

    Parameters
    ----------
    path : with or without a suffix
    provenance : plain values, to which format, SHA-256 and `environment` are added
    """
    path = Path(path).with_suffix(".safetensors")
    data = serialise({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    record = {"format": _FORMAT, "sha256": hashlib.sha256(data).hexdigest()}
    path.write_bytes(data)
    path.with_suffix(".json").write_text(
        json.dumps(record | provenance | environment(), indent=1) + "\n"
    )


def read(name: Path | str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and provenance of a shipped network, by name, or of a file, by path.

    Raises
    ------
    WeightsError
        No such network, no provenance, a file that does not match its SHA-256, or one that this
        package did not write.
    """
    path = SHIPPED / f"{name}.safetensors" if str(name) in available() else Path(name)
    path = path.with_suffix(".safetensors")
    record = path.with_suffix(".json")
    for file in (path, record):
        if not file.is_file():
            raise WeightsError(f"name must be one of {available()} or a file, got {name!r}: "
                               f"there is no {file.name}")  # fmt: skip
    try:
        provenance = json.loads(record.read_text())
    except ValueError as error:
        raise WeightsError(f"{record.name} is damaged: not JSON ({error})") from error
    if not isinstance(provenance, dict) or provenance.get("format") != _FORMAT:
        raise WeightsError(f"{record.name} is not a provenance of format {_FORMAT}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != provenance.get("sha256"):
        raise WeightsError(
            f"{path.name} is damaged: its SHA-256 is {found[:12]}..., "
            f"its provenance says {str(provenance.get('sha256'))[:12]}..."
        )
    try:
        return parse(data), provenance
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path.name} is not a safetensors file: {error}") from error


def save(operator: Operator, path: Path | str, provenance: dict) -> None:
    """Write an operator with its configuration; see `write`."""
    config = operator.config.to_dict()
    about = {"kind": "operator", "seed": operator.config.seed, "config": config}
    write(path, operator.state_dict(), about | provenance)


def load(name: Path | str, *, dtype: torch.dtype = torch.float64) -> Operator:
    """The operator `name`: "deepsvm" (as printed), "sound" (anchored), or a path.

    Returns
    -------
    Operator with ``price(x, nu, tau, p)`` and ``greeks(x, nu, tau, p)``, frozen, in float64
    unless asked otherwise, and with its `provenance`.

    Raises
    ------
    WeightsError
        As for `read`, or the file holds no operator.
    """
    tensors, provenance = read(name)
    if provenance.get("kind") != "operator":
        raise WeightsError(f"{name!r} must hold an operator, got {provenance.get('kind')!r}")
    try:
        operator = Operator(Config.from_dict(provenance["config"]))
        operator.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{name!r} does not fit its own configuration: {error}") from error
    if not all(math.isfinite(float(v.sum())) for v in tensors.values()):
        raise WeightsError(f"{name!r} holds weights that are not finite")
    operator.provenance = provenance
    return operator.to(dtype).requires_grad_(False).eval()
