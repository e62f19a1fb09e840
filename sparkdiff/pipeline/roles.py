"""The roles of a pipeline's stages under a loss: the head (the predictor whose outputs enter the loss), the stages that
train with it, and the reasons why the other stages do not train.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Set

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Graph, Version
from sparkdiff.pipeline.translation import not_on_request
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.inputs import PreparedStage
from sparkdiff.stages.predictor import Predictor


def with_head(graph: Graph, predictionCol: str | None = None) -> Graph:
    """The graph with its head: the predictor with this prediction column, by default the last one. Only the head has a loss.

    Raises:
        InputError: no translated predictor has this column.
    """
    head = max(graph.predictors(), default=None) if predictionCol is None else _head_of(graph, predictionCol)
    new = {v.position: dataclasses.replace(v, lossReads=()) for v in graph.vertices if v.position != head}
    if head is not None:
        vertex = graph.vertices[head]
        read = {p for _, p in vertex.lossReads if p >= 0}
        new[head] = dataclasses.replace(vertex, parents=vertex.parents | read)
    return dataclasses.replace(graph.with_vertices(new), head_position=head)


def _head_of(graph: Graph, predictionCol: str) -> int:
    columns = {
        i: columns_of(graph.vertices[i].stage, ("predictionCol",))
        for i, module in graph.modules.items()
        if isinstance(module, Predictor)
    }
    found = [i for i, names in columns.items() if graph.casefold(predictionCol) in map(graph.casefold, names)]
    if not found:
        known = {c for names in columns.values() for c in names}
        raise InputError(
            f"no trainable predictor writes predictionCol={predictionCol!r}. {did_you_mean(predictionCol, known)}"
        )
    return found[-1]


@dataclasses.dataclass(frozen=True)
class OutsideStages:
    """The stages outside the loss: those that are neither before the head nor behind it.

    A stage behind the head is meant to follow the head's changes. Only a predictor behind it counts as outside, because
    it was fitted to the head's old output.

    Attributes:
        path: positions of the head, and of the stages from which a path of declared columns leads to the head or to its
            label.
        readers: for each stage, the stages outside the loss that depend on its output.
    """

    graph: Graph
    path: frozenset[int]
    readers: Mapping[int, list[int]]

    def readers_of(self, stages: Iterable[int]) -> list[int]:
        """Stages outside the loss that depend on the output of these stages, and so change with it."""
        return sorted({j for i in stages for j in self.readers.get(i, ())})

    def columns(self, stages: Iterable[int]) -> list[str]:
        """Columns outside the loss that change with these stages, without columns that a later stage overwrites."""
        graph, readers = self.graph, self.readers_of(stages)
        written = [c for j in readers for c in graph.vertices[j].outputs if graph.writers.get(graph.casefold(c)) == j]
        return [*written, *(f"the columns of {v.uid}" for v in map(graph.vertices.__getitem__, readers) if v.statement)]

    def why(self, i: int) -> str:
        """Reason why stage i must not change: training it would alter columns that the loss does not depend on."""
        vertices = self.graph.vertices
        readers = (f"{'the predictor ' * _predicts(self.graph, j)}{vertices[j].uid}" for j in self.readers[i])
        return f"also feeds {', '.join(readers)}, outside the loss: {', '.join(self.columns([i]))} would change"


@dataclasses.dataclass(frozen=True)
class Roles:
    """The role of each stage, by position.

    Attributes:
        upstream: the head and all stages that it depends on.
        makers: the stages that make the label or the weight, each with the name of that column.
        clusters: whether the loss is that of a clustering without a label. No stage before it trains, because making
            all rows alike would reduce the loss.
        blocked: the stages that must not change although a path leads from them to the loss, with reasons.
        trainable: the stages that train.
        named: the only parameters that train, for stages in which not all parameters do.
        on_request: the parameters that would train if `unfreeze` named them.
        gradients: the versions, each with a stage that reads it, along which gradients of the loss can flow back.
    """

    graph: Graph
    upstream: frozenset[int]
    makers: Mapping[int, str]
    clusters: bool
    outside: OutsideStages
    blocked: Mapping[int, str]
    trainable: frozenset[int]
    named: Mapping[int, set[str]]
    on_request: Mapping[int, list[str]]
    gradients: frozenset[tuple[Version, int]]

    def apply(self) -> None:
        """Set `requires_grad` of all modules: True only for parameters that train."""
        for i, module in self.graph.modules.items():
            for name, p in module.named_parameters():
                trains = i in self.trainable and (i not in self.named or name in self.named[i])
                p.requires_grad_(p.requires_grad and trains)

    def freeze(self, stages: Iterable[object], target: Iterable[object]) -> dict[int, str]:
        """Freeze trainable stages on the user's request, and return them with reasons. The cut does not depend on which
        stages are frozen.

        Args:
            stages: the stages to freeze.
            target: the only stages to train, if given. A target that can't train is allowed if another one can,
                because it may be fitted anew.

        Raises:
            InputError: no target can train, or one isn't on the path to the loss.
        """
        frozen = dict.fromkeys(self.graph.select(stages, "freeze"), "frozen on request")
        targets = self.graph.select(target, "target")
        for i in sorted(targets - (self.outside.path if targets & self.trainable else self.trainable)):
            raise InputError(f"target={self.graph.vertices[i].uid!r} can't train: {self.reason(i, {})}")
        frozen |= dict.fromkeys(self.trainable - targets if targets else (), "not in target")
        for i in self.trainable & set(frozen):
            self.graph.modules[i].requires_grad_(False)
        return frozen

    def kept_as_fitted(self, target: Iterable[object] = ()) -> dict[str, str]:
        """Reasons, by uid, why stages must not be fitted anew, searched or deleted in order to reduce the loss.

        Args:
            target: the only stages for which this is allowed, if given. A stage that also feeds columns outside the
                loss is allowed only if it is named here.
        """
        graph, targets = self.graph, self.graph.select(target, "target")
        stages: dict[str, set[int]] = {}
        for v in graph.vertices:
            stages.setdefault(graph.formula_of(v) or v.uid, set()).add(v.position)  # a formula is fitted as a whole
        return {uid: why for uid, found in stages.items() if (why := self._why_kept(found, targets))}

    def _why_kept(self, stages: Set[int], targets: Set[int]) -> str:
        """Reason why a stage, or the parts of a formula, must not be fitted anew; empty if it may be."""
        if not stages & self.outside.path:
            return "no path leads from it to the loss"
        if made := [self.makers[i] for i in sorted(stages - {self.graph.head_position}) if i in self.makers]:
            return f"makes {made[0]!r}, which the loss reads"
        if targets and not stages & targets:
            return "not in target"
        shared = [i for i in sorted(stages - targets - {self.graph.head_position}) if self.outside.columns([i])]
        return f"{self.outside.why(shared[0])}; name it in target to allow that" if shared else ""

    def reason(self, i: int, frozen: Mapping[int, str]) -> str:
        """Role of a stage and the reason for it, as text."""
        request = ", ".join(self.on_request.get(i, ()))
        return self._reason(i, frozen) + (f"; trains on request (unfreeze): {request}" if request else "")

    def _reason(self, i: int, frozen: Mapping[int, str]) -> str:
        vertex, module, head = self.graph.vertices[i], self.graph.modules.get(i), self.graph.head_position
        if module is None:
            return vertex.why
        if i in frozen and i in self.trainable:
            return frozen[i]
        if i in self.trainable:
            why = "the loss" if i == head else "a differentiable path leads to the loss"
            if columns := self.outside.columns([i]):
                why += f"; also changes {', '.join(columns)}, outside the loss"
            return f"{why}; {module.preparation_note}" if isinstance(module, PreparedStage) else why
        if not vertex.parametric:
            return f"nothing to train; {vertex.note}" if vertex.note else "nothing to train"
        if head is None:
            return "no predictor that a loss could train"
        if i in self.blocked:
            return self.blocked[i]
        if i in self.upstream and self.clusters:
            return "only a loss with a label can train it: the loss of clusters would make all rows alike"
        if isinstance(module, Predictor) and not module.differentiable and i != head:
            return "no differentiable path to the loss: its output is an index"
        return "no differentiable path to the loss"


def roles_of(graph: Graph, options: Options) -> Roles:
    """The roles of the stages of a graph with modules and a head.

    Raises:
        InputError: a parameter named in `unfreeze` can't train.
    """
    head, asked, targets = (
        graph.head_position,
        graph.positions_to_unfreeze(options.unfreeze),
        graph.select(options.target, "target"),
    )
    upstream = frozenset() if head is None else frozenset(graph.ancestors([head]) | {head})
    module = None if head is None else graph.modules[head]
    clusters = isinstance(module, Predictor) and not module.labelled and options.labelCol is None
    makers, outside = _makers(graph, (options.labelCol, options.weightCol)), _outside(graph)
    named, gradients = _requested_parameters(graph, outside, asked), _gradients(graph, clusters)
    path = {p for (_, p), _ in gradients} | ({head} if head is not None else set())
    anyway = _reasons_to_freeze(graph, upstream, makers)  # independent of what stages outside the loss read
    shared = {i: _why_shared(outside, i) for i in sorted(path - targets - set(named) - {head}) if outside.columns([i])}
    blocked = shared | anyway
    trainable = frozenset(i for i in path - set(blocked) if graph.vertices[i].parametric)
    on_request = {i: names for i in path - set(anyway) if (names := _on_request(graph, i))}
    only = {i: names for i, names in named.items() if i in trainable - targets}  # all parameters of a target train
    roles = Roles(graph, upstream, makers, clusters, outside, blocked, trainable, only, on_request, gradients)
    for name, found in asked.items():
        if not found & trainable:
            i = min(found)
            raise InputError(f"unfreeze={name!r}: {graph.vertices[i].uid} can't train: {roles.reason(i, {})}")
    return roles


def _makers(graph: Graph, given: tuple[str | None, str | None]) -> dict[int, str]:
    """Positions of the stages that make the label or the weight, each with the name of that column. `given` has the
    names of the label and the weight; None stands for the column that the head itself was fitted with.
    """
    out: dict[int, str] = {}
    for column, param in zip(given, ("labelCol", "weightCol"), strict=True):
        own = columns_of(graph.head.stage, (param,)) if graph.head_position is not None else ()
        for name in own if column is None else (column,):
            # An opaque stage may write it too; it runs in Spark if any later stage does.
            writers = [i for i in range(graph.head_position or 0) if graph.writes(i, [graph.casefold(name)])]
            for i in graph.ancestors(writers[-1:]) | set(writers[-1:]):
                out.setdefault(i, name)
    return out


def _outside(graph: Graph) -> OutsideStages:
    out: dict[int, list[int]] = {}
    above, head = graph.above, graph.head_position
    read = {head, *(p for _, p in graph.head.lossReads if p >= 0)} if head is not None else set()
    path = frozenset(read).union(*(above[p] for p in read))
    for i, vertex in enumerate(graph.vertices):
        if head is None or i in path or (head in above[i] and not _predicts(graph, i)):
            continue
        undeclared = not vertex.declares_all and _predicts(graph, i)
        for j in above[i] | (graph.ancestors([i]) - {head} if undeclared else frozenset()):
            out.setdefault(j, []).append(i)
    return OutsideStages(graph, path, out)


def _predicts(graph: Graph, i: int) -> bool:
    """True if the stage is a predictor, in torch or in Spark."""
    module, stage = graph.modules.get(i), graph.vertices[i].stage
    return isinstance(module, Predictor) if module is not None else "predictionCol" in [p.name for p in stage.params]


def _gradients(graph: Graph, clusters: bool) -> frozenset[tuple[Version, int]]:
    """Versions, each with a stage that reads it, along which gradients of the loss can flow back."""
    if graph.head_position is None or clusters:
        return frozenset()
    out: set[tuple[Version, int]] = set()
    seen, stack = {graph.head_position}, [graph.head_position]
    while stack:
        i = stack.pop()
        for name, p in graph.vertices[i].reads if graph.modules[i].differentiable else ():
            parent = graph.modules.get(p)
            if parent is None:
                continue
            if parent.passes_gradient() or name not in map(graph.casefold, parent.labels(graph.vertices[p].stage)):
                out.add(((name, p), i))
                if p not in seen:
                    seen.add(p)
                    stack.append(p)
    return frozenset(out)


def _on_request(graph: Graph, i: int) -> list[str]:
    """Parameters of a stage that would train if `unfreeze` named them."""
    return sorted(n for n, p in graph.modules[i].on_request().items() if not p.requires_grad)


def _requested_parameters(graph: Graph, outside: OutsideStages, asked: Mapping[str, set[int]]) -> dict[int, set[str]]:
    """Parameters named in `unfreeze`, by position, for stages that feed stages outside the loss: of such a stage only
    the named parameters train.
    """
    out: dict[int, set[str]] = {}
    for name, found in asked.items():
        parameter = name.rpartition(".")[2]
        shared = {i for i in found if i != graph.head_position and outside.columns([i])}
        regular = {i for i in found - shared if (m := graph.modules.get(i)) and parameter not in m.on_request()}
        if regular and not shared:
            raise not_on_request(name, graph.vertices[min(regular)])
        for i in shared:
            out.setdefault(i, set()).add(parameter)
    return out


def _reasons_to_freeze(graph: Graph, upstream: frozenset[int], makers: Mapping[int, str]) -> dict[int, str]:
    """Stages that must not change although a path leads from them to the loss, with reasons; without those whose only
    reason is that they feed stages outside the loss.
    """
    out = {i: f"makes {column!r}, which the loss reads" for i, column in makers.items() if i != graph.head_position}
    for i in sorted(upstream - set(graph.modules)):
        stays = graph.vertices[i]
        for j in graph.ancestors([i]):
            out.setdefault(j, f"feeds {stays.uid}, which stays in Spark: {stays.why}")
    for i in droppers(graph, upstream):
        why = f"comes before {graph.vertices[i].uid}, which stays in Spark and may drop rows"
        for j in graph.ancestors([i]):
            out.setdefault(j, why)
    return out


def droppers(graph: Graph, upstream: frozenset[int]) -> set[int]:
    """Stages in Spark that may drop rows before the head."""
    before = graph.vertices[: max(upstream, default=-1) + 1]
    return {v.position for v in before if v.may_drop}


def _why_shared(outside: OutsideStages, i: int) -> str:
    """Reason why a stage that also feeds stages outside the loss does not train."""
    own = [n for n, p in outside.graph.modules[i].named_parameters() if p.requires_grad]
    return f"{outside.why(i)}; trains on request (target, unfreeze): {', '.join(own)}"
