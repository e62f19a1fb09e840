"""The differences between two fitted pipelines, stage by stage: classes, Params, weights."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparkdiff import jvm
from sparkdiff.evaluation.prediction_differences import PredictionDifference, finite_or_none
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.report import Displayable, Section, difference_headline, difference_sections
from sparkdiff.stages.base import REGISTRY, class_name
from sparkdiff.store.model_digests import hash_of, try_to_save
from sparkdiff.store.saved_digests import digest_of_folder

Place = tuple[int, ...]
"""Position of a leaf stage in the nested pipelines."""


@dataclasses.dataclass(frozen=True)
class WeightDifference:
    """The difference between two stages in one weight.

    Relative differences are divided by the larger absolute value of the two. A difference that is not finite is None;
    if the shapes differ, `differ`, `maxAbsDiff` and `maxRelDiff` are None.

    Attributes:
        entries: number of entries of the old weight.
        differ: number of entries that differ.
    """

    parameter: str
    shape: tuple[int, ...]
    newShape: tuple[int, ...]
    entries: int
    differ: int | None
    maxAbsDiff: float | None
    maxRelDiff: float | None


@dataclasses.dataclass(frozen=True)
class ParamDifference:
    """A Param that differs. `old` and `new` are ("set" or "default", value), or None if the stage has no value."""

    param: str
    old: tuple[str, Any] | None
    new: tuple[str, Any] | None


@dataclasses.dataclass(frozen=True)
class StageDifference:
    """The comparison of a leaf stage of the old pipeline with its counterpart in the new one; either may be missing.

    Attributes:
        what: "same", "differs", "class differs", "only in old" or "only in new".
        weights: the weights that differ, if sparkdiff translates the stage.
        translated: whether sparkdiff translates the stage, and so knows its weights.
        content: whether the stage's saved data differ in something that neither `weights` nor `params` show, or cannot
            be compared because the stage cannot be saved; False if weights differ.
    """

    what: str
    path: Place | None
    newPath: Place | None
    uid: str | None
    newUid: str | None
    stageClass: str | None
    newStageClass: str | None
    params: tuple[ParamDifference, ...] = ()
    weights: tuple[WeightDifference, ...] = ()
    translated: bool = False
    content: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Difference(Displayable):
    """The differences between two fitted pipelines.

    Attributes:
        oldHash, newHash: content hashes, the same as in a run's summary.json; None if a pipeline cannot be saved.
        stages: an entry per leaf stage of either pipeline, in the order of the old pipeline.
        predictions: differences of the predictions on the rows that were passed; None if no rows were passed.
    """

    oldHash: str | None
    newHash: str | None
    stages: tuple[StageDifference, ...]
    predictions: PredictionDifference | None = None

    @property
    def same(self) -> bool:
        """True if all stages are the same and in the same places; uids don't count."""
        return all(s.what == "same" and s.path == s.newPath for s in self.stages)

    def asdict(self) -> dict[str, Any]:
        """The differences as JSON-ready values without NaN."""
        return {"same": self.same, **dataclasses.asdict(self)}

    def toJSON(self) -> str:
        return json.dumps(self.asdict(), indent=2, allow_nan=False)

    def _headline(self) -> str:
        return difference_headline(self.asdict())

    def _sections(self) -> Iterator[Section]:
        yield from difference_sections(self.asdict())


def between(old: Any, new: Any, folder: Path, *, paths: tuple[str | None, str | None] = (None, None)) -> Difference:
    """Compare two fitted pipelines or stages, stage by stage. Runs no job except for saving both.

    Leaf stages are matched by path and uid, then by uid (a stage that moved), then by class in order (a pipeline that
    was fitted again); stages of different classes that replace each other in this order are matched, too.

    Args:
        folder: a folder where both pipelines and their stages are saved temporarily; Spark and this process must see
            the same files in it.
        paths: the folder from which each pipeline was loaded, whose files are hashed if this process can read them.

    Raises:
        InputError: one of the pipelines is not fitted.
    """
    before, after = flatten(old), flatten(new)
    hashes = hash_of(old, paths[0], folder), hash_of(new, paths[1], folder)
    look_inside = folder if None in hashes or hashes[0] != hashes[1] else None
    return Difference(*hashes, tuple(_stage(a, b, look_inside) for a, b in _stage_pairs(before, after)))


# Stages -------------------------------------------------------------------------------------------------------------

LeafStage = tuple[Place, Any]


def _stage_pairs(before: list[LeafStage], after: list[LeafStage]) -> list[tuple[LeafStage | None, LeafStage | None]]:
    """Pairs of leaf stages in the order of the old pipeline; unmatched new stages come last."""
    partner: dict[int, int] = {}

    def pair(key: Any) -> None:
        free = {key(after[j]): j for j in reversed(range(len(after))) if j not in partner.values()}
        for i, leaf in enumerate(before):
            if i not in partner and key(leaf) in free:
                partner[i] = free.pop(key(leaf))

    pair(lambda leaf: (leaf[0], leaf[1].uid))
    pair(lambda leaf: leaf[1].uid)
    left = [i for i in range(len(before)) if i not in partner]
    right = [j for j in range(len(after)) if j not in partner.values()]
    classes = [[class_name(leaves[k][1]) for k in ks] for leaves, ks in ((before, left), (after, right))]
    for tag, a, b, c, d in difflib.SequenceMatcher(None, classes[0], classes[1], autojunk=False).get_opcodes():
        if tag in ("equal", "replace"):
            partner.update(zip(left[a:b], right[c:d], strict=False))
    pairs: list[tuple[LeafStage | None, LeafStage | None]] = [
        (leaf, after[partner[i]] if i in partner else None) for i, leaf in enumerate(before)
    ]
    return [*pairs, *((None, leaf) for j, leaf in enumerate(after) if j not in partner.values())]


def _stage(a: LeafStage | None, b: LeafStage | None, folder: Path | None) -> StageDifference:
    (path, old), (new_path, new) = a or (None, None), b or (None, None)
    names = [(None, None) if s is None else (str(s.uid), type(s).__name__) for s in (old, new)]
    place: dict[str, Any] = {
        "path": path,
        "newPath": new_path,
        "uid": names[0][0],
        "newUid": names[1][0],
        "stageClass": names[0][1],
        "newStageClass": names[1][1],
    }
    if old is None or new is None:
        return StageDifference("only in new" if old is None else "only in old", **place)
    if class_name(old) != class_name(new):
        return StageDifference("class differs", **place)
    params, weights = tuple(_params(old, new)), tuple(_weights(old, new))
    content = False
    if folder is not None and not weights:
        before, after = (_content(s, folder, params_too=not params) for s in (old, new))
        content = before is None or before != after
    what = "differs" if params or weights or content else "same"
    return StageDifference(
        what, **place, params=params, weights=weights, translated=_are_translatable(old, new), content=content
    )


def _content(stage: Any, folder: Path, *, params_too: bool) -> list[str] | None:
    with try_to_save(stage, folder) as path:
        if path is None:
            return None
        lines = digest_of_folder(path, by_whom=False)
    return [line for line in lines if params_too or not line.startswith("metadata:")]


def _are_translatable(*stages: Any) -> bool:
    return all(class_name(s) in REGISTRY and not REGISTRY[class_name(s)].refuses(s) for s in stages)


def _params(old: Any, new: Any) -> Iterator[ParamDifference]:
    (a, simple_a), (b, simple_b) = _values(old), _values(new)
    for name in sorted({*a, *b}):
        if simple_a.get(name) != simple_b.get(name):
            yield ParamDifference(name, a.get(name), b.get(name))


def _values(stage: Any) -> tuple[dict[str, tuple[str, Any]], dict[str, tuple[str, Any]]]:
    """Params by name as ("set" or "default", value), twice: for display, and for comparison, without the stage's uid in
    values.
    """
    params = jvm.defined_params(stage)
    # Each Python process draws another default seed.
    defaults = {k: v for k, v in params["default"].items() if k != "seed" and k not in params["set"]}
    shown = {
        name: (origin, _plain(value))
        for origin, values in (("default", defaults), ("set", params["set"]))
        for name, value in values.items()
    }

    def anonymous(value: Any) -> Any:
        # A default outputCol contains a random uid that was drawn when the stage was made or loaded.
        return (
            re.sub(r"\w+_[0-9a-f]{12}__output$", "__output", value.replace(stage.uid, ""))
            if isinstance(value, str)
            else value
        )

    return shown, {name: (origin, anonymous(value)) for name, (origin, value) in shown.items()}


def _plain(value: Any) -> Any:
    """The value of a Param as a JSON-ready value."""
    value = value.toArray().tolist() if hasattr(value, "toArray") else value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _weights(old: Any, new: Any) -> Iterator[WeightDifference]:
    if not _are_translatable(old, new):
        return
    cls = REGISTRY[class_name(old)]
    before, after = cls.from_spark(old), cls.from_spark(new)
    for name in dict.fromkeys((*cls.weights, *(n for n, _ in before.named_parameters()))):
        x, y = (np.asarray(module.weight(name), dtype=np.float64) for module in (before, after))
        if x.shape != y.shape:
            yield WeightDifference(name, x.shape, y.shape, x.size, None, None, None)
            continue
        differ = (x != y) & ~(np.isnan(x) & np.isnan(y))
        if differ.any():
            with np.errstate(invalid="ignore", over="ignore"):
                distance = np.abs(y - x)[differ]
                relative = distance / np.maximum(np.abs(x), np.abs(y))[differ]
            yield WeightDifference(
                name,
                x.shape,
                y.shape,
                x.size,
                int(differ.sum()),
                finite_or_none(distance.max()),
                finite_or_none(relative.max()),
            )
