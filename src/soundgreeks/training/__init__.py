"""Minimising a loss: phases, optimisers, checkpoints that resume. Knows no model and no network."""

from .engine import train
from .optimizers import make_optimizer
from .phases import Phase
from .processes import average_over_processes
from .protocols import Loss

__all__ = ["Loss", "Phase", "average_over_processes", "make_optimizer", "train"]
