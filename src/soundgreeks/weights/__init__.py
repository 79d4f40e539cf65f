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
from torch import Tensor, nn

from .._validate import require
from ..arithmetic.intervals.networks import ACTIVATIONS, layers_of
from ..operators import Config, Operator, networks
from ..pruning.sobolev import Standardised

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
    """The operator `name`: "deepsvm" (as printed), "paper_anchor" and "paper_implied" (the same
    but for the ansatz), "sound" (implied variance, similarity coordinates), or a path.

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


def write_networks(path: Path | str, group: dict[str, Standardised], provenance: dict) -> None:
    """Write plain perceptrons that share one standardisation; see `write`.

    The k-th module of the network `name` is stored as ``name.k.weight`` and ``name.k.bias``, the
    standardisation as ``frame.x_mean``, ``x_std``, ``y_mean`` and ``y_std``.

    Raises
    ------
    ValueError
        No network, different standardisations or activations, or a network called "frame".
    """
    require(bool(group) and "frame" not in group, "group", list(group), "names other than 'frame'")
    frame = dict(next(iter(group.values())).named_buffers(recurse=False))
    activations, tensors = set(), {f"frame.{k}": v for k, v in frame.items()}
    for name, network in group.items():
        same = all(torch.equal(v, frame[k]) for k, v in network.named_buffers(recurse=False))
        require(same, "group", repr(name), "networks with one standardisation")
        activations.add(layers_of(network.network)[1].__name__)
        tensors |= {f"{name}.{k}": v for k, v in network.network.state_dict().items()}
    require(len(activations) == 1, "group", sorted(activations), "networks with one activation")
    about = {"kind": "networks", "activation": activations.pop(), "networks": list(group)}
    write(path, tensors, about | provenance)


def read_networks(name: Path | str) -> tuple[dict[str, Standardised], dict]:
    """Networks by name, and their provenance, from a file of `write_networks`.

    Each maps raw spots (n, d) to prices (n,); its ``.network`` is the plain perceptron inside. All
    are frozen and in the dtype they were trained in; to train one on, copy it and thaw the copy
    with ``requires_grad_()``.

    Raises
    ------
    WeightsError
        As for `read`, or the file holds no such networks.
    """
    tensors, provenance = read(name)
    if provenance.get("kind") != "networks":
        raise WeightsError(f"{name!r} must hold networks, got {provenance.get('kind')!r}")
    frame = {k[6:]: v for k, v in tensors.items() if k.startswith("frame.")}
    found = {}
    try:
        activation = {a.__name__: a for a in ACTIVATIONS}[provenance["activation"]]
        blank = torch.zeros(2, len(frame["x_mean"]), dtype=frame["x_mean"].dtype)
        outer = Standardised(nn.Identity(), blank, blank[:, 0])
        outer.load_state_dict(frame)
        for label in provenance["networks"]:
            mine = f"{label}."
            state = {k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)}
            layers = [state[f"{k}.weight"] for k in range(0, len(state), 2)]
            sizes = (layers[0].shape[1], *map(len, layers))
            network = networks.plain(*sizes, activation=activation).to(layers[0].dtype)
            network.load_state_dict(state)
            found[label] = outer.around(network.requires_grad_(False).eval())
    except (KeyError, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{name!r} does not hold plain networks: {error}") from error
    if not all(bool(v.isfinite().all()) for v in tensors.values()):
        raise WeightsError(f"{name!r} holds weights that are not finite")
    return found, provenance
