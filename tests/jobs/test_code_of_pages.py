"""README and docs, run as written: each block of Python, each command and each YAML file, on small data.

A block that isn't run has the reason in a comment in front of it, as `tests/unit/test_docs.py` asks. Other tests run the pages in
`ELSEWHERE` of `tests/support/pages.py` and the commands in its `LINES`.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import PCA, Imputer, RobustScaler, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GBTRegressor, LinearRegression
from pyspark.sql import SparkSession

import sparkdiff
from sparkdiff.cli.app import main
from sparkdiff.errors import DONE
from tests.support.pages import ELSEWHERE, LINES, PAGES, Block, blocks

NUMBERS = ["age", "visits", "basket"]


def rows(classes: bool) -> pd.DataFrame:
    """600 customers; their label depends on the last principal component most. `checked` is the label of every third."""
    random = np.random.default_rng(3)
    # Rounded, as the last bits of a product depend on the processor, and the split of a row on its bits.
    x = np.round(random.standard_normal((600, 3)) @ np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.3]]), 9)
    margin = np.round(x @ np.array([0.3, -1.0, 2.0]), 9)
    label = (margin + random.logistic(size=600) > 0) * 1.0 if classes else margin + random.standard_normal(600)
    rides = np.maximum(np.round(20 + 4 * x[:, 0] * x[:, 1]), 0.0)
    days = np.arange(600)
    return pd.DataFrame(x, columns=NUMBERS).assign(
        **dict.fromkeys(("label", "churned", "default", "sold"), label),
        checked=np.where(days % 3, np.nan, label),
        rides=rides,
        bikers=rides,
        plan=random.choice(["basic", "pro"], 600),
        gender=random.choice(["f", "m"], 600),
        station=random.choice(["a", "b", "c", "d"], 600),
        customer=days // 3,
        day=days // 3,
        amount=2_500 * (margin + random.standard_normal(600)) + 2_500,
        device_new=margin > 0,
        years=np.round(4 - 2 * (margin + random.standard_normal(600))),
        hour=random.integers(0, 24, 600),
    )


Make = Callable[[str], Pipeline]


def numeric(label: str) -> Pipeline:
    return ending_in(LinearRegression(featuresCol="features", labelCol=label))


def binary(label: str) -> Pipeline:
    return ending_in(LogisticRegression(featuresCol="features", labelCol=label))


def boosted(label: str) -> Pipeline:
    return ending_in(GBTRegressor(featuresCol="features", labelCol=label, maxIter=10, maxDepth=3))


def ending_in(last: Any) -> Pipeline:
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="numbers"),
            StandardScaler(inputCol="numbers", outputCol="scaled"),
            PCA(k=2, inputCol="scaled", outputCol="features"),
            last,
        ]
    )


def with_text(label: str) -> Pipeline:
    return Pipeline(
        stages=[
            StringIndexer(inputCol="plan", outputCol="plan_index", handleInvalid="keep"),
            Imputer(inputCols=["visits"], outputCols=["visits_known"]),
            VectorAssembler(inputCols=["age", "plan_index", "visits_known"], outputCol="features"),
            LogisticRegression(labelCol=label),
        ]
    )


def forest(label: str) -> Pipeline:
    return Pipeline(
        stages=[
            VectorAssembler(inputCols=NUMBERS, outputCol="numbers"),
            RandomForestClassifier(numTrees=5, featuresCol="numbers", labelCol=label, seed=1),
        ]
    )


class Page(NamedTuple):
    """What a page takes for granted: the folders of `models/`, whether labels are classes, and names of variables.

    `job` is the label of a file `churn.yaml`; `earlier` names runs that have ended, of which `tuned` is like one.
    """

    models: dict[str, tuple[Make, str]] = {}
    classes: bool = False
    fitted: dict[str, tuple[Make, str]] = {}
    unfitted: dict[str, tuple[Make, str]] = {}
    job: str | None = None
    earlier: tuple[str, ...] = ()


CHURN: dict[str, tuple[Make, str]] = {"churn": (numeric, "label")}
CLASSES = Page({"churn": (binary, "label")}, classes=True, unfitted={"pipeline": (binary, "label")})
RIDES: dict[str, tuple[Make, str]] = {"rides": (numeric, "rides")}
WORLDS = {
    "README.md": Page(CHURN),
    "cache.md": Page(
        fitted={"first": (numeric, "sold"), "edited": (boosted, "sold"), "edited_again": (numeric, "sold")}
    ),
    "compact.md": Page(CHURN),
    "export.md": CLASSES,
    "growing.md": Page(RIDES),
    "guard.md": CLASSES,
    "improving.md": Page(RIDES),
    "jobs.md": Page(CHURN),
    "labels.md": Page({"churn": (forest, "label")}, classes=True, fitted={"forest": (forest, "label")}),
    "mlflow.md": Page(CHURN),
    "objectives.md": CLASSES,
    "plan.md": Page(CHURN),
    "python.md": Page(CHURN, unfitted={"pipeline": (numeric, "label")}),
    "report.md": Page(CHURN, earlier=("churn", "churn_slow")),
    "runs.md": Page({"churn": (binary, "churned")}, classes=True, job="churned"),
    "search.md": CLASSES,
    "serving.md": Page({"churn": (with_text, "label")}, classes=True),
    "torch_transformer.md": Page(CHURN),
    "trees.md": Page({"demand": (boosted, "bikers")}),
    "triage.md": Page(
        {"churn": (binary, "churned"), "risk": (binary, "default"), "price": (numeric, "sold")}, classes=True
    ),
}
"""The pages that are run."""
SHORTER = {"--budget 30m": "--budget 20s", 'budget="30m"': 'budget="20s"', "4 core-hours": "3 core-minutes"}
"""What would take long, and what it is replaced by."""


def to_run(page: str) -> list[Block]:
    return [b for b in blocks() if b.page.name == page and b.mark is None and b.language != "text"]


def test_each_page_with_code_is_run() -> None:
    assert {p.name for p in PAGES if to_run(p.name)} == {*WORLDS, *ELSEWHERE}


@pytest.mark.nightly
@pytest.mark.parametrize("page", WORLDS)
def test_a_page_runs(
    page: str, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    world = WORLDS[page]
    names = begin(world, spark, tmp_path)
    for block in to_run(page):
        text = moved(block.text, tmp_path)
        if block.language == "python":
            exec(compile(text, f"{page}:{block.line}", "exec"), names)
        elif block.language == "yaml":
            if "pipeline" in yaml.safe_load(block.text):  # else one section, which tests/unit/test_docs.py checks
                (tmp_path / "conf" / "my.yaml").write_text(block.text)
        else:
            for command in text.replace("\\\n", " ").splitlines():
                run(command.replace("my.yaml", str(tmp_path / "conf" / "my.yaml")), capsys)


def begin(world: Page, spark: SparkSession, folder: Path) -> dict[str, Any]:
    """The files that a page speaks of, and its variables; `model` is the first of its models."""
    for name in ("data", "conf", "mnt", "lake"):
        (folder / name).mkdir()
    table = rows(world.classes)
    for name in ("churn", "rides", "risk", "price"):
        table.to_parquet(folder / "data" / f"{name}.parquet")
    df = spark.read.parquet(f"file://{folder}/data/churn.parquet")
    names: dict[str, Any] = {
        "spark": spark,
        "df": df,
        "rows": df,
        "sparkdiff": sparkdiff,
        "FineTuner": sparkdiff.FineTuner,
        "PipelineModel": PipelineModel,
        "RobustScaler": RobustScaler,
        "judge": BinaryClassificationEvaluator(),
        **{name: make(label) for name, (make, label) in world.unfitted.items()},
    }
    for name, (make, label) in world.fitted.items():
        names[name] = make(label).fit(df)
    for name, (make, label) in world.models.items():
        saved = make(label).fit(df)
        saved.save(str(folder / "models" / name))
        names.setdefault("model", saved)
    if world.job is not None:
        write_job(folder / "churn.yaml", "churn", world.job)
    for name in world.earlier:
        write_job(folder / "earlier.yaml", name, "label")
        assert main(["finetune", "--config", "earlier.yaml"]) == DONE
    if world.earlier:
        names["tuned"] = sparkdiff.FineTuner(names["model"], labelCol="label").fit(df)
    return names


def write_job(path: Path, run_name: str, label: str) -> None:
    job = {"pipeline": "models/churn", "data": {"train": "data/churn.parquet"}, "output": f"runs/{run_name}"}
    path.write_text(yaml.safe_dump(job | {"fineTuner": {"labelCol": label}}))


def moved(text: str, folder: Path) -> str:
    """The block with its folders below `folder`: Spark has another working directory than a test."""
    text = re.sub(r"(?<![\w./])(models|runs|data)/", rf"{folder}/\1/", text)
    text = text.replace("/mnt/", f"{folder}/mnt/").replace("s3a://lake/", f"{folder}/lake/")
    for whole, short in SHORTER.items():
        text = text.replace(whole, short)
    return text


def run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command, comments=True)
    if not words or any(command.startswith(start) for start in LINES):
        return
    assert words[0] == "sparkdiff", command
    code = main(words[1:])
    assert code == DONE, command + "\n" + capsys.readouterr().err
