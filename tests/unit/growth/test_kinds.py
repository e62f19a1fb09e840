"""The names of kinds, which are known without torch, are those of the modules."""

from sparkdiff.growth import parts
from sparkdiff.growth.growth_options import KINDS, GrowthSettings


def test_each_kind_has_a_module_and_a_description() -> None:
    own = {name: module for name, module in parts.KINDS.items() if name in KINDS}  # tests may have added others
    assert [*own] == [*KINDS] == [*GrowthSettings().parts]
    assert all(module.__name__ == f"sparkdiff.growth.parts.{name}" for name, module in own.items())
    assert all(kind.does and kind.stages for kind in KINDS.values())
