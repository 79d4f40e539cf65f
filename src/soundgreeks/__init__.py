"""Sound Greeks: surrogates whose derivatives you can trust. The table of contents."""

from . import calibration, operators, training, weights
from .arithmetic import Interval, Jet, intervals, jets
from .models import (
    Domain,
    bachelier,
    black_scholes,
    claims,
    garch,
    heston,
    lifted_heston,
    lognormal,
    paths,
)
from .operators import ansatz, collocation, equation, evaluation, networks
from .pruning import significance, sobolev

__version__ = "0.1.0"

__all__ = [
    # what is priced
    "Domain", "bachelier", "black_scholes", "claims", "garch", "heston", "lifted_heston",
    "lognormal", "paths",
    # numbers that carry derivatives or bounds
    "Interval", "Jet", "intervals", "jets",
    # networks that solve pricing equations
    "ansatz", "collocation", "equation", "evaluation", "networks", "operators", "training",
    # models fitted to markets
    "calibration",
    # small networks
    "significance", "sobolev",
    # trained networks
    "weights",
]  # fmt: skip
