"""Where the class archive lies, when Java starts with it, and what is said if it can't be written."""

from pathlib import Path

import pytest

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import class_archive

JAVA = 'openjdk version "17.0.1"'


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
    assert jvm.archive_option(JAVA) == ""
    where = jvm.write_archive(writes(class_archive.MAGIC + b"classes"), JAVA)
    assert where.parent == caches
    assert [p.name for p in caches.iterdir()] == [where.name]
    assert jvm.archive_option(JAVA).startswith(f'-XX:SharedArchiveFile="{where}" ')


def test_none_where_settings_are_on_the_class_path(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jvm.write_archive(writes(class_archive.MAGIC), JAVA)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "conf"))
    (tmp_path / "conf").mkdir()
    assert jvm.archive_option(JAVA)
    (tmp_path / "conf" / "spark-defaults.conf").touch()
    assert jvm.archive_option(JAVA) == ""
    with pytest.raises(
        InputError, match=rf"{tmp_path}/conf, a folder with files, is on its class path: unset SPARK_CONF_DIR"
    ):
        jvm.write_archive(writes(class_archive.MAGIC), JAVA)


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
        jvm.write_archive(program, JAVA)
    assert list(caches.iterdir()) == []
    assert jvm.archive_option(JAVA) == ""


def test_another_java_has_its_own(caches: Path) -> None:
    jvm.write_archive(writes(class_archive.MAGIC), JAVA)
    assert jvm.archive_option(f"NOTE: Picked up JDK_JAVA_OPTIONS: -Xmx1g\n{JAVA}") == jvm.archive_option(JAVA) != ""
    assert jvm.archive_option("openjdk version 21") == ""
    assert jvm.archive_option("") == ""  # this process starts none


def test_it_can_be_written_again(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While classes are recorded, Java must not use an archive."""
    jvm.write_archive(writes(class_archive.MAGIC), JAVA)
    program = writes(class_archive.MAGIC)
    program[1] = f"from sparkdiff import jvm\nassert not jvm.archive_option({JAVA!r})\n" + program[1]
    jvm.write_archive(program, JAVA)


def test_settings_of_a_cluster_are_left_out(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", "/etc/hadoop")
    monkeypatch.setenv("SPARK_REMOTE", "sc://far.away")
    program = writes(class_archive.MAGIC)
    program[1] = "import os\nassert not {'HADOOP_CONF_DIR', 'SPARK_REMOTE'} & os.environ.keys()\n" + program[1]
    jvm.write_archive(program, JAVA)


def test_without_a_home_java_starts_as_ever(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert jvm.archive_option(JAVA) == ""
    with pytest.raises(InputError, match=r"cache folder cannot be written .*: set XDG_CACHE_HOME"):
        jvm.write_archive(writes(class_archive.MAGIC), JAVA)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jvm.archive_option(JAVA) == ""
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        jvm.write_archive(writes(class_archive.MAGIC), JAVA)
