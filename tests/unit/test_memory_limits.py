"""The memory that a process may use, in containers of both versions of Linux's control groups."""

import os
from pathlib import Path

import pytest

from sparkdiff.machine import resources

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1, V2 = "3:cpuset:/\n4:cpu,memory:/pods/one\n0::/\n", "0::/pods/one\n"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (V2, {"pods/one/memory.max": "4096"}, 4096),
        (V2, {"pods/one/memory.max": "max", "pods/memory.max": "8192"}, 8192),  # the group around it is limited
        (V2, {"pods/one/memory.max": "8192", "pods/memory.max": "4096"}, 4096),
        (V2, {"memory.max": "4096"}, 4096),  # in a container, whose own group is the topmost
        (V2, {"pods/two/memory.max": "4096"}, MACHINE),
        (V2, {"pods/one/memory.max": "max"}, MACHINE),
        (V1, {"memory/pods/one/memory.limit_in_bytes": "4096"}, 4096),
        (V1, {"memory/memory.limit_in_bytes": "4096"}, 4096),
        (
            V1,
            {"memory/pods/one/memory.limit_in_bytes": "9223372036854771712"},
            MACHINE,
        ),  # version 1's word for no limit
        (V1, {"cpuset/memory.limit_in_bytes": "4096"}, MACHINE),
        (V2, {}, MACHINE),
    ],
)
def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
) -> None:
    own = tmp_path / "own"
    own.write_text(groups)
    for name, limit in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert resources.memory_bytes(tmp_path / "cgroup", own) == expected


def test_elsewhere_than_on_linux_the_machine_counts(tmp_path: Path) -> None:
    assert resources.memory_bytes(tmp_path, tmp_path / "missing") == MACHINE
