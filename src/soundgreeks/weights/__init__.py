"""Trained networks: safetensors with their provenance as JSON beside them.

Nothing in a weights file is executed when it is read.
"""

import hashlib
import json
import math
import os
import warnings
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from .._environment import environment
from .._validate import require
from ..arithmetic.intervals.networks import ACTIVATIONS, layers_of
from ..operators import Config, Operator, networks
from ..operators.learned import Learned
from ..pruning.sobolev import Standardised

SHIPPED = Path(__file__).parent
_FORMAT = "soundgreeks/2"
_FIRST = "soundgreeks/1"  # the checksum covered the tensors alone; configurations knew only Heston
_IDENTITY = ("format", "kind", "config", "activation", "networks", "seconds")  # what a network is


class WeightsError(ValueError):
    """A weights file that is missing, damaged or not ours.

    >>> read("no such network")
    Traceback (most recent call last):
        ...
    soundgreeks.weights.WeightsError: name must be one of ...
    """


def available() -> list[str]:
    """Names of the networks shipped with the package.

    >>> [name for name in available() if "paper" in name]
    ['paper_anchor', 'paper_implied', 'paper_points']
    """
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def write(path: Path | str, tensors: dict[str, Tensor], provenance: dict) -> None:
    """Write PATH.safetensors and PATH.json, the latter with checksums of tensors and configuration.

    Each file appears in one step: a killed run leaves the last ones whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(f"{folder}/a", {"w": torch.ones(2)}, {"kind": "example"})
    ...     read(f"{folder}/a")[0]
    {'w': tensor([1., 1.])}

    Parameters
    ----------
    path : with or without the suffix .safetensors; other dots belong to the name
    provenance : plain values, to which format, checksums and `environment` are added
    """
    path = _file(path)
    data = serialise({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    record = {"format": _FORMAT} | provenance
    record |= {"sha256": hashlib.sha256(data).hexdigest(), "identity_sha256": _identity(record)}
    text = json.dumps(record | environment(), indent=1) + "\n"
    for target, content in ((path, data), (_record(path), text.encode())):
        part = target.with_name(f"{target.name}.{os.getpid()}")
        part.write_bytes(content)
        os.replace(part, target)


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")


def _record(file: Path) -> Path:
    return file.with_suffix(".json")


def _identity(record: dict) -> str:
    """SHA-256 of what the tensors mean: kind and configuration."""
    identity = {k: record[k] for k in _IDENTITY if k in record}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read(name: Path | str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and provenance of a shipped network, by name, or of a file, by path.

    A bare name is a shipped network's if there is one; write ``./name`` for a file of that name.

    >>> tensors, provenance = read("sound")
    >>> provenance["config"]["ansatz"]
    'smile'

    Raises
    ------
    WeightsError
        No such network, no provenance, a file that does not match its SHA-256, or one that this
        package did not write.
    """
    if str(name) in available():
        if isinstance(name, str) and _file(name).is_file():
            warnings.warn(
                f"{name!r} is the shipped network, not the file {name}.safetensors beside you; "
                f"write './{name}' for that",
                stacklevel=3,
            )
        path = _file(SHIPPED / str(name))
    else:
        path = _file(name)
    record = _record(path)
    for file in (path, record):
        if not file.is_file():
            raise WeightsError(f"name must be one of {available()} or a file, got {name!r}: "
                               f"there is no {file.name}")  # fmt: skip
    try:
        provenance = json.loads(record.read_text())
    except ValueError as error:
        raise WeightsError(f"{record.name} is damaged: not JSON ({error})") from error
    formats = (_FORMAT, _FIRST)
    if not isinstance(provenance, dict) or provenance.get("format") not in formats:
        raise WeightsError(f"{record.name} is not a provenance of format {' or '.join(formats)}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != provenance.get("sha256"):
        raise WeightsError(
            f"{path.name} is damaged: its SHA-256 is {found[:12]}..., "
            f"its provenance says {str(provenance.get('sha256'))[:12]}..."
        )
    if provenance["format"] != _FIRST and _identity(provenance) != provenance.get(
        "identity_sha256"
    ):
        raise WeightsError(
            f"{record.name} does not say what {path.name} was saved as: it was edited"
        )
    try:
        return parse(data), provenance
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path.name} is not a safetensors file: {error}") from error


def save(operator: Operator, path: Path | str, provenance: dict) -> None:
    """Write an operator with its configuration; see `write`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(load("sound"), f"{folder}/a", {})
    ...     load(f"{folder}/a").config.ansatz
    'smile'

    Parameters
    ----------
    operator, path : what and where; provenance : plain values to keep beside it
    """
    config = operator.config.to_dict()
    about = {"kind": "operator", "seed": operator.config.seed, "config": config}
    if isinstance(operator, Learned):
        about["seconds"] = operator.shapes
    write(path, operator.state_dict(), about | provenance)


def load(name: Path | str, *, dtype: torch.dtype = torch.float64) -> Operator:
    """The operator `name`: "deepsvm" (as printed), "paper_anchor" and "paper_implied" (the same
    but for the ansatz), "sound" (the smile in the anchor, similarity coordinates), or a path.

    >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
    >>> load("sound").price(0.0, 0.04, 1.0, p)  # the exact price is .1039422
    tensor(0.1039, dtype=torch.float64)

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
        config, shapes = Config.from_dict(provenance["config"]), provenance.get("seconds")
        operator = Operator(config) if shapes is None else Learned(config, shapes)
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

    >>> from tempfile import TemporaryDirectory
    >>> net = Standardised(networks.plain(2, 3, 1), torch.eye(2), torch.ones(2))
    >>> with TemporaryDirectory() as folder:
    ...     write_networks(f"{folder}/a", {"small": net}, {})
    ...     list(read_networks(f"{folder}/a")[0])
    ['small']

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

    >>> found, _ = read_networks("pruned")
    >>> sum(w.numel() for w in found["IASA.0"].parameters())
    59

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
