"""The picture of a plan: lines where the columns are, nothing over one another or outside, whatever the pipeline."""

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings, strategies as st

from sparkdiff.report import Drawing, plan_picture
from sparkdiff.report.plan_drawing import _buses, _cuts, _lanes
from sparkdiff.report.svg import length

EVIL = "<script>alert('1')</script>&"


def stage(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "path": (i,),
        "uid": f"uid{i}",
        "stageClass": "PCAModel",
        "role": "translated",
        "cached": False,
        "trainable": False,
        "numParameters": 0,
        "inputCols": (f"c{i}",),
        "outputCols": (f"c{i + 1}",),
        "reason": "nothing to train",
        **changes,
    }


def edge(source: int, target: int, gradients: bool = False, column: str | None = None) -> dict[str, Any]:
    return {"column": column or f"c{source}", "source": source, "target": target, "gradients": gradients}


def plan(stages: list[dict[str, Any]], edges: list[dict[str, Any]], head: int | None = None) -> dict[str, Any]:
    return {"stages": stages, "edges": edges, "head": head, "cacheCols": ()}


NAMES = st.sampled_from(["x", "features", "a_very_long_name_of_a_column_that_no_box_can_hold_at_all", "名前の列", EVIL])


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Up to a dozen stages that read any earlier ones, nested at will."""
    count = draw(st.integers(0, 12))
    stages = []
    for i in range(count):
        path = (i,) if draw(st.booleans()) else (i // 3, *draw(st.sampled_from([(), (0,)])), i)
        role = draw(st.sampled_from(["translated", "referenced"]))
        stages.append(
            stage(
                i,
                path=path,
                role=role,
                cached=draw(st.booleans()),
                trainable=role == "translated" and draw(st.booleans()),
                numParameters=draw(st.integers(0, 3)),
                reason=draw(st.sampled_from(["", "why", "because of this and that " * 20])),
                inputCols=tuple(draw(st.lists(NAMES, max_size=40))),
                outputCols=tuple(draw(st.lists(NAMES, max_size=3))),
                stageClass=draw(st.sampled_from(["PCAModel", "AStageOfSomebodysOwnWithAVeryLongNameModel", EVIL])),
            )
        )
    pairs = [(s, t) for t in range(count) for s in range(-1, t)]
    edges = (
        [edge(s, t, s >= 0 and draw(st.booleans())) for s, t in draw(st.lists(st.sampled_from(pairs), max_size=30))]
        if pairs
        else []
    )
    return plan(stages, edges, count - 1 if count and draw(st.booleans()) else None)


def boxes_of(root: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each text, by the widths that the drawing reckons with."""
    out = []
    for text in root.iter("text"):
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        out.append((x, y - 10, x + length(text.text or "", text.attrib["class"]), y + 3))
    return out


@given(plans())
@settings(max_examples=40, deadline=None)
def test_nothing_lies_over_another_or_outside(given_plan: dict[str, Any]) -> None:
    root = plan_picture(given_plan, "trains 3 parameters; the cache holds " + "a, " * 60)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    found = boxes_of(root)
    for left, top, right, bottom in found:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(found, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    for rect in root.iter("rect"):
        x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    text = Drawing(root)._repr_svg_()
    assert {"script"}.isdisjoint(e.tag.rpartition("}")[2] for e in ElementTree.fromstring(text).iter())


@given(plans())
@settings(max_examples=40, deadline=None)
def test_each_column_has_a_line_and_no_lane_two_at_a_place(given_plan: dict[str, Any]) -> None:
    buses = _buses(given_plan)
    for e in given_plan["edges"]:
        if e["source"] >= 0:
            assert any(
                e["source"] in b.sources and e["target"] in b.targets and e["gradients"] == b.gradients for b in buses
            )
    there = {(e["source"], e["target"], e["gradients"]) for e in given_plan["edges"]}
    assert all((s, t, b.gradients) in there for b in buses for s in b.sources for t in b.targets)
    placed = [(lane, min(b.sources), max(b.targets)) for b, lane in zip(buses, _lanes(buses), strict=True) if lane >= 0]
    for (lane, a, b), (other, c, d) in itertools.combinations(placed, 2):
        assert lane != other or b < c or d < a


def test_gradients_stop_at_the_nearest_stage_that_bars_them() -> None:
    stages = [
        stage(0, role="referenced"),
        stage(1, numParameters=3),
        stage(2),
        stage(3, trainable=True, numParameters=2),
        stage(4, numParameters=9),
        stage(5, trainable=True, numParameters=4),
        stage(6, numParameters=5),
    ]
    edges = [edge(0, 1), edge(1, 2), edge(2, 3), edge(3, 4, True), edge(4, 5, True), edge(5, 6)]
    # 0 lies behind 1; 2 has nothing to train; 4 is frozen, but gradients go through it; 6 lies behind the loss.
    assert _cuts(plan(stages, edges, head=5)) == {1}
    assert _cuts(plan(stages, edges)) == set()


def test_it_is_saved_on_white_and_shown_in_page_colours(tmp_path: Path) -> None:
    drawing = Drawing(plan_picture(plan([stage(0, uid="名前", trainable=True)], [edge(-1, 0)], head=0), "all"))
    drawing.save(tmp_path / "plan.svg")
    saved = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert saved == drawing._repr_svg_() and "background: #ffffff" in saved and "名前" in saved
    assert "background" not in drawing._repr_html_() and "color: inherit" in drawing._repr_html_()
    assert "save(path)" in repr(drawing)


def test_stage_names_are_whole_beside_the_mark_of_the_loss() -> None:
    for name in ("MultilayerPerceptronClassificationModel", "GeneralizedLinearRegressionModel"):
        root = plan_picture(plan([stage(0, path=(12,), stageClass=name)], [edge(-1, 0)], head=0), "all")
        assert f"12 {name}" in [text.text for text in root.iter("text")]
