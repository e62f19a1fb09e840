"""Paths and URLs as users write them: checks whether they are local and usable and whether they exist, and conversion
to the form that Spark reads.
"""

import fnmatch
import os
import re
from pathlib import Path, PurePosixPath

LOCAL = re.compile(r"file:(//)?(?=/)", re.IGNORECASE)
URL = re.compile(r"[A-Za-z][\w+.-]*:(?=/)")
SPECIAL = re.compile(r"[\\{}\[\]*?]")
"""Pattern of the characters that Spark's readers interpret as parts of a glob."""


def local(given: str) -> Path | None:
    """The local path of a path or a `file:` URL; None for any other URL."""
    path = LOCAL.sub("", given, count=1) if LOCAL.match(given) else given
    return None if URL.match(path) else Path(os.path.expanduser(path))


def unusable(option: str, given: str) -> str | None:
    """The error message for a folder that is neither a path nor a URL, or that Spark could not find; None if it is
    usable.

    Whether Spark has a file system for a URL is not checked, because that takes a session (see `jvm.folder`).
    """
    path = local(given)
    if path is None:
        return None
    if re.match(r"\w[\w+.-]*:", str(path)):
        return f"{option}={given!r} is neither a path nor a URL (scheme://...): choose another folder"
    if ":" in str(path) and SPECIAL.search(str(path)):
        return (
            f"{option}={given!r} holds ':' together with one of {{}}[]*?\\, and Spark cannot find such a "
            "folder: choose another name"
        )
    return None


def not_local(option: str, given: str) -> str | None:
    """The error message for a folder that is not on this machine's file system or that Spark could not find; else None."""
    if local(given) is not None:
        return unusable(option, given)
    return f"{option}={given!r} must be a folder on the file system of this machine (local, NFS or a FUSE mount such as /dbfs)"


def data_path(given: str, folder: Path) -> str:
    """A path of data, which may be a glob, resolved against a folder; a URL other than `file:` stays unchanged.

    If a file or folder of exactly this name exists, the path is taken literally. The folder's own path is never a glob.
    """
    path = local(given)
    if path is None:
        return given
    if os.path.exists(folder / path):
        return by_name(str((folder / path).resolve()))
    return str((Path(by_name(str(folder.absolute()))) / path).resolve())


def inside(path: str, name: str) -> str:
    """The path of the entry `name` in a folder that is a local path or a URL."""
    return str(PurePosixPath(path) / name) if "://" not in path else path.rstrip("/") + "/" + name


def by_name(path: str) -> str:
    """A path escaped for Spark's readers, which treat every path as a glob."""
    return SPECIAL.sub(lambda found: "\\" + found[0], path)


def address(path: str | Path) -> str:
    """The URL with which Spark's readers find exactly this local path or `file:` URL, not a glob; other URLs stay
    unchanged.
    """
    where = local(str(path))
    return str(path) if where is None else f"file://{by_name(str(where))}"


def is_there(pattern: str) -> bool:
    """True if an absolute local path, interpreted as a glob as by Spark, matches something, or if that is unknown."""
    found = [Path("/")]
    for part in Path(pattern).parts[1:]:
        plain = re.sub(r"\\.", "", part)
        if "{" in plain:  # may span several names
            return bool(found)
        try:
            if re.search(r"[\[*?]", plain):
                names = re.sub(r"\\(.)", r"[\1]", part).replace("[^", "[!")
                found = [p / n for p in found if p.is_dir() for n in fnmatch.filter(os.listdir(p), names)]
            else:
                found = [p / re.sub(r"\\(.)", r"\1", part) for p in found]
                found = [p for p in found if os.path.exists(p)]
        except OSError:
            return True
    return bool(found)
