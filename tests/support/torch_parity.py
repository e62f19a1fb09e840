"""Comparing what `TorchTransformer` writes with Spark's own transform."""

from typing import Any

import numpy as np
from pyspark.sql import DataFrame

from sparkdiff import TorchTransformer
from tests.support.compacting import TOLERANCE, difference, values


def check_same(model: Any, data: DataFrame) -> None:
    expected, found = model.transform(data), TorchTransformer(model, device="cpu").transform(data)
    assert found.columns == expected.columns
    for a, b in zip(expected.schema, found.schema, strict=True):
        assert (a.dataType, a.nullable, a.metadata) == (b.dataType, b.nullable, b.metadata), a.name
    pair = (_Given(expected), _Given(found))
    theirs, ours = (values(side, data, expected.columns) for side in pair)
    for name, old, new in zip(expected.columns, theirs, ours, strict=True):
        # Null and NaN are the same.
        old = [
            np.full_like(b, np.nan) if a is None and isinstance(b, np.ndarray) else a
            for a, b in zip(old, new, strict=True)
        ]
        assert difference(old, new) <= TOLERANCE, (name, [p for p in zip(old, new, strict=True) if p[0] != p[1]][:3])


class _Given:
    """Stands in for a model whose transform is known."""

    def __init__(self, frame: DataFrame):
        self.frame = frame

    def transform(self, data: DataFrame) -> DataFrame:
        return self.frame
