"""The `sparkdiff` command. Each subcommand imports what it needs when it runs, so that `--help` responds at once."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import sparkdiff
from sparkdiff.cli import earlier_runs, jobs, models, projects
from sparkdiff.cli.flags import Command, CommandGroup
from sparkdiff.errors import run_for_exit_code

PANELS: dict[str, dict[Callable[..., None], str]] = {
    "Start": {
        projects.doctor: "",
        projects.init: "models/churn --data data/churn.parquet",
        projects.options: "epochs",
        projects.prepare: "",
    },
    "Improve": {
        jobs.improve: "models/churn --data data/churn.parquet --label label --output runs/better",
        jobs.finetune: "models/churn --data data/churn.parquet --label label --output runs/churn",
        jobs.search: "pipelines:churn --data data/churn.parquet --output runs/search search.metric=rmse "
        "'search.space={PCA: {k: [2, 3]}}'",
        jobs.grow: "models/churn --data data/churn.parquet --label label --output runs/grown",
    },
    "Look": {
        models.plan: "models/churn",
        models.verify: "models/churn --data data/churn.parquet",
        projects.report: "runs/churn",
        projects.compare: "runs/churn runs/better",
        models.diff: "models/churn runs/churn",
    },
    "Serve": {models.compact: "runs/churn --output models/small"},
    "Remember": {
        earlier_runs.runs: "store",
        earlier_runs.why: "runs/churn --store store",
        earlier_runs.triage: "models/churn models/risk --data data/users.parquet --budget '4 core-hours'",
    },
}
"""The commands by the panel of `sparkdiff --help` that shows them, with the arguments of an example."""
app = typer.Typer(
    cls=CommandGroup,
    help="Improve, fine-tune and grow fitted Spark ML pipelines. The result is a plain Spark ML pipeline.",
    epilog="Exit codes: 0 done; 1 failed while running, or doctor, verify or triage found a failure; 2 wrong usage or input; "
    "3 a stage stays in Spark (plan --strict); 130 Ctrl-C.",
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


for panel, commands in PANELS.items():
    for command, arguments in commands.items():
        app.command(cls=Command, epilog=f"Example: sparkdiff {command.__name__} {arguments}", rich_help_panel=panel)(
            command
        )
app.add_typer(earlier_runs.caches_app, name="cache", rich_help_panel="Remember")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 success, 1 failure while running, 2 wrong usage or input, 3 `plan --strict`,
    130 Ctrl-C."""
    return run_for_exit_code(lambda: app(sys.argv[1:] if argv is None else [*argv]))
