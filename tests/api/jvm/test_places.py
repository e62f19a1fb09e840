"""A job whose folders have names that Spark takes for globs, and folders that can't be written to."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import FineTuner, InputError
from sparkdiff.cli import starting
from sparkdiff.cli.app import main
from sparkdiff.cli.config import load_config
from sparkdiff.errors import DONE
from sparkdiff.jvm import sessions

QUICK = ["fineTuner.maxEpochs=1", "fineTuner.recipe=fast", "fineTuner.guard=1.0", "fineTuner.verbosity=0"]
PIPELINE = "from tests.support.small_data import unfitted\n\n\ndef of_riders(train):\n    return unfitted()\n"


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["x [1]{y,z} 50%20#ü*?"])
def test_a_folder_of_any_name_holds_a_job(
    spark: SparkSession, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    pq.write_table(table, folder / "part-1.parquet", coerce_timestamps="us")
    (folder / "of_any_name.py").write_text(PIPELINE)
    (folder / "job.yaml").write_text(
        "{pipeline: of_any_name:of_riders, data: {train: part-*.parquet}, output: {path: runs/x, mode: overwrite}}"
    )
    for made in ("fitted", "loaded"):  # the second time from the folder of caches
        monkeypatch.setattr(
            sessions, "has_constructors", lambda: False
        )  # weights go back by way of files in these folders
        config = load_config(folder / "job.yaml", QUICK)
        assert starting.run(config).cache["hit"] is (made == "loaded")
    monkeypatch.chdir(folder)
    assert main(["verify", "runs/x/model", "--data", "part-1.parquet"]) == DONE
    assert len(list(tmp_path.iterdir())) == 1  # nothing beside it


def test_folders_that_cannot_be_used(df: DataFrame, numeric: PipelineModel, spark: SparkSession) -> None:
    for option in ("cacheDir", "checkpointDir"):
        with pytest.raises(InputError, match=f"{option}='gs:x' is neither a path nor a URL"):
            FineTuner(pipeline=numeric, **{option: "gs:x"})
    with pytest.raises(InputError, match=r"cacheDir='/proc' cannot be used: .*; choose a folder that can be written"):
        FineTuner(pipeline=numeric, cacheDir="/proc").fit(df)  # it is there, and nobody can write to it
    spark.conf.set("spark.sparkdiff.cacheDir", "s3a://bucket/x")
    try:
        with pytest.raises(InputError, match="cacheDir='s3a://bucket/x' can't be used, as Spark has no file"):
            FineTuner(pipeline=numeric).fit(df)
    finally:
        spark.conf.unset("spark.sparkdiff.cacheDir")
