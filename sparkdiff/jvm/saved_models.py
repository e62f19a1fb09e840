"""Loading of saved models. Two stages of a pipeline are loaded at a time, because the Spark jobs that load one stage
wait for each other.
"""

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.ml.util import DefaultParamsReader

from sparkdiff.jvm import folders, sessions, stores
from sparkdiff.machine import paths

AT_ONCE = 2


def load_model(path: str | Path) -> Any:
    """Load the pipeline or stage that was saved to a path or URL.

    Raises:
        SparkError, ValueError, AttributeError, ImportError: it cannot be loaded (Spark's own errors).
    """
    spark = sessions.session()
    if (copy := stores.fetch_folder(str(path))) is not None and stores.url_of(copy) is not None:
        path = copy  # whose stages are found from their files
    stages = _stages(path) if sessions.in_process(spark) else None
    if not stages:
        return DefaultParamsReader.loadParamsInstance(folders.model_at(path), sessions.ml_context(spark))
    uid, parts = stages
    with ThreadPoolExecutor(AT_ONCE) as threads:
        model = PipelineModel(list(threads.map(lambda part: part[0].load(folders.model_at(part[1])), parts)))
    return model._resetUid(uid)


def _stages(path: str | Path) -> tuple[str, list[tuple[Any, Path]]] | None:
    """The uid of a PipelineModel that Spark saved on this machine, and the class and folder of each of its stages; None
    for anything else, or if a stage is not one of Spark's own.
    """
    folder = paths.local(str(path))
    try:
        if folder is None or (told := _metadata(folder))["class"] != "org.apache.spark.ml.PipelineModel":
            return None
        uids = told["paramMap"]["stageUids"]
        width, parts = len(str(len(uids))), []
        for i, uid in enumerate(uids):
            where = folder / "stages" / f"{i:0{width}d}_{uid}"  # like SharedReadWrite.getStagePath in Pipeline.scala
            module, _, name = _metadata(where)["class"].replace("org.apache.spark.", "pyspark.", 1).rpartition(".")
            if not module.startswith("pyspark.ml."):
                return None
            parts.append((getattr(importlib.import_module(module), name), where))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None  # Spark's own loading reports the error
    return told["uid"], parts


def _metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a saved stage.

    Raises:
        OSError, ValueError: the metadata are not one text file on this machine.
    """
    (file,) = (folder / "metadata").glob("part-*")
    return json.loads(file.read_text(encoding="utf-8"))
