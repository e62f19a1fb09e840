"""The marker of a folder: a file, written first and removed last, that names the owner, i.e. the part of this package
that made the folder.

A folder that contains files but no marker is the user's: nothing is written into it or removed from it. The folders
that users choose for many runs (`storeDir`, `cacheDir`, `checkpointDir`) are the user's, too, and have no marker; the
folders that this package makes inside them have one.
"""

from collections.abc import Iterable
from pathlib import Path

from sparkdiff.errors import InputError
from sparkdiff.jvm import stores
from sparkdiff.machine.atomic_files import MARKER as MARKER

OUTPUT, RUN, SEARCH, SEEN = "run", "checkpoints", "search", "seen stages"
CACHE, ROWS, FITTED = "cache", "rows after stages", "fitted pipeline"


def mark(folder: Path, owner: str, entries: Iterable[str] = ()) -> None:
    """Write the owner's marker into a folder.

    Args:
        entries: the names of all entries that belong to this owner, if users may add files to the folder; by default
            all entries belong to the owner.

    Raises:
        OSError: the marker cannot be written.
    """
    stores.write(folder / MARKER, "\n".join([owner, *entries]).encode())


def read_marker(folder: Path) -> list[str]:
    """The owner and the entries from a folder's marker; empty if there is none.

    Raises:
        OSError: the marker cannot be read.
    """
    return (stores.read(folder / MARKER) or b"").decode(errors="replace").splitlines()


def check_owner(folder: Path, owner: str, given: str, other: str) -> None:
    """Check that a folder does not exist, is empty, or contains only files made by this part of the package.

    Args:
        given: the folder, as messages name it.
        other: the option or thing that the user should choose anew, for messages.

    Raises:
        InputError: the folder contains something else, is a file, or cannot be read.
    """
    try:
        if folder.is_file():
            raise InputError(f"{given} is a file: choose a folder")
        found, *entries = read_marker(folder) or [""]
        own = {MARKER, *(entries or stores.names(folder))} if found == owner else {MARKER}
        if foreign := [name for name in stores.names(folder) if name not in own]:
            raise InputError(
                f"{given} contains {foreign[0]}, which is not of sparkdiff's {owner}: no file {MARKER} there says so, and "
                f"nothing was written or deleted. Move it away, or choose another {other}"
            )
    except OSError as e:
        raise InputError(f"{given} cannot be read ({e.strerror}): choose another {other}") from e
