"""The Petastorm reader: reads the files of a cache with Petastorm's batch reader, only dense columns.

Petastorm gets files, never a folder: in a folder it unpickles `_common_metadata`, which can run any code.
"""

import importlib
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pyarrow.parquet as pq
import torch

from sparkdiff.data.stream.manifest import Batch, BatchColumn

# A reader's ventilator submits three row groups at once and polls for the rest, which costs a small file up to 0.1 s.
_FILES_PER_READER = 3
_LOCK = threading.Lock()


def refusal(folder: Path, columns: Sequence[BatchColumn]) -> str:
    """The reason why Petastorm cannot read this cache here; empty if it can."""
    if sparse := [column.column for column in columns if column.kind == "sparse"]:
        return f"Petastorm refuses lists of unequal length, in which the sparse columns {sparse} are stored"
    if urlparse(_url(folder)).path != str(folder):
        return f"Petastorm would misread a part of {str(folder)!r} in its URL (#, ?)"
    try:
        with _quiet():
            importlib.import_module("petastorm")
    except (ImportError, AttributeError) as error:  # AttributeError: numpy 2, which it does not support
        return f"Petastorm cannot be imported ({error}): pip install sparkdiff[petastorm]"
    if not hasattr(pq, "ParquetDatasetPiece"):
        return "Petastorm needs pyarrow's legacy datasets, which pyarrow 15 removed: pip install sparkdiff[petastorm]"
    return ""


def read(paths: Sequence[Path], columns: Sequence[BatchColumn]) -> Generator[Batch]:
    """Yield one batch per file, in the order of `paths`; reads in the caller's thread, without reading ahead."""
    for first in range(0, len(paths), _FILES_PER_READER):
        files = paths[first : first + _FILES_PER_READER]
        with _quiet():
            groups = [pq.read_metadata(str(file)).num_row_groups for file in files]
            reader = importlib.import_module("petastorm").make_batch_reader(
                [_url(file) for file in files],
                schema_fields=[column.name for column in columns],
                reader_pool_type="dummy",
                workers_count=1,
                shuffle_row_groups=False,
            )
        with reader:
            for number in groups:  # counted, because a reader at its end may wait for its ventilator forever
                yield _batch([_next(reader) for _ in range(number)], columns)


def _batch(groups: list[dict[str, Any]], columns: Sequence[BatchColumn]) -> Batch:
    """The row groups of a file as one batch. The data are copied, because scalars are read-only views of Arrow's
    memory.
    """
    return {c.name: torch.from_numpy(np.concatenate([group[c.name] for group in groups])) for c in columns}


def _next(reader: Any) -> dict[str, Any]:
    with _quiet():
        row_group: dict[str, Any] = next(reader)._asdict()
    return row_group


def _url(path: Path) -> str:
    return f"file://{path}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Petastorm's warnings: it calls deprecated names of pyarrow, and leaves closing a file to the garbage
    collector.
    """
    with _LOCK, warnings.catch_warnings():  # two threads would restore each other's filters
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\b")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "unclosed file", category=ResourceWarning)
        yield
