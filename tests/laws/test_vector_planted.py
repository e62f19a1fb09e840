"""Each way to be wrong about the stages that rescale, weigh, pick, expand and number entries of vectors gets noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.feature import (
    DCT,
    IDF,
    ChiSqSelector,
    ElementwiseProduct,
    MaxAbsScaler,
    Normalizer,
    PolynomialExpansion,
    RobustScaler,
    VectorIndexer,
    VectorSizeHint,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession, functions as F
from torch import Tensor

from sparkdiff.jvm import mllib
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.parity import TOLERANCE
from sparkdiff.stages import expanding, projection
from sparkdiff.stages.base import REGISTRY, StageModule, class_name
from sparkdiff.tensors.rows import Rows, dense
from sparkdiff.testing import LawBroken, _compare, _Trial
from tests.support.stages_and_rows import adversarial, built, sparse, with_features

Checked = Callable[..., None]


def finite(rows: list[np.ndarray]) -> list[np.ndarray]:
    return [v for v in rows if np.isfinite(v).all() and np.abs(v).max() < 1e4]


@pytest.fixture(scope="module")
def stages(spark: SparkSession) -> dict[str, tuple[Any, str]]:
    """Fitted stages by name, with the column that each reads: `any` rows are dense, `sparse` ones sparse, `finite` tame."""
    data = [
        (Vectors.dense(v), float(i % 2)) for i, v in enumerate([(1, 0, 2.5), (0, 0, 1), (-3, 0, 0.5), (2, 0, -0.5)])
    ]
    df = spark.createDataFrame(data, ["v", "label"]).coalesce(1).cache()
    robust = RobustScaler(inputCol="v", outputCol="o").fit(df)
    idf = IDF(inputCol="v", outputCol="o", minDocFreq=2).fit(df)
    indexer = VectorIndexer(inputCol="v", outputCol="o", handleInvalid="keep").fit(df)
    centred = built(robust, {"range": robust.range.toArray(), "median": np.ones(3)}, withCentering=True)
    chosen = with_features(ChiSqSelector(featuresCol="v", outputCol="o", numTopFeatures=2).fit(df), 2, 0, outputCol="o")
    return {
        "RobustScaler": (robust, "any"),
        "RobustScaler with median": (centred, "any"),
        "RobustScaler without range": (robust.copy({robust.withScaling: False}), "any"),
        "MaxAbsScaler": (MaxAbsScaler(inputCol="v", outputCol="o").fit(df), "any"),
        "IDF": (idf, "any"),
        "VectorIndexer": (indexer, "any"),
        "VectorIndexer, sparse": (indexer, "sparse"),
        "ChiSqSelector": (chosen, "any"),
        "ElementwiseProduct": (
            ElementwiseProduct(scalingVec=Vectors.dense(2.0, 0.0, -0.5), inputCol="v", outputCol="o"),
            "any",
        ),
        "Normalizer": (Normalizer(inputCol="v", outputCol="o"), "any"),
        "Normalizer of 1": (Normalizer(p=1.0, inputCol="v", outputCol="o"), "sparse"),
        "Normalizer of infinity": (Normalizer(p=float("inf"), inputCol="v", outputCol="o"), "any"),
        "Normalizer of infinity, sparse": (Normalizer(p=float("inf"), inputCol="v", outputCol="o"), "sparse"),
        "PolynomialExpansion": (PolynomialExpansion(degree=3, inputCol="v", outputCol="o"), "any"),
        "PolynomialExpansion, sparse": (PolynomialExpansion(degree=3, inputCol="v", outputCol="o"), "sparse"),
        "DCT": (DCT(inputCol="v", outputCol="o"), "finite"),
        "inverse DCT": (DCT(inverse=True, inputCol="v", outputCol="o"), "finite"),
        "VectorSlicer": (VectorSlicer(indices=[2, 0], inputCol="v", outputCol="o"), "any"),
        "VectorSlicer, sparse": (VectorSlicer(indices=[2, 0], inputCol="v", outputCol="o"), "sparse"),
        "VectorSizeHint": (VectorSizeHint(size=3, inputCol="v"), "any"),
    }


@pytest.fixture(scope="module")
def checked(
    spark: SparkSession, stages: dict[str, tuple[Any, str]], tmp_path_factory: pytest.TempPathFactory
) -> Checked:
    """Hold a module against what Spark's stage of this name made of the rows, all of them in one job."""
    rows, tame = adversarial(3), finite(adversarial(3))
    data = [(Vectors.dense(v), sparse(v), Vectors.dense(tame[i % len(tame)])) for i, v in enumerate(rows)]
    df, names = spark.createDataFrame(data, ["any", "sparse", "finite"]).coalesce(1), ["any", "sparse", "finite"]
    for k, (stage, column) in enumerate(stages.values()):
        output = REGISTRY[class_name(stage)].outputs(stage)[0]
        inputs = REGISTRY[class_name(stage)].inputs(stage)[0]
        df = stage.transform(df.withColumn(inputs, F.col(column))).withColumnRenamed(output, f"o{k}").drop("v")
        names.append(f"o{k}")
    folder: Path = tmp_path_factory.mktemp("planted") / "rows"
    write_plain(df, names, folder)
    [batch] = read_plain(folder, 1000)
    of = {name: batch[f"v{i}"] for i, name in enumerate(names)}

    def check(name: str) -> None:
        k, (stage, column) = list(stages).index(name), stages[name]
        module = REGISTRY[class_name(stage)]
        given, found = ([of[column]], [None]), ([of[f"o{k}"]], [None])  # rows, and no nulls
        _compare(_Trial("parity", stage, module.from_spark(stage), stage), given, found, TOLERANCE, 0)

    return check


def test_none_is_wrong(checked: Checked, stages: dict[str, Any]) -> None:
    for name in stages:
        checked(name)


# What one can be wrong about --------------------------------------------------------------------------------------------


def returning(change: Callable[[Any, Rows], Rows]) -> Callable[[StageModule, Rows], Rows]:
    """A `forward` in place of the module's own."""
    return lambda self, x: change(self, x)


def by_division(self: Any, x: Rows) -> Rows:
    """x / 0 where a column is constant."""
    return dense(x) / getattr(self, self.weights[0])


def constants_stay(self: Any, x: Rows) -> Rows:
    return dense(x) / torch.where(self.range == 0, 1.0, self.range)


def centred_always(self: Any, x: Rows) -> Rows:
    return (dense(x) - self.median) * self.factor(self.range)


def clipped(self: Any, x: Rows) -> Rows:
    return (dense(x) * self.factor(self.maxAbs)).clamp(-1, 1)


def zero_where_constant(self: Any, x: Rows) -> Rows:
    return torch.where(self.moves, dense(x) * self.factor(self.maxAbs), 0.0)


def smoothed_as_elsewhere(self: Any, x: Rows) -> Rows:
    """log((m + 1) / (df + 1)) + 1, as scikit-learn's."""
    return dense(x) * (self.idf + 1)


def only_finite(self: Any, x: Rows) -> Rows:
    return torch.where(self.idf == 0, 0.0, dense(x) * self.idf)  # Spark: NaN * 0 = NaN


def as_selected(self: Any, x: Rows) -> Rows:
    return dense(x)[:, [2, 0]]


def ascending(self: Any, x: Rows) -> Rows:
    return dense(x)[:, [0, 2]]


def zero_where_masked(self: Any, x: Rows) -> Rows:
    return torch.where(self.scalingVec == 0, 0.0, dense(x) * self.scalingVec)


def with_constant(self: Any, x: Rows) -> Rows:
    out = dense(self.dense_products(dense(x)))
    return torch.cat([out.new_ones(len(out), 1), out[:, :-1]], 1)


def by_degree(self: Any, x: Rows) -> Rows:
    """a, b, c, a^2, ab, ..., as scikit-learn orders them."""
    x = dense(x)
    return torch.cat([x, self.dense_products(x)[:, x.shape[1] :]], 1)


def stored_zeros(self: Any, x: Rows) -> Rows:
    """As if what isn't stored were 0 times the rest: NaN beside infinities."""
    return self.dense_products(dense(x))


def not_orthonormal(self: Any, x: Rows) -> Rows:
    out = projection.cosine_transform(dense(x))
    return torch.cat([out[:, :1] * 2**0.5, out[:, 1:]], 1)


def never_inverse(self: Any, x: Rows) -> Rows:
    return projection.cosine_transform(dense(x))


def no_more_index(self: Any, x: Rows) -> Rows:
    """What is no category becomes 0."""
    out = dense(self.indexed_as_found(x))
    return torch.where(out == 4.0, 0.0, out)  # of four categories


def dense_first(self: Any, x: Rows) -> Rows:
    return self.indexed_as_found(dense(x))


def ascending_numbers(self: Any, x: Rows) -> Rows:
    """Categories numbered by size, whereas 0.0 always comes first."""
    first, last = self.first[:-1], self.first[1:]
    self.numbers = torch.cat([torch.arange(int(b - a), dtype=torch.float64) for a, b in zip(first, last, strict=True)])
    return self.indexed_as_found(x)


def root_of_squares(self: Any, x: Rows) -> Tensor:
    size = dense(x).norm(dim=1)
    return torch.where(size == 0, 1.0, size)


def zero_over_zero(self: Any, x: Rows) -> Tensor:
    return dense(x).norm(p=self.p, dim=1)


def one_norm(self: Any, x: Rows) -> Tensor:
    size = dense(x).norm(p=1, dim=1)
    return torch.where(size == 0, 1.0, size)


def nan_wins(self: Any, x: Rows) -> Tensor:
    size = dense(x).abs().amax(1)
    return torch.where(size == 0, 1.0, size)


def plain_product(product: Tensor, factor: Tensor) -> Tensor:
    return product * factor


WRONG: list[tuple[str, str, str, Any]] = [
    # stage, what is replaced, by what
    ("RobustScaler", "forward", "constant columns divided by 0", by_division),
    ("RobustScaler", "forward", "constant columns stay as they are", constants_stay),
    ("RobustScaler", "forward", "centred although it isn't asked for", centred_always),
    ("RobustScaler with median", "forward", "never centred", by_division),
    ("RobustScaler without range", "forward", "scaled although it isn't asked for", by_division),
    ("MaxAbsScaler", "forward", "constant columns divided by 0", by_division),
    ("MaxAbsScaler", "forward", "constant columns become 0", zero_where_constant),
    ("MaxAbsScaler", "forward", "clipped to -1 .. 1", clipped),
    ("IDF", "forward", "another formula", smoothed_as_elsewhere),
    ("IDF", "forward", "NaN dropped with rare words", only_finite),
    ("ChiSqSelector", "forward", "in the order of selection", as_selected),
    ("VectorSlicer", "forward", "ascending", ascending),
    ("VectorSlicer, sparse", "forward", "ascending", ascending),
    ("ElementwiseProduct", "forward", "NaN dropped at 0", zero_where_masked),
    ("Normalizer", "norm", "rows of zeros divided by 0", zero_over_zero),
    ("Normalizer", "norm", "always of 1", one_norm),
    ("Normalizer of 1", "norm", "always of 2", root_of_squares),
    ("Normalizer of infinity", "norm", "always of 2", root_of_squares),
    ("Normalizer of infinity", "norm", "NaN is the largest", nan_wins),
    ("Normalizer of infinity, sparse", "norm", "NaN is the largest", nan_wins),
    ("PolynomialExpansion", "forward", "with a constant", with_constant),
    ("PolynomialExpansion", "forward", "ordered by degree", by_degree),
    ("PolynomialExpansion, sparse", "forward", "what isn't stored takes part", stored_zeros),
    ("DCT", "forward", "not orthonormal", not_orthonormal),
    ("inverse DCT", "forward", "never inverse", never_inverse),
    ("VectorIndexer", "forward", "no index for what is no category", no_more_index),
    ("VectorIndexer", "forward", "categories by size", ascending_numbers),
    ("VectorIndexer, sparse", "forward", "what isn't stored is looked up", dense_first),
]


@pytest.mark.parametrize(("name", "method", "what", "wrong"), WRONG, ids=[f"{w[0]}: {w[2]}" for w in WRONG])
def test_wrong_outputs(
    checked: Checked,
    stages: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    what: str,
    wrong: Any,
) -> None:
    module = REGISTRY[class_name(stages[name][0])]
    monkeypatch.setattr(module, "indexed_as_found", module.forward, raising=False)
    monkeypatch.setattr(module, method, wrong)
    with pytest.raises(LawBroken):
        checked(name)


def test_what_has_become_zero_stays_zero(checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanding, "times", plain_product)
    with pytest.raises(LawBroken):
        checked("PolynomialExpansion")


@pytest.mark.usefixtures("route")
def test_idf_keeps_its_counts(stages: dict[str, Any]) -> None:
    """Log of (documents + 1) / (documents with the word + 1); 0, and a count of 0, for words in fewer than minDocFreq."""
    stage = stages["IDF"][0]
    assert stage.idf.toArray().tolist() == pytest.approx([np.log(5 / 3), 0.0, np.log(5 / 4)])
    back = mllib.idf(stage, np.array([1.0, 2.0, 3.0]))
    for one in (stage, back):
        assert (list(one.docFreq), one.numDocs, one.uid) == ([2, 0, 3], 4, stage.uid)
    assert back.idf.toArray().tolist() == [1.0, 2.0, 3.0]
