"""The file that tells type checkers the options of the estimators says what these have at run time."""

import ast
import runpy
from pathlib import Path
from typing import Any

import sparkdiff
from sparkdiff.options import FIELDS

written = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "option_types.py"))
CLASSES: dict[str, Any] = {
    "TunerGetters": sparkdiff.FineTunerModel,
    "TunerMembers": sparkdiff.FineTuner,
    "GrowerGetters": sparkdiff.GrowerModel,
    "GrowerMembers": sparkdiff.Grower,
    "ImproverGetters": sparkdiff.ImproverModel,
    "ImproverMembers": sparkdiff.Improver,
    "SearchMembers": sparkdiff.Search,
}


def test_the_file_is_up_to_date() -> None:
    assert written["STUB"].read_text("utf-8") == written["stub"](), "run python tools/option_types.py"


def test_it_has_all_members_and_no_others() -> None:
    told: dict[str, set[str]] = {}
    for node in ast.parse(written["stub"]()).body:
        if isinstance(node, ast.ClassDef):
            fields = {ast.unparse(x.target) for x in node.body if isinstance(x, ast.AnnAssign)}
            told[node.name] = fields | {x.name for x in node.body if isinstance(x, ast.FunctionDef)}
    for name, cls in CLASSES.items():
        assert {member for member in told[name] if not hasattr(cls, member)} == set()
    for names, cls in (
        (("TunerGetters", "TunerMembers"), sparkdiff.FineTuner),
        (("TunerGetters", "TunerMembers", "GrowerGetters", "GrowerMembers"), sparkdiff.Grower),
        (("TunerGetters", "TunerMembers", "ImproverGetters", "ImproverMembers"), sparkdiff.Improver),
        (("SearchMembers",), sparkdiff.Search),
    ):
        known = set().union(*(told[name] for name in names))
        made = {name for name in dir(cls) if name.startswith("set") and name[3:4].isupper()} - {"setParams"}
        assert made - known == set()
        assert {f"get{name[3:]}" for name in made} <= known
    assert told["TunerOptions"] == {*FIELDS}
