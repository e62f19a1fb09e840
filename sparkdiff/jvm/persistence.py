"""Saving and loading of models: of stages whose classes exist only in Python, also through Spark Connect; and of saved
pipelines, two stages of which are loaded at a time, because the Spark jobs that load one stage wait for each other.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyspark.ml import PipelineModel
from pyspark.ml.param import Param, Params
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter

from sparkdiff.errors import InputError, as_read_error
from sparkdiff.jvm import folders, sessions, stores
from sparkdiff.machine import paths

_Own = TypeVar("_Own", bound="Persistent")
Load = Callable[[str], Any]
"""A function that loads a stage saved inside another one, given its name."""


class Persistent(Params, MLWritable, MLReadable[Any]):
    """A stage without a Java class, which is saved as JSON values and the stages inside it."""

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values, which JSON can hold, and the inner stages, by name."""
        raise NotImplementedError

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: Load) -> Any:
        """Stage with these values; its uid is set afterwards."""
        raise NotImplementedError

    def write(self) -> MLWriter:
        return Writer(self)  # type: ignore[no-untyped-call]

    @classmethod
    def read(cls: type[_Own]) -> MLReader[_Own]:
        return Reader(cls)

    def params_set(self) -> dict[str, Any]:
        """Values of the Params that are set, by name."""
        return {param.name: value for param, value in self._paramMap.items()}


class Writer(DefaultParamsWriter):
    """A writer of a `Persistent`."""

    instance: Any

    @property
    def sc(self) -> Any:
        return sessions.ml_context(self.sparkSession)

    def saveImpl(self, path: str) -> None:
        values, stages = self.instance.saved_parts()
        params = _params_of_pipeline(stages["pipelineModel"]) if "pipelineModel" in stages else {}
        self.saveMetadata(self.instance, path, self.sc, {"values": json.dumps(values)}, paramMap=params)
        for name, stage in stages.items():
            stage.write().save(paths.inside(path, name))

    def _handleOverwrite(self, path: str) -> None:
        if sessions.in_process(self.sparkSession):
            super()._handleOverwrite(path)  # type: ignore[misc]
        else:
            PipelineModel([]).write().handleOverwrite(path, True)  # type: ignore[attr-defined]


def _params_of_pipeline(plain: Any) -> dict[str, Any]:
    """The Params with which `PipelineModel.load` loads the plain model of a saved `Persistent`, without sparkdiff.

    It looks for a stage in `stages/<place>_<uid>`. From there, these "uids" lead to the stages in the folder `pipelineModel`, so
    that nothing is saved twice.
    """
    stages = plain.stages if isinstance(plain, PipelineModel) else None
    places = [f"/stages/{i:0{len(str(len(stages)))}}_{s.uid}" for i, s in enumerate(stages)] if stages else [""]
    return {"language": "Python", "stageUids": [f"/../../pipelineModel{place}" for place in places]}


class Reader(MLReader[Any]):
    """A reader of a `Persistent`."""

    def __init__(self, cls: Any):
        super().__init__()
        self.cls = cls

    @property
    def sc(self) -> Any:
        return sessions.ml_context(self.sparkSession)

    def load(self, path: str) -> Any:
        with as_read_error(path):
            meta, wanted = DefaultParamsReader.loadMetadata(path, self.sc), f"{self.cls.__module__}.{self.cls.__name__}"
            if meta["class"] != wanted:
                raise InputError(f"{path} holds a {meta['class']}, not a {wanted}: load it by its own class")

            def stage(name: str) -> Any:
                return DefaultParamsReader.loadParamsInstance(paths.inside(path, name), self.sc)

            return self.cls.from_parts(json.loads(meta["values"]), stage)._resetUid(meta["uid"])


def clear_param(stage: Params, param: Param[Any]) -> None:
    """Unset a Param of a stage, also over Spark Connect, where `clear` of MLlib's own stages does nothing."""
    stage.clear(param)
    Params.clear(stage, param)


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
