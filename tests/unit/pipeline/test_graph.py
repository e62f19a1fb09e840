"""The steps from a graph of columns to roles and a cut, on graphs made by hand: no Spark."""

import dataclasses
from typing import Any

import pytest
import torch

from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import cut_of
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.roles import roles_of, with_head
from sparkdiff.stages.scaling import StandardScaler
from tests.support import small_networks


class Bare:
    """A fitted stage without Params."""

    params: tuple[Any, ...] = ()

    def hasParam(self, name: str) -> bool:
        return False


def graph(*outside: str) -> Graph:
    """A scaler and a regression on it; stages of these names, which stay in Spark, read what the scaler makes."""
    ones = torch.ones(3, dtype=small_networks.F64)
    net = small_networks.network(
        (StandardScaler(0 * ones, ones, True, True), ["x"], "scaled"),
        (small_networks.least_squares(3), ["scaled"], "y"),
    )
    vertices = [dataclasses.replace(v, stage=Bare(), spelled=v.inputs, sources=v.reads) for v in net.graph.vertices]
    for i, name in enumerate(outside, len(vertices)):
        vertices.append(
            dataclasses.replace(
                vertices[1].in_spark("no torch form"),
                position=i,
                uid=name,
                outputs=(f"of {name}",),
                declaredParents=frozenset({0}),
                parents=frozenset({0}),
            )
        )
    return Graph(str.lower, tuple(vertices))


def test_a_step_changes_no_graph_that_it_was_given() -> None:
    before = graph()
    after = before.with_stages_in_spark([0], "on request")
    assert before.modules.keys() == {0, 1} and after.modules.keys() == {1}
    assert (after.vertices[0].why, after.vertices[0].parametric) == ("on request", False)
    assert after.vertices[1] is before.vertices[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.vertices[0].why = ""  # type: ignore[misc]


def test_the_head_alone_reads_what_only_the_loss_reads() -> None:
    both = graph().with_vertices(
        {i: dataclasses.replace(v, lossReads=(("censor", -1), ("made", 0))) for i, v in enumerate(graph().vertices)}
    )
    found = with_head(both)
    assert found.head.position == 1 and found.head.parents == {0}
    assert found.head.margin_reads == (("scaled", 0), ("censor", -1), ("made", 0))
    assert found.vertices[0].margin_reads == (("x", -1),)


def test_without_a_predictor_nothing_trains() -> None:
    roles = roles_of(with_head(graph().with_stages_in_spark([1], "on request")), Options())
    assert not roles.trainable and not cut_of(roles).columns
    assert roles.reason(0, {}) == "no predictor that a loss could train"


def test_what_trains_and_where_the_cut_lies() -> None:
    roles = roles_of(with_head(graph()), Options())
    assert roles.trainable == {0, 1}
    cut = cut_of(roles)
    assert (cut.cached, cut.live, [c.name for c in cut.columns]) == ((), (0, 1), ["x"])
    # Two analyses of one pipeline have modules of their own; their caches are the same.
    other = cut_of(roles_of(with_head(graph()), Options()))
    assert other == cut and len({other, cut}) == 1 and other.graph != cut.graph


def test_who_reads_outside_of_the_loss_keeps_a_stage_as_it_is() -> None:
    shared = with_head(graph("lsh"))
    roles = roles_of(shared, Options())
    assert roles.trainable == {1} and roles.reason(0, {}).startswith("also feeds lsh, outside the loss: of lsh would")
    assert cut_of(roles).live == (0, 1)  # who doesn't train may do so with another target, on the same cache
    asked = roles_of(shared, Options(target=("scaled", "y")))
    assert asked.trainable == {0, 1} and asked.outside.columns([0]) == ["of lsh"]
    asked.apply()
    assert all(p.requires_grad for i in (0, 1) for p in shared.modules[i].parameters())
    with pytest.raises(InputError, match="target='lsh' can't train: no torch form"):
        roles.freeze((), ("lsh",))


@pytest.mark.parametrize(
    ("reads", "target", "cached", "live"),
    [
        (-1, (), (2,), (0, 1)),
        (0, (), (0, 2), (1,)),  # the scaler stays as it is, whose output it reads too
        (0, ("scaled", "y"), (), (0, 1)),
        (1, (), (), (0, 1)),
    ],
)
def test_rows_are_dropped_before_caching_unless_by_training(
    reads: int, target: tuple[str, ...], cached: tuple[int, ...], live: tuple[int, ...]
) -> None:
    parents = frozenset({reads} - {-1})
    given = graph("filter")
    last = dataclasses.replace(given.vertices[2], drops_rows=True, parents=parents, declaredParents=parents)
    cut = cut_of(roles_of(with_head(given.with_vertices({2: last})), Options(target=target)))
    assert (cut.cached, cut.live) == (cached, live)
    assert [v.uid for v in cut.late_droppers] == ([] if cached else ["filter"])


def test_a_stage_overwrites_a_column_only_after_its_readers() -> None:
    for column in ("x", "target"):
        given = graph("filter")
        last = dataclasses.replace(given.vertices[2], drops_rows=True, parents=frozenset(), outputs=(column,))
        head = dataclasses.replace(given.vertices[1], lossReads=(("target", -1),))
        cut = cut_of(roles_of(with_head(given.with_vertices({1: head, 2: last})), Options()))
        assert (cut.cached, [v.uid for v in cut.late_droppers]) == ((), ["filter"])


def test_roles_decide_what_has_a_gradient() -> None:
    roles = roles_of(with_head(graph("lsh")), Options())
    roles.apply()
    trains = {i: {p.requires_grad for p in m.parameters()} for i, m in roles.graph.modules.items()}
    assert trains == {0: {False}, 1: {True}}
    assert roles.freeze(("y",), ()) == {1: "frozen on request"}
    assert not any(p.requires_grad for p in roles.graph.modules[1].parameters())
