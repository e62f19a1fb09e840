"""A grid over an estimator's stages as a trie of fits: stages that settings have in common are fitted once. This module
needs no Spark.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkdiff.errors import InputError, did_you_mean, kind_of


@dataclass(eq=False)
class Fit:
    """A node of the trie: a stage with values for Params of the grid, after particular fits of all earlier stages.

    Attributes:
        position: index of the stage among the estimator's leaf stages; -1 for the root, which is no stage.
        params: the part of the grid's maps that affects the stage.
        settings: indices of the maps whose path contains this fit.
        after: the fits of the next stage.
    """

    position: int = -1
    params: dict[Any, Any] = field(default_factory=dict)
    settings: list[int] = field(default_factory=list)
    after: list["Fit"] = field(default_factory=list)

    def below(self) -> Iterator["Fit"]:
        """All fits below this one in the trie, of any later stage."""
        for child in self.after:
            yield child
            yield from child.below()

    def leaves(self) -> Iterator["Fit"]:
        """The last fits of the paths through this one."""
        if not self.after:
            yield self
        for child in self.after:
            yield from child.leaves()

    def readers(self, estimates: Callable[[int], bool]) -> int:
        """Number of fits that read the output rows of this one, directly or through stages that aren't fitted."""
        return sum(1 if estimates(child.position) else child.readers(estimates) for child in self.after)


def grow(stages: Sequence[frozenset[str]], maps: Sequence[Mapping[Any, Any]]) -> Fit:
    """The trie of these settings.

    Args:
        stages: for each leaf stage the uids whose Params affect it: its own uid, and the uids of stages that it holds.
        maps: Param -> value; a Param has a `parent`, the uid of its stage, and a `name`.
    """
    root = Fit(settings=[*range(len(maps))])
    for setting, params in enumerate(maps):
        place = root
        for position, uids in enumerate(stages):
            own = {param: value for param, value in params.items() if param.parent in uids}
            wanted = key(own)
            child = next((c for c in place.after if key(c.params) == wanted), None)
            if child is None:
                child = Fit(position, own)
                place.after.append(child)
            child.settings.append(setting)
            place = child
    return root


def key(params: Mapping[Any, Any]) -> tuple[Any, ...]:
    """A best-effort key of a map: equal keys mean equal Params and values."""
    return tuple(sorted((p.parent, p.name, _plain(value)) for p, value in params.items()))


def _plain(value: Any) -> str:
    """A value as text: equal texts mean equal values; for an object, its identity."""
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({','.join(map(_plain, value))})"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{type(value).__name__}:{value!r}"
    return f"{type(value).__name__}@{id(value)}"


def check_maps(maps: Any) -> None:
    """Check that the grid is a list of dicts of Params.

    Raises:
        InputError: the grid has another form. The message says what was passed.
    """
    way = "give a list of dicts {param: value}, as ParamGridBuilder().addGrid(stage.param, values).build() returns"
    if not isinstance(maps, (list, tuple)):
        raise InputError(f"estimatorParamMaps is {kind_of(maps)}: {way}")
    for params in maps:
        if not isinstance(params, Mapping):
            raise InputError(f"estimatorParamMaps holds {kind_of(params)}: {way}")
        for param in params:
            if not hasattr(param, "parent"):
                raise InputError(f"estimatorParamMaps has {param!r} in place of a Param: {way}")


def check(maps: Sequence[Mapping[Any, Any]], known: Mapping[str, Any], open_: bool) -> None:
    """Check that the grid isn't empty and that every Param belongs to a stage that would take it.

    Args:
        known: uid -> the stage or estimator with that uid.
        open_: True if any stage isn't Spark's own, since such a stage may take Params of any parent.

    Raises:
        InputError: the grid is empty, or a Param belongs to no stage. The message names the Param.
    """
    if not maps:
        raise InputError("estimatorParamMaps is empty: give at least one map; [{}] is the estimator as it is")
    for params in maps:
        for param in params:
            if param.parent not in known and not open_:
                raise InputError(f"estimatorParamMaps {unknown(param, known)}")


def unknown(param: Any, known: Mapping[str, Any]) -> str:
    """The message that a Param belongs to no stage of the estimator, with a suggestion."""
    name = str(param.parent).rpartition("_")[0]
    same = [stage for stage in known.values() if type(stage).__name__ == name]
    near = did_you_mean(name, {type(stage).__name__ for stage in known.values()})
    way = f"the {name} of the estimator is {same[0].uid}: take the Param from that object" if same else near
    return f"sets {param.name} of {param.parent}, which is no stage of the estimator; {way}"
