"""nbval compares what a checked cell shows, not the values it keeps for the prose."""

from soundgreeks.book.reference import GLUE


def pytest_itemcollected(item):
    if hasattr(item.parent, "skip_compare"):
        item.parent.skip_compare = (*item.parent.skip_compare, f"{GLUE}text/plain")
