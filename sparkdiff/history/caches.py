"""The caches in a folder: list them with sizes and costs, choose which to remove, and remove them."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparkdiff.data.stream import usage
from sparkdiff.errors import InputError
from sparkdiff.machine import atomic_files
from sparkdiff.report import aligned, counted, duration
from sparkdiff.store import folder_marker
from sparkdiff.store.files import folder_size
from sparkdiff.store.folder_marker import CACHE as CACHE, FITTED as FITTED, ROWS as ROWS

LEFT, FOREIGN = "left behind", "of another user"
READ = (CACHE, ROWS)
"""Kinds of items that hold rows, which runs read."""
WHOLE = (*READ, FITTED)
RECENT = 3600.0
"""Seconds for which an item is not removed after its last use, because a fit may have found it and not opened it yet.
"""
DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class StoredItem:
    """An item in a folder of caches.

    It is a cache, the rows after a pipeline's first stages (`reuseStages`), a fitted pipeline of a job, or what a
    killed process left behind.

    Attributes:
        kind: CACHE, ROWS, FITTED, LEFT, or FOREIGN (unreadable, as it belongs to another user).
        run: the runId of the run that made the item, which begins with the name of a job's output; "" if unknown.
        seconds: time that it took to make the item; 0 if unknown.
        uses: number of fits that used the item.
        age: seconds since its last use.
        madeBy: classes of the stages that Spark ran to make it.
        read: whether a process is reading it now.
    """

    path: Path
    kind: str
    run: str
    bytes: int
    rows: int | None
    seconds: float
    uses: int
    age: float
    madeBy: Sequence[str]
    read: bool

    @property
    def worth(self) -> float:
        """Expected seconds saved per byte if the item is used as often again; from Greedy-Dual-Size (Cao and Irani
        1997).
        """
        return self.seconds * self.uses / max(self.bytes, 1)

    @property
    def free(self) -> bool:
        """True if the item can be removed: no process reads it, and its last use was at least an hour ago (at least a day
        for leftovers: an item that is still being written changes within a day).
        """
        return not self.read and self.age >= (DAY if self.kind == LEFT else RECENT)


def entries(folder: Path) -> list[StoredItem]:
    """The items in a folder of caches, the largest first; files that are no such items are skipped.

    Raises:
        InputError: the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder: pass the folder that cacheDir names, or .cache beside the output of jobs"
        )
    found = [entry for path in folder.iterdir() for entry in _entry(path)]
    return sorted(found, key=lambda entry: (-entry.bytes, entry.path.name))


def entries_below(here: Path) -> list[StoredItem]:
    """The items in a folder, and in the folders `.cache` at most two levels below it, where jobs write them. Folders of other
    users are left out, because they may be anything.
    """
    places = (here, *here.glob(".cache"), *here.glob("*/.cache"), *here.glob("*/*/.cache"))
    return [
        entry
        for place in places
        if place.is_dir() and os.access(place, os.R_OK | os.X_OK)
        for entry in entries(place)
        if entry.kind != FOREIGN
    ]


def remove_old(folder: Path, days: float) -> str:
    """Remove the items in a folder of caches that were not used for `days` days and that nothing reads; return a report."""
    gone = remove(to_remove(entries(folder), most=None, days=days))
    return f"removed {table(gone)[-1]}, not used for {days:g} days"


def _entry(path: Path) -> Iterator[StoredItem]:
    try:
        kind = (folder_marker.read_marker(path) or [""])[0]
        if kind not in WHOLE:
            return
        if path.name.startswith("."):  # being written, or its writer or remover was killed
            yield StoredItem(path, LEFT, "", folder_size(path), None, 0.0, 0, _since(path), [], False)
        elif kind == FITTED or (path / usage.MANIFEST).exists():
            known, rows, size = usage.of(path), _rows(path), folder_size(path)
            with usage.alone(path) if kind in READ else contextlib.nullcontext(True) as unread:
                read = not unread
            yield StoredItem(
                path,
                kind,
                known.run,
                size,
                rows,
                known.seconds,
                known.uses,
                max(known.age, 0.0),
                known.madeBy,
                read,
            )
    except (FileNotFoundError, IsADirectoryError):  # another process has just removed it
        return
    except OSError:  # of another user, or on a disk that is mounted for reading
        yield StoredItem(path, FOREIGN, "", 0, None, 0.0, 0, 0.0, [], read=True)


def _since(path: Path) -> float:
    """Seconds since the last write in a folder."""
    last = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    return max(datetime.datetime.now().timestamp() - last, 0.0)


def _rows(path: Path) -> int | None:
    try:
        splits = atomic_files.read_object(path / usage.MANIFEST)["splits"]
        return sum(piece["rows"] for shards in splits.values() for shard in shards for piece in shard)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def to_remove(found: Sequence[StoredItem], *, most: int | None, days: float | None) -> list[StoredItem]:
    """The items to remove, of those that are `free`: leftovers, and items not used for more than `days` days; then, while
    the rest takes more than `most` bytes, the items of the kinds READ that save the least time per byte. None: no limit.
    """
    old = [e for e in found if e.free and (e.kind == LEFT or (days is not None and e.age > days * DAY))]
    rest = [e for e in found if e not in old]
    total = sum(e.bytes for e in rest)
    for entry in sorted((e for e in rest if e.free and e.kind in READ), key=lambda e: (e.worth, -e.age)):
        if most is None or total <= most:
            break
        old.append(entry)
        total -= entry.bytes
    return old


def remove(found: Sequence[StoredItem]) -> list[StoredItem]:
    """Remove the items, except those that a process reads, and return the removed ones. Readers never see a partly
    removed item.
    """
    return [entry for entry in found if _try_to_remove(entry)]


def _try_to_remove(entry: StoredItem) -> bool:
    alone = usage.alone(entry.path) if entry.kind in READ else contextlib.nullcontext(True)
    try:
        with atomic_files.temporary(entry.path.with_name("removed")) as hidden, alone as unread:
            if unread:
                entry.path.rename(hidden)
            return unread
    except OSError:  # another process has removed it, or it belongs to another user
        return False


def forget_seen(folder: Path) -> None:
    """Remove the notes by which a run finds out that an earlier run needed the same rows (`reuseStages`)."""
    if folder_marker.read_marker(folder / usage.SEEN) == [folder_marker.SEEN]:
        atomic_files.remove(folder / usage.SEEN)


def table(found: Sequence[StoredItem]) -> list[str]:
    """The items as lines of text, with a total."""
    rows = [("name", "kind", "made by run", "MB", "rows", "last used", "uses", "made in", "by stages")]
    for e in found:
        last = "now" if e.read else f"{duration(e.age)} ago" if e.age < DAY else f"{e.age / DAY:.0f} days ago"
        made = duration(e.seconds) if e.seconds else ""
        size, number = f"{e.bytes / 1e6:,.1f}", "" if e.rows is None else f"{e.rows:,}"
        of = (str(e.path), e.kind, e.run, size, number)
        rows.append((*of, last, str(e.uses or ""), made, ", ".join(map(str, e.madeBy))))
    return [
        *aligned(rows, left=(0, 1, 2, 5, 8)),
        f"{counted(len(found), 'entry', 'entries')}, {sum(e.bytes for e in found) / 1e6:,.1f} MB",
    ]
