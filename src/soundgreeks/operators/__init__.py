"""Networks that solve pricing equations."""

from . import ansatz, collocation, correction, equation, evaluation, learned, networks
from .collocation import Points
from .operator import PRESETS, Config, Operator
from .problem import PricingProblem, train_operator

__all__ = [
    "PRESETS",
    "Config",
    "Operator",
    "Points",
    "PricingProblem",
    "ansatz",
    "collocation",
    "correction",
    "equation",
    "evaluation",
    "learned",
    "networks",
    "train_operator",
]
