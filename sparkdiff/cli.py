"""The `sparkdiff` command. Each of its parts imports what it needs, so that help comes at once."""

import contextlib
import ctypes
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import sparkdiff
from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.machine.secrets import HIDDEN

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

DONE, FAILED, WRONG_INPUT, NOT_STRICT, INTERRUPTED = 0, 1, 2, 3, 130

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


Text = Optional[str]  # noqa: UP045 - typer reads it at run time
Model = Annotated[str, typer.Argument(help="Folder of a saved PipelineModel, of a saved stage, or of a run.")]
Names = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    typer.Option(help="Uid, class name or output column of a stage; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# The flags of all commands that take rows; `finetune` and `grow` take each also as section.key=value.
Data = Annotated[Text, typer.Option(help="Path of the rows.")]
Format = Annotated[str, typer.Option(help="Format of the rows, such as parquet or csv.")]
ReaderOptions = Annotated[
    str, typer.Option(help="Options of Spark's reader as a JSON object; the key schema sets the schema.")
]
Label = Annotated[Text, typer.Option(help="Label column (fineTuner.labelCol).")]
Group = Annotated[Text, typer.Option(help="Group column: rows of a group belong together (fineTuner.groupCol).")]
Time = Annotated[Text, typer.Option(help="Time column: the latest rows are held out (fineTuner.timeCol).")]
Output = Annotated[Text, typer.Option(help="Folder to write (output.path).")]


@app.command()
def plan(
    model: Model,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Argument(help="With --cost: fineTuner.option=value, such as fineTuner.maxEpochs=50."),
    ] = None,
    freeze: Names = None, reference: Names = None, target: Names = None, unfreeze: Names = None,
    schema: Annotated[
        Text, typer.Option(help="Schema of the data, as DDL (`a double, b string`) or as JSON of a StructType.")
    ] = None,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option(help="Exit with code 3 if a stage stays in Spark.")] = False,
    draw: Annotated[Text, typer.Option(help="File to write a picture of the plan to, as SVG.")] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Also tell Spark jobs, cache size and time of a fine-tuning of --data. Writes nothing.")
    ] = False,
    data: Data = None, format: Format = "", options: ReaderOptions = "{}", label: Label = None, group: Group = None,
    time: Time = None,
) -> None:  # fmt: skip
    """Show which stages would train, and why the others would not. Runs no Spark job, unless --cost asks for it."""
    _check_cost(cost, data, {"--label": label, "--group": group, "--time": time, "fineTuner": overrides})
    given = None if data is None else (data, *_read_as(data, format, options))
    [(_, fitted)], rows = _loaded(
        [model], "sparkdiff.costs" if cost else "sparkdiff.pipeline.plan", "plan", *given or ()
    )
    from sparkdiff.pipeline.plan import plan as plan_of

    known = None if schema is None else _schema(schema)
    wishes = {"freeze": freeze, "reference": reference, "target": target, "unfreeze": unfreeze}
    found = plan_of(fitted, schema=known, **{option: names or () for option, names in wishes.items()})
    if draw is not None:
        found.draw().save(draw)
    if cost:
        told = _cost(fitted, rows, wishes, {"labelCol": label, "groupCol": group, "timeCol": time}, overrides or ())
        plan_ = json.loads(found.toJSON())
        print(json.dumps({**plan_, "cost": json.loads(told.toJSON())}, indent=2) if as_json else f"{found}\n\n{told}")
    else:
        print(found.toJSON() if as_json else found)
    if strict and any(s.role == "referenced" for s in found.stages):
        raise typer.Exit(NOT_STRICT)


def _check_cost(cost: bool, data: str | None, given: Mapping[str, Any]) -> None:
    if cost and data is None:
        raise InputError("--cost needs the rows that would train: --data rows.parquet")
    if not cost and (data is not None or any(given.values())):
        name = next((name for name, value in given.items() if value), "--data")
        raise InputError(f"{name} is for the cost of a fine-tuning: add --cost")


def _read_as(path: str, format: str, options: str) -> tuple[str, str]:
    """The format and the reader's options of rows; those that the name of the file tells, if none are given."""
    from sparkdiff.job import loading

    form = format or loading.format_of(path)
    return form, json.dumps(loading.CSV) if form == "csv" and options == "{}" else options


def _cost(
    model: Any, rows: Any, wishes: Mapping[str, Any], columns: Mapping[str, str | None], overrides: Sequence[str]
) -> Any:
    """The cost of a fine-tuning with these options."""
    from sparkdiff.estimator import FineTuner
    from sparkdiff.job.config import options_of

    named = {name: value for name, value in {**wishes, **columns}.items() if value}
    return FineTuner(model, **named, **options_of(overrides)).cost(rows)


@app.command()
def finetune(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as fineTuner.maxEpochs=50; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fine-tune a pipeline with the settings of flags, overrides or a YAML file, and write a run folder."""
    _run_job("finetune", config, overrides, {
        "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group, "fineTuner.timeCol": time,
        "output.path": output,
    }, as_json=as_json)  # fmt: skip


@app.command()
def search(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as search.numTrials=50; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of a pipeline as the section `search` of a YAML file says, and write a run folder.

    A search that was killed goes on when the same command is given again.
    """
    _run_job("search", config, overrides, {
        "data.train.path": data, "output.path": output,
    }, as_json=as_json)  # fmt: skip


@app.command()
def grow(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as grower.rounds=3; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Grow a pipeline that ends in a linear stage as the section `grower` of a YAML file says, and write a run folder.

    A growth that was killed goes on when the same command is given again.
    """
    _run_job("grow", config, overrides, {
        "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group, "fineTuner.timeCol": time,
        "output.path": output,
    }, as_json=as_json)  # fmt: skip


@app.command()
def improve(
    model: Annotated[
        Text, typer.Argument(help="Folder of a saved PipelineModel; or the first section.key=value of a job's file.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, such as improver.keepForm=true; overrides the flags and the YAML file."),
    ] = None,
    config: Annotated[Text, typer.Option(help="YAML file of the job.")] = None,
    data: Data = None, label: Label = None, group: Group = None, time: Time = None, output: Output = None,
    budget: Annotated[
        Text, typer.Option(help="Time for all that is tried: 90s, 30m, 2h; or passes over the rows: '300 passes'.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Improve a pipeline within a budget in every way there is, and write a run folder with the best and other offers.

    An improvement that was killed goes on when the same command is given again. Ctrl-C ends it with the best so far.
    """
    given = [*([model] if model is not None else []), *(overrides or [])]
    path = given.pop(0) if given and "=" not in given[0] else None
    _run_job("improve", config, given, {
        "pipeline": path, "data.train.path": data, "fineTuner.labelCol": label, "fineTuner.groupCol": group,
        "fineTuner.timeCol": time, "output.path": output, "improver.budget": budget or (None if config else "30m"),
    }, as_json=as_json)  # fmt: skip


def _run_job(
    command: str, config: str | None, overrides: Sequence[str] | None, flags: Mapping[str, str | None], *, as_json: bool
) -> None:
    """
    Args:
        as_json: print the result alone on stdout, as one object of JSON, and all else on stderr.
    """
    from sparkdiff import job
    from sparkdiff.machine.paths import local

    path = None if config is None else local(config)
    if config is not None and path is None:
        raise InputError(f"--config {config} must be a file on the file system of this machine")
    settings = job.load_config(path, overrides or [], {key: text for key, text in flags.items() if text is not None})
    if (right := settings.command) != command:
        sections = {name: section for section, name in job.COMMANDS.items()}
        found = f"a section {sections[right]!r}" if right in sections else f"no section {sections[command]!r}"
        raise InputError(f"the job has {found}: run `sparkdiff {right}` instead")
    try:
        with _all_on_stderr() if as_json else contextlib.nullcontext():
            found = job.run(settings)
    except KeyboardInterrupt:
        print(f"interrupted. {_way_on(job.command_of(settings))}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(_result(found, settings.where), indent=2))
    else:
        print(f"\n{found}\nsaved {settings.where}/model (plain Spark ML)")


@contextlib.contextmanager
def _all_on_stderr() -> Iterator[None]:
    """Within this context stdout is stderr, also that of native code, and of Java and other processes that start in it."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what native code has written, and the buffers of C still hold
        os.dup2(stdout, 1)
        os.close(stdout)


def _result(found: Any, where: str) -> dict[str, Any]:
    """What a program wants to know of a job; the rest is in summary.json."""
    told = found.asdict() if hasattr(found, "asdict") else found.toDict()
    names = (
        "decision",
        "reason",
        "metric",
        "metricDirection",
        "metrics",
        "fresh",
        "gain",
        "gainInterval",
        "p",
        "warnings",
    )
    accepted = not told["decision"].startswith("kept")
    return {
        "output": where,
        "model": f"{where}/model",
        "accepted": accepted,
        **{n: told[n] for n in names if n in told},
    }


def _way_on(command: str) -> str:
    """How an interrupted job goes on."""
    on = "goes on with what is cached and from the last checkpoint"
    return f"The same command {on}." if HIDDEN in command else f"In the same folder, this {on}:\n  {command}"


@app.command()
def compact(
    model: Model,
    output: Annotated[
        Text, typer.Option(help="New folder for the smaller pipeline; without it, only the plan is shown.")
    ] = None,
    keepCols: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--keepCols",
            help="Column that must stay; may be repeated. By default those that no later stage reads, and the last stage's.",
        ),
    ] = None,
    schema: Annotated[
        Text, typer.Option(help="Schema of the data, as DDL (`a double, b string`) or as JSON of a StructType.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold a pipeline into fewer stages with the same outputs, and show what goes and why the rest stays."""
    from sparkdiff.serving.saving import new_folder, save

    folder = None if output is None else new_folder("--output", output)
    [(_, fitted)], _ = _loaded([model], "sparkdiff.serving.compact")
    from sparkdiff.serving.compact import compact as compacted, compact_plan

    known = None if schema is None else _schema(schema)
    found = compact_plan(fitted, keepCols, schema=known)
    print(found.toJSON() if as_json else found)
    if folder is not None:
        save(compacted(fitted, keepCols, schema=known), folder)
        if not as_json:
            print(f"saved {folder} (plain Spark ML)")


@app.command()
def verify(model: Model, data: Data, format: Format = "parquet", options: ReaderOptions = "{}") -> None:
    """Compare the outputs of Spark and of the translated network, column by column. Exits with code 1 at a mismatch."""
    [(_, fitted)], rows = _loaded([model], "sparkdiff.pipeline.parity", "verify", data, format, options)
    from sparkdiff.pipeline.parity import verify as parity_of

    parity = parity_of(fitted, rows)
    for column, difference in parity.maxRelDiff.items():
        print(f"{column:<30} {difference:.3e}")
    print(parity)
    if not parity.ok:
        raise typer.Exit(FAILED)


@app.command()
def diff(
    old: Model,
    new: Annotated[str, typer.Argument(help="Folder of the model to compare with.")],
    data: Data = None,
    format: Format = "parquet",
    options: ReaderOptions = "{}",
    sample: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Largest number of rows to predict on; the same rows are used each time."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which stages, Params and weights of two models differ, and how their predictions differ on the same rows.

    The exit code is 0 whether or not they differ; --json prints it as "same". Relative differences are divided by the larger
    value.
    """
    module = "sparkdiff.diagnostics.predictions" if data is not None else "sparkdiff.diagnostics.models"
    [(where, before), (there, after)], rows = _loaded([old, new], module, "diff", data, format, options)
    from sparkdiff.data.cache import root
    from sparkdiff.diagnostics.models import between
    from sparkdiff.options import Options

    found = between(before, after, root(Options()), paths=(where, there))
    if rows is not None:
        from sparkdiff.diagnostics.predictions import predictions

        found = dataclasses.replace(found, predictions=predictions(before, after, rows, sample))
    print(found.toJSON() if as_json else found)


@app.command()
def init(
    model: Model,
    data: Data = None,
    label: Annotated[Text, typer.Option(help="Label column; by default that of the pipeline.")] = None,
    output: Annotated[str, typer.Option(help="File to write; it must not exist.")] = "sparkdiff.yaml",
) -> None:
    """Write a commented YAML file for `sparkdiff finetune`, from the columns of a saved pipeline and of the rows."""
    from sparkdiff.job import loading
    from sparkdiff.machine import paths

    file = Path(output).absolute()
    if file.exists():
        raise InputError(f"--output {output} exists: choose another name")
    if not file.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {file.parent}")
    path = paths.local(loading.model_path(model, Path.cwd()))
    if path is None:
        raise InputError(f"{model} must be a folder on the file system of this machine")
    form = "" if data is None else loading.format_of(data)
    options = json.dumps(loading.CSV if form == "csv" else {})
    [(_, fitted)], rows = _loaded([model], "sparkdiff.job.first_config", "init", data, form, options)
    from sparkdiff.job.first_config import first_config

    place = data if data is None or paths.local(data) is None else str(Path(str(paths.local(data))).absolute())
    text = first_config(fitted, path, place, file, label, rows.schema if rows is not None else None)
    with file.open("x", encoding="utf-8") as new:
        new.write(text)
    print(f"wrote {output}; next: sparkdiff finetune --config {output}")


@app.command()
def doctor(
    path: Annotated[
        Text, typer.Option(help="Folder of caches and outputs, which Spark and this process must see.")
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start Spark and let it write a file.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check Python, packages, Java, Spark, torch, GPUs, Petastorm, disk and paths. Exits with code 1 if something is wrong."""
    from sparkdiff.job.doctor import PROBLEM, examined

    found = []
    for finding in examined(None if path is None else Path(path).absolute(), start=start):
        found.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=2))
    if any(f.state == PROBLEM for f in found):
        raise typer.Exit(FAILED)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Output folder of a run.")],
    output: Annotated[Text, typer.Option(help="File to write; by default report.html in the run's folder.")] = None,
) -> None:
    """Write the report of a run again: one page of HTML, which needs no other file. Runs no Spark."""
    from sparkdiff.report.run_report import REPORT, report_of

    _written(report_of(Path(run)), Path(run) / REPORT if output is None else Path(output))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Output folders of two or more runs.")],
    output: Annotated[Text, typer.Option(help="File to write as HTML; without it a table is printed.")] = None,
) -> None:
    """Show runs side by side: decisions, metrics, gains, and the options in which they differ. Runs no Spark."""
    from sparkdiff.report.run_report import compared, comparison_of

    if len(runs) < 2:
        raise InputError(f"compare needs two or more runs. Got {runs[0]} only")
    folders = [Path(r) for r in runs]
    if output is None:
        print(compared(folders))
    else:
        _written(comparison_of(folders), Path(output))


def _written(text: str, path: Path) -> None:
    from sparkdiff.report.writing import write

    try:
        write(path, text)
    except OSError as e:
        raise InputError(f"{path} cannot be written: {e.strerror or e}") from e
    print(f"wrote {path}")


Store = Annotated[str, typer.Argument(help="Folder of the store of runs, as the option storeDir names it.")]


@app.command()
def runs(
    store: Store,
    where: Annotated[Text, typer.Option(help="Condition in SQL, such as \"verb = 'improve' and gain > 0.1\".")] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by, the largest first.")] = "finished",
    limit: Annotated[int, typer.Option(help="Rows to show at most.", min=1)] = 50,
    compact: Annotated[
        bool, typer.Option("--compact", help="First put all runs into one file, which is read faster.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all columns, a run per line, as JSON.")] = False,
) -> None:
    """Show the runs of a store: what was tried, decided and gained."""
    from sparkdiff.history import listing
    from sparkdiff.job import loading
    from sparkdiff.machine import paths

    loading.start_session({}, "sparkdiff.history.listing")
    here = paths.local(store)
    lines = listing.listed(
        store if here is None else str(here.absolute()), where, sort, limit, compact=compact, as_json=as_json
    )
    print("\n".join(lines))


@app.command()
def why(
    model: Model,
    store: Annotated[
        str, typer.Option("--store", help="Folder of the store of runs, as the option storeDir names it.")
    ],
    as_json: AsJson = False,
    reproduce: Annotated[bool, typer.Option("--reproduce", help="Print the command that made the model.")] = False,
    draw: Annotated[Text, typer.Option(help="File to which the picture of it is written, as SVG.")] = None,
) -> None:
    """Show where a model comes from: the runs that led to it, what they considered, and what decided."""
    from sparkdiff.history.lineage import why as lineage_of
    from sparkdiff.job import loading
    from sparkdiff.machine import paths

    where = [given if (path := paths.local(given)) is None else str(path.absolute()) for given in (model, store)]
    if not all(paths.local(given) for given in where):
        loading.start_session({}, "sparkdiff.history.lineage")
    found = lineage_of(*where)
    if draw is not None:
        found.draw().save(draw)
    print(found.command() if reproduce else found.toJSON() if as_json else found)


@app.command()
def triage(
    models: Annotated[list[str], typer.Argument(help="Folders of saved PipelineModels, or of runs.")],
    budget: Annotated[str, typer.Option(help='Processor time, such as "4 core-hours", "30 core-minutes" or 90s.')],
    data: Annotated[
        list[str], typer.Option(help="Path of the rows: one for all models, or one per model in their order.")
    ],
    label: Label = None, group: Group = None, time: Time = None,
    store: Annotated[
        Text, typer.Option("--store", help="Folder of a store of runs, to learn from and to add the runs to.")
    ] = None,
    output: Annotated[Text, typer.Option(help="Folder to save the tuned pipelines in, each by its name.")] = None,
    share: Annotated[float, typer.Option(help="Part of the gain to expect of all models that is run for.")] = 0.8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only forecast.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Forecast which of many pipelines deserve a fine-tuning, and run the most valuable ones within a budget."""
    from sparkdiff.fleet.budget import core_seconds
    from sparkdiff.job import loading
    from sparkdiff.machine import paths

    core_seconds(budget)  # before Spark starts
    if len(data) not in (1, len(models)):
        raise InputError(
            f"{len(data)} --data for {len(models)} models: give one for all, or one per model in their order"
        )
    folder = Path.cwd()
    where = [loading.model_path(model, folder) for model in models]
    rows = {f"triage {i}": _source(path, *_read_as(path, "", "{}")) for i, path in enumerate(dict.fromkeys(data))}
    loading.check_there(where, rows, folder, {})
    loading.start_session({}, "sparkdiff.fleet.saving")
    from sparkdiff.fleet.saving import triage_paths

    here = None if store is None or (path := paths.local(store)) is None else str(path.absolute())
    columns = {"labelCol": label, "groupCol": group, "timeCol": time}
    found = triage_paths(
        where, data, budget, here or store, None if output is None else Path(output), share, dry_run,
        {name: value for name, value in columns.items() if value},
    )  # fmt: skip
    print(found.toJSON() if as_json else found)


caches_app = typer.Typer(no_args_is_help=True, help="Show and remove caches on this machine. Runs no Spark.")
app.add_typer(caches_app, name="cache")
Folder = Annotated[str, typer.Argument(help="Folder of the caches: cacheDir, or .cache beside the output of jobs.")]


@caches_app.command("list")
def list_caches(folder: Folder, as_json: AsJson = False) -> None:
    """Show what lies in a folder of caches: size, last use, what it cost, and which stages of Spark made it."""
    from sparkdiff.history import caches

    found = caches.entries(Path(folder))
    if as_json:
        print(json.dumps([dataclasses.asdict(e) | {"path": str(e.path)} for e in found], indent=2))
    else:
        print("\n".join(caches.table(found)))


@caches_app.command("prune")
def prune_caches(
    folder: Folder,
    max_mb: Annotated[Optional[float], typer.Option(help="Megabytes that may stay.", min=0)] = None,  # noqa: UP045
    max_days: Annotated[float | None, typer.Option(help="Days without a use after which a cache goes.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove old caches, and then those that save the least time per byte. What is read, or was used within an hour, stays."""
    from sparkdiff.history import caches

    if max_mb is None and max_days is None:
        raise InputError("prune needs a limit: --max-mb 2000, --max-days 30, or both; clear removes all")
    found = caches.entries(Path(folder))
    chosen = caches.to_remove(found, most=None if max_mb is None else int(max_mb * 1e6), days=max_days)
    _removed(chosen, dry_run)


@caches_app.command("clear")
def clear_caches(
    folder: Folder,
    recent: Annotated[bool, typer.Option("--recent", help="Also those that were used within the last hour.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove all caches, kept rows and fitted pipelines of jobs that no process reads. Checkpoints and all other files stay."""
    from sparkdiff.history import caches

    _removed(
        [e for e in caches.entries(Path(folder)) if e.free or (recent and e.kind in caches.WHOLE and not e.read)],
        dry_run,
    )
    if not dry_run:
        caches.forget_seen(Path(folder))


def _removed(chosen: Sequence[Any], dry_run: bool) -> None:
    from sparkdiff.history import caches

    gone = chosen if dry_run else caches.remove(chosen)
    print("\n".join(caches.table(gone)) if gone else "nothing to remove")
    if gone and not dry_run:
        print("removed")


@app.command()
def prepare() -> None:
    """Make Spark start in half of the time on this machine: write its classes to one file that Java maps. Once, a minute.

    Every later start uses it; after an update of Java or Spark, prepare again.
    """
    from sparkdiff.job.rehearsal import prepare as archived

    where = archived()
    print(f"wrote {where} ({where.stat().st_size >> 20} MiB), which sparkdiff starts Java with from now on")


def _loaded(
    models: Sequence[str], module: str, command: str = "", data: str | None = None, format: str = "", options: str = ""
) -> tuple[list[tuple[str, Any]], Any]:
    """The path and the content of each model, and the rows, if any; whether they exist is checked before Spark starts.

    Args:
        module: to be imported while Spark starts.
    """
    from sparkdiff.job import loading

    folder = Path.cwd()
    paths = [loading.model_path(model, folder) for model in models]
    given = {} if data is None else {command: _source(data, format, options)}
    loading.check_there(paths, given, folder, {})
    spark = loading.start_session({}, module, loading.size_of(given, folder))
    fitted = [(path, loading.load_model(path)) for path in paths]
    return fitted, loading.load_data(spark, given[command], folder, command) if given else None


def _schema(given: str) -> "StructType":
    from pyspark.sql.types import StructType

    from sparkdiff import jvm

    try:
        if given.lstrip().startswith("{"):
            return StructType.fromJson(json.loads(given))
        return jvm.session().createDataFrame([], given).schema
    except (*jvm.SparkError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"--schema must be DDL such as 'a double, b string', or JSON of a StructType. Got {given!r} instead: {jvm.cause(e)}"
        ) from e


def _source(path: str, format: str, options: str) -> dict[str, Any]:
    """The data of a command, in the form of a job's `data` section."""
    try:
        given = dict(json.loads(options))
    except (ValueError, TypeError) as e:
        raise InputError(f'--options must be a JSON object such as {{"header": true}}. Got {options!r} instead') from e
    return {"path": path, "format": format, "schema": given.pop("schema", None), "options": given}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 success, 1 failure while running, 2 wrong usage or input, 3 `plan --strict`,
    130 Ctrl-C."""
    try:
        app(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as e:  # typer ends every command this way; wrong usage is 2
        return e.code if isinstance(e.code, int) else DONE if e.code is None else FAILED
    except SparkdiffError as e:
        print(f"error: {e}", file=sys.stderr)
        return WRONG_INPUT if isinstance(e, InputError) else FAILED
    return DONE
