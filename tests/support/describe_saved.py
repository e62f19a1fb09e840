"""What there is to see of a saved pipeline, search or model; as a program, of all in a folder, in a session of its own
that then stops.

It imports nothing of sparkdiff: loading must do that by itself.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from pyspark.ml.tuning import CrossValidator
from pyspark.sql import DataFrame, SparkSession


def described(thing: Any, df: DataFrame, fitted: Any = None) -> dict[str, Any]:
    """Its uid, Params and stages; what an estimator fits to the rows (`fitted`, if that is known), what a model predicts."""
    out = params_of(thing)
    if isinstance(thing, CrossValidator):  # fitted the same way as a TrainValidationSplit
        whole = thing.getEstimator()
        return out | {"settings": [shown(whole.copy(m).getStages()) for m in thing.getEstimatorParamMaps()]}
    if hasattr(thing, "fit"):
        model = fitted or thing.fit(df)
        return out | {"sum": total(model, df), "metrics": metrics_of(model)}
    best = getattr(thing, "bestModel", thing)
    last = getattr(thing, "subModels", None) or []
    while last and isinstance(last[-1], list):
        last = last[-1]  # a loaded CrossValidatorModel has the last fold's models in every fold: Spark's error
    return out | {
        "sum": total(thing, df),
        "metrics": metrics_of(thing),
        "sub": [total(m, df) for m in last],
        "tuned": params_of(best.stages[1]),
        "summary": best.stages[1].summary.asdict(),
        "history": best.stages[1].summary.history.fillna(-1).to_dict("list"),
        "original": total(best.stages[1].originalModel, best.stages[0].transform(df)),
    }


def params_of(thing: Any) -> dict[str, Any]:
    return {"uid": thing.uid, "class": type(thing).__name__} | {
        p.name: shown(v) for p, v in thing.extractParamMap().items()
    }


def shown(value: Any) -> Any:
    if hasattr(value, "extractParamMap"):
        return params_of(value)
    if isinstance(value, dict):
        return {getattr(k, "name", k): shown(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shown(v) for v in value]
    return getattr(value, "__qualname__", value)


def metrics_of(model: Any) -> list[Any]:
    return [getattr(model, name, None) for name in ("avgMetrics", "stdMetrics", "validationMetrics")]


def total(model: Any, df: DataFrame) -> float:
    return float(model.transform(df).agg({"prediction": "sum"}).first()[0])


def main(folder: Path, data: str) -> None:
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for name, value in (("wholeStage", "false"), ("factoryMode", "NO_CODEGEN")):  # as in the session of the tests
        spark = spark.config(f"spark.sql.codegen.{name}", value)
    df = spark.config("spark.sql.shuffle.partitions", "2").getOrCreate().read.parquet(data)
    things, out = {}, {}
    for path in sorted(folder.iterdir()):
        module = "pyspark.ml" if path.name.startswith("Pipeline") else "pyspark.ml.tuning"
        things[path.name] = getattr(importlib.import_module(module), path.name).load(f"file://{path}")
        out[path.name] = described(things[path.name], df)
    df.sparkSession.stop()
    print(json.dumps(out | {"stopped": refused(things["PipelineModel"], df)}))


def refused(model: Any, df: DataFrame) -> dict[str, str]:
    """What is said to those who go on with a model whose session has stopped."""
    import sparkdiff

    tuner = sparkdiff.FineTuner(pipeline=model)
    calls = {
        "plan": lambda: sparkdiff.plan(model),
        "translate": lambda: sparkdiff.translate(model),
        "verify": lambda: sparkdiff.verify(model, df),
        "fit": lambda: tuner.fit(df),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except sparkdiff.InputError as e:
            found[name] = str(e)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
