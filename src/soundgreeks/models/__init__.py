"""What is priced: models, claims, closed forms and paths. No networks."""

from . import (
    american,
    bachelier,
    barrier,
    black_scholes,
    claims,
    garch,
    heston,
    lifted_heston,
    lognormal,
    paths,
)
from .domain import Domain
from .model import MODELS, Model, register

__all__ = [
    "MODELS",
    "Domain",
    "Model",
    "american",
    "bachelier",
    "barrier",
    "black_scholes",
    "claims",
    "garch",
    "heston",
    "lifted_heston",
    "lognormal",
    "paths",
    "register",
]
