"""Several processes under ``torchrun``, each with its share of the loss."""

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether this process is one of several that train together.

    >>> distributed()  # alone
    False
    """
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0, the one that writes files, if it is alone.

    >>> rank()
    0
    """
    return dist.get_rank() if distributed() else 0


def world() -> int:
    """How many processes there are.

    >>> world()
    1
    """
    return dist.get_world_size() if distributed() else 1


def meet() -> None:
    """Wait until every process has come here."""
    if distributed():
        dist.barrier()


def average_over_processes(weights: list[Tensor], terms: dict[str, Tensor]) -> None:
    """Replace gradients and loss terms by their means over the processes of torch.distributed.

    >>> terms = {"physics": torch.tensor(2.0)}
    >>> average_over_processes([], terms)  # alone, they stay as they are
    >>> terms["physics"]
    tensor(2.)
    """
    if not distributed():
        return
    tensors = [w.grad for w in weights if w.grad is not None] + list(terms.values())
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world()
    pieces = flat.split([t.numel() for t in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
