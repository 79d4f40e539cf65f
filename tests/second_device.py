"""A second device for machines that have none: a place of its own, and the CPU's arithmetic.

PyTorch lends the dispatch key PrivateUse1 to backends written in Python. Ours, ``far``, holds CPU
tensors inside `Far` and behaves as a GPU does where that matters here. Refused are one operation on
tensors of two devices, draws with the other device's generator, and NumPy. Allowed are single
numbers from the CPU in pointwise operations, index tensors from the CPU, and copies.

    with second_device() as (device, work):
        ...
    work["far"], work["cpu"]  # elements processed on each; views and copies do not count
    work["copies"]  # number of copies from one to the other

A script as well: ``python tests/second_device.py CHAPTER.ipynb`` runs a chapter there, in the smoke
profile, and prints what failed and the work as JSON. What is not emulated: asynchrony, limits of
memory, a GPU's own rounding and random numbers.
"""

import contextlib
import functools
import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("far")  # before any backward pass counts the devices

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
EAGER = {  # flags of a tensor that the outside would not know of
    aten._conj.default: aten.conj_physical.default,
    aten._neg_view.default: aten.neg.default,
}
CPU_GENERATOR = torch.Generator
MAKERS = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}


class Far(torch.Tensor):
    """A tensor on the second device: shape, strides and dtype outside, the numbers in `inner`."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset())
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device="far:0", **layout
        )

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return send(func, args, kwargs or {})[0]

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        if not isinstance(other, Far):
            raise RuntimeError("the data of a tensor on far:0 must be on far:0, got cpu")
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    def tolist(self):
        return self.inner.tolist()

    def __format__(self, spec):
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __repr__(self):
        return f"Far({self.inner!r})"


class Generator(torch.Generator):
    """A generator that knows which of the two devices it is for."""

    places: ClassVar[dict[int, torch.device]] = {}  # operations see it by its address only

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        cls.places[generator._cdata] = torch.device("far:0" if is_far(device) else device)
        return generator

    device = property(lambda self: self.places[self._cdata])


NESTS = (list, tuple, dict)


def leaves(tree) -> list:
    """Whatever stands in a nest of lists, tuples and dictionaries."""
    found = []
    for x in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(x, NESTS):
            found += leaves(x)
        else:
            found.append(x)
    return found


def swap(tree, kind: type, change):
    """The same nest of lists, tuples and dictionaries with every `kind` of thing changed."""

    def new(x):
        if isinstance(x, kind):
            return change(x)
        return swap(x, kind, change) if type(x) in NESTS else x

    if type(tree) is dict:
        return {key: new(x) for key, x in tree.items()}
    return type(tree)([new(x) for x in tree]) if type(tree) in NESTS else new(tree)


def is_far(device) -> bool:
    return device is not None and torch.device(device).type == "far"


def send(func, args, kwargs):
    """What an operation gives, where it lies, and the tensors that went in."""
    given = leaves((args, kwargs))
    tensors = [x for x in given if isinstance(x, torch.Tensor)]
    where = place(func, args, kwargs, given, tensors)
    return compute(func, args, kwargs, where, tensors), where, tensors


def place(func, args, kwargs, given, tensors) -> str:
    """Where an operation's result lies, "far" or "cpu"; raises what a GPU would raise."""
    asked = kwargs.get("device")
    if func in COPIES:
        where = is_far(asked) if asked is not None else isinstance(args[0], Far)
        return "far" if where else "cpu"
    far = [x for x in tensors if isinstance(x, Far)]
    near = [x for x in tensors if not isinstance(x, Far)]
    if far and near and not may_mix(func, args, near):
        shapes = [[tuple(x.shape) for x in xs] for xs in (far, near)]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got far:0 and cpu: "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    where = "far" if (is_far(asked) if asked is not None else far) else "cpu"
    for generator in (x for x in given if isinstance(x, CPU_GENERATOR)):
        found = Generator.places.get(generator._cdata, generator.device)
        if found.type != where:
            raise RuntimeError(f"Expected a '{where}' generator but found one on '{found}'")
    return where


def may_mix(func, args, near) -> bool:
    """Whether a GPU takes these tensors of the CPU together with its own."""
    if func in INDEXED:
        return isinstance(args[0], Far) and all(isinstance(x, Far) or not x.ndim for x in args[2:3])
    written = func._schema.is_mutable and not isinstance(args[0], Far)
    pointwise = torch.Tag.pointwise in func.tags or "masked_fill" in str(func)
    return pointwise and not written and all(x.ndim == 0 for x in near)


def compute(func, args, kwargs, where: str, tensors):
    """Run an operation on the numbers inside, and wrap what comes out if it lies far away."""
    inner, settings = swap((args, kwargs), Far, lambda x: x.inner)
    if settings.get("device") is not None:
        settings["device"] = "cpu"
    out = EAGER.get(func, func)(*inner, **settings)
    if torch.Tag.inplace_view in func.tags and isinstance(args[0], Far):
        with no_dispatch():  # squeeze_ and its like change the shape outside as well
            func(*args, **kwargs)
    if where == "cpu":
        return args[0] if func is aten.copy_.default else out
    known = {id(x.inner): x for x in tensors if isinstance(x, Far)}
    return swap(out, torch.Tensor, lambda x: known[id(x)] if id(x) in known else Far(x))


@functools.cache
def is_view(func) -> bool:
    return func.is_view


class Place(TorchDispatchMode):
    """Sends every operation to its device and counts the elements it processes there."""

    def __init__(self):
        super().__init__()
        self.work = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, where, tensors = send(func, args, kwargs or {})
        if func in COPIES:
            tensors = [x for x in (*args[:2], out) if isinstance(x, torch.Tensor)]
            self.work["copies"] += len({x.device for x in tensors}) > 1
        elif not is_view(func):
            tensors += [x for x in leaves((out,)) if isinstance(x, torch.Tensor)]
            self.work[where] += max((x.numel() for x in tensors), default=0)
        return out


class Make(TorchFunctionMode):
    """Tensors from numbers are made on the CPU and copied, as on a GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in MAKERS:
            return func(*args, **kwargs)
        like = args[0] if func is torch.Tensor.new_tensor else None
        data, device = args[like is not None], kwargs.get("device")
        dtype = kwargs.get("dtype", None if like is None else like.dtype)
        if isinstance(data, torch.Tensor):  # as_tensor leaves it where it is
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        device = device or (torch.get_default_device() if like is None else like.device)
        made = torch.tensor(plain(data), dtype=dtype, device="cpu" if is_far(device) else device)
        made = made.to(device)
        return made.requires_grad_() if kwargs.get("requires_grad") else made


def plain(data):
    """Numbers in place of single numbers on the device, in lists of any depth."""
    if isinstance(data, list | tuple):
        return [plain(x) for x in data]
    return data.inner if isinstance(data, Far) else data


@contextlib.contextmanager
def second_device():
    """The device ``far`` while the block runs, and the work done on it and on the CPU."""
    torch.Generator = Generator
    # an inference tensor has no version counter, which a tensor that wraps another must set
    inference, torch.inference_mode = torch.inference_mode, torch.no_grad
    try:
        with Make(), Place() as mode:
            yield torch.device("far", 0), mode.work
    finally:
        torch.Generator = CPU_GENERATOR
        torch.inference_mode = inference


def run_chapter(path: Path) -> dict:
    """Execute a chapter's cells there: the cells that failed, and the work by device."""
    import nbformat

    import soundgreeks.book.runner

    notebook = nbformat.read(path, as_version=4)
    values = soundgreeks.book.runner.parameters(notebook) | {"profile": "smoke"}
    os.chdir(path.parent)
    names, failures = {"__name__": "__main__"}, []
    with second_device() as (device, work):
        for module in [m for n, m in sys.modules.items() if n.startswith("soundgreeks")]:
            if hasattr(module, "select_device"):
                module.select_device = lambda *_: device
        for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
            if "parameters" in cell.metadata.get("tags", []):
                names |= values
                continue
            try:
                exec(compile(cell.source, f"code cell {number}", "exec"), names)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                at = [f for f in frames if f.filename.startswith("code cell")][-1]
                failures.append(f"{at.filename}, line {at.lineno}: {type(error).__name__}: {error}")
    return {"failures": failures, "work": dict(work)}


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        report = run_chapter(Path(sys.argv[1]).resolve())
    print(json.dumps(report))
