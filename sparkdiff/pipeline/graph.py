"""The pipeline as a graph of column versions: which stages become torch, which train, and where the cut lies. Runs no job."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyspark.ml import Transformer, UnaryTransformer
from pyspark.ml.linalg import VectorUDT

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.nesting import flatten, holders
from sparkdiff.pipeline.schema import SchemaOrRows, Step, fields_by_name, is_plain, known_fields
from sparkdiff.pipeline.schema import Version as Version
from sparkdiff.stages.base import (
    NULL,
    REGISTRY,
    UNDECIDED,
    UNTRANSLATED,
    Field,
    StageModule,
    StaysInSparkError,
    class_name,
    columns_of,
)
from sparkdiff.stages.predictor import Predictor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructField, StructType
from sparkdiff.pipeline.names import folding, unquoted

LEAVES = "\0leaves"
"""In place of a name: which leaves a stage of trees sends each row to. No column is called so."""


def null_of(version: Version) -> Version:
    """The version that says in which rows this one is null."""
    return version[0] + NULL, version[1]


INPUTS = ("inputCol", "inputCols", "featuresCol", "offsetCol", "userCol", "itemCol", "itemsCol")
OUTPUTS = (
    "outputCol", "outputCols", "predictionCol", "rawPredictionCol", "probabilityCol", "linkPredictionCol", "leafCol",
    "quantilesCol", "topicDistributionCol", "varianceCol",
)  # fmt: skip
ANY_COLUMN = ("SQLTransformer", "RFormulaModel", "ColumnPruner", "VectorAttributeRewriter")

PASSED_OVER = ("StringIndexerModel", "FormulaLabel")
"""Stages that Spark passes over where the data lack their input: a label isn't there when a model only predicts."""


@dataclasses.dataclass
class Leaf:
    """One leaf stage with its place in the graph of column versions."""

    path: tuple[int, ...]
    uid: str
    stageClass: str
    stage: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opaque: bool  # reads and writes any column
    drops_rows: bool
    module: StageModule | None  # None: stays in Spark
    why: str  # ... and why
    parametric: bool  # has parameters that its settings let train
    own: bool = True  # Spark's own, or translated; any other stage may read more than it declares, and drop rows
    note: str = ""  # what was taken for granted
    made: tuple[str, ...] = ()  # columns that plain stages in front of it make for torch
    sources: tuple[Version, ...] = ()  # what Spark's stage reads
    reads: tuple[Version, ...] = ()  # what its module reads
    lossInputs: tuple[str, ...] = ()
    lossReads: tuple[Version, ...] = ()  # what only its loss reads
    spelled: tuple[str, ...] = ()  # the inputs as the Params name them
    parents: frozenset[int] = frozenset()
    # Who has written what it declares to read, through stages that may read any column.
    readsOf: frozenset[int] = frozenset()

    @property
    def differentiable(self) -> bool:
        return self.module is not None and self.module.differentiable

    def has_parameters(self) -> bool:
        return self.module is not None and self.parametric


class Graph:
    """The analysed pipeline: what `plan` shows, `translate` builds and FineTuner trains."""

    def __init__(
        self, model: Any, *, reference: Iterable[Any] = (), predictionCol: str | None = None, unfreeze: Iterable[str] = (),
        target: Iterable[Any] = (), beside: Iterable[str | None] = (), data: SchemaOrRows = None, labelled: bool = False,
    ):  # fmt: skip
        """
        Args:
            target: stages that may train although stages outside of the loss read what they make.
            beside: columns that training reads beside the features; None in the places of label and weight stands for the head's.
            data: decides what a few stages compute.
            labelled: whether a loss compares the outputs of clusters with a label, so that what feeds them may train.
        """
        self.fold, self.labelled = folding(), labelled
        self.leaves = [self._leaf(path, stage) for path, stage in flatten(model)]
        self.holders = [(path, (held.uid, type(held).__name__)) for path, held in holders(model)]
        self._link()
        self._leave_ambiguous()
        self._decide(data)
        asked = self._unfreeze(unfreeze)
        for i in self.select(reference, "reference"):
            self._leave(i, "left in Spark on request")
        self._leave_unreachable()
        self.head = self._head(predictionCol)
        if self.head is not None:
            self.leaves[self.head].parents |= {p for _, p in self.leaves[self.head].lossReads if p >= 0}
        self.upstream = self.ancestors([self.head]) | {self.head} if self.head is not None else set()
        self.makers = self._makers(beside)
        self.outside = self._outside()
        targets = self.select(target, "target")
        named = self._named(asked)
        path = self._on_path()
        self.blocked = self._blocked(path - targets - set(named) - {self.head})
        free = path - set(self.blocked)
        self.trainable = {i for i in free if self.leaves[i].has_parameters()}
        could = path - set(self._blocked(set()))  # also what only stages outside of the loss keep from it
        self.on_request = {i: names for i in could if (names := self._on_request(i))}
        for name, found in asked.items():
            if not found & self.trainable:
                i = min(found)
                raise InputError(f"unfreeze={name!r}: {self.leaves[i].uid} can't train: {self.reason(i, {})}")
        for i in set(self.translated()) - self.trainable:
            self.leaves[i].module.requires_grad_(False)  # type: ignore[union-attr]
        self.named = {i: names for i, names in named.items() if i in self.trainable - targets}  # a target trains whole
        for i, only in self.named.items():
            for name, p in self.leaves[i].module.named_parameters():  # type: ignore[union-attr]
                p.requires_grad_(p.requires_grad and name in only)
        self.cached = self._cached()
        self.live = [i for i in sorted(self.upstream) if self.leaves[i].module is not None and i not in self.cached]

    # The graph ------------------------------------------------------------------------------------------------------

    def _leaf(self, path: tuple[int, ...], stage: Any) -> Leaf:
        name = class_name(stage)
        cls, opaque, own = REGISTRY.get(name), False, True
        if cls is not None:
            jvm.check_alive(stage)
            why = cls.refuses(stage) or ""
            inputs, outputs = cls.inputs(stage), cls.outputs(stage)
        else:
            why = UNTRANSLATED.get(name) or foreign(stage) or "no translation to torch"
            inputs, outputs = columns_of(stage, INPUTS), columns_of(stage, OUTPUTS)
            own = is_plain(stage) or isinstance(stage, UnaryTransformer)
            opaque = type(stage).__name__ in ANY_COLUMN or not outputs
        skips = stage.hasParam("handleInvalid") and stage.isDefined("handleInvalid")
        drops = opaque or not own or (skips and stage.getOrDefault("handleInvalid") == "skip")
        waits = cls is not None and cls.wants_fields(stage)
        module = cls.from_spark(stage) if cls is not None and not why and not waits else None
        loss_inputs = cls.loss_inputs(stage) if cls is not None and issubclass(cls, Predictor) else ()
        parametric = module is not None and any(p.requires_grad for p in module.parameters())
        made = cls.prepared_columns(stage) if cls is not None and module is not None else ()
        return Leaf(
            path, stage.uid, type(stage).__name__, stage, tuple(map(unquoted, inputs)), outputs, opaque, drops, module,
            why, parametric, own=own, spelled=inputs, made=made, lossInputs=tuple(map(unquoted, loss_inputs)),
        )  # fmt: skip

    def _link(self) -> None:
        current: dict[str, int] = {}
        declared: dict[str, int] = {}  # the same, as if no stage wrote more than it declares
        barrier = -1

        def writer(spelled: str, known: dict[str, int]) -> int:
            """Who has written a column or, of a field `s.b`, the struct."""
            name = self.fold(unquoted(spelled))
            while name not in known and "." in name and unquoted(spelled) == spelled:
                name = name.rpartition(".")[0]
            return known.get(name, barrier)

        for i, leaf in enumerate(self.leaves):
            leaf.sources = tuple((self.fold(unquoted(c)), writer(c, current)) for c in leaf.spelled)
            leaf.lossReads = tuple((self.fold(c), current.get(self.fold(c), barrier)) for c in leaf.lossInputs)
            leaf.reads = tuple((self.fold(c), in_front_of(i)) for c in leaf.made) or leaf.sources
            parents = range(i) if leaf.opaque or not leaf.own else (p for _, p in leaf.sources if p >= 0)
            leaf.parents = frozenset(parents)
            known = range(i) if leaf.opaque else (p for c in leaf.spelled if (p := writer(c, declared)) >= 0)
            leaf.readsOf = frozenset(known)
            if leaf.opaque:
                barrier, current = i, {}
            current.update({self.fold(c): i for c in leaf.outputs})
            declared.update({self.fold(c): i for c in leaf.outputs})
        self.writers = declared

    def _leave_ambiguous(self) -> None:
        """A tensor has one name: where a field `s.b` of a struct and a column of that name are read, the field stays in Spark."""
        columns = {
            v for leaf in self.leaves for c, v in zip(leaf.spelled, leaf.sources, strict=True) if unquoted(c) != c
        }
        for i, leaf in enumerate(self.leaves):
            for c, v in zip(leaf.spelled, leaf.sources, strict=True):
                if v in columns and "." in c and unquoted(c) == c:
                    self._leave(
                        i,
                        f"reads the field {c!r} of a struct, and another stage reads a column of that name: "
                        "rename one of them",
                    )

    def _decide(self, data: SchemaOrRows) -> None:
        """Translate the stages for which the attributes of their input columns decide what they compute."""
        waiting = [i for i, leaf in enumerate(self.leaves) if leaf.module is None and not leaf.why]
        if not waiting:
            return
        steps = [Step(leaf.stage, leaf.inputs, leaf.sources, leaf.parents) for leaf in self.leaves]
        known = known_fields(steps, {v for i in waiting for v in self.leaves[i].reads}, data, self.fold)
        for i in waiting:
            leaf = self.leaves[i]
            fields = []
            for v in leaf.reads:
                writer = REGISTRY.get(class_name(self.leaves[v[1]].stage)) if v[1] >= 0 else None
                fields.append(field_of(known[v], writer.storage if writer else "") if v in known else None)
            try:
                leaf.module = REGISTRY[class_name(leaf.stage)].from_fields(leaf.stage, fields)
                leaf.parametric = any(p.requires_grad for p in leaf.module.parameters())
            except StaysInSparkError as e:
                leaf.why = str(e)
            if data is None and leaf.module is not None:
                described = [self.leaves[j] for j in (i, *sorted(self.ancestors([i]))) if not self._makes_categories(j)]
                sources = dict.fromkeys(self.name(v) for of in described for v in of.sources if v[1] == -1)
                if sources:
                    leaf.note = f"whether {', '.join(sources)} {leaf.module.undecided} is {UNDECIDED}"

    def _makes_categories(self, i: int) -> bool:
        """Whether what the stage reads doesn't show in the attributes of what it writes."""
        return self.leaves[i].stageClass in ("StringIndexerModel", "OneHotEncoderModel")

    def single(self) -> set[int]:
        """The translated stages that Spark holds in float32, and those behind them, whose outputs are as coarse."""
        out: set[int] = set()
        for i in self.translated():
            if self.leaves[i].module.float32 or any(p in out for _, p in self.leaves[i].reads):  # type: ignore[union-attr]
                out.add(i)
        return out

    def ancestors(self, of: Iterable[int]) -> set[int]:
        """Every stage from which a column path leads to one of these."""
        out: set[int] = set()
        stack = [p for i in of for p in self.leaves[i].parents]
        while stack:
            i = stack.pop()
            if i not in out:
                out.add(i)
                stack += self.leaves[i].parents
        return out

    def translated(self) -> list[int]:
        return [i for i, leaf in enumerate(self.leaves) if leaf.module is not None]

    def _leave(self, i: int, why: str) -> None:
        leaf = self.leaves[i]
        leaf.module, leaf.why, leaf.made, leaf.reads = None, why, (), leaf.sources

    def reference(self) -> list[int]:
        """The stages that Spark runs to make the network's inputs (translated ones among them where they feed others)."""
        translated = set(self.translated())
        if not translated:
            return []
        made = {p for i in translated for _, p in self._read_from_spark(i) if p >= 0 and p not in translated}
        made |= {
            i for i, leaf in enumerate(self.leaves) if leaf.drops_rows and i < max(translated) and i not in translated
        }
        return sorted(made | self.ancestors(made))

    def _read_from_spark(self, i: int) -> tuple[Version, ...]:
        """What must be there for a translated stage: what it reads, or what is made of it for torch."""
        return self.leaves[i].sources if self.leaves[i].made else self.leaves[i].reads

    def _leave_unreachable(self) -> None:
        """A stage that reads a column which a stage of the reference overwrites later can't have it: that stays in Spark."""
        while True:
            reference, translated = self.reference(), set(self.translated())
            for i in sorted(translated):
                for name, producer in self.leaves[i].reads:
                    if producer in translated:
                        continue
                    there = i if producer == in_front_of(i) else producer
                    writers = [
                        r for r in reference
                        if r > there and (self.leaves[r].opaque or name in map(self.fold, self.leaves[r].outputs))
                    ]  # fmt: skip
                    if writers:
                        last = self.leaves[writers[-1]]
                        how = " and may rewrite it" if last.opaque else ", rewrites it"
                        self._leave(i, f"reads {name!r} before {last.uid}, which stays in Spark{how}")
                        break
                else:
                    continue
                break
            else:
                return

    # What trains ----------------------------------------------------------------------------------------------------

    def predictors(self) -> list[int]:
        """Differentiable predictors that no other predictor builds on."""
        found = self._predictors()
        return [i for i in found if not any(i in self.ancestors([j]) for j in found)]

    def _predictors(self) -> list[int]:
        """All differentiable predictors; clusters only where nothing is fitted to a label."""
        found = [i for i in self.translated() if isinstance(self.leaves[i].module, Predictor)]
        return [i for i in found if self.leaves[i].module.labelled] or found  # type: ignore[union-attr]

    def _head(self, predictionCol: str | None) -> int | None:
        if predictionCol is None:
            return max(self._predictors(), default=None)
        found = [i for i in self.translated() if isinstance(self.leaves[i].module, Predictor)]
        match = [
            i
            for i in found
            if self.fold(predictionCol) in map(self.fold, columns_of(self.leaves[i].stage, ("predictionCol",)))
        ]
        if not match:
            names = {c for i in found for c in columns_of(self.leaves[i].stage, ("predictionCol",))}
            raise InputError(
                f"no trainable predictor writes predictionCol={predictionCol!r}. {did_you_mean(predictionCol, names)}"
            )
        return match[-1]

    def _makers(self, beside: Iterable[str | None]) -> dict[int, str]:
        """The stages that make what training reads beside the features, each with such a column."""
        if self.head is None:
            return {}
        head = self.leaves[self.head].stage
        own = [next(iter(columns_of(head, (param,))), None) for param in ("labelCol", "weightCol")]
        given = [*beside, None, None]
        out: dict[int, str] = {}
        for column in [*(a or b for a, b in zip(given[:2], own, strict=True)), *given[2:]]:
            if column is None:
                continue
            name = self.fold(column)
            # An opaque stage may write it too; it runs where anything after it does.
            writers = [i for i, leaf in enumerate(self.leaves[: self.head]) if name in map(self.fold, leaf.outputs)]
            if writers:
                out |= {i: column for i in (self.ancestors(writers[-1:]) | {writers[-1]}) - set(out)}
        return out

    def clusters(self) -> bool:
        """Whether the loss is of clusters, without a label: what feeds them would make all rows alike, and the loss small."""
        head = self.leaves[self.head].module if self.head is not None else None
        return isinstance(head, Predictor) and not head.labelled and not self.labelled

    def _on_request(self, i: int) -> list[str]:
        """The parameters of a stage that would train if `unfreeze` named them."""
        module = self.leaves[i].module
        return sorted(n for n, p in module.on_request().items() if not p.requires_grad) if module is not None else []

    def _on_path(self) -> set[int]:
        """Stages from which a differentiable path leads to the loss."""
        if self.head is None:
            return set()
        out, stack = {self.head}, [] if self.clusters() else [self.head]
        while stack:
            leaf = self.leaves[stack.pop()]
            if not leaf.differentiable:
                continue
            for name, p in leaf.reads:
                parent = self.leaves[p] if p >= 0 else None
                if parent is None or parent.module is None or p in out:
                    continue
                if parent.module.passes_gradient() or name not in map(self.fold, parent.module.labels(parent.stage)):
                    out.add(p)
                    stack.append(p)
        return out

    def _outside(self) -> dict[int, list[int]]:
        """Of each stage, those that read what it makes and that the loss doesn't see: neither in front of the head nor behind it.

        What is behind the head is there to follow it, but for a predictor, which was fitted to what the head said before.
        """
        if self.head is None:
            return {}
        reached: list[frozenset[int]] = []
        for leaf in self.leaves:
            reached.append(leaf.readsOf.union(*(reached[p] for p in leaf.readsOf)))
        out: dict[int, list[int]] = {}
        for i, leaf in enumerate(self.leaves):
            if i in self.upstream or (self.head in reached[i] and not self._predicts(i)):
                continue
            undeclared = self.ancestors([i]) - {self.head} if self._predicts(i) and not leaf.own else frozenset()
            for j in reached[i] | undeclared:
                out.setdefault(j, []).append(i)
        return out

    def _predicts(self, i: int) -> bool:
        leaf = self.leaves[i]
        in_spark = leaf.module is None and "predictionCol" in map(_name, leaf.stage.params)
        return in_spark or isinstance(leaf.module, Predictor)

    def outside_readers(self, stages: Iterable[int]) -> list[int]:
        """The stages outside of the loss that read what these make, and so change where they do."""
        return sorted({j for i in stages for j in self.outside.get(i, ())})

    def outside_columns(self, stages: Iterable[int]) -> list[str]:
        """The columns outside of the loss that change where these stages do; not those that a later stage replaces."""
        readers = self.outside_readers(stages)
        return [c for j in readers for c in self.leaves[j].outputs if self.writers[self.fold(c)] == j]

    def _named(self, asked: Mapping[str, set[int]]) -> dict[int, set[str]]:
        """What `unfreeze` names of stages that stages outside of the loss read: all that trains of them."""
        out: dict[int, set[str]] = {}
        for name, found in asked.items():
            parameter = name.rpartition(".")[2]
            shared = {i for i in found if i != self.head and self.outside_columns([i])}
            regular = {i for i in found - shared if (m := self.leaves[i].module) and parameter not in m.on_request()}
            if regular and not shared:
                raise self._not_on_request(name, min(regular))
            for i in shared:
                out.setdefault(i, set()).add(parameter)
        return out

    def _blocked(self, unasked: set[int]) -> dict[int, str]:
        """Stages that must not change although a path leads to the loss, with the reason.

        Args:
            unasked: those that must not where a stage outside of the loss reads what they make.
        """
        out = {i: f"makes {column!r}, which the loss reads" for i, column in self.makers.items() if i != self.head}
        for i in sorted(self.upstream):
            if self.leaves[i].module is None:
                for j in self.ancestors([i]):
                    out.setdefault(j, f"feeds {self.leaves[i].uid}, which stays in Spark: {self.leaves[i].why}")
        for i in self._droppers():
            for j in self.ancestors([i]):
                out.setdefault(j, f"comes before {self.leaves[i].uid}, which stays in Spark and may drop rows")
        for i in sorted(unasked):
            if columns := self.outside_columns([i]):
                out.setdefault(i, self._why_outside(i, columns))
        return out

    def _why_outside(self, i: int, columns: list[str]) -> str:
        readers = ", ".join(f"{'the predictor ' * self._predicts(j)}{self.leaves[j].uid}" for j in self.outside[i])
        module = self.leaves[i].module
        own = [n for n, p in module.named_parameters() if p.requires_grad] if module is not None else []
        return (
            f"also feeds {readers}, outside the loss: {', '.join(columns)} would change; trains on request "
            f"(target, unfreeze): {', '.join(own)}"
        )

    def _droppers(self) -> set[int]:
        """Stages in Spark that may drop rows before the head sees them."""
        last = max(self.upstream, default=-1)
        return {i for i, leaf in enumerate(self.leaves[: last + 1]) if leaf.module is None and leaf.drops_rows}

    def _cached(self) -> set[int]:
        """Stages that run in Spark before the cache."""
        if not self.trainable:
            return set()
        spark = {i for i in self.upstream if self.leaves[i].module is None} | self._droppers()
        spark |= set(self.makers)
        spark |= self.ancestors(spark)
        for i in self.makers:
            if self._overwrites(i, spark):
                raise InputError(
                    f"{self.leaves[i].uid} overwrites the column {self.makers[i]!r}, which training reads and "
                    "stages before it read too: give it another output column"
                )
        for i in sorted(self.upstream - spark):
            leaf = self.leaves[i]
            stays_small = leaf.module is not None and not leaf.module.expands
            if leaf.parents <= spark and stays_small and not leaf.has_parameters() and not self._overwrites(i, spark):
                spark.add(i)
        return spark

    def _overwrites(self, i: int, spark: set[int]) -> bool:
        """Whether stage i replaces a column that an earlier stage of the network reads."""
        names = set(map(self.fold, self.leaves[i].outputs))
        return any(name in names for j in range(i) if j not in spark for name, _ in self.leaves[j].reads)

    def before_cut(self, df: DataFrame) -> DataFrame:
        """What Spark computes before the cache."""
        for i in sorted({*self.cached, *self.live}):
            for stage in [self.leaves[i].stage] if i in self.cached else self.preparation(i):
                df = stage.transform(df)
        return df

    def preparation(self, i: int) -> list[Any]:
        """Plain stages that make of what a stage reads what its module reads."""
        leaf = self.leaves[i]
        return type(leaf.module).preparation(leaf.stage) if leaf.module is not None and leaf.made else []

    def margin_reads(self, i: int) -> tuple[Version, ...]:
        """What the margin of stage i is computed from: the head's also from what only its loss reads."""
        leaf = self.leaves[i]
        return (*leaf.reads, *leaf.lossReads) if i == self.head else leaf.reads

    @property
    def lossReads(self) -> tuple[Version, ...]:
        """What only the loss reads."""
        return self.leaves[self.head].lossReads if self.head is not None else ()

    def cut(self) -> list[Version]:
        """The column versions that training reads, in the order of first use."""
        live = set(self.live)
        return list(dict.fromkeys(v for i in self.live for v in self.margin_reads(i) if v[1] not in live))

    def telling(self, positions: Iterable[int]) -> list[Version]:
        """The versions that stages at these positions read from outside of them, and whose nulls they tell from NaN."""
        inside = set(positions)
        reads = [v for i in inside if self.leaves[i].module.takes_nulls for v in self.leaves[i].reads]  # type: ignore[union-attr]
        return [v for v in dict.fromkeys(reads) if v[1] not in inside]

    def name(self, version: Version) -> str:
        """The column's name as its writer (or first reader) spells it."""
        name, producer = version
        spelled = self.leaves[producer].outputs if producer >= 0 else ()
        for c in (*spelled, *(c for leaf in self.leaves for c in (*leaf.inputs, *leaf.lossInputs, *leaf.made))):
            if self.fold(c) == name:
                return c
        return name

    def in_struct(self, version: Version) -> bool:
        """Whether it is a field of a struct, `struct.field`; a column called so is read in backticks."""
        name, producer = version
        if "." not in name or (producer >= 0 and name in map(self.fold, self.leaves[producer].outputs)):
            return False
        readers = [c for leaf in self.leaves for c, v in zip(leaf.spelled, leaf.sources, strict=True) if v == version]
        return bool(readers) and all(unquoted(c) == c for c in readers)

    def without_spark(self) -> Graph:
        """The same graph without the Spark stages, for processes that have no session; it can compute, not write back."""
        out = copy.copy(self)
        out.leaves = [dataclasses.replace(leaf, stage=None) for leaf in self.leaves]
        return out

    # Selecting and showing ------------------------------------------------------------------------------------------

    def select(self, names: Iterable[Any], option: str) -> set[int]:
        """Positions of the stages named by uid, stage, class name or output column; of what holds stages, all in it."""
        out: set[int] = set()
        for wanted in [names] if isinstance(names, (str, Transformer)) else names:
            name = wanted if isinstance(wanted, str) else wanted.uid
            match = {
                i for i, leaf in enumerate(self.leaves)
                if name in (leaf.uid, leaf.stageClass) or self.fold(name) in map(self.fold, leaf.outputs)
                or any(name in names and leaf.path[: len(path)] == path for path, names in self.holders)
            }  # fmt: skip
            if not match:
                known = [n for leaf in self.leaves for n in (leaf.uid, leaf.stageClass, *leaf.outputs)]
                raise InputError(
                    f"{option}={name!r} is no uid, class or output column of a stage. {did_you_mean(name, set(known))}"
                )
            out |= match
        return out

    def _unfreeze(self, names: Iterable[str]) -> dict[str, set[int]]:
        """Let parameters train that do so on request only, each named `<uid, class name or output column>.<parameter>`.

        Returns:
            the stages that each name is about.
        """
        asked: dict[str, set[int]] = {}
        for name in names:
            stage, _, wanted = name.rpartition(".")
            asked[name] = self.select([stage] if stage else [name], "unfreeze")
            for i in asked[name]:
                leaf = self.leaves[i]
                module = leaf.module if stage else None
                if module is not None and wanted in module.on_request():
                    module.unfreeze(wanted)
                    leaf.parametric = True
                elif module is not None and wanted in (denied := module.why_frozen()):
                    raise InputError(f"unfreeze={name!r}: {leaf.uid} can't train it: {denied[wanted]}")
                elif module is None or not any(n == wanted and p.requires_grad for n, p in module.named_parameters()):
                    raise self._not_on_request(name, i)
        return asked

    def _not_on_request(self, name: str, i: int) -> InputError:
        leaf = self.leaves[i]
        known = ", ".join(f"{leaf.stageClass}.{n}" for n in sorted(leaf.module.on_request())) if leaf.module else ""
        return InputError(
            f"unfreeze={name!r} must name a parameter that trains on request only, as <stage>.<parameter>; "
            f"those of {leaf.uid} are: {known or 'none'}"
        )

    def restrict(self, freeze: Iterable[Any], target: Iterable[Any]) -> dict[int, str]:
        """Trainable stages that keep their parameters by the user's wish, with the reason. The cut never depends on it."""
        frozen = {i: "frozen on request" for i in self.select(freeze, "freeze")}
        targets = self.select(target, "target")
        for i in targets - self.trainable:
            raise InputError(f"target={self.leaves[i].uid!r} can't train: {self.reason(i, {})}")
        if targets:
            frozen |= {i: "not in target" for i in self.trainable - targets}
        for i in self.trainable & set(frozen):
            for p in self.leaves[i].module.parameters():  # type: ignore[union-attr]
                p.requires_grad_(False)
        return frozen

    def reason(self, i: int, frozen: dict[int, str]) -> str:
        """What becomes of a stage and why, in plain words."""
        request = ", ".join(self.on_request.get(i, ()))
        return self._reason(i, frozen) + (f"; trains on request (unfreeze): {request}" if request else "")

    def _reason(self, i: int, frozen: dict[int, str]) -> str:
        leaf = self.leaves[i]
        if leaf.module is None:
            return leaf.why
        if i in frozen and i in self.trainable:
            return frozen[i]
        if i in self.trainable:
            why = "the loss" if i == self.head else "a differentiable path leads to the loss"
            if columns := self.outside_columns([i]):
                why += f"; also changes {', '.join(columns)}, outside the loss"
            return f"{why}; {leaf.module.preparation_note}" if leaf.made else why
        if not leaf.has_parameters():
            return f"nothing to train; {leaf.note}" if leaf.note else "nothing to train"
        if self.head is None:
            return "no predictor that a loss could train"
        if i in self.blocked:
            return self.blocked[i]
        if i in self.upstream and self.clusters():
            return "only a loss with a label can train it: the loss of clusters would make all rows alike"
        if isinstance(leaf.module, Predictor) and not leaf.differentiable and i != self.head:
            return "no differentiable path to the loss: its output is an index"
        return "no differentiable path to the loss"


def in_front_of(position: int) -> int:
    """In place of a version's writer: the plain stages that stand in front of a stage."""
    return -2 - position


def check_columns(graph: Graph, schema: StructType, also: Iterable[str | None] = ()) -> None:
    """Raise InputError where a stage reads a column that neither the data nor a stage has, or a name that columns share.

    Args:
        also: columns that are read by what comes after the pipeline.
    """
    known = set(fields_by_name(schema, graph.fold))
    of_name: dict[str, list[str]] = {}
    for spelled in schema.names:
        of_name.setdefault(graph.fold(spelled), []).append(spelled)

    def check_alone(reader: str, column: str) -> None:
        if len(same := of_name.get(graph.fold(column), [])) > 1:
            names = ", ".join(map(repr, same))
            raise InputError(f"{reader} {column!r}, but {len(same)} columns match, {names}: rename all but one")

    for column in also:
        if column is not None:
            check_alone("training reads", column)
    read = {name for leaf in graph.leaves for name, _ in leaf.sources} | {graph.fold(c) for c in also if c is not None}
    for leaf in graph.leaves:
        if leaf.opaque:
            return
        if leaf.stageClass in PASSED_OVER and not read & set(map(graph.fold, leaf.outputs)):
            continue
        for (name, producer), column in zip(leaf.sources, leaf.inputs, strict=True):
            if producer < 0 and name not in known:
                raise InputError(
                    f"{leaf.uid} reads column {column!r}, which is not in the data. "
                    f"{did_you_mean(column, schema.names)}"
                )
            if producer < 0:
                check_alone(f"{leaf.uid} reads", column)


def foreign(stage: Any) -> str | None:
    """Why a stage that isn't Spark's own stays in Spark; None for Spark's."""
    if is_plain(stage):
        return None
    whose = type(stage).__module__.partition(".")[0]
    if callable(getattr(stage, "cpu", None)):
        return f"{whose}'s model: convert it first, its .cpu() returns Spark's own model"
    does = (
        "only computes its output column"
        if isinstance(stage, UnaryTransformer)
        else "may read any column and drop rows"
    )
    return f"not one of Spark's stages: it {does}; register a StageModule for {class_name(stage)} to translate it"


def field_of(field: StructField, storage: str = "") -> Field:
    """What a stage that wants to know its input columns is told of one."""
    attributes = (field.metadata or {}).get("ml_attr")
    return Field(isinstance(field.dataType, VectorUDT), attributes, storage, field.dataType.simpleString())


def _name(param: Any) -> str:
    return str(param.name)
