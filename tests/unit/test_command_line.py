"""The command line: where the model stands, what help shows, and what common mistakes are answered with. Starts no Spark."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from sparkdiff.cli import starting
from sparkdiff.cli.app import PANELS, app, main
from sparkdiff.cli.config import Config, model_and_overrides
from sparkdiff.cli.job_options import FIELDS
from sparkdiff.data import loading
from sparkdiff.data.loading import check_there, source_of
from sparkdiff.errors import DONE, WRONG_INPUT, InputError
from sparkdiff.options import Options

COMMAND: Any = typer.main.get_command(app)
JOB = "pipeline: models/old\ndata: {train: rows.csv}\noutput: out\n"

FINISHED = SimpleNamespace(decision="tuned")
"""The summary of a job that would have run."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rows, a job, and a folder that looks like a saved model."""
    (tmp_path / "models" / "churn" / "metadata").mkdir(parents=True)
    (tmp_path / "rows.csv").write_text("zip,label\n01234,1\n")
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The jobs that commands would have run."""
    found: list[Config] = []
    monkeypatch.setattr(starting, "run", lambda config: found.append(config) or FINISHED)
    return found


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints, without frames and line breaks."""
    assert main([*words]) == DONE
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


# Where the model stands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["finetune", "improve", "grow"])
@pytest.mark.parametrize(
    "words",
    [
        ["models/churn", "--data", "rows.csv", "--output", "out", "fineTuner.seed=3"],
        ["fineTuner.seed=3", "models/churn", "--data", "rows.csv", "--output", "out"],
        ["--data", "rows.csv", "fineTuner.seed=3", "--output", "out", "models/churn"],
        ["fineTuner.seed=3", "data=rows.csv", "output=out", "pipeline=models/churn"],
    ],
)
def test_the_model_is_an_argument(here: Path, loaded: list[Config], command: str, words: list[str]) -> None:
    assert main([command, *words]) == DONE
    assert (loaded[0].pipeline, loaded[0].command) == (f"{here}/models/churn", command)
    assert loaded[0].data == {"train": {"path": f"{here}/rows.csv"}} or loaded[0].data == {"train": f"{here}/rows.csv"}
    assert loaded[0].options == {"seed": 3}


@pytest.mark.parametrize("word", ["fineTunr.cacheDir=/tmp/c", "fineTuner.cachDir=/tmp/c"])
def test_a_misspelt_override_is_no_model(here: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert main(["finetune", "--config", "job.yaml", word]) == WRONG_INPUT
    assert "Did you mean" in capsys.readouterr().err


def test_an_argument_wins_over_the_file(here: Path, loaded: list[Config]) -> None:
    assert main(["finetune", "models/churn", "--config", "job.yaml"]) == DONE
    assert main(["finetune", "--config", "job.yaml", "pipelines:churn"]) == DONE
    assert main(["finetune", "--config", "job.yaml", "fineTuner.maxEpochs=50"]) == DONE
    names = [f"{here}/models/churn", "pipelines:churn", f"{here}/models/old"]
    assert [config.pipeline for config in loaded] == names
    assert loaded[2].options == {"maxEpochs": 50}


def test_a_search_needs_no_file(here: Path, loaded: list[Config]) -> None:
    settings = ["search.metric=rmse", "search.space={PCA: {k: [2, 3]}}"]
    assert main(["search", "pipelines:churn", "--data", "rows.csv", "--output", "out", *settings]) == DONE
    assert loaded[0].pipeline == "pipelines:churn" and (loaded[0].search or {})["metric"] == "rmse"


def test_rows_may_be_a_text_in_the_file(here: Path, loaded: list[Config]) -> None:
    (here / "job.yaml").write_text("pipeline: models/churn\ndata: rows.csv\noutput: out\n")
    assert main(["finetune", "--config", "job.yaml"]) == DONE
    assert main(["finetune", "--config", "job.yaml", "data.test=rows.csv"]) == DONE
    assert main(["finetune", "--config", "job.yaml", "--data", "other.csv"]) == DONE
    rows = f"{here}/rows.csv"
    assert [config.data for config in loaded] == [
        {"train": rows},
        {"train": rows, "test": rows},
        {"train": {"path": f"{here}/other.csv"}},
    ]


def test_a_job_takes_a_format(here: Path, loaded: list[Config]) -> None:
    reading = ["--data", "rows", "--format", "csv", "--options", '{"sep": ";", "schema": "a int"}']
    assert main(["finetune", "models/churn", *reading, "--output", "out"]) == DONE
    assert loaded[0].data["train"] == {
        "path": f"{here}/rows",
        "format": "csv",
        "schema": "a int",
        "options": {"header": True, "inferSchema": True, "sep": ";"},
    }


# Mistakes -------------------------------------------------------------------------------------------------------------

ROWS = ["--data", "rows.csv"]
MISTAKES = [
    ("finetune models/churn models/other", ["'models/churn' and 'models/other'", "given twice", "leave one out"]),
    ("improve models/churn pipeline=m --output o", ["'models/churn' and 'pipeline=m'", "leave one out"]),
    ("plan fineTuner.maxEpochs=5", ["needs a model", "first argument"]),
    ("finetune learningRate=0.1", ["unknown section 'learningRate'", "Did you mean fineTuner.learningRate?"]),
    ("finetune max-epochs=5", ["Did you mean fineTuner.maxEpochs?"]),
    ("finetune budget=5m", ["Did you mean improver.budget?"]),
    ("finetune model=models/churn", ["unknown section 'model'", "Did you mean pipeline?"]),
    ("finetune models/churn --metric areaUnderROC", ["no flag --metric", "write fineTuner.metric=..."]),
    ("finetune models/churn --max-epochs=5", ["no flag --max-epochs", "write fineTuner.maxEpochs=..."]),
    ("search m:f --metric rmse", ["no flag --metric", "fineTuner.metric=... or write search.metric=..."]),
    ("search m:f --group user", ["no flag --group", "fineTuner.groupCol=... or write search.groupCol=..."]),
    ("finetune --model models/churn", ["no flag --model", "first argument, such as models/churn"]),
    ("verify --model models/churn --data rows.csv", ["no flag --model", "first argument"]),
    ("finetune models/churn", ["no 'data'", "name the rows by --data"]),
    ("finetune models/churn --output o", ["no 'data'", "--data"]),
    ("finetune --config model.yaml", ["unknown section 'model'", "Did you mean pipeline?"]),
    ("improve models/churn --data rows.csv --output o --budget 5", ["budget='5'", "must be a time such as 90s, 30m"]),
    ("finetune models/churn --output o --data missing.csv", ["data.train cannot be read: there is no", "missing.csv"]),
    ("finetune models/churn --data rows.csv", ["no 'output'", "--output"]),
    ("finetune --data rows.csv --output o", ["no 'pipeline'", "first argument"]),
    ("finetune models/churn --format csv --output o", ["--format", "name them by --data"]),
    (
        "finetune models/churn --data rows.csv --output o fineTuner.learningrate=1",
        ["unknown option 'learningrate'", "Did you mean 'learningRate'?"],
    ),
    (
        "finetune models/churn --data rows.csv --output o fineTuner.metric=auc",
        ["'metric' option can't be 'auc'. Did you mean 'areaUnderROC'? It must be one of"],
    ),
    (
        "finetune models/churn --output o data={path:\\ rows.csv}",
        ["data must be a mapping with 'train'"],
    ),
    (
        "finetune models/churn --output o --data rows.csv --format cvs",
        ["data.train.format='cvs'", "no format that Spark reads", "Did you mean 'csv'?"],
    ),
    ("verify models/churn --data rows.csv --format cvs", ["data.verify.format='cvs'", "Did you mean 'csv'?"]),
    ("finetune models/churn --output o --data wrong.orc", ["as orc", "wrong.orc has no orc in it", "format"]),
    ("finetune models/churn --output o --data text", ["as parquet", "text has no parquet in it", "set its format"]),
    (
        "verify models/churn --data mixed",
        ["mixed contains files", "a.csv and b.json", "mixed/*.json", "name those of one format"],
    ),
    ("init models/churn --data mixed", ["a.csv and b.json"]),
    ("triage models/churn --budget 90s --data mixed", ["a.csv and b.json"]),
    ("finetune models/churn --output o --data mixed", ["a.csv and b.json"]),
    ("options learningrtae", ["no option has 'learningrtae'", "Did you mean 'learningRate'"]),
]


@pytest.mark.parametrize(("command", "said"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    here: Path, command: str, said: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*given: Any, **more: Any) -> Any:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(starting, "start_session", start)
    monkeypatch.setattr(loading, "start_session", start)
    (here / "mixed").mkdir()
    for name in ("a.csv", "b.json", "_SUCCESS", ".b.crc"):
        (here / "mixed" / name).touch()
    (here / "text").write_text("no Parquet\n")
    (here / "model.yaml").write_text("model: models/churn\ndata: rows.csv\noutput: o\n")
    (here / "wrong.orc").write_text("a,b\n")
    before = sorted(here.rglob("*"))
    assert main(shlex.split(command)) == WRONG_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in said:
        assert part in line, line
    assert sorted(here.rglob("*")) == before


def test_a_key_of_ones_own_with_a_slash_is_no_model() -> None:
    words = ["models/churn", "fineTuner.tags.team/a=x", "data.train.where=a/b=1"]
    assert model_and_overrides(words) == ("models/churn", words[1:])
    assert model_and_overrides(["models/k=1"]) == ("models/k=1", [])


def test_flags_of_a_command_stay_its_own(here: Path, loaded: list[Config]) -> None:
    """The names of some settings are flags, too."""
    assert main(["improve", "models/churn", "--data=rows.csv", "--output", "o", "--budget=60s", "--label", "y"]) == DONE
    assert loaded[0].improver == {"budget": "60s"} and loaded[0].options == {"labelCol": "y"}


# Formats --------------------------------------------------------------------------------------------------------------

CSV = {"header": True, "inferSchema": True}


@pytest.mark.parametrize(
    ("files", "form"),
    [
        (["part-0.csv.gz", "part-1.csv.gz", "_SUCCESS"], "csv"),
        (["day=1/part-0.snappy.parquet", "_day=2/part-1.parquet"], "parquet"),
        (["rows.json.bz2"], "json"),
        (["rows.orc"], "orc"),
        (["rows.avro"], "avro"),
        (["rows.ndjson.zst"], "json"),
        (["part-0.parquet", "_delta_log/0.json"], "delta"),
        (["data/part-0.parquet", "metadata/v1.metadata.json"], "iceberg"),
        (["part-00000", "2026.01.05"], None),
        (["_SUCCESS"], None),
    ],
)
def test_the_files_in_a_folder_tell_the_format(here: Path, files: list[str], form: str | None) -> None:
    for name in files:
        (here / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "rows" / name).touch()
    found = source_of("rows")
    assert found.get("format") == form and (found.get("options") or {}) == (CSV if form == "csv" else {})
    assert source_of(f"{here}/rows").get("format") == form
    assert source_of("rows", "csv")["format"] == "csv"
    check_there([], {"train": "rows"}, here, {})


def test_files_that_spark_does_not_read_do_not_count(here: Path) -> None:
    for name in (
        "rows/b.parquet",
        "rows/archive/x.csv",
        "mixed/a.csv",
        "mixed/b.parquet",
        "noted/a.csv",
        "noted/README",
        "lines/a.json",
        "lines/b.jsonl.gz",
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"PAR1" if name.endswith("parquet") else b"a")
    only = {"path": "mixed", "options": {"pathGlobFilter": "*.parquet"}}
    for rows in ("rows", {"path": "rows", "format": "parquet"}, only, {**only, "format": "parquet"}):
        check_there([], {"train": rows}, here, {})
    assert source_of("rows")["format"] == "parquet"
    with pytest.raises(InputError, match=r"mixed contains files of different formats, a\.csv and b\.parquet"):
        source_of("mixed")
    with pytest.raises(
        InputError, match=r"noted contains files of different formats, README and a\.csv: .* by noted/\*\.csv"
    ):
        source_of("noted")
    assert source_of("lines")["format"] == "json"
    with pytest.raises(InputError, match=r"x\.csv has no parquet in it"):
        check_there([], {"train": {"path": "rows/archive", "format": "parquet"}}, here, {})


def test_names_alone_tell_the_format_of_what_is_not_here(here: Path) -> None:
    for path, form in (
        ("s3a://b/rows.parquet/", "parquet"),
        ("rows-*.csv.bz2", "csv"),
        ("no/such.avro", "avro"),
        ("x.y", None),
    ):
        assert source_of(path).get("format") == form


def test_formats_of_other_vendors_are_taken(here: Path) -> None:
    for form in ("geoparquet", "geojson", "com.crealytics.spark.excel", "BinaryFile", "hudi", "tfrecord", "vcf"):
        assert loading.parse_source("train", {"path": "rows", "format": form}) == {"path": "rows", "format": form}
    with pytest.raises(InputError, match=r"data\.train\.format='parqet' is no format.*Did you mean 'parquet'"):
        loading.parse_source("train", {"path": "rows", "format": "parqet"})


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_shows_commands_in_groups_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    places = [text.index(f" {word} ") for word in ("Start", "doctor", "Improve", "improve", "Look", "plan", "Serve")]
    assert places == sorted(places)
    assert "Exit codes: 0 done; 1 failed" in text and "130 Ctrl-C" in text
    assert "<bool>" not in text


@pytest.mark.parametrize(
    "command", sorted(COMMAND.commands["cache"].commands.keys() | COMMAND.commands.keys() - {"cache"})
)
def test_help_has_an_example_and_no_types_of_switches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = ["cache"] if command in COMMAND.commands["cache"].commands else []
    text = shown(capsys, *group, command, "--help")
    assert "<bool>" not in text
    assert group or f"Example: sparkdiff {command}" in text


@pytest.mark.parametrize(
    ("command", "example"),
    [(f.__name__, example) for commands in PANELS.values() for f, example in commands.items()],
)
def test_an_example_can_be_given(command: str, example: str) -> None:
    COMMAND.commands[command].make_context(command, shlex.split(example))


def test_help_of_a_plan_says_what_its_options_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "plan", "--help")
    for words in (
        "parameters do not change",
        "Stages to leave in Spark",
        "The only stages to train",
        "on request only",
    ):
        assert words in text


def test_the_default_budget_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "default: (30m)" in shown(capsys, "improve", "--help")


def test_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "options")
    assert text.startswith("fineTuner (read by finetune")
    for section, fields in FIELDS.items():
        assert all(f" {section}.{name}=" in text for name in fields)
    assert "improver.budget=30m time for all" in text and "fineTuner.freeze=[] stages" in text
    assert "fineTuner.labelCol= label column" in text and "fineTuner.cacheInMemory=true " in text
    few = shown(capsys, "options", "EPOCHS")
    assert "fineTuner.maxEpochs=120" in few and "labelCol" not in few and "grower" not in few


def test_defaults_in_the_list_are_those_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"fineTuner.batchSize={Options().batchSize} " in shown(capsys, "options", "batchSize")


def test_help_and_options_import_no_spark() -> None:
    code = "import sys; from sparkdiff.cli.app import main; main(['options']); print({'torch', 'pyspark'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=400)
    assert done.stdout.endswith("set()\n"), done.stderr


def test_the_result_of_a_script_is_that_of_the_command(here: Path, loaded: list[Config]) -> None:
    """jobs/finetune.py parses without typer."""
    from sparkdiff.cli import scripts

    words = ["fineTuner.seed=3", "models/churn", "--data", "rows.csv", "--format", "csv", "--output", "out"]
    assert scripts.main("finetune", words) == DONE and main(["finetune", *words]) == DONE
    first, second = (json.dumps([c.pipeline, dict(c.data), dict(c.options), c.given]) for c in loaded)
    assert first == second
