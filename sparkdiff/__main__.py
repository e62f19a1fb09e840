"""Entry point of `sparkdiff` and of `python -m sparkdiff`."""

import sys
from importlib.util import find_spec

from sparkdiff.errors import WRONG_INPUT


def main() -> int:
    """Run the command and return its exit code (see `sparkdiff.cli.app.main`). Commands that run a job need no extra."""
    if find_spec("typer") is not None:
        from sparkdiff.cli import app

        return app.main()
    from sparkdiff.cli import scripts

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in scripts.FLAGS_OF:
        return scripts.main(name, sys.argv[2:])
    print('error: the command needs typer: pip install "sparkdiff[cli]"', file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
