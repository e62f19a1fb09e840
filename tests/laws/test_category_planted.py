"""Each way to be wrong about gaps, thresholds and categories gets noticed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyspark.ml.feature
import pytest
import torch
from pyspark.ml.feature import Binarizer, Bucketizer, Imputer
from pyspark.sql import SparkSession, functions as F
from torch import Tensor

from sparkdiff.jvm import encoders
from sparkdiff.jvm.encoders import Statistics
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.graph import Version, null_of
from sparkdiff.pipeline.network import Network, translate
from sparkdiff.pipeline.parity import Differences
from sparkdiff.stages.base import NULL
from sparkdiff.tensors.rows import Nulls, Rows, dense
from sparkdiff.testing import LawBroken, check_stage
from tests.support import rows_with_gaps
from tests.support.rows_with_gaps import INF, NAN
from tests.support.stages_and_rows import one_hot


@dataclass
class Case:
    """A stage, its module's network, and what Spark read and wrote."""

    stage: Any
    network: Network
    spark: dict[Version, Rows]
    outputs: list[Version]

    def ok(self, network: Network) -> bool:
        tally = Differences(network)
        tally.add(self.spark, self.outputs)
        return tally.parity().ok


@pytest.fixture(scope="module")
def cases(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All in one job."""
    df = rows_with_gaps.numbers(spark)
    df = df.withColumn("i0", F.col("i"))
    imputer = Imputer(inputCols=["x", "n", "f"], outputCols=["x2", "n2", "f2"]).fit(
        df.fillna(0.0).replace([-INF, INF], 0.0)
    )
    imputer = encoders.with_surrogates(imputer, {"x": 0.25, "n": -2.75, "f": 0.1})
    stages: dict[str, Any] = {
        "Imputer": imputer,
        "Imputer of 1.5": imputer.copy({imputer.missingValue: 1.5}),
        "Binarizer": Binarizer(inputCol="x", outputCol="above", threshold=0.5),
        "Binarizer below 0": Binarizer(inputCol="v", outputCol="vector above", threshold=-1.0),
        "Bucketizer": Bucketizer(splits=[-INF, 0.0, 0.5, INF], inputCol="x", outputCol="bin", handleInvalid="keep"),
        "bounded Bucketizer": Bucketizer(splits=[-1.0, 0.0, 3.0], inputCol="b", outputCol="bounded"),
        "OneHotEncoder": one_hot(df.select("i0"), (3,), handleInvalid="keep", dropLast=False),
    }
    if hasattr(pyspark.ml.feature, "TargetEncoder"):
        pairs = spark.createDataFrame([(0.0, 1.0), (1.0, 0.0)], "i double, label double")
        base = pyspark.ml.feature.TargetEncoder(inputCol="i", outputCol="mean", handleInvalid="keep").fit(pairs)
        entries = Statistics(
            np.array([2147483647.0, 0.0, 1.0, 2.0, -1.0]), np.array([20.0, 5, 4, 8, 3]), np.array([9.0, 1, 3, 2, 3])
        )
        for kind in ("binary", "continuous"):
            params = {base.smoothing: 2.0, base.targetType: kind, base.outputCol: kind}
            stages[f"{kind} TargetEncoder"] = encoders.with_statistics(base, [entries]).copy(params)
    made, columns = df, dict.fromkeys(df.columns)
    for k, stage in enumerate(stages.values()):
        outputs = translate(stage).outputCols
        renamed = {c: f"out{k}_{c}" for c in outputs}
        made = stage.transform(made).withColumnsRenamed(renamed)
        columns |= dict.fromkeys(renamed.values())
    folder = tmp_path_factory.mktemp("planted")
    write_plain(made, list(columns), folder / "rows")
    batches = list(read_plain(folder / "rows", 1000))
    rows = {c: joined([b[f"v{i}"] for b in batches]) for i, c in enumerate(columns)}
    nulls = {
        c: torch.cat([b.get(f"v{i}{NULL}", torch.zeros(len(b[f"v{i}"]), dtype=torch.bool)) for b in batches])
        for i, c in enumerate(columns)
    }
    found = {}
    for k, (name, stage) in enumerate(stages.items()):
        network = translate(stage, schema=df.schema)  # an Imputer's output is of its input's type
        read = {v: rows[v[0]] for v in network.reads} | {null_of(v): nulls[v[0]] for v in network.reads}
        outputs = [(c.lower(), 0) for c in network.outputCols]
        wrote = {(c.lower(), 0): rows[f"out{k}_{c}"] for c in network.outputCols}
        found[name] = Case(stage, network, read | wrote, outputs)
    return found


def joined(parts: list[Rows]) -> Tensor:
    return torch.cat([dense(p) for p in parts])


# What one can be wrong about --------------------------------------------------------------------------------------------

Trap = Callable[[Any], None]


def seeing(change: Callable[[Tensor], Tensor]) -> Trap:
    """Inputs are changed first."""

    def plant(module: Any) -> None:
        forward = module.forward
        module.forward = lambda *columns, **nulls: forward(*(change(dense(x)) for x in columns), **nulls)

    return plant


def giving(change: Callable[[Tensor, Tensor], Tensor]) -> Trap:
    """Outputs are changed in the end: (input, output) -> output."""

    def plant(module: Any) -> None:
        forward = module.forward

        def wrong(*columns: Rows, **nulls: Any) -> Any:
            out = forward(*columns, **nulls)
            out = out if isinstance(out, tuple) else (out,)
            return tuple(change(dense(x), dense(y)) for x, y in zip(columns, out, strict=True))

        module.forward = wrong

    return plant


def told(change: Callable[[Tensor, Tensor | None], Tensor | None]) -> Trap:
    """Other rows count as null: (input, nulls) -> nulls."""

    def plant(module: Any) -> None:
        forward = module.forward

        def wrong(*columns: Tensor, nulls: Nulls | None = None) -> Any:
            given = nulls or [None] * len(columns)
            return forward(*columns, nulls=[change(x, n) for x, n in zip(columns, given, strict=True)])

        module.forward = wrong

    return plant


def absent(which: Callable[[Tensor, Tensor | None, float], Tensor]) -> Trap:
    """An Imputer fills other rows."""

    def plant(module: Any) -> None:
        def wrong(columns: tuple[Tensor, ...], nulls: Nulls | None) -> list[Tensor]:
            given = nulls or [None] * len(columns)
            return [which(x, n, module.missing) for x, n in zip(columns, given, strict=True)]

        module.absent = wrong

    return plant


def setting(**values: Any) -> Trap:
    return lambda module: vars(module).update(values)


def just_below(module: Any) -> None:
    with torch.no_grad():
        module.threshold.copy_(module.threshold.nextafter(torch.tensor(-INF, dtype=torch.float64)))


def closed_above(module: Any) -> None:
    module.bin = lambda x, null, splits, tau, name: torch.where(
        null, NAN, torch.where(x.isnan(), 3.0, torch.searchsorted(splits, x).double() - 1)
    )


def minus_one_is_null(module: Any) -> None:
    for table in module.tables:
        find = table.find
        table.find = lambda x, find=find, table=table: (torch.where(x == -1, table.missing, find(x)[0]), find(x)[1])


def no_null_entry(module: Any) -> None:
    for table in module.tables:
        table.missing = None


def where(condition: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: torch.where(condition(x), value, y)


TRAPS: list[tuple[str, str, Trap]] = [
    ("Imputer", "NaN stays", absent(lambda x, n, missing: torch.zeros_like(x, dtype=torch.bool))),
    ("Imputer", "the fraction stays in whole numbers", setting(whole=[False] * 3)),
    ("Imputer", "a float holds a double", setting(floats=[False] * 3)),
    ("Imputer of 1.5", "null stays", absent(lambda x, n, missing: x == missing)),
    ("Imputer of 1.5", "NaN is filled, too", absent(lambda x, n, missing: (x == missing) | x.isnan())),
    ("Binarizer", ">=", just_below),
    ("Binarizer", "NaN is 1", giving(where(torch.isnan, 1.0))),
    ("Binarizer below 0", "NaN is 0 in a vector", giving(where(torch.isnan, 0.0))),
    ("Binarizer below 0", "zeros stay zeros", giving(where(lambda x: x == 0, 0.0))),
    ("Bucketizer", "(a, b]", closed_above),
    ("Bucketizer", "NaN in the last bin", giving(where(torch.isnan, 2.0))),
    ("Bucketizer", "NaN is null", told(lambda x, n: x.isnan())),
    ("Bucketizer", "null is NaN", told(lambda x, n: None)),
    ("Bucketizer", "-0.0 is 0.0", seeing(lambda x: x + 0.0)),
    ("bounded Bucketizer", "the last edge is outside", giving(where(lambda x: x == 3, 2.0))),
    ("bounded Bucketizer", "null is a bin of its own", giving(where(torch.isnan, 2.0))),
    ("OneHotEncoder", "null is an invalid index", told(lambda x, n: None)),
    ("OneHotEncoder", "an index is rounded up", seeing(torch.ceil)),
    ("binary TargetEncoder", "no smoothing", setting(smoothing=0.0)),
    ("binary TargetEncoder", "stats are means", setting(binary=False)),
    ("continuous TargetEncoder", "stats are sums", setting(binary=True)),
    ("continuous TargetEncoder", "null is an unseen category", no_null_entry),
    ("continuous TargetEncoder", "NaN is null", told(lambda x, n: x.isnan())),
    ("continuous TargetEncoder", "-1 is null", minus_one_is_null),
    ("continuous TargetEncoder", "an unseen category is 0", giving(where(lambda x: x == 5, 0.0))),
]


@pytest.mark.parametrize(("case", "trap"), [pytest.param(c, t, id=f"{c}: {name}") for c, name, t in TRAPS])
def test_every_trap_is_seen(cases: dict[str, Case], case: str, trap: Trap) -> None:
    if case not in cases:
        pytest.skip("Spark has no TargetEncoder before 4.0")
    network = cases[case].network.clone()
    assert cases[case].ok(network)
    trap(network.module(0))
    assert not cases[case].ok(network)


@pytest.mark.parametrize("case", ["Imputer", "binary TargetEncoder", "continuous TargetEncoder"])
def test_every_change_is_seen(cases: dict[str, Case], case: str) -> None:
    if case not in cases:
        pytest.skip("Spark has no TargetEncoder before 4.0")
    for name, p in cases[case].network.module(0).named_parameters():
        for at in np.ndindex(*p.shape):
            network = cases[case].network.clone()
            module: Any = network.module(0)
            with torch.no_grad():
                getattr(module, name)[at] += 1e-6
            unseen = case == "Imputer" and module.whole[at[0]]  # a surrogate's fraction is cut
            assert cases[case].ok(network) == unseen, f"{name}{list(at)}"


def test_a_param_that_is_set_for_nothing_is_seen(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch, spark: Any
) -> None:
    stage = Binarizer(inputCol="x", outputCol="above")  # its threshold is a default
    rows = spark.createDataFrame([(1.0,)], "x double")
    own = type(translate(stage).module(0))
    monkeypatch.setattr(own, "to_spark", lambda self, stage: stage.copy({stage.threshold: 0.0}))
    with pytest.raises(LawBroken, match="breaks get-put: 'threshold'"):
        check_stage(stage, rows)


def test_a_bin_without_null_where_spark_has_it_is_seen(monkeypatch: pytest.MonkeyPatch, spark: Any) -> None:
    """What reads a Bucketizer's bins takes their NaN for null."""
    stage = Bucketizer(splits=[-INF, 0.0, INF], inputCol="x", outputCol="bin", handleInvalid="keep")
    own = type(translate(stage).module(0))
    right = own.bin
    monkeypatch.setattr(own, "bin", lambda self, x, null, *more: right(self, x, x.isnan(), *more))
    with pytest.raises(LawBroken, match="'bin' row"):
        check_stage(stage, spark.createDataFrame([(NAN,), (1.0,)], "x double"))
