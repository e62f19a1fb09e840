"""`check_stage` on a stage and translation of an author's own: passes the right one, and names each way to be wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Transformer
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.sql import DataFrame, SparkSession, functions as F
from torch import Tensor, nn

import sparkdiff
from sparkdiff import jvm
from sparkdiff.stages.base import REGISTRY, StageModule, class_name
from sparkdiff.tensors.rows import Rows, dense
from sparkdiff.testing import LawBroken, check_stage, check_stages


class Stretch(Transformer, HasInputCol, HasOutputCol):
    """y = x * factors, a stage that exists in Python only; `reverses` says that y is -x too."""

    def __init__(self, factors: list[float]):
        super().__init__()
        self.factors = np.array(factors)
        self._set(inputCol="x", outputCol="y")

    def _transform(self, df: DataFrame) -> DataFrame:
        factors = F.array(*map(F.lit, self.factors.tolist()))
        stretched = F.zip_with(vector_to_array(F.col(self.getInputCol())), factors, lambda a, b: a * b)
        return df.withColumn(self.getOutputCol(), array_to_vector(stretched))


class Stretching(StageModule):
    """The right translation; the wrong ones below change one thing."""

    def __init__(self, factors: Tensor):
        super().__init__()
        self.factors = nn.Parameter(factors)  # (d,)

    @classmethod
    def from_spark(cls, stage: Any) -> "Stretching":
        return cls(torch.tensor(stage.factors))

    def entry_mask(self) -> dict[str, Tensor]:
        return {"factors": torch.arange(len(self.factors)) < 2}  # the last never trains

    def forward(self, x: Rows) -> Any:  # (n, d) -> (n, d)
        return dense(x) * self.factors

    def to_spark(self, stage: Any) -> Any:
        return jvm.with_uid(Stretch(self.factors.tolist()), stage)


class Biased(Stretching):
    def forward(self, x: Rows) -> Any:
        return dense(x) * self.factors + 1e-8


class Narrow(Stretching):
    def forward(self, x: Rows) -> Any:
        return (dense(x) * self.factors)[:, :2]


class TwoColumns(Stretching):
    def forward(self, x: Rows) -> Any:
        return dense(x), dense(x)


class OtherColumn(Stretching):
    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        return ("z",)


class Refusing(Stretching):
    def forward(self, x: Rows) -> Any:
        raise sparkdiff.InputError("x holds NaN")


class OtherUid(Stretching):
    def to_spark(self, stage: Any) -> Any:
        return stage._copyValues(Stretch(self.factors.tolist()))


class LosesParams(Stretching):
    def to_spark(self, stage: Any) -> Any:
        new = Stretch(self.factors.tolist())
        new._resetUid(stage.uid)
        return new


class Rounds(Stretching):
    def to_spark(self, stage: Any) -> Any:
        return jvm.with_uid(Stretch(self.factors.float().tolist()), stage)


class Swaps(Stretching):
    """Right for what was read, and wrong for anything else."""

    def to_spark(self, stage: Any) -> Any:
        same = np.array_equal(self.factors.detach().numpy(), stage.factors)
        return jvm.with_uid(Stretch(self.factors.tolist() if same else self.factors.flip(0).tolist()), stage)


class Shares(Stretching):
    """The parameter and the stage share their memory."""

    @classmethod
    def from_spark(cls, stage: Any) -> Stretching:
        return cls(torch.from_numpy(stage.factors))


class SetsParams(Stretching):
    def to_spark(self, stage: Any) -> Any:
        new = jvm.with_uid(Stretch(self.factors.tolist()), stage)
        stage._set(outputCol="z")
        return new


class TimesTwo(Stretching):
    """Parity is broken by what was written back only: Spark's stage has other Params then."""

    def to_spark(self, stage: Any) -> Any:
        new = jvm.with_uid(Stretch(self.factors.tolist()), stage)
        twice = jvm.with_uid(Stretch((2 * self.factors).tolist()), stage)
        new._transform = twice._transform
        return new


@pytest.fixture(scope="module")
def df(spark: SparkSession) -> DataFrame:
    rows = [(Vectors.dense(1.0, -2.0, 3.0),), (Vectors.sparse(3, [2], [0.5]),), (Vectors.dense(0.0, np.nan, np.inf),)]
    return spark.createDataFrame(rows, ["x"]).coalesce(1).cache()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[StageModule]], None]:
    """Registers a translation of Stretch until the test ends."""
    return lambda module: monkeypatch.setitem(REGISTRY, class_name(Stretch([])), module)


def test_the_right_translation_passes(df: DataFrame, register: Callable[..., None]) -> None:
    register(Stretching)
    stage = Stretch([1.5, -0.25, 1e-3])
    check_stage(stage, df)
    check_stages([stage, Stretch([0.0, 1.0, 2.0]), stage.copy({stage.outputCol: "other"})], df)
    check_stage(Stretch([1e-9, 1e9, 0.1]), df.withColumn("y", F.lit("in the way")))


def test_register_makes_it_known_to_plan_and_translate(df: DataFrame, register: Callable[..., None]) -> None:
    stage = Stretch([1.5, -0.25, 1e-3])
    register(Stretching)  # undone after the test
    sparkdiff.register(class_name(stage))(Stretching)
    assert sparkdiff.plan(stage).stages[0].role == "translated"
    assert sparkdiff.verify(stage, df).ok
    del REGISTRY[class_name(stage)]
    assert "register a StageModule for test_check_stage.Stretch to" in sparkdiff.plan(stage).stages[0].reason


@pytest.mark.parametrize(
    ("module", "law", "column", "text"),
    [
        (Biased, "parity", "y", "row 0 entry 0 is 1.50000001, but Spark gives 1.5"),
        (Narrow, "parity", "y", r"has shape \(3, 2\) where Spark's is \(3, 3\)"),
        (TwoColumns, "parity", "forward", "returns 2 columns; Spark writes out"),
        (OtherColumn, "parity", "z", r"is not among Spark's columns \[.*'out'\]"),
        (Refusing, "parity", "forward", "refuses rows that Spark accepts: x holds NaN"),
        (OtherUid, "get-put", "uid", "after writing back what was read"),
        (LosesParams, "get-put", "outputCol", "'y' after writing back what was read; it was 'out'"),
        (Rounds, "get-put", "factors", r"entry \[1\] is 0.10000000149011612 after .* it should be 0.1"),
        (Swaps, "put-get", "factors", "after writing back other parameters"),
        (Shares, "untouched", "factors", r"entry \[0\] is .* after writing back; it should be 1.5"),
        (SetsParams, "untouched", "outputCol", "is 'z' after writing back; it was 'out'"),
        (TimesTwo, "get-put", "out", "but Spark gives 3.0"),
    ],
)
def test_wrong_ones_are_named(
    df: DataFrame, register: Callable[..., None], module: type[StageModule], law: str, column: str, text: str
) -> None:
    register(module)
    stage = Stretch([1.5, 0.1, 1e-3])
    stage._set(outputCol="out")
    wished = column.replace("y", "out")
    with pytest.raises(LawBroken, match=text) as caught:
        check_stage(stage, df)
    assert (caught.value.law, caught.value.uid, caught.value.column) == (law, stage.uid, wished)
    assert str(caught.value).startswith(f"{stage.uid} (Stretch) breaks {law}: {wished!r}")
    assert isinstance(caught.value, (sparkdiff.SparkdiffError, AssertionError))


def test_tolerance_and_perturb_are_the_callers(df: DataFrame, register: Callable[..., None]) -> None:
    register(Biased)
    check_stage(Stretch([1.5, 0.1, 1e-3]), df, tolerance=1e-7)
    register(Swaps)
    check_stage(Stretch([1.5, 0.1, 1e-3]), df, perturb=lambda module, generator: None)

    def mirror(module: StageModule, generator: torch.Generator) -> None:
        with torch.no_grad():
            module.factors.copy_(torch.tensor([2.0, 2.0, 2.0]))

    register(Stretching)
    check_stage(Stretch([1.5, 0.1, 2.0]), df, perturb=mirror)


def test_what_cannot_be_checked(spark: SparkSession, df: DataFrame, register: Callable[..., None]) -> None:
    with pytest.raises(sparkdiff.InputError, match=r"no translation is registered for test_check_stage\.Stretch"):
        check_stage(Stretch([1.0, 1.0, 1.0]), df)
    register(Stretching)
    with pytest.raises(sparkdiff.InputError, match="no rows"):
        check_stage(Stretch([1.0, 1.0, 1.0]), df.limit(0))
    with pytest.raises(sparkdiff.InputError, match=r"Spark failed on the rows: .*`x`"):
        check_stage(Stretch([1.0, 1.0, 1.0]), spark.range(3))
    skipping = VectorAssembler(inputCols=["x"], outputCol="z", handleInvalid="skip")
    with pytest.raises(sparkdiff.InputError, match="handleInvalid='skip' drops rows"):
        check_stage(skipping, df)
