"""Bad input gets one clear error: the argument, its value, the allowed range."""

import torch
from torch import Tensor


def require(ok: Tensor | bool, name: str, value, allowed: str) -> None:
    """Raise `ValueError` naming the first offending entry of `value` unless `ok` holds everywhere.

    `ok` is a boolean or a boolean tensor of the shape of `value`. NaN compares false with
    everything, so a condition such as ``value > 0`` rejects it too.
    """
    ok = torch.as_tensor(ok)
    if bool(ok.all()):
        return
    if isinstance(value, Tensor):
        value = value.detach()
        value = value[~ok].flatten()[0].item() if ok.shape == value.shape else tuple(value.shape)
    raise ValueError(f"{name} must be {allowed}, got {value}")


def floating(**arguments) -> list[Tensor]:
    """The arguments as tensors of one floating dtype and device, broadcast against each other.

    Tensors with dimensions decide the dtype; numbers and 0-dimensional tensors follow them, as in
    PyTorch's own promotion. With numbers alone it is float64.

    Raises
    ------
    TypeError
        An argument is neither a real number nor a floating tensor.
    ValueError
        The shapes do not broadcast.
    """
    for name, value in arguments.items():
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    tensors = [a for a in arguments.values() if isinstance(a, Tensor)]
    dtype, device = torch.float64, None
    if tensors:
        leading = [t for t in tensors if t.ndim] or tensors
        dtype, device = leading[0].dtype, leading[0].device
        for t in leading[1:]:
            dtype = torch.promote_types(dtype, t.dtype)
    converted = []
    for name, value in arguments.items():
        try:
            converted.append(torch.as_tensor(value, dtype=dtype, device=device))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a real number or a tensor, got {value!r}") from error
    try:
        return list(torch.broadcast_tensors(*converted))
    except RuntimeError as error:
        shapes = ", ".join(
            f"{n} {tuple(t.shape)}" for n, t in zip(arguments, converted, strict=True)
        )
        raise ValueError(f"shapes do not broadcast: {shapes}") from error
