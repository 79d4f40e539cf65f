"""What the pages need: parameters, checks, figures, the runner and the command line."""

from .chapter import begin, end
from .reference import check, glue

__all__ = ["begin", "check", "end", "glue"]
