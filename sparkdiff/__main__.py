"""Entry point of `python -m sparkdiff`."""

import sys

from sparkdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
