"""Errors that sparkdiff raises on purpose, and checks that raise them."""

import contextlib
import difflib
import errno
import itertools
import os
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from sparkdiff.machine import secrets

DONE, FAILED, WRONG_INPUT, NOT_STRICT, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes of the command and of jobs/*.py: success, failure while running, wrong usage or input, a stage that stays in Spark
under `plan --strict`, Ctrl-C."""

FILL_GAPS = (
    "put an Imputer in front of it, or set handleInvalid to 'skip'; 'keep' is for trees: linear stages make NaN of null"
)
"""The remedy for null or NaN in a column that a VectorAssembler with handleInvalid='error' reads."""


class SparkdiffError(Exception):
    """Base class of all errors raised by sparkdiff.

    A message names what was found, why it is refused, and what to do; secrets are left out.

    Examples:
        >>> import sparkdiff
        >>> try:
        ...     found = sparkdiff.verify(pipeline, df)
        ... except sparkdiff.ParityError:
        ...     raise  # Spark and the network differ: please report it
        ... except sparkdiff.SparkdiffError as error:
        ...     print(error)
        Pipeline ... isn't fitted: call fit() first, and pass its result
    """

    def __init__(self, message: object = ""):
        super().__init__(secrets.redacted(str(message)))


class InputError(SparkdiffError):
    """The error that the caller's input (pipeline, data, options) cannot be used. The command exits with code 2.

    Examples:
        >>> import sparkdiff
        >>> try:
        ...     tuner = sparkdiff.FineTuner(pipeline=model, labelCol="label", maxEpoch=3)
        ... except sparkdiff.InputError as error:
        ...     print(error)
        unknown option 'maxEpoch'. Did you mean 'maxEpochs'?
    """

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython and notebooks show: the caller's frames and the message; with SPARKDIFF_TRACEBACK=1 all frames,
        and the error's causes.
        """
        if os.environ.get("SPARKDIFF_TRACEBACK") == "1":
            return "".join(traceback.format_exception(self)).splitlines()

        def package(at: tuple[types.FrameType, int]) -> str:
            return str(at[0].f_globals.get("__name__")).partition(".")[0]

        frames = (at for at in traceback.walk_tb(self.__traceback__) if package(at) != "IPython")
        callers = itertools.takewhile(lambda at: package(at) not in ("sparkdiff", "pyspark"), frames)
        shown = [*traceback.StackSummary.extract(callers).format(), f"{type(self).__name__}: {self}"]
        return "".join(shown).splitlines()


class WriteError(SparkdiffError):
    """The error that a required file cannot be written, although this was possible when the run began. The command
    exits with code 1.
    """


class FullDiskError(WriteError):
    """The error that the disk has no space for a required file."""


class DamagedFile(UserWarning):
    """The warning that a file that an earlier run kept is damaged or of another kind, and is ignored."""


class DamagedFileError(InputError):
    """The error that a file or folder that is read is missing or damaged."""


class StoreError(OSError):
    """The error that a Hadoop file system refused an operation; `strerror` is the first line of Java's own message, if any, else
    the reason.
    """


class ParityError(SparkdiffError):
    """The error that results that must agree, usually those of Spark and of the translated network, differ by more than the
    tolerance, or that a pipeline that was made or saved cannot be run or loaded. The command exits with code 1.
    """


def warn(text: str, category: type[Warning] = UserWarning, stacklevel: int = 2) -> None:
    """Issue a warning without secrets; `stacklevel` is that of `warnings.warn`, seen from the caller."""
    warnings.warn(secrets.redacted(text), category, stacklevel=stacklevel + 1)


def run_for_exit_code(run: Callable[[], int]) -> int:
    """Run a command and return its exit code. An error of sparkdiff or of a store is printed on stderr."""
    try:
        return run()
    except SystemExit as e:  # parsers of arguments end so; wrong usage is 2
        if not isinstance(e.code, int | None):
            print(secrets.redacted(str(e.code)), file=sys.stderr)  # else Python prints it, with its secrets
            return FAILED
        return DONE if e.code is None else e.code
    except SparkdiffError as e:
        print(f"error: {e}", file=sys.stderr)
        return WRONG_INPUT if isinstance(e, InputError) else FAILED
    except StoreError as e:
        print(
            secrets.redacted(f"error: {e.filename}: {e.strerror}; once it can be used, give the same command again"),
            file=sys.stderr,
        )
        return FAILED


INTERRUPTED_JOB = re.compile(
    r"[Cc]ancelled|ExecutorLost|SparkContext (was|has been)|stopped SparkContext|Interrupt(ed|edException)\b|Timeout"
    r"|Java (side|server)|OutOfMemory|AccessControl|permission denied|java\.net\.|UNAVAILABLE|"
    + "|".join(map(os.strerror, (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ECONNRESET)))
)
"""Words of an error of Spark by which it says nothing about the content of the files that a job read."""


@contextlib.contextmanager
def as_read_error(name: object) -> Iterator[None]:
    """Turn an error of this context, in which a file or folder is read, into an error that names it.

    Raises:
        DamagedFileError: it is missing or damaged.
        SparkdiffError: it cannot be read at this time, whatever its content.
    """
    try:
        yield
    except SparkdiffError:
        raise
    except Exception as e:  # damaged content may raise anything
        # The last cause, without Java's stack, which names many classes.
        why = f"{type(e).__name__}: " + re.sub(r"\n\s+(at|\.\.\.) .*", "", str(e)).rpartition("Caused by: ")[2][:500]
        if (
            isinstance(e, (MemoryError, TimeoutError, ImportError))
            # A reader's own OSError, which has no number, is about the content.
            or (isinstance(e, OSError) and e.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR))
            or INTERRUPTED_JOB.search(why)
        ):
            raise SparkdiffError(
                f"{name} cannot be read at this time ({why}): nothing was removed; try again once it can be read"
            ) from e
        raise DamagedFileError(f"{name} is damaged ({why}): restore it from a copy, or make it again") from e


@contextlib.contextmanager
def requires_extra(extra: str, what: str) -> Iterator[None]:
    """Provide a context for the import of an optional package.

    Args:
        extra: the extra of sparkdiff that installs the package.
        what: the feature that needs it, the beginning of the message.

    Raises:
        InputError: the package cannot be imported.
    """
    try:
        yield
    except ImportError as e:
        raise InputError(
            f'{what} needs a package that cannot be imported ({e}): pip install "sparkdiff[{extra}]"'
        ) from e


def kind_of(value: Any) -> str:
    """The type of a value, for messages: `str`, or `pandas.DataFrame` if a library defines it."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def outline_of(value: Any) -> str:
    """Outline of a section of the settings, for messages: its type or, for a mapping, the names in it and the types of their
    values, as any value of a malformed section may be a secret.
    """
    if not isinstance(value, Mapping):
        return kind_of(value)
    return f"{{{', '.join(f'{secrets.without_value(str(name))}: {kind_of(inner)}' for name, inner in value.items())}}}"


def check_dataframe(name: str, given: Any) -> None:
    """Raise InputError if `given` is not a Spark DataFrame."""
    if isinstance(given, type) or not hasattr(given, "isStreaming"):
        way = (
            "load one with spark.read"
            if isinstance(given, (str, os.PathLike))
            else "create one with spark.createDataFrame"
        )
        way = "its to_spark() returns one" if hasattr(given, "to_spark") else way
        raise InputError(f"{name} must be a Spark DataFrame, got {kind_of(given)}: {way}")


def check_type(name: str, given: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise InputError if `given` is not an instance of these types."""
    if not isinstance(given, kinds):
        raise InputError(f"{name} must be {wanted}, got {kind_of(given)}")


def check_keys(what: str, given: Iterable[Any], known: Collection[str]) -> None:
    """Raise InputError for the first of these keys that is not known; `what` is the beginning of its message."""
    for key in given:
        if key not in known:
            raise InputError(f"{what} {secrets.without_value(str(key))!r}. {did_you_mean(str(key), known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that lists the nearest known names (those that differ in case only, if any), or all names if none is near."""
    known = sorted(known)
    near = [k for k in known if k.lower() == name.lower()] or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Known: {', '.join(known) or 'none'}."
