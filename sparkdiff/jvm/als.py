"""The factor tables of an ALSModel, read with Arrow, and the model rebuilt with new factors. Reading a table takes one
job.
"""

import weakref
from typing import Any

import numpy as np
from pyspark.sql import DataFrame

from sparkdiff.jvm.folders import model_at
from sparkdiff.jvm.rebuilding import made_of, rebuild_with
from sparkdiff.jvm.sessions import by_arrow, session
from sparkdiff.jvm.stage_files import save_until_exit

Table = tuple[np.ndarray, np.ndarray]
"""Ids (n,) int64, ascending, and factors (n, rank) float32."""
_read: weakref.WeakKeyDictionary[Any, tuple[Table, Table]] = weakref.WeakKeyDictionary()


def tables(stage: Any) -> tuple[Table, Table]:
    """Factor tables of users and of items. The tables of a fitted model never change, so each is read only once."""
    if stage not in _read:
        _read[stage] = _table(stage.userFactors, stage.rank), _table(stage.itemFactors, stage.rank)
    return _read[stage]


def als(stage: Any, users: Table, items: Table) -> Any:
    """An ALSModel like `stage` with these factor tables."""

    def construct(old: Any) -> Any:
        return made_of(old, stage.rank, _frame(users)._jdf, _frame(items)._jdf)

    def rewrite(old: Any) -> Any:
        where = save_until_exit(old)
        for name, table in (("userFactors", users), ("itemFactors", items)):
            _frame(table).coalesce(1).write.mode("overwrite").parquet(f"{where}/{name}")
        return type(old).load(model_at(where))

    return rebuild_with(stage, construct, rewrite)


def _table(df: DataFrame, rank: int) -> Table:
    with by_arrow():
        found = df.select("id", "features").toPandas()
    ids = found["id"].to_numpy(np.int64)
    factors = np.concatenate([np.empty(0, np.float32), *found["features"]]).astype(np.float32).reshape(len(ids), rank)
    order = ids.argsort()
    return ids[order], factors[order]


def _frame(table: Table) -> DataFrame:
    ids, factors = table
    import pandas as pd

    with by_arrow():
        rows = pd.DataFrame({"id": ids.astype(np.int32), "features": list(factors)})
        return session().createDataFrame(rows, "id int, features array<float>")
