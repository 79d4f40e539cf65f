"""Minimising a loss: phases, optimisers, checkpoints that resume. Knows no model and no network."""

from .engine import Loss, Phase, average_over_processes, make_optimizer, train

__all__ = ["Loss", "Phase", "average_over_processes", "make_optimizer", "train"]
