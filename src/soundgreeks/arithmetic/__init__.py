"""Numbers that carry more than a value: jets their derivatives, intervals their bounds."""

from . import intervals, jets
from .intervals import Interval
from .jets import Jet

__all__ = ["Interval", "Jet", "intervals", "jets"]
