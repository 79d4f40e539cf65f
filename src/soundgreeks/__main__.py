"""``python -m soundgreeks`` is the command ``soundgreeks``."""

import sys


def main() -> int:
    """Run the command line and return its exit status; Ctrl-C while it is imported is one line."""
    try:
        from .book import cli
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
