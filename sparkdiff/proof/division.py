"""The division into rows that explore (on which everything is tried and finalists are chosen) and rows that prove (on
which the finalists are tested): into folds by a hash of row or group, or into stretches of time.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import Column, DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data.blocks import MAX_BLOCKS, TIME_BLOCKS
from sparkdiff.data.splits import (
    REFERENCE,
    TEST,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    below,
    block_shares,
    check_columns,
    number_equal_rows,
    seconds,
    time_quantiles,
    unit_and_block,
)
from sparkdiff.errors import InputError
from sparkdiff.evaluation.acceptance import ways_to_decide
from sparkdiff.evaluation.guard import MIN_UNITS, why_untested
from sparkdiff.evaluation.units import Units
from sparkdiff.options import Options
from sparkdiff.pipeline.column_names import col_by_name

FOLDS, MOST_FOLDS = 5, 20
MOST_CLASSES = 100
"""Number of distinct labels up to which each fold is checked for each of them."""
EXPLORES = 0.2
"""Share of the training rows that explores if the rows that prove are given, and on which a fold chooses (`inner`)."""
STRETCHES, FIRST = 4, 0.6
"""Division by time: number of stretches, of which the first explores, and share of the rows before the first one."""
BLOCKS = 17
"""Number of time blocks in a stretch; the three stretches that prove have about `TIME_BLOCKS` together, as held-out
rows have."""
STRETCHES_FACTOR = 2.0
"""Factor of the gain's variance for stretches, because their models share most of the rows that they are made from."""


@dataclass(frozen=True)
class Division:
    """The rows that explore, and those that prove.

    Attributes:
        name: description in words.
        explores: rows of the splits train and validation.
        proves: for each fold, rows of the splits train and test; the test rows prove.
        ships: the rows that the shipped pipeline is made from; empty if the only fold's finalist itself ships.
        boundaries: times at which blocks of time begin, for the rows that explore and for the rows that prove.
        factor: see `proof.decision.dependence_of`.
    """

    name: str
    explores: tuple[Source, ...]
    proves: tuple[tuple[Source, ...], ...]
    ships: tuple[Source, ...] = ()
    boundaries: tuple[Boundaries, Boundaries] = (Boundaries(), Boundaries())
    factor: float | None = None

    @property
    def makes(self) -> Source:
        """The rows that the shipped pipeline is made from."""
        return (self.ships or self.proves[0])[0]

    @property
    def number(self) -> int:
        """The number of folds that prove."""
        return len(self.proves)


def divide(sources: Sequence[Source], options: Options) -> Division:
    """Divide the rows as `numFolds` asks: into folds, into stretches of time, or the held-out rows into two halves. If
    validation rows are given, these prove instead.

    Raises:
        InputError: a column is missing or has a wrong type, a row belongs to neither side, or there are too few times
            to divide by; Spark failed on the rows.
    """
    for source in sources:
        check_columns(source.df, options)
        _check_sides(source, options)
    found = _divide_rows(sources, options)
    explores, proves = found.boundaries
    for source in sources:
        if source.split == REFERENCE and options.timeCol:
            times = time_quantiles(source.df, options.timeCol, block_shares())
            proves = replace(proves, reference=times)
    return replace(found, boundaries=(explores, proves))


def _divide_rows(sources: Sequence[Source], options: Options) -> Division:
    """The division, without the times of the reference rows."""
    given = [s.df for s in sources if s.split == VALIDATION]
    [rows] = [s.df for s in sources if s.split in (None, TRAIN)]
    rows = number_equal_rows(rows, options)
    if given:
        proves = Source(given[0], TEST)
        return _proven_by(proves, rows, options, "the validation rows prove")
    if options.validationIndicatorCol:
        holds = col_by_name(options.validationIndicatorCol)
        proves = Source(rows.where(holds), TEST, numbered=True)
        return _proven_by(proves, rows.where(~holds), options, "the validation rows prove")
    if not folds_of(options):
        return _in_halves(rows, options)
    return _in_stretches(rows, options) if options.timeCol else _in_folds(rows, options)


def folds_of(options: Options) -> int:
    """The number of folds; 0 if the held-out rows are divided into halves instead, with "auto" if halves can show a
    smaller gain than folds.

    "auto" compares the variances of the gain, as multiples of the variance on all rows; for folds, it is assumed to be
    doubled, the most by which dependence between folds increases it.
    """
    if options.numFolds != "auto":
        return int(options.numFolds)
    share = (1 - FIRST) * (STRETCHES - 1) / STRETCHES if options.timeCol else (FOLDS - 1) / FOLDS
    return FOLDS if STRETCHES_FACTOR / share <= 2 / options.validationFraction else 0


def sentence(sources: Sequence[Source], options: Options) -> str:
    """A sentence for a plan about which rows explore and which prove, found without reading the rows."""
    folds = folds_of(options)
    if options.validationIndicatorCol or any(s.split == VALIDATION for s in sources):
        return f"the validation rows prove, {EXPLORES:.0%} of the training rows explore"
    if not folds:
        return "half of the held-out rows explores, the other half proves"
    if options.timeCol:
        return f"the last {1 - FIRST:.0%} by time are {STRETCHES} stretches: the first explores, the others prove"
    return f"{folds} folds: the first explores, the others prove"


def _enough_folds(df: DataFrame, options: Options) -> int:
    """The number of folds for these rows.

    For "auto" with a groupCol, the smallest number, from the usual one on, with which enough groups prove.
    """
    folds = folds_of(options)
    if options.numFolds != "auto" or options.groupCol is None:
        return folds
    block = F.pmod(unit_and_block(df, options)[1], F.lit(MAX_BLOCKS)).alias("block")
    with jvm.as_input_error(f"Spark failed while it counted groupCol={options.groupCol!r}"):
        groups = df.select(col_by_name(options.groupCol), block).distinct().limit(2 * MIN_UNITS).collect()
    for number in range(folds, MOST_FOLDS + 1):
        places = [row["block"] % number for row in groups]
        if len(set(places)) == number and len(places) - places.count(0) >= MIN_UNITS:
            return number
    return folds


def check(
    division: Division, options: Options, *, labelCol: str | None, weightCol: str | None, classes: bool
) -> int | None:
    """Check that each fold can prove, with one or two jobs over the rows, and count the rows or groups that prove.

    Args:
        labelCol, weightCol: None if the data have no such column.
        classes: whether the labels are classes.

    Returns:
        The number of rows or groups that prove; None if there are no folds by hash.

    Raises:
        InputError: a fold has no rows or lacks a class; there are too few groups; Spark failed on the rows.
    """
    if not division.ships or division.factor is not None:
        return None
    o, folds, df = options, division.number + 1, division.makes.df
    used = df if weightCol is None else df.where(col_by_name(weightCol) != 0)
    label = col_by_name(labelCol).cast("double") if labelCol and classes else F.lit(None)
    fold, units = fold_of(df, o, folds).alias("fold"), dict[int, int]()
    with jvm.as_input_error("Spark failed while it dealt the rows into folds"):
        rows = used.groupBy(fold, label.alias("label")).agg(F.count(F.lit(1)).alias("rows")).collect()
        if o.groupCol is not None:
            units = dict(used.groupBy(fold).agg(F.count_distinct(col_by_name(o.groupCol))).collect())
    if o.groupCol is not None and sum(units.values()) < 2 * folds:
        raise InputError(
            f"groupCol={o.groupCol!r} has {sum(units.values())} values, too few for numFolds={folds}: at least {2 * folds} are "
            "needed. Use more data, or a groupCol with more values"
        )
    for k in range(folds):
        if not any(r["rows"] for r in rows if r["fold"] == k):
            raise InputError(
                f"fold {k + 1} of numFolds={folds} has no rows: add rows, or set fewer folds"
                if rows
                else "the data have no rows, or only rows of weight 0: check how they are read and filtered"
            )
    known = {r["label"] for r in rows}
    for value in sorted(v for v in known if v is not None) if len(known) <= MOST_CLASSES else ():
        there = {r["fold"] for r in rows if r["label"] == value}
        if lacking := [str(k + 1) for k in range(folds) if k not in there]:
            raise InputError(
                f"fold {', '.join(lacking)} of numFolds={folds} has no row of labelCol={labelCol!r} {value:g}: set fewer "
                "folds, add such rows, or leave the rare class out"
            )
    return sum(units.values()) - units[0] if units else sum(r["rows"] for r in rows if r["fold"])


def too_few(division: Division, options: Options, number: int | None) -> str:
    """The reason why too few rows or groups prove to decide anything; empty if they may be enough.

    Args:
        number: number of rows or groups that prove, if known; else a job counts them.
    """
    o = options
    if o.guard >= 1 or (o.timeCol and not o.groupCol):  # there are always enough blocks of time
        return ""
    if number is None:
        proves = functools.reduce(
            DataFrame.unionByName, (s.df for rows in division.proves for s in rows if s.split == TEST)
        )
        with jvm.as_input_error("Spark failed while it counted the rows that prove"):
            number = proves.count() if o.groupCol is None else proves.select(col_by_name(o.groupCol)).distinct().count()
    if number >= MIN_UNITS:
        return ""
    units = Units(number, "groups" if o.groupCol else "rows")
    return (
        f"not tested: {why_untested(units, o.groupCol)}; "
        f"{ways_to_decide(o, folds=not division.ships, divided=not division.ships)}"
    )


def _check_sides(source: Source, options: Options) -> None:
    """Raise InputError if a row has no (finite) time, no group, or a null in validationIndicatorCol."""
    o, df = options, source.df
    lacks = {}
    if o.timeCol:
        lacks[f"timeCol={o.timeCol!r} holds null or NaN or an infinite value"] = seconds(df, o.timeCol)
    if o.groupCol:
        lacks[f"groupCol={o.groupCol!r} holds null"] = col_by_name(o.groupCol)
    if o.validationIndicatorCol and source.split is None:
        lacks[f"validationIndicatorCol={o.validationIndicatorCol!r} holds null"] = col_by_name(o.validationIndicatorCol)
    if not lacks:
        return
    with jvm.as_input_error("Spark failed while it divided the rows"):
        [found] = df.agg(*(F.count_if(c.isNull()) for c in lacks.values())).collect()
    for told, number in zip(lacks, found, strict=True):
        if number:
            raise InputError(
                f"{told} in {number:,} rows, which therefore belong to neither side; fill the column or drop these rows"
            )


def _latest_times(
    df: DataFrame, column: str, start: float, parts: int, blocks: int, words: str
) -> tuple[tuple[float, ...], list[float]]:
    """The times at which the blocks of the latest rows begin, those after the earliest fraction `start`; and the times
    that bound each of the parts that these rows are divided into.

    Args:
        blocks: the number of blocks in a part.
        words: the parts, for the message.

    Raises:
        InputError: the bounds don't increase strictly; see `time_quantiles`.
    """
    *starts, last = time_quantiles(df, column, [*block_shares(start, parts * blocks), 1.0])
    bounds = [*starts[::blocks], last]
    if any(not a < b for a, b in itertools.pairwise(bounds)):
        raise InputError(
            f"timeCol={column!r} has too few different values to divide the last rows into {words}: use a time of finer "
            "steps, or pass rows of more of them"
        )
    return tuple(starts), bounds


def _parts(df: DataFrame, **splits: Column) -> tuple[Source, ...]:
    """One source per split, with the rows for which its condition holds."""
    return tuple(Source(df.where(condition), split, numbered=True) for split, condition in splits.items())


def _in_folds(df: DataFrame, options: Options) -> Division:
    folds = _enough_folds(df, options)
    fold = fold_of(df, options, folds)
    explores = _parts(df, **{TRAIN: fold != 0, VALIDATION: fold == 0})
    proves = tuple(_parts(df, **{TRAIN: fold != k, TEST: fold == k}) for k in range(1, folds))
    return Division(f"{folds} folds", explores, proves, (Source(df, TRAIN, numbered=True),))


def fold_of(df: DataFrame, options: Options, folds: int) -> Column:
    """The fold of a row, 0, 1, ...; null if the row's group is null. A fold consists of whole blocks (sets of rows whose
    gains the guard sums).
    """
    block = unit_and_block(df, options)[1]
    return F.pmod(F.pmod(block, F.lit(MAX_BLOCKS)), F.lit(folds)).cast("int")


def _in_halves(df: DataFrame, options: Options) -> Division:
    """The division in which arms explore on one half of the held-out rows and are proven on the other, by time the later half."""
    name, boundaries = "half of the held-out rows proves", (Boundaries(), Boundaries())
    if options.timeCol:
        start = 1 - options.validationFraction
        starts, bounds = _latest_times(df, options.timeCol, start, 2, TIME_BLOCKS, "two halves")
        time = seconds(df, options.timeCol)
        boundaries = Boundaries(starts[:TIME_BLOCKS]), Boundaries(starts[TIME_BLOCKS:])
        train, proves = time <= bounds[0], time > bounds[1]
        explores = ~train & ~proves
    else:
        unit = unit_and_block(df, options)[0]
        held, half = below(unit, options.validationFraction, "split"), below(unit, 0.5, "explores")
        train, explores, proves = ~held, held & half, held & ~half
    parts = _parts(df, **{TRAIN: train, VALIDATION: explores})
    return Division(name, parts, (_parts(df, **{TRAIN: train | explores, TEST: proves}),), boundaries=boundaries)


def _proven_by(proves: Source, df: DataFrame, options: Options, name: str) -> Division:
    """The division in which a share of the training rows explores (by time the latest), and the rows `proves` prove."""
    explores, boundaries = below(unit_and_block(df, options)[0], EXPLORES, "explores"), (Boundaries(), Boundaries())
    if options.timeCol:
        words = "those that train and those that explore"
        starts, bounds = _latest_times(df, options.timeCol, 1 - EXPLORES, 1, TIME_BLOCKS, words)
        explores = seconds(df, options.timeCol) > bounds[0]
        own = time_quantiles(proves.df, options.timeCol, block_shares())
        boundaries = Boundaries(starts), Boundaries(own)
    train = Source(df, TRAIN, numbered=True)
    return Division(
        name, _parts(df, **{TRAIN: ~explores, VALIDATION: explores}), ((train, proves),), boundaries=boundaries
    )


def _in_stretches(df: DataFrame, options: Options) -> Division:
    """The division of the last rows by time into stretches: the first explores; each later one tests models made from
    all rows before it.
    """
    column = options.timeCol or ""
    starts, bounds = _latest_times(df, column, FIRST, STRETCHES, BLOCKS, f"{STRETCHES} stretches")
    time = seconds(df, column)

    def parts(k: int, split: str) -> tuple[Source, ...]:
        return _parts(df, **{TRAIN: time <= bounds[k], split: (time > bounds[k]) & (time <= bounds[k + 1])})

    return Division(
        f"{STRETCHES} stretches of time",
        parts(0, VALIDATION),
        tuple(parts(k, TEST) for k in range(1, STRETCHES)),
        (Source(df, TRAIN, numbered=True),),
        (Boundaries(starts[:BLOCKS]), Boundaries(starts[BLOCKS:])),
        STRETCHES_FACTOR,
    )


def inner(sources: Sequence[Source], options: Options) -> tuple[Source, ...]:
    """The rows of a fold, with the training rows divided again: a share of them becomes the split validation, on which
    the fold's own choices are made.
    """
    out: list[Source] = []
    for source in sources:
        if source.split != TRAIN:
            out.append(source)
            continue
        chooses = below(unit_and_block(source.df, options)[0], EXPLORES, "chooses")
        if options.timeCol:
            [start] = time_quantiles(source.df, options.timeCol, [1 - EXPLORES])
            chooses = seconds(source.df, options.timeCol) > start
        out += _parts(source.df, **{TRAIN: ~chooses, VALIDATION: chooses})
    return tuple(out)


def out_of_fold(source: Source, options: Options) -> list[tuple[Source, Source]]:
    """Divisions of training rows into those to fit and those to score, such that each row is scored once; by time one
    division, as `inner` makes it.

    These folds are not those of `fold_of`, of which one would be empty among the rows of the others.
    """
    fold = F.pmod(F.xxhash64(unit_and_block(source.df, options)[0], F.lit("out of fold")), F.lit(FOLDS))
    dealt = (_parts(source.df, **{TRAIN: fold != k, VALIDATION: fold == k}) for k in range(FOLDS))
    return [
        (fits, replace(held, split=TRAIN)) for fits, held in ([inner([source], options)] if options.timeCol else dealt)
    ]
