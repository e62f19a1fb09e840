"""The start of a job: from a configuration to a running Spark session, with a lease on the output folder.

Spark takes seconds to start and torch to import, so both happen at the same time: this module imports nothing that
imports torch.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from sparkdiff import jvm
from sparkdiff.cli.config import Config, request_of
from sparkdiff.cli.output import check_replaceable, is_unfinished, summary_of
from sparkdiff.data.loading import check_there, is_function, model_path, size_of, start_session
from sparkdiff.errors import InputError
from sparkdiff.machine import atomic_files, paths
from sparkdiff.machine.autologging import pause_autologging
from sparkdiff.options import Options
from sparkdiff.store.lease import Lease, hold_lease, lease_of

FOLDERS = ("cacheDir", "checkpointDir", "storeDir")
"""Options that name folders."""


def run(config: Config) -> Any:
    """Run the job, write its folder, and return the summary.

    If the folder contains a finished run of the same runId, options, data and pipeline, return its summary.

    Raises:
        InputError: the configuration or the data are wrong; nothing but caches has been written then.
        LeaseHeldError: another process is writing this output.
        SparkdiffError: the job failed while running.
    """
    config = _resolve_output(config)
    _check_places(config)
    with _alone(config) as lease, pause_autologging():
        return _run(config, lease)


def _resolve_output(config: Config) -> Config:
    """The job with its output folder resolved. Starts Spark unless all folders are on this machine."""
    given = [config.url, *(config.options.get(name) for name in FOLDERS)]
    if all(where is None or paths.local(where) is not None for where in given):
        return config
    _check_inputs(config)
    start_session(config.spark, size=size_of(config.data, config.folder))
    return config if config.url is None else dataclasses.replace(config, output=jvm.folder("output", config.url))


def _check_places(config: Config) -> None:
    """Raise InputError if an input of the job does not exist or its output cannot be written. Does not start Spark."""
    jvm.check_writable("output", config.where, config.output.parent)
    for name in FOLDERS:
        if given := config.options.get(name):
            jvm.check_writable(name, given, jvm.folder(name, given))
    _check_inputs(config)


def _check_inputs(config: Config) -> None:
    named = [config.pipeline, *filter(None, [(config.search or {}).get("current")])]
    models = [model_path(name, config.folder) for name in named if not is_function(name)]
    check_there(models, config.data, config.folder, config.spark)


@contextlib.contextmanager
def _alone(config: Config) -> Iterator[Lease]:
    """Hold the lease on the job's output folder within this context, so that no other process writes to the folder."""
    output = config.output
    wait = Options.of(config.options).waitForRun
    with atomic_files.remove_empty_folders_above(output), contextlib.ExitStack() as stack:
        try:
            lease = stack.enter_context(hold_lease(lease_of(output), f"output {config.where}", wait=wait))
        except OSError as e:
            raise InputError(f"output {config.where} cannot be written ({e.strerror}): choose another folder") from e
        yield lease


def _run(config: Config, lease: Lease) -> Any:
    found = _finished_summary(config)
    there = jvm.stores.exists(config.output) and not is_unfinished(config.output)
    if found is None and there and not config.overwrite:
        raise InputError(f"output {config.where} exists: choose another folder, or set output.mode=overwrite")
    if found is None:
        check_replaceable(config.output)
    module = "sparkdiff.cli.steps" if config.search is None else "sparkdiff.cli.searching"
    spark = start_session(config.spark, module, size_of(config.data, config.folder))
    if config.search is not None:
        from sparkdiff.cli import searching

        return searching.run(config, lease, spark)
    from sparkdiff.cli import steps

    return steps.run(config, lease, spark, found)


def _finished_summary(config: Config) -> dict[str, Any] | None:
    """The content of summary.json in the output folder, if the job sets a runId and the folder has a finished run with
    the same settings; else None.
    """
    found = summary_of(config.output) if "runId" in config.options else None
    return found if found and found["fingerprints"].get("request") == request_of(config) else None
