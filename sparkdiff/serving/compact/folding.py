"""Steps that fold a pipeline into fewer stages.

Each step removes one stage and leaves the values of every kept column unchanged: the stage's readers absorb its map
(see `affine_maps`), an assembler is merged into the assemblers that read it, or a stage that nobody reads is deleted.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from sparkdiff.pipeline.schema import is_plain
from sparkdiff.serving.compact.affine_maps import Absorber, Map, RefusedError
from sparkdiff.serving.compact.folding_state import ReadColumn, State, is_assembler

UNSIZED = frozenset({"Binarizer", "DCT", "Normalizer", "OneVsRestModel", "PolynomialExpansion", "SQLTransformer"})
"""Classes of Spark that may write vectors without their width in the column's metadata."""
NAMING = frozenset(
    {
        "ChiSqSelectorModel",
        "Interaction",
        "UnivariateFeatureSelectorModel",
        "VarianceThresholdSelectorModel",
        "VectorAssembler",
        "VectorIndexerModel",
        "VectorSlicer",
    }
)
"""Classes that name the entries of their vectors after their inputs, in the column's metadata."""


def fold(state: State) -> tuple[State, dict[int, str]]:
    """The pipeline after all possible steps, and the reason why each remaining stage cannot be removed."""
    while True:
        why: dict[int, str] = {}
        for i in sorted(state.reads, reverse=True):
            try:
                state = without(state, i)
                break
            except RefusedError as e:
                why[i] = str(e)
        else:
            return state, why


def without(state: State, i: int) -> State:
    """The pipeline without stage i, which its readers, if any, have absorbed.

    Raises:
        RefusedError: removing stage i would change a kept column or the set of rows, or a reader cannot absorb it.
    """
    vertex = state.vertex(i)
    if i in state.pinned:
        raise RefusedError(state.pinned[i])
    if vertex.opaque or not vertex.declares_all:
        raise RefusedError("it may read and write any column")
    if vertex.drops_rows:
        raise RefusedError("it drops rows")
    kept = [c for c, v in zip(vertex.outputs, state.graph.versions(i), strict=True) if v in state.keep]
    if kept:
        raise RefusedError(f"{', '.join(kept)} {'is' if len(kept) == 1 else 'are'} kept")
    if before := state.overwritten(i):
        raise RefusedError(f"without it {', '.join(before)} would have the values that it overwrites")
    readers = state.readers(i)
    if not readers:
        if vertex.stage.hasParam("handleInvalid") and vertex.stage.getOrDefault("handleInvalid") != "keep":
            raise RefusedError("no stage reads its output, but it refuses rows with invalid values")
        return _remove_stage(state, i, "deleted: no stage reads its output", {}, {})
    if is_assembler(vertex.stage):
        return _merge_assembler(state, i, readers)
    return _fold_map(state, i, readers)


def _remove_stage(
    state: State, i: int, how: str, reads: Mapping[int, tuple[ReadColumn, ...]], absorbers: Mapping[int, Absorber]
) -> State:
    left = {j: found for j, found in {**state.reads, **reads}.items() if j != i}
    return dataclasses.replace(
        state, reads=left, absorbers={**state.absorbers, **absorbers}, gone={**state.gone, i: how}
    )


# Assemblers -------------------------------------------------------------------------------------------------------------


def _merge_assembler(state: State, i: int, readers: list[int]) -> State:
    """The state in which the assemblers that read assembler i's output vector read assembler i's input columns instead."""
    mode = state.vertex(i).stage.getHandleInvalid()
    reads = {}
    for j in readers:
        other = state.vertex(j)
        if not is_assembler(other.stage):
            raise RefusedError(f"{other.uid} ({other.stageClass}) reads its vector")
        if j in state.pinned:
            raise RefusedError(f"{other.uid} reads its vector, and {state.pinned[j]}")
        if other.stage.getHandleInvalid() != mode:
            theirs = other.stage.getHandleInvalid()
            raise RefusedError(f"it has handleInvalid={mode!r}, and {other.uid}, which reads its vector, {theirs!r}")
        _check_names(state, j)
        for read in state.reads[i]:
            state.check_visible(read.version, j, i)
        inner = state.reads[i]
        reads[j] = tuple(r for read in state.reads[j] for r in (inner if read.version[1] == i else (read,)))
    return _remove_stage(state, i, f"merged into {_uids(state, readers)}", reads, {})


def _check_names(state: State, j: int) -> None:
    """Raise RefusedError if a later stage selects entries of assembler j's vector by name, or if a kept column shows their
    names in its metadata: the names change with the assembler's inputs.
    """
    for k in (j, *state.behind(j)):
        stage = state.vertex(k).stage
        if stage.hasParam("names") and stage.getOrDefault("names"):
            raise RefusedError(f"{stage.uid} selects entries by their names, which would change")
        if type(stage).__name__ in NAMING and any(v in state.keep for v in state.graph.versions(k)):
            raise RefusedError(f"{', '.join(state.vertex(k).outputs)} is kept, with the names of its entries")


# Affine stages ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A stage that would absorb a map.

    Attributes:
        position: position of the absorbing stage in the pipeline.
        start: index of the first of its features that the map writes.
        through: positions of the assemblers between the map's stage and the absorbing stage.
    """

    position: int
    start: int
    through: tuple[int, ...] = ()


def _fold_map(state: State, i: int, readers: list[int]) -> State:
    """The state in which all stages that read stage i's output vector, directly or through assemblers, have absorbed
    i's map.
    """
    change = state.facts.map_of(i)
    [read] = state.reads[i]
    targets = [target for j in readers for target in _targets(state, i, j, change)]
    width_in = change.width_in if change.width_in is not None else state.width(read.version)
    reads, absorbers = dict[int, tuple[ReadColumn, ...]](), dict[int, Absorber]()
    # If a stage absorbs the map several times, the last entries come first, so that those in front keep their places.
    for target in sorted(targets, key=lambda target: -target.start):
        j = target.position
        state.check_visible(read.version, (target.through or (j,))[0], i)
        found = absorbers.get(j) or state.absorber(j)
        alone = change.width_out is None and not target.through  # it writes as many entries as it reads
        absorbers[j] = found.absorb(change, target.start, found.width if alone and width_in is None else width_in)
        first = (target.through or (j,))[0]
        reads[first] = tuple(read if r.version[1] == i else r for r in state.reads[first])
    into = _uids(state, [t.position for t in targets])
    changed = state.changed | {k for t in targets for k in t.through}
    return _remove_stage(dataclasses.replace(state, changed=changed), i, f"folded into {into}", reads, absorbers)


def _targets(state: State, i: int, j: int, change: Map) -> Iterator[Target]:
    """Targets that absorb the map of stage i: its reader j, or the readers behind it if j is an assembler.

    Raises:
        RefusedError: one of these stages cannot absorb the map.
    """
    if not is_assembler(state.vertex(j).stage):
        absorber = state.absorber(j)
        if state.reads[j][0].version[1] != i:
            raise RefusedError(f"{state.vertex(j).uid} reads it beside its features")
        spelled = state.reads[i][0].spelled
        if state.vertex(j).stage.hasParam("featuresCol") and "." in spelled:
            raise RefusedError(f"{state.vertex(j).uid} cannot read a column of the name {spelled}")
        width_out = state.width(state.graph.versions(i)[0]) if change.width_out is None else change.width_out
        if absorber.checks_width and width_out not in (None, absorber.width):
            raise RefusedError(f"{state.vertex(j).uid} reads {absorber.width} entries, and it writes {width_out}")
        yield Target(j, 0)
        return
    check_input(state, i)
    yield from _targets_behind(state, j, i, change)


def check_input(state: State, i: int) -> None:
    """Raise RefusedError if stage i's input may lack its width in the column's metadata, which an assembler needs."""
    version = state.reads[i][0].version
    writer = version[1]
    stage = None if writer < 0 else state.vertex(writer).stage
    sized = stage is not None and is_plain(stage) and type(stage).__name__ not in UNSIZED
    if not (is_assembler(stage) or (sized and state.facts.width(version) is not None)):
        raise RefusedError(
            f"an assembler would read {state.graph.name(version)!r} instead, of which Spark may not know the width"
        )


def _targets_behind(state: State, j: int, i: int, change: Map) -> Iterator[Target]:
    """Targets behind assembler j, which reads the output of stage i."""
    assembler = state.vertex(j)
    if j in state.pinned:
        raise RefusedError(f"{assembler.uid} reads its vector, and {state.pinned[j]}")
    if any(v in state.keep for v in state.graph.versions(j)):
        raise RefusedError(f"{', '.join(assembler.outputs)}, which contains its vector, is kept")
    places = [k for k, read in enumerate(state.reads[j]) if read.version[1] == i]
    if len(places) != 1:
        raise RefusedError(f"{assembler.uid} reads its vector {len(places)} times")
    readers = state.readers(j)
    if not readers:
        raise RefusedError(f"{assembler.uid} reads its vector, and nobody reads {', '.join(assembler.outputs)}")
    for k in readers:
        if is_assembler(state.vertex(k).stage):
            inner = state.block(j, places[0], None)
            for target in _targets_behind(state, k, j, change):
                yield dataclasses.replace(target, start=target.start + inner, through=(j, *target.through))
            continue
        absorber = state.absorber(k)
        start = state.block(j, places[0], absorber.width if absorber.checks_width else None)
        yield Target(k, start, (j,))


def _uids(state: State, positions: list[int]) -> str:
    return ", ".join(state.vertex(j).uid for j in dict.fromkeys(positions))
