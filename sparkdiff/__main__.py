"""Entry point of `sparkdiff` and of `python -m sparkdiff`."""

import sys

from sparkdiff.errors import InputError, exit_code_of, requires_extra


def main() -> int:
    """Run the command and return its exit code (see `sparkdiff.cli.main`). Commands that run a job need no extra."""
    return exit_code_of(_run)


def _run() -> int:
    try:
        with requires_extra("cli", "the command `sparkdiff`"):
            import typer  # noqa: F401 - the modules of the command need it
    except InputError:
        from sparkdiff.job import scripts

        if not sys.argv[1:2] or sys.argv[1] not in scripts.FLAGS_OF:
            raise
        return scripts.main(sys.argv[1], sys.argv[2:])
    from sparkdiff import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
