"""Write `sparkdiff/estimators/option_types.pyi`: the options of the estimators as type checkers and editors see them.

The Params, getters and setters are made at run time from the one list of options (`sparkdiff.estimators.option_params`). Type
checkers read no run time, so this script writes the same list for them: `python tools/option_types.py`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUB = ROOT / "sparkdiff" / "estimators" / "option_types.pyi"
HEAD = '''"""Types of the options, written by tools/option_types.py."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from pyspark.ml.param import Param
from pyspark.sql import DataFrame
from typing_extensions import Self, Unpack

from sparkdiff.report import Events

class Stage(Protocol):
    @property
    def uid(self) -> str: ...

Stages = Stage | Collection[str | Stage]
'''
CONSTRUCTOR = """    def __init__(
        self,
        pipeline: Any = None,
        *others: Any,
        referenceData: DataFrame | None = None,
        callbacks: Sequence[Events] = (),
        **params: Unpack[OPTIONS],
    ) -> None: ...""".splitlines()
Options = dict[str, str]
NAMES, STAGES = "tuple[str, ...]", "Stages"


def main() -> None:
    STUB.write_text(stub(), encoding="utf-8")


def stub() -> str:
    """Content of the file."""
    tuning = options_of("options.py", "Options")
    growth = options_of("growth/growth_options.py", "GrowthSettings")
    improvement = options_of("improvement/improvement_options.py", "ImprovementSettings")
    search = options_of("search/search_options.py", "Settings")
    objects = dict.fromkeys(["pipeline", "referenceData"], "Any")
    searched = dict.fromkeys(["estimator", "space", "evaluator", "current"], "Any")
    parts = [
        HEAD,
        *typed_dict("TunerOptions", tuning),
        *members("TunerGetters", tuning, {}),
        *members("TunerMembers", objects, objects | tuning),
        *typed_dict("GrowerOptions", growth, "TunerOptions"),
        *members("GrowerGetters", growth, {}),
        *members("GrowerMembers", growth, growth, "GrowerOptions"),
        *typed_dict("ImproverOptions", improvement, "TunerOptions"),
        *members("ImproverGetters", improvement, {}),
        *members("ImproverMembers", improvement, improvement, "ImproverOptions"),
        *typed_dict("SearchOptions", search),
        *members("SearchMembers", searched | search, searched | search),
    ]
    return "\n".join(parts)


def options_of(file: str, name: str) -> Options:
    """The options of a dataclass with their types, in its order."""
    tree = ast.parse((ROOT / "sparkdiff" / file).read_text("utf-8"))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(field.target): type_of(field) for field in fields}


def type_of(field: ast.AnnAssign) -> str:
    """The type of an option; STAGES if it names stages, which can be given themselves."""
    kind, rules = (
        ast.unparse(field.annotation),
        {k.arg: ast.unparse(k.value) for k in getattr(field.value, "keywords", [])},
    )
    if kind == NAMES and not {"items", "item", "choices"} & {*rules}:
        return STAGES
    return f"{kind} | bool" if kind == "str" and "'true'" in rules.get("choices", "") else kind


def typed_dict(name: str, options: Options, base: str = "TypedDict") -> Iterator[str]:
    yield f"class {name}({base}, total=False):"
    yield from (f"    {option}: {accepted(kind)}" for option, kind in options.items())
    yield ""


def members(name: str, readable: Options, settable: Options, options: str = "") -> Iterator[str]:
    """A class with the Params and getters of some options, the setters of others, and a constructor that takes `options`."""
    yield f"class {name}:"
    yield from (f"    {option}: Param[Any]" for option in readable)
    for option, kind in readable.items():
        yield f"    def get{option[0].upper()}{option[1:]}(self) -> {returned(kind)}: ..."
    for option, kind in settable.items():
        yield f"    def set{option[0].upper()}{option[1:]}(self, value: {accepted(kind)}) -> Self: ..."
    yield from (line.replace("OPTIONS", options) for line in CONSTRUCTOR if options)
    yield ""


def returned(kind: str) -> str:
    """The type that a getter returns."""
    return "list[str]" if kind in (NAMES, STAGES) else kind.removesuffix(" | bool") if kind == "str | bool" else kind


def accepted(kind: str) -> str:
    """The type that a setter accepts: a single name stands for a list of one, and numbers become texts."""
    return kind.replace(NAMES, "Collection[str]").replace("Mapping[str, str]", "Mapping[str, str | float]")


if __name__ == "__main__":
    main()
