"""nbval compares what a checked cell shows, not the values it keeps for the prose."""

import signal

import pytest
import torch

from soundgreeks.book import warm
from soundgreeks.book.reference import GLUE

warm.prefer()

# A shell's background job ignores Ctrl-C and hands that on: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item):
    if hasattr(item.parent, "skip_compare"):
        item.parent.skip_compare = (*item.parent.skip_compare, f"{GLUE}text/plain")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
