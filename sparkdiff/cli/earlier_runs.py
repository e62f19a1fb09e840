"""Commands about earlier runs and their files: runs, why, triage and the caches."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sparkdiff.cli.flags import AsJson, Command, CommandGroup, Group, Label, Model, Text, Time
from sparkdiff.errors import FAILED, InputError
from sparkdiff.machine import paths

Store = Annotated[str, typer.Argument(help="Folder of the store of runs, as the option storeDir names it.")]
caches_app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Show and remove caches on this machine. Runs no Spark."
)
Folder = Annotated[str, typer.Argument(help="Folder of the caches: cacheDir, or .cache beside the output of jobs.")]


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
    """Show the runs of a store: what was tried, decided and gained. Starts Spark only for --where, --compact and other file
    systems.
    """
    from sparkdiff.history.run_table import list_runs, local_files

    here, ids, files = paths.local(store), None, local_files
    if here is None or where is not None or compact:
        run_store = _start_spark("--compact" if compact else "another file system" if where is None else "--where")
        given, files = store if here is None else str(here.absolute()), run_store.fetched_files
        here, ids = run_store.select(given, where, compact_first=compact)
    print("\n".join(list_runs(here.absolute(), ids, sort, limit, as_json=as_json, files=files)))


def why(
    model: Model,
    store: Annotated[
        str, typer.Option("--store", help="Folder of the store of runs, as the option storeDir names it.")
    ],
    as_json: AsJson = False,
    reproduce: Annotated[bool, typer.Option("--reproduce", help="Print the command that made the model.")] = False,
    draw: Annotated[Text, typer.Option(help="File to which the picture of it is written, as SVG.")] = None,
) -> None:
    """Show where a model comes from: the runs that led to it, what they considered, and what decided. Starts Spark only for
    other file systems.
    """
    from sparkdiff.history.lineage import hash_of_saved, lineage
    from sparkdiff.history.run_table import folders_of_runs

    where, kept = (None if (path := paths.local(given)) is None else path.absolute() for given in (model, store))
    if where is not None and kept is not None:
        found = lineage(str(where), hash_of_saved(str(where), where), kept, folders=folders_of_runs(Path.cwd()))
    else:
        found = _start_spark("another file system").why(str(where or model), str(kept or store))
    if draw is not None:
        found.draw().save(draw)
    print(found.command() if reproduce else found.toJSON() if as_json else found)


def _start_spark(reason: str) -> Any:
    """Start Spark, say why, and return the module that needs it."""
    from sparkdiff.data import loading

    print(f"starting Spark, for {reason}", file=sys.stderr)
    loading.start_session({}, "sparkdiff.history.run_store")
    from sparkdiff.history import run_store

    return run_store


def triage(
    models: Annotated[list[str], typer.Argument(help="Folders of saved PipelineModels, or of runs.")],
    budget: Annotated[str, typer.Option(help='Processor time, such as "4 core-hours", "30 core-minutes" or 90s.')],
    data: Annotated[
        list[str], typer.Option(help="Path of the rows: one for all models, or one per model in their order.")
    ],
    label: Label = None,
    group: Group = None,
    time: Time = None,
    store: Annotated[
        Text, typer.Option("--store", help="Folder of a store of runs, to learn from and to add the runs to.")
    ] = None,
    output: Annotated[
        Text, typer.Option(help="Folder of this machine to save the tuned pipelines in, each by its name.")
    ] = None,
    share: Annotated[float, typer.Option(help="Part of the gain to expect of all models that is run for.")] = 0.8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only forecast.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forecast which of many pipelines deserve a fine-tuning, and run the most valuable ones within a budget.

    Exits with code 1 if one of them failed.
    """
    from sparkdiff.data import loading
    from sparkdiff.improvement.budget import core_seconds

    core_seconds(budget)  # before Spark starts
    if len(data) not in (1, len(models)):
        raise InputError(
            f"{len(data)} --data for {len(models)} models: give one for all, or one per model in their order"
        )
    folder = Path.cwd()
    where = [loading.model_path(model, folder) for model in models]
    rows = {f"triage {i}": loading.source_of(path) for i, path in enumerate(dict.fromkeys(data))}
    loading.check_there(where, rows, folder, {})
    loading.start_session({}, "sparkdiff.fleet.triage_run")
    from sparkdiff.fleet.triage_run import triage_paths

    here = None if store is None or (path := paths.local(store)) is None else str(path.absolute())
    columns = {"labelCol": label, "groupCol": group, "timeCol": time}
    found = triage_paths(
        where,
        data,
        budget,
        here or store,
        output,
        share,
        dry_run,
        {name: value for name, value in columns.items() if value},
    )
    print(found.toJSON() if as_json else found)
    if any(p.outcome == "failed" for p in found.pipelines):
        raise typer.Exit(FAILED)


@caches_app.command("list", cls=Command)
def list_caches(
    folder: Annotated[
        Text, typer.Argument(help="Folder of the caches; by default those of jobs (.cache) below the current folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show caches, which hold rows: size, last use, time to make, the run that made each, and its stages in Spark."""
    from sparkdiff.history import caches

    found = caches.entries_below(Path()) if folder is None else caches.entries(Path(folder))
    if as_json:
        print(json.dumps([dataclasses.asdict(e) | {"path": str(e.path)} for e in found], indent=2))
    else:
        print("\n".join(caches.table(found)))


@caches_app.command("prune", cls=Command)
def prune_caches(
    folder: Folder,
    max_mb: Annotated[Optional[float], typer.Option(help="Megabytes that may stay.", min=0)] = None,  # noqa: UP045
    max_days: Annotated[float | None, typer.Option(help="Days without a use after which a cache goes.", min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove old caches, then those that save the least time per byte. Caches read now or used within the last hour
    stay.
    """
    from sparkdiff.history import caches

    if max_mb is None and max_days is None:
        raise InputError("prune needs a limit: --max-mb 2000, --max-days 30, or both; clear removes all")
    found = caches.entries(Path(folder))
    chosen = caches.to_remove(found, most=None if max_mb is None else int(max_mb * 1e6), days=max_days)
    _remove_caches(chosen, dry_run)


@caches_app.command("clear", cls=Command)
def clear_caches(
    folder: Folder,
    recent: Annotated[bool, typer.Option("--recent", help="Also those that were used within the last hour.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> None:
    """Remove all caches, kept rows and fitted pipelines of jobs that no process reads. Checkpoints and all other files stay."""
    from sparkdiff.history import caches

    _remove_caches(
        [e for e in caches.entries(Path(folder)) if e.free or (recent and e.kind in caches.WHOLE and not e.read)],
        dry_run,
    )
    if not dry_run:
        caches.forget_seen(Path(folder))


def _remove_caches(chosen: Sequence[Any], dry_run: bool) -> None:
    from sparkdiff.history import caches

    gone = chosen if dry_run else caches.remove(chosen)
    print("\n".join(caches.table(gone)) if gone else "nothing to remove")
    if gone and not dry_run:
        print("removed")
