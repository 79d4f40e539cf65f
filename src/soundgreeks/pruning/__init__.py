"""Small networks: which nodes matter, what goes, and training on values and slopes."""

from . import significance, sobolev

__all__ = ["significance", "sobolev"]
