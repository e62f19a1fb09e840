"""Names that saved and pickled things hold are those of `sparkdiff`, and what `register` takes."""

import pickle
from typing import Any

import pytest

import sparkdiff
from sparkdiff import InputError, jvm
from sparkdiff.stages.base import REGISTRY

SAVED = ["FineTuner", "FineTunerModel", "FineTuningSummary", "Plan", "StagePlan", "Parity"]


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_names_the_package(name: str) -> None:
    found = getattr(sparkdiff, name)
    assert f"{found.__module__}.{found.__qualname__}" == f"sparkdiff.{name}"
    assert pickle.loads(pickle.dumps(found)) is found


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute '_listed'"):
        vars(sparkdiff)["__getattr__"]("_listed")


class Scaled:
    """A stage in Python, as far as its translation looks at it."""

    uid = "scaled1"


@pytest.mark.parametrize("module", [5, Scaled, Scaled()])
def test_only_a_stage_module_is_registered(module: Any) -> None:
    with pytest.raises(InputError, match=r"register\('shop.Scaled'\) takes a subclass of sparkdiff.StageModule, got "):
        sparkdiff.register("shop.Scaled")(module)
    assert "shop.Scaled" not in REGISTRY


def test_a_translation_is_registered_by_name() -> None:
    with pytest.raises(
        InputError, match=r"class name of register.. must be a full Python name .* got the class Scaled itself"
    ):
        sparkdiff.register(Scaled)  # type: ignore[arg-type]


def test_weights_of_a_stage_in_python_are_params() -> None:
    with pytest.raises(
        InputError, match=r"scaled1: Scaled is written in Python, .* \(steepness\): .* in weight_params"
    ):
        jvm.rebuild(Scaled(), {"steepness": 1.0})
