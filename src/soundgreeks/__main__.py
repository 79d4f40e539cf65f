"""``python -m soundgreeks`` is the command ``soundgreeks``."""

import sys

from .book.cli import main

sys.exit(main())
