"""Functions that start the Spark session and load the data and models that a YAML file names."""

import atexit
import contextlib
import importlib
import itertools
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from pyspark import SparkConf
from pyspark.ml import Transformer
from pyspark.ml.feature import RegexTokenizer, StringIndexerModel, Tokenizer
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DataType, DoubleType, NumericType, StringType, StructType
from pyspark.sql.utils import is_remote

from sparkdiff import jvm
from sparkdiff.data.splits import SPLITS
from sparkdiff.errors import InputError, check_keys, did_you_mean, kind_of, outline_of
from sparkdiff.jvm.java_texts import texts_of
from sparkdiff.jvm.stores import URL
from sparkdiff.machine import paths, threads
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.nesting import flatten

SOURCE_KEYS = ("path", "format", "options", "schema", "table", "where")
OF_FILES = ("avro", "binaryfile", "csv", "delta", "image", "json", "libsvm", "orc", "parquet", "text", "xml")
"""Formats that need a path."""


OWN = {"spark.python.sql.dataFrameDebugging.enabled": "false"}
"""Default settings of a job's session: PySpark 4 must not report to Java where each column was created, which by
default makes up a third of all calls to Java.
"""
TABLES = {"_delta_log": "delta", "metadata/*.metadata.json": "iceberg"}
"""Formats of tables, by a glob of what only their folders contain."""
FORMATS = {f".{name}": name for name in ("avro", "csv", "json", "orc", "parquet")} | {
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    **TABLES,
}
"""Formats of rows by file extension, and by the keys of `TABLES`."""
NEEDED = {"avro": "spark-avro", "delta": "delta-spark", "iceberg": "iceberg-spark-runtime"}
"""Packages that Spark needs to read a format, by format."""
BEGINNINGS = {"avro": b"Obj", "orc": b"ORC", "parquet": b"PAR"}
"""First bytes of every file of a format, by format."""
WAYS = {"triage": "rename the file, such as to rows.csv, or pass a DataFrame"}
"""What to do about rows in another format than Spark's default, for what can't set a format."""
COMPRESSED = {".gz", ".bz2", ".zst", ".lz4", ".snappy", ".deflate"}
"""Extensions of compressed files; the one before them tells the format."""
CSV = {"header": True, "inferSchema": True}
"""Reader options for a CSV file, unless the user sets them."""
SMALL = 1 << 26
"""Total bytes of a job's files up to which Spark's JVM is started with options that suit short work."""


def start_session(conf: Mapping[str, Any], meanwhile: str | None = None, size: float = math.inf) -> SparkSession:
    """Start or get the session of the job. Settings of spark-submit have priority. `spark.remote` starts Spark Connect.

    Args:
        conf: settings of the session.
        meanwhile: name of a module to import in another thread while Spark starts.
        size: bytes of the files that Spark will read; infinite if unknown.

    Raises:
        InputError: Spark must be started, and no suitable Java was found.
    """
    java = ""
    if not _remote(conf):
        java = jvm.check_java()
        jvm.join_submit()
    builder = SparkSession.builder.appName("sparkdiff")
    given = None if is_remote() else SparkConf()  # a process that uses Connect has no SparkConf
    for key, value in {**OWN, **conf}.items():
        if given is None or not given.contains(key):
            builder = builder.config(key, str(value).lower() if isinstance(value, bool) else str(value))
    with (
        contextlib.nullcontext() if meanwhile is None else _import_in_thread(meanwhile),
        jvm.java_options(jvm.archive_option(java), jvm.QUICK if size <= SMALL else ""),
    ):
        spark = builder.getOrCreate()
    if not jvm.in_process(spark):
        # A Connect model that is freed while the interpreter exits calls the server to delete it, and would wait forever.
        atexit.register(spark.stop)
    return spark


@contextlib.contextmanager
def _import_in_thread(module: str) -> Iterator[None]:
    """Import a module in a second thread within this context, but only once the JVM runs: to start the JVM, this
    process forks, and no other thread should be at work then.
    """

    def work(ready: threading.Event) -> None:
        while not ready.wait(0.02) and not jvm.is_running():
            pass
        with contextlib.suppress(ImportError):  # the next import of the module raises it visibly
            importlib.import_module(module)

    with threads.beside(work, f"sparkdiff: import of {module}"):
        yield


def _remote(conf: Mapping[str, Any]) -> bool:
    """True if the session is, or will be, a Spark Connect session."""
    return is_remote() or "SPARK_REMOTE" in os.environ or "spark.remote" in conf


def function(name: str, folder: Path) -> Any:
    """The function named `module:function`; `folder`, that of the YAML file, is searched for the module first.

    Raises:
        InputError: there is no such module or function.
    """
    module, _, attribute = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise InputError(
            f"{name!r}: no module {module!r} in the folder of the YAML file or on the Python path ({e})"
        ) from e
    try:
        return getattr(found, attribute)
    except AttributeError as e:
        names = [n for n in dir(found) if not n.startswith("_")]
        raise InputError(f"{name!r}: module {module!r} has no {attribute!r}. {did_you_mean(attribute, names)}") from e


def is_function(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(p.isidentifier() for p in module.split("."))


def parse_source(split: str, given: Any, folder: Path = Path()) -> str | dict[str, Any]:
    """One entry of the section `data`, checked, as module:function or as a mapping with a format, if the files tell it.

    Raises:
        InputError: the entry is invalid.
    """
    if isinstance(given, str) and is_function(given):
        return given
    given = {"path": given} if isinstance(given, str) else given
    wanted = (
        f"data.{split} must be module:function, or contain either a path or a table, or a format that needs neither, such as "
        f"jdbc, with its options. Got {outline_of(given)} instead"
    )
    if not isinstance(given, dict):
        raise InputError(wanted)
    check_keys(f"data.{split}: unknown key", given, SOURCE_KEYS)
    for key, value in given.items():
        if key != "options" and value is not None and not isinstance(value, str):
            raise InputError(f"data.{split}.{key} must be text. Got {kind_of(value)} instead: quote it")
    options = given.get("options") or {}
    if not isinstance(options, dict) or any(isinstance(v, (dict, list, set)) for v in options.values()):
        raise InputError(
            f"data.{split}.options must be a mapping of names to texts or numbers. Got {outline_of(options)} instead"
        )
    places, form = [key for key in ("path", "table") if given.get(key)], (given.get("format") or "").lower()
    named = {str(name).lower() for name in options}
    needed = [f"options.{' or options.'.join(n)}" for n in (("url",), ("dbtable", "query")) if len(named & {*n}) != 1]
    if form == "jdbc" and (places or needed):
        raise InputError(
            f"data.{split} has the format jdbc, which needs options.url, options.dbtable or options.query, and neither path nor "
            f"table: correct {', '.join(f'data.{split}.{key}' for key in (*places, *needed))}"
        )
    if form != "jdbc" and len(places) != 1 and (places or not form or not options or form in OF_FILES):
        raise InputError(wanted)
    # A reader of another vendor may have any name that is not almost one of Spark's.
    alike = [name for name in (*OF_FILES, "iceberg", "jdbc") if abs(len(name) - len(form)) < 2]
    if form not in alike and (hint := did_you_mean(form, alike)).startswith("Did"):
        raise InputError(f"data.{split}.format={form!r} is no format that Spark reads. {hint}")
    if given.get("path") and not form:
        return with_inferred_format(given, folder)
    return given


def source_of(path: str | None, format: str = "", options: str = "") -> dict[str, Any]:
    """The rows that a command's flags name, as an entry of a job's section `data`; `options` is a JSON object.

    What is not set is inferred (see `with_inferred_format`).
    """
    if path is None:
        raise InputError(f"{'--format' if format else '--options'} says how to read rows: name them by --data")
    try:
        given = dict(json.loads(options or "{}"))
    except (ValueError, TypeError) as e:
        raise InputError(f'--options must be a JSON object such as {{"header": true}} ({e})') from e
    schema = given.pop("schema", None)
    return with_inferred_format({"path": path, "format": format or None, "schema": schema, "options": given})


def with_inferred_format(source: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """The source with a format: if none is set, that of its files by their names; Spark's default if the names tell none.

    CSV is read with its header, and with types inferred (which Spark does only without a schema); a file .tsv is read with tabs.

    Raises:
        InputError: the path is a folder of files of several formats.
    """
    ending = _extension(source["path"]) if source.get("format") else _ending(source, folder)
    form = source.get("format") or FORMATS.get(ending)
    options = dict(source.get("options") or {})
    if form is not None and form.lower() == "csv":
        named = {str(name).lower() for name in options}
        usual = {**CSV, **({"sep": "\t"} if ending == ".tsv" and "delimiter" not in named else {})}
        options = {name: value for name, value in usual.items() if name.lower() not in named} | options
    return {**source, **({"options": options} if options else {}), **({} if form is None else {"format": form})}


def _ending(source: Mapping[str, Any], folder: Path) -> str:
    """The key in `FORMATS` of a source, by the names of its files or else of its path; "" if there is none."""
    path = source["path"]
    if table := next((t for t in TABLES if any(_local_path(path, folder).glob(t))), None):
        return table
    endings = {_extension(file.name): file.name for file in _files(source, folder)}
    # Spark reads all files of a folder in one way, also those whose names tell none.
    ways = {(FORMATS.get(ending), ending == ".tsv"): name for ending, name in endings.items()}
    if len(ways) > 1:
        raise InputError(
            f"{path} contains files of different formats, {' and '.join(sorted(ways.values())[:2])}: name those of one "
            f"format, such as by {path}/*{max(endings)}"
        )
    return next(iter(endings), "") or _extension(path)


def _extension(name: str) -> str:
    """The extension of a file that tells the format, without that of a compression; "" if there is none."""
    suffixes = [s.lower() for s in Path(name).suffixes if s.lower() not in COMPRESSED]
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


def _local_path(path: str, folder: Path) -> Path:
    """The place of rows on this machine; it does not exist if the path is a glob or a URL."""
    return Path(re.sub(r"\\(.)", r"\1", paths.data_path(path, folder)))


def _files(source: Mapping[str, Any], folder: Path) -> list[Path]:
    """The first 1,000 files on this machine that Spark reads of a source: those of its folder and of folders of partitions
    (`k=v`), but no hidden ones. Empty if an option of the reader chooses among them.
    """
    there = _local_path(source["path"], folder)
    options = {str(name).lower(): str(value).lower() for name, value in (source.get("options") or {}).items()}
    deep = options.get("recursivefilelookup") == "true"

    def is_read(parts: Sequence[str]) -> bool:
        folders, named = parts[:-1], [part for part in parts if "=" not in part]
        return not any(part[0] in "_." for part in named) and (deep or all("=" in part for part in folders))

    rows = (
        file
        for file in (there.rglob("*") if there.is_dir() else [there])
        if is_read(file.relative_to(there).parts) and file.is_file()
    )
    return [] if "pathglobfilter" in options else sorted(itertools.islice(rows, 1000))


def load_data(
    spark: SparkSession,
    given: Any,
    folder: Path,
    split: str,
    model: Any = None,
    say: Callable[[str], object] = lambda _text: None,
    inferred: DataFrame | None = None,
) -> DataFrame:
    """The DataFrame that one entry of the section `data` describes.

    Args:
        model: the pipeline that is to read the rows; if it is fitted, it has priority over types inferred from a CSV file.
        say: function that is called with a text about columns that have another type than inferred.
        inferred: the DataFrame without a model, if it is already there; reading it again may read all rows of a CSV file.

    Raises:
        InputError: the entry is invalid, or Spark cannot read it.
    """
    given = parse_source(split, given, folder)
    df = _read(spark, given, folder, split) if inferred is None else inferred
    if model is None or isinstance(given, str) or given.get("schema") or str(given.get("format")).lower() != "csv":
        return df
    needed = types_by_model(model, df.schema)
    if not needed:
        return df
    types = dict(df.dtypes)
    told = ", ".join(f"{name} {kind} (inferred: {types[name]})" for name, kind in needed.items())
    say(f"{split} is read with the types that the pipeline needs: {told}")
    schema = ", ".join(f"{jvm.quoted(name)} {needed.get(name, kind)}" for name, kind in types.items())
    return _read(spark, {**given, "schema": schema}, folder, split)


def _read(spark: SparkSession, given: Any, folder: Path, split: str) -> DataFrame:
    if isinstance(given, str):
        return function(given, folder)(spark)  # type: ignore[no-any-return]
    form, path = str(given.get("format") or "").lower(), given.get("path")
    if (
        path
        and any(Path(file).suffix == ".zst" for file in (path, *_files(given, folder)))
        and not jvm.reads_zstandard(spark)
    ):
        raise InputError(
            f"data.{split} cannot be read: {path} is compressed by Zstandard, for which this Spark has no codec; use Spark 4.1 "
            "or newer, or a Hadoop with native libraries, or compress by gzip (.gz)"
        )
    way = f"set data.{split}.format" if split in SPLITS else WAYS.get(split, "set --format")
    told = "" if form or given.get("table") else f" in the default format of Spark ({way})"
    told += f" as {form}, which needs the package {NEEDED[form]} (spark.jars.packages)" if form in NEEDED else ""
    with jvm.as_input_error(f"data.{split} cannot be read{told}"):
        options = {
            str(k): str(v).lower() if isinstance(v, bool) else v for k, v in (given.get("options") or {}).items()
        }
        reader = spark.read.options(**options)
        if given.get("schema"):
            reader = reader.schema(given["schema"])
        if given.get("format"):
            reader = reader.format(given["format"])
        if given.get("table"):
            df = reader.table(given["table"])
        elif not path:
            df = reader.load()
        else:
            where = paths.data_path(path, folder)
            df = reader.load(where if paths.local(where) is None else f"file://{where}")
        return df.where(given["where"]) if given.get("where") else df


def absolute_url(path: str, folder: Path) -> str:
    """The `file:` URL of a path that may be relative to `folder`. A URL of another file system is returned unchanged."""
    where = paths.local(path)
    return path if where is None else f"file://{(folder / where).resolve()}"


def load_model(path: str) -> Any:
    """A saved pipeline or stage.

    Raises:
        InputError: the model does not exist or cannot be loaded.
    """
    try:
        return jvm.load_model(path)
    except Exception as e:  # damaged files may raise anything
        raise InputError(f"no Spark ML model can be loaded from {path}: {jvm.message(e)}") from e


def size_of(data: Mapping[str, Any], folder: Path) -> float:
    """Total bytes of the files that these entries of `data` name; infinite if only Spark can find out."""
    total = 0.0
    for split, given in data.items():
        source = parse_source(split, given, folder)
        local = None if isinstance(source, str) or not source.get("path") else paths.local(source["path"])
        if local is None or not (path := folder / local).exists():  # a function, a table, a URL or a glob
            return math.inf
        try:
            total += sum(
                file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
            )
        except OSError:  # a file was just removed, or cannot be read, which Spark will report
            return math.inf
    return total


def check_there(models: Sequence[str], data: Mapping[str, Any], folder: Path, conf: Mapping[str, Any]) -> None:
    """Check that models and data exist before Spark starts, because starting takes time and Spark's errors are long.

    Args:
        models: URLs, as returned by `absolute_url`.
        data: entries of `data`, by split.
        conf: settings of the new session; files of a Spark Connect server cannot be checked from here.

    Raises:
        InputError: a local path does not exist.
    """
    if _remote(conf):
        return
    for url in models:
        path = paths.local(url)
        if path is not None and not (path / "metadata").is_dir():
            why = "it does not exist" if not path.exists() else "it has no folder 'metadata', unlike a saved model"
            raise InputError(f"no Spark ML model can be loaded from {path}: {why}")
    for split, given in data.items():
        source = parse_source(split, given, folder)
        if isinstance(source, str) or not source.get("path"):
            continue
        where = paths.data_path(source["path"], folder)
        if paths.local(where) is not None and not paths.is_there(where):
            raise InputError(f"data.{split} cannot be read: there is no {where}")
        form = str(source.get("format") or conf.get("spark.sql.sources.default", "parquet")).lower()
        files = _files(source, folder)
        files = [file for file in files if FORMATS.get(_extension(file.name)) == form] or files
        for file in files[:1] if form in BEGINNINGS else ():
            with contextlib.suppress(OSError), file.open("rb") as opened:  # Spark will report the error
                if (opened.read(3) or BEGINNINGS[form]) != BEGINNINGS[form]:
                    raise InputError(
                        f"data.{split} cannot be read as {form}: {file} has no {form} in it; set its format, or correct its name"
                    )


def model_path(given: str, folder: Path) -> str:
    """The URL of a saved model, from the path of the model's own folder or of a run's folder; may be relative to
    `folder`.
    """
    url = absolute_url(given, folder)
    path = paths.local(url)
    if path is None and jvm.stores.tree() is not None and URL.fullmatch(url):
        path = jvm.stores.working(url)
        with contextlib.suppress(OSError):  # Spark will report the error
            if not jvm.stores.exists(path / "metadata") and jvm.stores.exists(path / "model" / "metadata"):
                return f"{url.rstrip('/')}/model"
        return url
    if path is None or (path / "metadata").exists() or not (path / "model" / "metadata").is_dir():
        return url
    return f"{url}/model"


_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)


def types_by_model(model: Any, schema: StructType) -> dict[str, str]:
    """Spark's names of the types of columns that the pipeline needs in another type than that of the schema, because Spark would
    make other texts of the values than a StringIndexer has as labels, or because a tokenizer takes texts only.

    The file alone doesn't tell that a zip code is a text. Empty for an unfitted pipeline, which has no labels.
    """
    casefold, found = casefolding(), dict[str, str]()
    fields = {casefold(field.name): field for field in schema if not isinstance(field.dataType, StringType)}
    for _, stage in flatten(model) if isinstance(model, Transformer) else ():
        if isinstance(stage, (StringIndexerModel, RegexTokenizer, Tokenizer)):
            several = isinstance(stage, StringIndexerModel) and stage.isSet(stage.inputCols)
            names = stage.getOrDefault("inputCols") if several else [stage.getInputCol()]
            for name, labels in zip(names, getattr(stage, "labelsArray", repeat(None)), strict=False):
                field = fields.get(casefold(jvm.unquoted(name)))
                if field and (needed := _type_of(labels, field.dataType)) != field.dataType.simpleString():
                    found.setdefault(field.name, needed)
    return found


def _type_of(labels: Sequence[str] | None, inferred: DataType) -> str:
    """The type of which Spark makes all of these labels: the inferred one, or else double, or else string."""
    if labels is None or not isinstance(inferred, NumericType):
        return "string"
    if not isinstance(inferred, DoubleType) and all(map(_INTEGER.fullmatch, labels)):
        return inferred.simpleString()
    # As printed by old and new releases of Java: the pipeline may have been fitted on another.
    printed = {label for java in (17, 21) for label, _, text in texts_of(labels, "double", java) if label == text}
    return "double" if printed.issuperset(labels) else "string"
