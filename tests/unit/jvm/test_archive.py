"""Where the class archive lies, when Java starts with it, and what is said if it can't be written."""

import os
from pathlib import Path

import pytest

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import archive


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my caches"))
    monkeypatch.delenv("SPARK_CONF_DIR", raising=False)
    return tmp_path / "my caches" / "sparkdiff"


def writes(content: bytes) -> list[str]:
    """Arguments of a Python that writes this where its JVM is told to write the archive."""
    return [
        "-c",
        "import os, re\n"
        "(path,) = re.findall('-XX:ArchiveClassesAtExit=\"(.*?)\"', os.environ['SPARK_SUBMIT_OPTS'])\n"
        f"open(path, 'wb').write({content!r})",
    ]


def test_java_starts_with_an_archive_that_was_written(caches: Path) -> None:
    assert jvm.archive_option() == ""
    where = jvm.write_archive(writes(archive.MAGIC + b"classes"))
    assert where.parent == caches
    assert [p.name for p in caches.iterdir()] == [where.name]
    assert jvm.archive_option().startswith(f'-XX:SharedArchiveFile="{where}" ')


def test_none_where_settings_are_on_the_class_path(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jvm.write_archive(writes(archive.MAGIC))
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "conf"))
    (tmp_path / "conf").mkdir()
    assert jvm.archive_option()
    (tmp_path / "conf" / "spark-defaults.conf").touch()
    assert jvm.archive_option() == ""
    with pytest.raises(InputError, match=rf"folder with files, which {tmp_path}/conf is: unset SPARK_CONF_DIR"):
        jvm.write_archive(writes(archive.MAGIC))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (["-c", "raise SystemExit('no room')"], "no room"),
        (["-c", "print('an old Java')"], "an old Java"),
        (writes(b"half of it"), "no archive was written"),
    ],
)
def test_what_was_not_written_is_not_used(caches: Path, program: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        jvm.write_archive(program)
    assert list(caches.iterdir()) == []
    assert jvm.archive_option() == ""


def test_another_java_has_its_own(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = archive.place()
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.touch(mode=0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    second = archive.place()
    os.utime(java, (1, 1))  # an update
    assert len({first, second, archive.place()}) == 3
