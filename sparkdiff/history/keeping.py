"""Runs are kept: whoever sets storeDir finds each finished run in that store."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkdiff import jvm
from sparkdiff.history import store
from sparkdiff.history.record import record_of
from sparkdiff.machine import cpu
from sparkdiff.pipeline.plan import Plan
from sparkdiff.store.digests import hash_of


class NotKept(UserWarning):
    """A finished run could not be added to the store of runs."""


Keep = Callable[..., None]
"""Called once with the summary, the two models, the options and the plan of a run; see `keeping`."""


@contextlib.contextmanager
def keeping(
    storeDir: str | None, tags: Mapping[str, str], redact: bool, folder: Callable[[], Path | None]
) -> Iterator[Keep]:
    """A function that adds the run of this context to the store; it does nothing where storeDir is unset.

    Args:
        folder: in which models are saved for a moment, to hash them.

    Raises:
        InputError: storeDir cannot be used; before anything runs.
    """
    if storeDir is None:
        yield lambda *run, **more: None
        return
    where = jvm.folder("storeDir", storeDir)
    jvm.check_writable("storeDir", storeDir, where)
    used, began = cpu.seconds(), time.monotonic()

    def keep(
        summary: Any, model: Any, original: Any, options: Mapping[str, Any], plan: Plan | None,
        hashes: tuple[str | None, str | None] | None = None, records: Sequence[Mapping[str, Any]] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        try:
            if hashes is None:
                parent = None if original is None else hash_of(original, None, folder())
                hashes = (None if model is original else hash_of(model, None, folder())), parent
            if model is original:
                hashes = hashes[1], hashes[1]  # which saving it again may change
            row = record_of(
                summary, summary.records if records is None else records, model=hashes[0], parent=hashes[1],
                options=options, stages=() if plan is None else plan.stages, tags=tags, redact=redact,
                seconds=time.monotonic() - began, coreSeconds=cpu.seconds() - used, **more,
            )  # fmt: skip
            store.add(where, row)
        except Exception as e:  # whatever it is: the run is finished, and its result is not lost for this
            why = jvm.cause(e) if isinstance(e, jvm.SparkError) else f"{type(e).__name__}: {e}"
            warnings.warn(f"this run is not in the store of runs: {why}", NotKept, stacklevel=3)

    yield keep
