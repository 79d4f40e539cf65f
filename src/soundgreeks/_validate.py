"""Bad input gets one clear error: the argument, its value, the allowed range."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def require(ok: Tensor | bool, name: str, value, allowed: str) -> None:
    """Raise `ValueError` naming the first offending entry of `value` unless `ok` holds everywhere.

    `ok` is a boolean or a boolean tensor of the shape of `value`. NaN compares false with
    everything, so a condition such as ``value > 0`` rejects it too.
    """
    if isinstance(ok, bool):
        if ok:
            return
    elif bool(torch.as_tensor(ok).all()):
        return
    ok = torch.as_tensor(ok)
    if isinstance(value, Tensor):
        value = value.detach()
        value = value[~ok].flatten()[0].item() if ok.shape == value.shape else tuple(value.shape)
    raise ValueError(f"{name} must be {allowed}, got {value}")


def extremes(values: list[Tensor]) -> list[tuple[float, float]]:
    """Smallest and largest entry of each tensor, NaN if it has one, in one transfer to the host."""
    if not all(v.numel() for v in values):
        return [(float(v.min()), float(v.max())) if v.numel() else (0.0, 0.0) for v in values]
    with torch.no_grad():
        if all(v.ndim == 0 for v in values):
            return [(v, v) for v in torch.stack(values).tolist()]
        return [(low, high) for low, high in torch.stack(
            [torch.stack(v.aminmax()).double() for v in values]).tolist()]  # fmt: skip


def floating(**arguments) -> list[Tensor]:
    """The arguments as tensors of one dtype and device, broadcast against each other.

    Tensors with dimensions decide dtype and device; numbers and 0-dimensional tensors follow them,
    as in PyTorch's own promotion. With numbers alone it is float64 on the CPU.

    Raises
    ------
    TypeError
        An argument is neither a real number nor a tensor of float32 or float64.
    ValueError
        The shapes do not broadcast, or tensors with dimensions lie on different devices.
    """
    return list(_broadcast(arguments, tensors(**arguments)))


def tensors(**arguments) -> list[Tensor]:
    """`floating` without broadcasting."""
    given = {k: a for k, a in arguments.items() if isinstance(a, Tensor)}
    for name, value in given.items():
        if value.dtype not in DTYPES:
            raise TypeError(f"{name} must be of float32 or float64, got {value.dtype}")
    leading = {k: t for k, t in given.items() if t.ndim} or given
    dtype, device = torch.float64, None
    if leading:
        first, *others = leading
        dtype, device = leading[first].dtype, leading[first].device
        for name in others:
            value = leading[name]
            dtype = torch.promote_types(dtype, value.dtype)
            if value.device != device and value.ndim:
                raise ValueError(
                    f"{name} must be on the device of {first}, {device}, got {value.device}"
                )
    if not given:  # numbers alone: one tensor holds them all
        try:
            return list(torch.tensor(list(arguments.values()), dtype=dtype).unbind())
        except (TypeError, ValueError, RuntimeError):
            pass  # some are arrays, or none of it
    converted = []
    for name, value in arguments.items():
        try:
            converted.append(torch.as_tensor(value, dtype=dtype, device=device))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a real number or a tensor, got {value!r}") from error
    return converted


def _broadcast(names, values: list[Tensor]):
    if all(v.shape == values[0].shape for v in values):
        return values
    try:
        return torch.broadcast_tensors(*values)
    except RuntimeError as error:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(names, values, strict=True))
        raise ValueError(f"shapes do not broadcast: {shapes}") from error
