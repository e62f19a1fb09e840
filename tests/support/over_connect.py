"""What `test_connect.py` runs in a process of its own: a whole fine-tuning over Spark Connect, the JVM out of reach.

    python -m tests.support.over_connect FOLDER [all]

leaves FOLDER/rows (Parquet), FOLDER/model and, in FOLDER/facts.json, what the tests compare. With `all`, as by night, jobs,
serving by torch, models made from files and every kind of data that a stage holds are tried too.
"""

import json
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import py4j.java_gateway
import torch
import yaml
from pyspark import SparkContext
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression, RandomForestClassifier
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import (
    IDF,
    ElementwiseProduct,
    RobustScaler,
    StandardScaler,
    VarianceThresholdSelector,
    VectorAssembler,
    VectorIndexer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.connect.client.core import DefaultChannelBuilder
from sklearn.ensemble import HistGradientBoostingRegressor

import sparkdiff
from sparkdiff import jvm
from sparkdiff.cli import starting
from sparkdiff.cli.config import load_config
from sparkdiff.data import loading
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.testing import check_stage

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
"""As in the session of the other tests: few rows are read faster than their plans are compiled."""
sys.path.insert(0, str(ROOT / "conf"))


def unreachable(*_: Any) -> NoReturn:
    raise AssertionError("the JVM was asked")


def without_jvm() -> None:
    """A local Connect server shares this process's gateway; from here on, whoever uses it fails."""
    for cls in (py4j.java_gateway.JavaMember, py4j.java_gateway.JavaClass):
        cls.__call__ = unreachable
    for cls in (py4j.java_gateway.JVMView, py4j.java_gateway.JavaObject, py4j.java_gateway.JavaPackage):
        cls.__getattr__ = unreachable


def params(model: Any) -> list[Any]:
    return [(type(s), s.uid, jvm.defined_params(s)) for _, s in flatten(model)]


def predictions(model: Any, df: DataFrame) -> list[float]:
    return [row.prediction for row in model.transform(df).orderBy("id").select("prediction").collect()]


def connected() -> SparkSession:
    """A session of a local Connect server at a free port, so that several of these processes can run on a machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    DefaultChannelBuilder.default_port = staticmethod(lambda: port)  # where the session then looks for the server
    builder = SparkSession.builder.remote("local[2]").config("spark.connect.grpc.binding.port", str(port))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the server has the port; the session cannot set it, too
        return builder.config(map=SETTINGS).getOrCreate()


def main(folder: Path, everything: bool) -> None:
    spark = connected()
    without_jvm()
    facts: dict[str, Any] = {"version": spark.version, "session": type(spark).__module__}
    assert not jvm.has_constructors()
    try:
        SparkContext._jvm.java.lang.System.currentTimeMillis()
    except AssertionError as e:
        facts["jvm"] = str(e)

    source = yaml.safe_load((ROOT / "conf" / "bikeshare.yaml").read_text())["data"]["train"]
    hours = spark.read.schema(source["schema"]).option("header", True).csv(f"file://{ROOT}/data/bikeshare.csv")
    hours.withColumn("id", F.concat_ws("-", "day", "hr")).coalesce(2).write.parquet(f"file://{folder}/rows")
    df = spark.read.parquet(f"file://{folder}/rows")

    import pipelines  # conf/pipelines.py, what the demo fine-tunes

    model = pipelines.bikeshare(df).fit(df.where("pmod(xxhash64(day, hr, 0), 10) < 6"))
    before = params(model)
    facts["plan"] = [(s.stageClass, s.role, s.trainable) for s in sparkdiff.plan(model, schema=df.schema).stages]
    # On the server, the model of a regression without a link can't even say its name.
    unlinked = GeneralizedLinearRegression(featuresCol="v", labelCol="bikers", family="poisson", maxIter=2)
    numbers = VectorAssembler(inputCols=["temp", "hum"], outputCol="v").transform(df)
    assert sparkdiff.plan(unlinked.fit(numbers)).stages[0].trainable
    network = sparkdiff.translate(model)
    assert sparkdiff.write_back(model, network) is model
    facts["parity"] = str(sparkdiff.verify(model, df))
    assert sparkdiff.verify(model, df).ok

    tuner = sparkdiff.FineTuner(
        pipeline=model, labelCol="bikers", maxEpochs=6, verbosity=0, cacheDir=f"{folder}/cache", rowsAreNew=True
    )
    tuned = tuner.fit(df)
    facts["decision"], facts["metrics"] = tuned.summary.decision, tuned.summary.metrics
    facts["after"] = tuned.summary.parity["after"]["ok"]
    facts["hits"] = [tuned.summary.cache["hit"], tuner.fit(df).summary.cache["hit"]]
    plain = tuned.pipelineModel
    assert params(plain) == before == params(model)
    new = sparkdiff.translate(plain)
    assert any(not torch.equal(p, q) for p, q in zip(new.parameters(), network.parameters(), strict=True))
    assert sparkdiff.verify(plain, df, network=new).ok
    assert not sparkdiff.verify(model, df, network=new).ok

    plain.write().overwrite().save(f"file://{folder}/model")
    loaded = PipelineModel.load(f"file://{folder}/model")
    facts["predictions"] = predictions(plain, df)
    assert predictions(loaded, df) == facts["predictions"]
    assert predictions(model, df) != facts["predictions"]
    assert sparkdiff.write_back(loaded, sparkdiff.translate(loaded)) is loaded
    for _ in range(1 + everything):
        tuned.write().overwrite().save(f"file://{folder}/tuned")
        tuner.write().overwrite().save(f"file://{folder}/tuner")
    again = sparkdiff.FineTunerModel.load(f"file://{folder}/tuned")
    assert predictions(again, df) == facts["predictions"]
    assert predictions(PipelineModel.load(f"file://{folder}/tuned"), df) == facts["predictions"]  # without sparkdiff
    assert again.summary.metrics == tuned.summary.metrics
    assert sparkdiff.FineTuner.load(f"file://{folder}/tuner").getMaxEpochs() == 6

    # Trees: read from what the server saves, written back the same way, weights of the trees included.
    boosted = GBTRegressor(featuresCol="v", labelCol="bikers", maxIter=3, maxDepth=3, leafCol="leaves")
    forest = RandomForestClassifier(featuresCol="v", labelCol="holiday", numTrees=3, maxDepth=3)
    for estimator in (boosted, forest) if everything else (boosted,):
        trees = estimator.fit(numbers)
        grown = sparkdiff.translate(trees)
        assert sparkdiff.verify(trees, numbers, network=grown).ok
        with torch.no_grad():
            for parameter in grown.parameters():
                parameter.mul_(1.5).add_(0.25)
        other = sparkdiff.write_back(trees, grown)
        assert params(other) == params(trees)
        assert sparkdiff.verify(other, numbers, network=grown).ok
        assert not sparkdiff.verify(trees, numbers, network=grown).ok

    unset = LogisticRegression(featuresCol="v", labelCol="holiday", maxIter=2, thresholds=[0.5, 0.5])
    unset.clear(unset.thresholds)
    assert unset.isSet("thresholds")  # else Spark mended it, and `jvm.clear_param` can go
    jvm.clear_param(unset, unset.thresholds)
    assert unset.setThreshold(0.25).fit(numbers).getThreshold() == 0.25  # which `thresholds` would contradict

    try:
        sparkdiff.verify(model, df.withColumn("temp", F.lit(None).cast("double")))
    except sparkdiff.InputError as e:
        facts["refused"] = str(e)

    assembled = model.transform(df).select("assembled", "bikers")
    # pyspark's own class searches; what can be told before is told.
    head = LinearRegression(featuresCol="assembled", labelCol="bikers")
    given = {"estimatorParamMaps": [{head.regParam: 0.1}, {head.regParam: 0.2}], "evaluator": RegressionEvaluator()}
    facts["search"] = str(sparkdiff.CrossValidator(estimator=head, **given).explain(assembled))
    try:
        sparkdiff.CrossValidator(estimator=head, **given, foldCol="folt").explain(assembled)
    except sparkdiff.InputError as e:
        facts["foldCol"] = str(e)
    if everything:
        facts |= all_else(folder, plain, df, numbers, assembled, facts["predictions"])
    (folder / "facts.json").write_text(json.dumps(facts))


def all_else(
    folder: Path, plain: PipelineModel, df: DataFrame, numbers: DataFrame, assembled: DataFrame, served: list[float]
) -> dict[str, Any]:
    """What takes longer, of the tuned pipeline, the rows, two of their numbers as a vector, and what the scaler reads."""
    facts: dict[str, Any] = {}
    by_torch = sparkdiff.TorchTransformer(plain, device="cpu")
    by_torch.write().overwrite().save(f"file://{folder}/by-torch")
    for transformer in (by_torch, sparkdiff.TorchTransformer.load(f"file://{folder}/by-torch")):
        np.testing.assert_allclose(predictions(transformer, df), served, rtol=1e-9)

    # A fitted stage of which there is none to copy from: its files are written.
    plane = jvm.model_with_weights(
        LinearRegression(featuresCol="v"), {"coefficients": np.arange(2.0), "intercept": 1.0, "scale": 1.0}
    )
    assert predictions(plane, numbers)[:9] == [r.hum + 1 for r in numbers.orderBy("id").select("hum").head(9)]

    # Trees of another library: all files of the model are written, of the trees and of their link.
    known = numbers.orderBy("id").select("temp", "hum", "bikers").toPandas().to_numpy()
    foreign = HistGradientBoostingRegressor(loss="poisson", max_iter=3).fit(known[:, :2], known[:, 2])
    home = sparkdiff.from_sklearn(foreign, featuresCol="v", missing="absent")
    np.testing.assert_allclose(predictions(home, numbers), foreign.predict(known[:, :2]), rtol=1e-12)

    job = load_config(
        ROOT / "conf" / "bikeshare.yaml",
        [f"output.path={folder}/job", "fineTuner.maxEpochs=4", "fineTuner.verbosity=0"],
    )
    facts["job"] = starting.run(job).decision
    assert predictions(loading.load_model(f"file://{folder}/job/model"), df)
    # What these are fitted to is no vector, or one that constructors wrap: maps, arrays of counts, indices of features.
    for estimator in (
        IDF(inputCol="v", outputCol="o", minDocFreq=9),
        RobustScaler(inputCol="v", outputCol="o", withCentering=True),
        VectorIndexer(inputCol="v", outputCol="o", handleInvalid="keep"),
        VarianceThresholdSelector(featuresCol="v", outputCol="o"),
        ElementwiseProduct(inputCol="v", outputCol="o", scalingVec=Vectors.dense(2.0, -1.0)),
    ):
        check_stage(estimator.fit(numbers) if hasattr(estimator, "fit") else estimator, numbers)

    # A scaler with no output column set: a loaded one's Python object names another than Spark writes.
    scaler = StandardScaler(inputCol="assembled").fit(assembled)
    linear = LinearRegression(featuresCol=scaler.getOutputCol(), labelCol="bikers").fit(scaler.transform(assembled))
    PipelineModel([scaler, linear]).save(f"file://{folder}/unnamed")
    unnamed = PipelineModel.load(f"file://{folder}/unnamed")
    network = sparkdiff.translate(unnamed)
    with torch.no_grad():
        network.module(0).mean += 1.0
        network.module(0).std *= 2.0
    back = sparkdiff.write_back(unnamed, network)
    facts["unnamed"] = str(sparkdiff.verify(back, assembled, network=network))
    assert not sparkdiff.verify(unnamed, assembled, network=network).ok

    return facts


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:] == ["all"])
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # stopping the session would ask the JVM, which ends with this process anyway
