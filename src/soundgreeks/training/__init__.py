"""Minimising a loss: phases, optimisers, checkpoints that resume. Knows no model and no network."""

from .engine import Loss, average_over_processes, train
from .optimizers import make_optimizer
from .phases import Phase

__all__ = ["Loss", "Phase", "average_over_processes", "make_optimizer", "train"]
