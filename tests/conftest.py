"""What several files of tests need."""

import importlib
import sys

import pytest

from soundgreeks.book import runner


@pytest.fixture(scope="session")
def pages():
    """The book's own extension."""
    folder = str(runner.find_root() / "book/_ext")
    sys.path.insert(0, folder)
    module = importlib.import_module("soundgreeks_pages")
    sys.path.remove(folder)
    return module
