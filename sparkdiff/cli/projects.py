"""Commands around a project: init, doctor, options, prepare, report and compare."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from sparkdiff.cli.flags import AsJson, Data, Format, Model, ReaderOptions, Text, load_models_and_rows
from sparkdiff.cli.job_options import list_options
from sparkdiff.errors import FAILED, InputError
from sparkdiff.machine import paths


def init(
    model: Model,
    data: Data = None,
    format: Format = "",
    options: ReaderOptions = "",
    label: Annotated[Text, typer.Option(help="Label column; by default that of the pipeline.")] = None,
    output: Annotated[str, typer.Option(help="File to write; it must not exist.")] = "sparkdiff.yaml",
) -> None:
    """Write a commented YAML file for `sparkdiff finetune`, from the columns of a saved pipeline and of the rows."""
    from sparkdiff.data import loading

    file = Path(output).absolute()
    if file.exists():
        raise InputError(f"--output {output} exists: choose another name")
    if not file.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {file.parent}")
    path = paths.local(loading.model_path(model, Path.cwd()))
    if path is None:
        raise InputError(f"{model} must be a folder on the file system of this machine")
    [(_, fitted)], rows = load_models_and_rows([model], "sparkdiff.cli.first_config", "init", data, format, options)
    from sparkdiff.cli.first_config import first_config

    place = data if data is None or paths.local(data) is None else str(Path(str(paths.local(data))).absolute())
    source = {} if data is None else {**loading.source_of(data, format, options), "path": place}
    text = first_config(fitted, path, source, file, label, rows.schema if rows is not None else None)
    with file.open("x", encoding="utf-8") as new:
        new.write(text)
    print(f"wrote {output}; next: sparkdiff finetune --config {output}")


def doctor(
    path: Annotated[
        Text, typer.Option(help="Folder of caches and outputs: one that Spark and this process must see, or a URL.")
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start Spark and let it write a file.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, Java, Spark, torch, GPUs, Petastorm, disk and paths. Exits with code 1 if something is wrong."""
    from sparkdiff.cli.doctor import PROBLEM, run_checks

    found = []
    for finding in run_checks(path, start=start):
        found.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=2))
    if any(f.state == PROBLEM for f in found):
        raise typer.Exit(FAILED)


def options(
    word: Annotated[str, typer.Argument(help="Only options with this word in their name or description.")] = "",
) -> None:
    """List the options of jobs with their defaults, as section.key=value: the form of YAML files and of overrides."""
    print("\n".join(list_options(word)))


def prepare() -> None:
    """Halve Spark's start time on this machine: write its classes to one file that Java maps. Takes a minute, once.

    Every later start uses the file; run this again after an update of Java or Spark.
    """
    from sparkdiff.cli.warm_up_job import prepare as archived

    where = archived()
    print(f"wrote {where} ({where.stat().st_size >> 20} MiB), which sparkdiff starts Java with from now on")


def report(
    run: Annotated[str, typer.Argument(help="Output folder of a run.")],
    output: Annotated[Text, typer.Option(help="File to write; by default report.html in the run's folder.")] = None,
) -> None:
    """Write the report of a run again: one self-contained page of HTML. Runs no Spark."""
    from sparkdiff.report.run_report import REPORT, report_of

    _write_page(report_of(Path(run)), Path(run) / REPORT if output is None else Path(output))


def compare(
    runs: Annotated[list[str], typer.Argument(help="Output folders of two or more runs.")],
    output: Annotated[Text, typer.Option(help="File to write as HTML; without it a table is printed.")] = None,
) -> None:
    """Show runs side by side: decisions, metrics, gains, and the options in which they differ. Runs no Spark."""
    from sparkdiff.report.run_report import comparison_of, comparison_text

    if len(runs) < 2:
        raise InputError(f"compare needs two or more runs. Got {runs[0]} only")
    folders = [Path(r) for r in runs]
    if output is None:
        print(comparison_text(folders))
    else:
        _write_page(comparison_of(folders), Path(output))


def _write_page(text: str, path: Path) -> None:
    from sparkdiff.report.svg import write_own_file

    write_own_file(path, text)
    print(f"wrote {path}")
