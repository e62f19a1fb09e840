"""README, run as written: each block of Python, each command and each YAML file, on small data.

A block that isn't run has the reason in a comment in front of it, as `tests/unit/test_docs.py` asks. Other tests run the pages in
`ELSEWHERE` of that file and the commands in `LINES`.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import PCA, RobustScaler, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession
from test_docs import LINES, blocks

import sparkdiff
from sparkdiff.cli import DONE, main

pytestmark = [pytest.mark.nightly, pytest.mark.once]

NUMBERS = ["age", "visits", "basket"]


def rows(classes: bool) -> pd.DataFrame:
    """600 customers; their label depends on the last principal component most."""
    random = np.random.default_rng(3)
    x = random.standard_normal((600, 3)) @ np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.3]])
    margin = x @ np.array([0.3, -1.0, 2.0])
    frame = pd.DataFrame(x, columns=NUMBERS)
    frame["label"] = (margin + random.logistic(size=600) > 0) * 1.0 if classes else margin + random.standard_normal(600)
    frame["gender"] = random.choice(["f", "m"], 600)
    frame["station"] = random.choice(["a", "b", "c", "d"], 600)
    frame["day"] = np.arange(600) // 20
    frame["rides"] = np.maximum(np.round(20 + 4 * x[:, 0] * x[:, 1]), 0.0)
    frame["bikers"] = frame["rides"]
    return frame


def unfitted(label: str = "label", classes: bool = False) -> Pipeline:
    last = LogisticRegression(featuresCol="features", labelCol=label) if classes else None
    return Pipeline(stages=[
        VectorAssembler(inputCols=NUMBERS, outputCol="numbers"), StandardScaler(inputCol="numbers", outputCol="scaled"),
        PCA(k=2, inputCol="scaled", outputCol="features"), last or LinearRegression(featuresCol="features", labelCol=label),
    ])  # fmt: skip


NUMERIC = {"churn": unfitted}
PAGES: dict[str, dict[str, Callable[[], Pipeline]]] = {"README.md": NUMERIC}
"""A page whose blocks are run, and the models that it speaks of."""
SHORTER = {"--budget 30m": "--budget 20s"}
"""What would take long, and what it is replaced by."""


@pytest.fixture(scope="module")
def data(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], DataFrame]:
    folder = tmp_path_factory.mktemp("rows")

    def read(classes: bool) -> DataFrame:
        path = folder / f"{'classes' if classes else 'numbers'}.parquet"
        if not path.exists():
            rows(classes).to_parquet(path)
        return spark.read.parquet(path.as_uri())

    return read


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(
    page: str, spark: SparkSession, data: Callable[[bool], DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    df = data(False)
    (tmp_path / "data").mkdir()
    for name in ("churn", "rides"):
        df.toPandas().to_parquet(tmp_path / "data" / f"{name}.parquet")
    names: dict[str, Any] = {
        "spark": spark, "df": df, "sparkdiff": sparkdiff, "FineTuner": sparkdiff.FineTuner, "PipelineModel": PipelineModel,
        "RobustScaler": RobustScaler, "judge": BinaryClassificationEvaluator(), "pipeline": unfitted(),
    }  # fmt: skip
    for name, pipeline in PAGES[page].items():
        names["model"] = pipeline().fit(df)
        names["model"].save(str(tmp_path / "models" / name))
    for block in blocks():
        if block.page.name == page and block.mark is None and block.language != "text":
            text = re.sub(r"(?<![\w./])(models|runs|data)/", rf"{tmp_path}/\1/", block.text)
            for whole, short in SHORTER.items():
                text = text.replace(whole, short)
            if block.language == "python":
                exec(compile(text, f"{page}:{block.line}", "exec"), names)
            elif block.language == "yaml":
                (tmp_path / "conf").mkdir(exist_ok=True)
                (tmp_path / "conf" / "my.yaml").write_text(block.text)
            else:
                for command in text.replace("\\\n", " ").splitlines():
                    run(command.replace("my.yaml", str(tmp_path / "conf" / "my.yaml")), capsys)


def run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)
    if not words or any(command.startswith(start) for start in LINES):
        return
    assert words[0] == "sparkdiff", command
    code = main(words[1:])
    assert code == DONE, command + "\n" + capsys.readouterr().err
