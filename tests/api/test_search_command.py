"""`sparkdiff search`: a job with a section `search`, from its YAML to the run's folder."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel

from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, WRONG_INPUT

JOB = """
pipeline: tests.support.small_data:unfitted
data: {train: rows.parquet}
search:
  metric: rmse
  space: {PCA: {k: [1, 3]}, GeneralizedLinearRegression: {regParam: {choice: [0.001, 1e+3]}}}
  sampler: grid
  numFolds: 0
output: out
"""


@pytest.fixture
def job(tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> Path:
    pq.write_table(table, tmp_path / "rows.parquet", coerce_timestamps="us")
    (tmp_path / "job.yaml").write_text(JOB.replace("tests.support.small_data:unfitted", "searched_here:pipeline"))
    (tmp_path / "searched_here.py").write_text(
        "from tests.support.small_data import unfitted\npipeline = lambda train: unfitted()\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_file_to_a_folder(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--config", "job.yaml"]) == DONE
    where = ["saved out/model (plain Spark ML)", "report: out/report.html", "next: sparkdiff plan out"]
    assert capsys.readouterr().out.splitlines()[-3:] == where
    written = [".sparkdiff", "model", "report.html", "summary.json", "trials.csv"]
    assert sorted(p.name for p in (job / "out").iterdir()) == written
    summary: dict[str, Any] = json.loads((job / "out" / "summary.json").read_text())
    trials = pd.read_csv(job / "out" / "trials.csv")
    assert (summary["trials"], summary["metric"], sorted(trials["PCA.k"])) == (4, "rmse", [1, 1, 3, 3])
    best = trials.loc[trials["rmse"].idxmin()]
    model = PipelineModel.load(f"file://{job}/out/model")
    if summary["decision"] == "winner":
        assert model.stages[-2].getK() == best["PCA.k"] and model.stages[-1].getRegParam() == best.iloc[-2]
    assert all(type(stage).__module__.startswith("pyspark.ml.") for stage in model.stages)
    assert not [*(job / ".cache").glob("*search*")]  # the study is over
    report = (job / "out" / "report.html").read_text()
    assert f"{summary['rows']['train']:,} train" in report and f"finished {summary['finished'][:10]}" in report
    assert main(["search", "--config", "job.yaml"]) == WRONG_INPUT
    assert "exists: choose another folder" in capsys.readouterr().err
    assert main(["search", "--config", "job.yaml", "output.mode=overwrite", "search.space={PCA: {k: [2]}}"]) == DONE
    assert len(pd.read_csv(job / "out" / "trials.csv")) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.metric=rmsse"], "Did you mean 'rmse' or 'mse'?"),
        (["search.metric=areaUnderROC"], "search.metric=areaUnderROC needs a classifier"),
        (["search.space.PCA.kk=[1]"], "search.space.PCA.kk: PCA_"),
        (["search.space.Pca.k=[1]"], "no stage has this uid, class name or output column. Did you mean 'PCA'?"),
        (["search.space.PCA.k=[0]"], "k"),
        (["search.space.PCA.k={integer: [4, 1]}"], "low is above high"),
        (["search.sampler=tpee"], "Did you mean 'tpe'?"),
        (["search.numtrials=4"], "search: unknown key 'numtrials'. Did you mean 'numTrials'?"),
        (["search.numFolds=1"], "numFolds=1 leaves no rows to decide: use 2 or more"),
        (["search.numFolds=many"], "'numFolds' option must be"),
        (["search.groupCol=a", "search.timeCol=b"], "groupCol='a' and timeCol='b' exclude each other"),
        (["data.test=rows.parquet"], "data.test is not used by a search"),
        (["search.current=nothing"], "nothing"),
    ],
)
def test_what_is_wrong_is_one_line(job: Path, overrides: list[str], said: str, capsys: Any) -> None:
    assert main(["search", "--config", "job.yaml", *overrides]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not (job / "out").exists()


def test_each_job_has_its_command(job: Path, capsys: Any) -> None:
    assert main(["finetune", "--config", "job.yaml"]) == WRONG_INPUT
    assert "run `sparkdiff search` instead" in capsys.readouterr().err
    assert main(["search", "pipeline=m", "data.train=rows.parquet", "output=out"]) == WRONG_INPUT
    assert "search.metric must name a metric" in capsys.readouterr().err
