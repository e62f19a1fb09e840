"""The `sparkdiff` command. Each subcommand imports what it needs when it runs, so that `--help` responds at once."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import sparkdiff
from sparkdiff.cli import earlier_runs, jobs, models, projects
from sparkdiff.errors import run_for_exit_code

app = typer.Typer(
    help="Improve, fine-tune and grow fitted Spark ML pipelines. The result is a plain Spark ML pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sparkdiff {sparkdiff.__version__}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for command in (
    models.plan,
    jobs.finetune,
    jobs.search,
    jobs.grow,
    jobs.improve,
    models.compact,
    models.verify,
    models.diff,
    projects.init,
    projects.doctor,
    projects.report,
    projects.compare,
    earlier_runs.runs,
    earlier_runs.why,
    earlier_runs.triage,
):
    app.command()(command)
app.add_typer(earlier_runs.caches_app, name="cache")
app.command()(projects.prepare)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 success, 1 failure while running, 2 wrong usage or input, 3 `plan --strict`,
    130 Ctrl-C."""
    return run_for_exit_code(lambda: app(sys.argv[1:] if argv is None else [*argv]))
