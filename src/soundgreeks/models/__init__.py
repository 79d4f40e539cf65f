"""What is priced: models, claims, closed forms and paths. No networks."""

from . import bachelier, black_scholes, heston, paths

__all__ = ["bachelier", "black_scholes", "heston", "paths"]
