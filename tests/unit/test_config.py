"""A job's YAML and overrides: what is taken, from where its paths count, and that all else is refused in one line."""

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import typer
import yaml
from hypothesis import example, given, settings, strategies as st

from sparkdiff import jvm
from sparkdiff.cli import config, models, scripts, starting, steps, tracking_section
from sparkdiff.cli.app import app, main
from sparkdiff.cli.config import Config, load_config, request_of
from sparkdiff.data import loading
from sparkdiff.data.loading import parse_source, source_of
from sparkdiff.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, SparkdiffError, StoreError
from sparkdiff.estimators import fine_tuner
from sparkdiff.jvm import sessions
from sparkdiff.machine import paths as places
from sparkdiff.options import FIELDS, Options
from sparkdiff.store import folder_marker
from sparkdiff.store.checkpoint_folder import folder_name

JOB = """
pipeline: models/churn
data:
  train: &rows {path: rows/train.csv, format: csv, where: day < 6}
  test: *rows
fineTuner: {seed: 0, cacheDir: caches}
output: {path: ../runs/churn, mode: overwrite}
"""
FINISHED = SimpleNamespace(decision="kept original")
"""A summary of a job that never ran."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a job in a folder below it."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides: str) -> Config:
    return load_config(Path("conf/job.yaml"), overrides)


def paths(config: Config) -> dict[str, str]:
    data = {f"data.{split}": given["path"] for split, given in config.data.items() if isinstance(given, dict)}
    return {
        "pipeline": config.pipeline,
        "output": str(config.output),
        **data,
        **{n: config.options[n] for n in ("cacheDir", "checkpointDir") if config.options.get(n)},
    }


def test_paths_in_the_file_count_from_its_folder(here: Path) -> None:
    assert {k: os.path.relpath(v, here) for k, v in paths(load()).items()} == {
        "pipeline": "conf/models/churn",
        "output": "runs/churn",
        "cacheDir": "conf/caches",
        "data.train": "conf/rows/train.csv",
        "data.test": "conf/rows/train.csv",
    }


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("pipeline=models/churn", "pipeline"),
        ("data.train=x.csv", None),
        ("data.train.path=x.csv", "data.train"),
        ("data.test={path: x.csv}", "data.test"),
        ("output=out", "output"),
        ("output.path=out", "output"),
        ("output={path: out}", "output"),
        ("fineTuner.cacheDir=c", "cacheDir"),
        ("fineTuner={cacheDir: c}", "cacheDir"),
        ("fineTuner.checkpointDir=c", "checkpointDir"),
    ],
)
def test_paths_in_an_override_count_from_the_current_directory(here: Path, override: str, name: str | None) -> None:
    given = load(override).data["train"] if name is None else paths(load(override))[name]
    assert Path(given).parent in (here, here / "models")
    if name != "cacheDir":
        assert paths(load(override))["cacheDir"] == str(here / "conf" / "caches")  # the file's own stays


def test_functions_are_no_paths(here: Path) -> None:
    config = load("pipeline=pipelines:churn", "data.test=rows:test")
    assert (config.pipeline, config.data["test"], config.folder) == ("pipelines:churn", "rows:test", here / "conf")
    with pytest.raises(InputError, match="'test' is of type str, not a mapping with keys"):
        load("data.test=rows:test", "data.test.where=day < 3")


def test_rows_need_no_path_where_their_format_needs_none(here: Path) -> None:
    jdbc = {"format": "jdbc", "options": {"url": "jdbc:derby:memory:x", "query": "select 1"}}
    words = ["format=es", "options.es.nodes=h:9200", "options.es.net.http.auth.pass=hunter2"]
    found = load(f"data.train={json.dumps(jdbc)}", "data.test=", *(f"data.test.{word}" for word in words))
    assert found.data["train"] == jdbc
    assert found.data["test"] == {"format": "es", "options": {"es.nodes": "h:9200", "es.net.http.auth.pass": "hunter2"}}
    loading.check_there([], found.data, here, {})
    assert loading.size_of(found.data, here) == math.inf


def test_an_override_changes_no_other_entry_shared_by_yaml(here: Path) -> None:
    config = load("data.train.where=day < 3")
    assert [config.data[s]["where"] for s in ("train", "test")] == ["day < 3", "day < 6"]


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("data.train.where='a' = b", ("data", "train", "where"), "'a' = b"),
        ("data.train.where=a > 5 # more", ("data", "train", "where"), "a > 5 # more"),
        ("data.train.where=true", ("data", "train", "where"), "true"),
        ("data.train.where='a = 1'", ("data", "train", "where"), "a = 1"),
        ("data.train.options.sep=|", ("data", "train", "options", "sep"), "|"),
        ("data.train.options.sep=,", ("data", "train", "options", "sep"), ","),
        ("data.train.options.header=true", ("data", "train", "options", "header"), "true"),
        ("data.train.options.nullValue=null", ("data", "train", "options", "nullValue"), "null"),
        ("data.train.options.nullValue=~", ("data", "train", "options", "nullValue"), "~"),
        ("data.train.options.comment=#", ("data", "train", "options", "comment"), "#"),
        ("data.train.options.comment=", ("data", "train", "options", "comment"), None),
        ("fineTuner.tags.version=1.10", ("fineTuner", "tags", "version"), "1.10"),
        ("fineTuner.tags.commit=0012345", ("fineTuner", "tags", "commit"), "0012345"),
        ("fineTuner.tags.country=NO", ("fineTuner", "tags", "country"), "NO"),
        ("fineTuner.tags.at=12:30", ("fineTuner", "tags", "at"), "12:30"),
        ("fineTuner.tags.unit=null", ("fineTuner", "tags", "unit"), "null"),
        ("fineTuner.tags={team: risk}", ("fineTuner", "tags"), {"team": "risk"}),
        ("fineTuner.runId=20260101", ("fineTuner", "runId"), "20260101"),
        ("fineTuner.labelCol=2026-01-01", ("fineTuner", "labelCol"), "2026-01-01"),
        ("fineTuner.groupCol=", ("fineTuner", "groupCol"), None),
        ("fineTuner.maxEpochs=5", ("fineTuner", "maxEpochs"), 5),
        ("fineTuner.localMode=yes", ("fineTuner", "localMode"), True),
        ("fineTuner.loss={logLoss: 1, hinge: 2}", ("fineTuner", "loss"), {"logLoss": 1, "hinge": 2}),
        ("spark.spark.executor.id=010", ("spark", "spark.executor.id"), "010"),
        ("spark.sql.session.timeZone=UTC", ("spark", "spark.sql.session.timeZone"), "UTC"),
        ("spark.fs.s3a.endpoint=x", ("spark", "fs.s3a.endpoint"), "x"),
        ("spark.remote=sc://host", ("spark", "spark.remote"), "sc://host"),
        ("output.mode=error", ("output", "mode"), "error"),
        ("fineTuner.learningRate=1e-3", ("fineTuner", "learningRate"), 0.001),
        ("fineTuner.lossParams.delta=-.5e+1", ("fineTuner", "lossParams", "delta"), -5.0),
        ("fineTuner.labelCol=1e3", ("fineTuner", "labelCol"), "1e3"),
        ("fineTuner.guardCols=[1e3, 1.e2]", ("fineTuner", "guardCols"), ["1e3", "1.e2"]),
        ("fineTuner.learningRates={1e3: 1e-3}", ("fineTuner", "learningRates"), {"1e3": 0.001}),
        ("fineTuner.tags={commit: 12e4}", ("fineTuner", "tags"), {"commit": "12e4"}),
    ],
)
def test_where_text_is_wanted_an_override_is_text(
    here: Path, override: str, place: tuple[str, ...], value: Any
) -> None:
    config = load(override)
    found: Any = {"data": config.data, "fineTuner": config.options, "spark": config.spark, "output": {"mode": "error"}}
    for part in place:
        found = found[part]
    assert found == value


def test_1e3_is_a_number_unless_text_is_expected(here: Path) -> None:
    """PyYAML itself takes 1e-3 for text."""
    (here / "conf" / "job.yaml").write_text("""
pipeline: 1e1
data: {train: {table: 1e2, where: 1e3, options: {x: 1e4}}}
output: a
fineTuner: {learningRate: 1e-3, labelCol: 1e5, freeze: [1e6], runId: 1e7, maxEpochs: 1e2}
spark: {spark.a: 1e8}
""")
    found = load()
    assert (found.pipeline, found.spark) == (f"{here}/conf/1e1", {"spark.a": "1e8"})
    assert found.data["train"] == {"table": "1e2", "where": "1e3", "options": {"x": "1e4"}}
    assert found.options == {
        "learningRate": 0.001,
        "labelCol": "1e5",
        "freeze": ["1e6"],
        "runId": "1e7",
        "maxEpochs": 100,
    }
    search = ["search.metric=rmse", "search.groupCol=1e3", "search.validationFraction=1e-1"]
    given = load(*search, "search.space={1e2: {k: {loguniform: [1e-5, 1.0e2]}}}").search or {}
    assert (given["groupCol"], given["validationFraction"]) == ("1e3", 0.1)
    assert given["space"] == {"1e2": {"k": {"loguniform": [1e-5, 100.0]}}}
    assert load("grower={entityCols: [1e3], maxLoss: 1e-3}").grower == {"entityCols": ["1e3"], "maxLoss": 0.001}


def test_tags_of_a_search_are_text(here: Path) -> None:
    job = [
        "pipeline=a:b",
        "data.train=rows:load",
        "output=out",
        "search.metric=rmse",
        "search.space={PCA: {k: [2, 3]}}",
    ]
    assert (load_config(None, [*job, "search.tags.version=1.10"]).search or {})["tags"] == {"version": "1.10"}


def test_an_existing_path_is_literal_and_others_are_globs(here: Path) -> None:
    (here / "[x].csv").touch()
    assert load("data.train.path=*.csv").data["train"]["path"] == f"{here}/*.csv"
    assert load("data.train.path=[x].csv").data["train"]["path"] == f"{here}/\\[x\\].csv"
    assert load("data.train.path=[y].csv").data["train"]["path"] == f"{here}/[y].csv"


@pytest.mark.parametrize(
    "name", ["plain", "a b", "a%20b#ü", "a?b*", "[ab]", "{a,b}", "{ab}", "a,b", "a:b", "a\\b", "x[1]{y,z},w:v*"]
)
def test_a_folder_of_any_name_holds_data(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "part-1.csv").touch()
    for path in ("part-1.csv", "part-*.csv", "part-[0-9].c?v", "part-{1,2}.csv", "*"):
        where = places.data_path(path, folder)
        assert places.is_there(where), (name, path)
        assert places.data_path(where, Path("/")) == where  # already one
    for path in ("part-2.csv", "parts-*.csv", "below/*", "part-[a-z].csv", "below/{a,b}/c"):
        assert not places.is_there(places.data_path(path, folder)), (name, path)
    assert places.is_there(places.by_name(str(folder)))


@pytest.mark.parametrize("url", ["s3a://bucket/x", "hdfs://host/x", "dbfs:/x", "abfss://c@a.net/x"])
def test_paths_elsewhere_stay_as_they_are(here: Path, url: str) -> None:
    for place in ("output", "output.path"):
        assert load(f"{place}={url}").where == url
    config = load(f"fineTuner.cacheDir={url}", f"fineTuner.checkpointDir={url}")
    assert config.options["cacheDir"] == config.options["checkpointDir"] == url
    config = load(f"pipeline={url}", f"data.train.path={url}", f"data.test={url}")
    assert (config.pipeline, config.data["train"]["path"], config.data["test"]) == (url, url, url)
    assert loading.absolute_url(url, here) == places.data_path(url, here) == places.address(url) == url


@pytest.mark.parametrize("prefix", ["file://", "file:", ""])
def test_local_urls_are_local(here: Path, prefix: str) -> None:
    url = f"{prefix}{here}/x y"
    config = load(f"output={url}", f"fineTuner.cacheDir={url}", f"data.train.path={url}", f"pipeline={url}")
    assert paths(config) == {
        **paths(config),
        "pipeline": f"{here}/x y",
        "output": f"{here}/x y",
        "cacheDir": f"{here}/x y",
    }
    assert paths(config)["data.train"] == f"{here}/x y"
    assert loading.absolute_url(url, Path("/")) == f"file://{here}/x y"
    assert jvm.folder("cacheDir", url) == here / "x y"


def test_a_home_is_a_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    assert load("output=~/runs/x").output == here / "home" / "runs" / "x"


def test_a_flag_is_text_for_its_key(here: Path) -> None:
    flags = {"data.train.path": "null.csv", "fineTuner.labelCol": "no", "output.path": "{x}"}
    config = load_config(Path("conf/job.yaml"), ["fineTuner.seed=5", "fineTuner.labelCol=y"], flags)
    assert config.data["train"] == {
        "path": f"{here}/null.csv",
        "format": "csv",
        "where": "day < 6",
    }  # the file's other keys stay
    assert config.options == {
        "seed": 5,
        "labelCol": "y",
        "cacheDir": str(here / "conf" / "caches"),
    }  # the override wins
    assert (config.output, config.overwrite) == (here / "{x}", True)
    (here / "conf" / "job.yaml").write_text("data: {train: 'rows:load'}")
    with pytest.raises(
        InputError, match=r"^data\.train\.path=x\.csv: 'train' is of type str, not a mapping with keys$"
    ):
        load_config(Path("conf/job.yaml"), [], {"data.train.path": "x.csv"})


def test_ctrl_c_says_how_the_job_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "run", interrupted)
    assert main(["finetune", "pipeline=models/churn", "--data", "x.csv", "--output", "runs/x"]) == INTERRUPTED
    told = capsys.readouterr().err
    assert told.endswith(":\n  sparkdiff finetune data.train.path=x.csv output.path=runs/x pipeline=models/churn\n")
    secret = ["pipeline=s3a://user:secret@bucket/model", "spark.remote=sc://host"]
    assert main(["finetune", *secret, "--data", "x.csv", "--output", "runs/x"]) == INTERRUPTED
    assert "interrupted. The same command goes on" in capsys.readouterr().err


def test_a_store_that_fails_anywhere_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(config: Config) -> None:
        raise StoreError(errno.EIO, "Connection refused", "hdfs://lake/runs/x")

    monkeypatch.setattr(starting, "run", refused)
    assert main(["finetune", "pipeline=models/churn", "--data", "x.csv", "--output", "runs/x"]) == FAILED
    said = "error: hdfs://lake/runs/x: Connection refused; once it can be used, give the same command again\n"
    assert capsys.readouterr().err == said


def test_options_of_the_cost_of_a_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.options_of(["fineTuner.maxEpochs=5", "fineTuner.loss=squared"]) == {"maxEpochs": 5, "loss": "squared"}
    for words, why in (
        (["--cost"], "--cost needs the rows"),
        (["--data", "x.parquet"], "add --cost"),
        (["--label", "y"], "--label is for"),
    ):
        assert main(["plan", "models/churn", *words]) == 2
        assert why in capsys.readouterr().err
    with pytest.raises(InputError, match=r"must be fineTuner\.option=value"):
        config.options_of(["output.path=x"])


def test_an_override_wins_over_a_flag_in_the_cost_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(fine_tuner, "FineTuner", lambda model, **options: given.update(options) or Mock())
    models._cost(None, None, {"freeze": ["a"]}, {"labelCol": "x", "timeCol": None}, ["fineTuner.labelCol=y"])
    assert given == {"freeze": ["a"], "labelCol": "y"}


def test_the_flags_of_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Config] = []
    monkeypatch.setattr(starting, "run", lambda config: loaded.append(config) or FINISHED)
    columns = ["--label", "null", "--group", "user"]
    assert main(["finetune", "pipeline=models/churn", "--data", "x.csv", *columns, "--output", "runs/x"]) == 0
    assert main(["finetune", "--config", "conf/job.yaml", "--time", "day", "fineTuner.maxEpochs=5"]) == 0
    short, long = loaded
    assert (short.data, short.output) == ({"train": {"path": f"{here}/x.csv"}}, here / "runs" / "x")
    assert short.options == {"labelCol": "null", "groupCol": "user"}
    assert long.options == {"seed": 0, "cacheDir": str(here / "conf" / "caches"), "timeCol": "day", "maxEpochs": 5}


@pytest.mark.parametrize(("error", "code"), [(SparkdiffError, FAILED), (InputError, WRONG_INPUT)])
def test_an_error_of_ours_ends_the_command_with_its_text(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception], code: int
) -> None:
    def fails(config: Config) -> None:
        raise error("process 1 of 2 failed:\nTraceback ...\nKeyError: 'predictions'")

    monkeypatch.setattr(starting, "run", fails)
    assert main(["finetune", "--config", "conf/job.yaml"]) == code
    assert capsys.readouterr().err == "error: process 1 of 2 failed:\nTraceback ...\nKeyError: 'predictions'\n"


def test_the_section_grower(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load().grower, load().command) == (None, "finetune")
    grown = load("grower.rounds=3", "grower.parts=[units, shapes]", "grower.maxServingCost=4")
    assert grown.grower == {"rounds": 3, "parts": ["units", "shapes"], "maxServingCost": 4}
    assert grown.command == "grow"
    (here / "conf" / "job.yaml").write_text(JOB + "\ngrower:\n")  # all defaults
    assert (load().grower, load().command) == ({}, "grow")
    loaded: list[Config] = []
    monkeypatch.setattr(starting, "run", lambda config: loaded.append(config) or FINISHED)
    assert main(["grow", "--config", "conf/job.yaml", "--label", "y", "grower.entityCols=shop"]) == 0
    assert (loaded[0].options["labelCol"], loaded[0].grower) == ("y", {"entityCols": "shop"})


def test_the_path_of_the_model_may_hold_an_equals_sign(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Config] = []
    monkeypatch.setattr(starting, "run", lambda config: loaded.append(config) or FINISHED)
    for word in ("models/dt=2026/slack", "dt=2026/slack", f"{here}/dt=2026", "pipeline=models/slack"):
        assert main(["improve", word, "--data", "x.csv", "--output", "out"]) == 0
    names = ("models/dt=2026/slack", "dt=2026/slack", "dt=2026", "models/slack")
    assert [config.pipeline for config in loaded] == [f"{here}/{name}" for name in names]
    assert main(["improve", "improvr.budget=5m", "--data", "x.csv", "--output", "out"]) == WRONG_INPUT
    assert "unknown section 'improvr'. Did you mean 'improver'" in capsys.readouterr().err


def test_a_request_has_the_section_grower(here: Path) -> None:
    base = load("grower.rounds=6")
    assert request_of(base) != request_of(load())
    assert request_of(base) != request_of(load("grower.rounds=3"))
    assert request_of(base) == request_of(load("grower={}"))  # six is the default


def test_commands_share_their_flags() -> None:
    commands: Any = typer.main.get_command(app)
    found = {
        name: {p.opts[0]: p.help for p in command.params if p.opts[0].startswith("--")}
        for name, command in commands.commands.items()
    }
    shared = {"--data", "--label", "--group", "--time", "--output"}
    assert shared <= found["finetune"].keys()
    for flags in (found[name] for name in ("finetune", "search", "grow", "improve")):
        assert {k: v for k, v in flags.items() if k in shared} == {
            k: found["finetune"][k] for k in shared & flags.keys()
        }
    for name, own in scripts.FLAGS_OF.items():  # where typer is not installed
        assert found[name].keys() - {"--config", "--json", "--help"} == {f"--{flag}" for flag in own}


WRONG = [
    (["fineTuner=5"], "fineTuner must be a mapping of names to values. Got int instead"),
    (["fineTuner=[1]"], "fineTuner must be a mapping"),
    (["fineTuner={1: 2}"], "unknown option 1. Known: "),
    (["spark=5"], "spark must be a mapping"),
    (
        ["spark={sql.ansi.enabled: false}"],
        "no setting of Spark, whose names start with 'spark.': write spark.sql.ansi.enabled",
    ),
    (["spark={a: [1]}"], "spark: a must be text, a number, true or false"),
    (["output=[a]"], "output must be a folder, or {path, mode: error|overwrite}. Got ['a'] instead"),
    (["output={path: x, mood: error}"], "output must be a folder"),
    (["output={path: ''}"], "output must be a folder"),
    (["output={path: 5}"], "output must be a folder"),
    (["output.mode=append"], "output must be a folder"),
    (["output="], "the job has no 'output'"),
    (["pipeline=[a]"], "pipeline must be the path of a saved model, or module:function. Got ['a'] instead"),
    (["data=[x]"], "data must be a mapping with 'train'"),
    (["data={test: x}"], "data must be a mapping with 'train'"),
    (["data.trian=x"], "unknown data 'trian'. Did you mean 'train'"),
    (["data.train=[x]"], "data.train must be module:function, or contain either a path or a table"),
    (["data.train.path=[x, y]"], "data.train.path must be text. Got list instead: quote it"),
    (["data.train.table=t"], "contain either a path or a table"),
    (["data.train={path: x, wher: y}"], "data.train: unknown key 'wher'. Did you mean 'where'"),
    (["data.train={path: x, where: 5}"], "data.train.where must be text. Got int instead: quote it"),
    (["data.train={format: jdbc}"], "correct data.train.options.url, data.train.options.dbtable or options.query"),
    (["data.train={format: jdbc, options: {url: u}}"], "correct data.train.options.dbtable or options.query"),
    (
        ["data.train={format: jdbc, options: {url: u, dbtable: t, query: q}}"],
        "correct data.train.options.dbtable or options.query",
    ),
    (
        ["data.train={format: jdbc, table: t, options: {URL: u, dbTable: t}}"],
        "neither path nor table: correct data.train.table",
    ),
    (
        ["data.train={format: mongodb}"],
        "or a format that needs neither, such as jdbc, with its options. Got {format: str} instead",
    ),
    (["data.train={format: csv, options: {header: true}}"], "contain either a path or a table"),
    (["data.train={options: {url: u}}"], "contain either a path or a table"),
    (["data.train={format: [x], options: {url: u}}"], "data.train.format must be text"),
    (["data.train.options=header"], "data.train.options must be a mapping"),
    (["data.train.options={header: [true]}"], "data.train.options must be a mapping"),
    (["output=a[1]/b:c"], "holds ':' together with one of {}[]*?"),
    (["data.train.path.x=5"], "not a mapping with keys"),
    (["nothing"], "no Spark ML model can be loaded from"),
    (["=x"], "must be section.key=value"),
    (["fineTuner.=x"], "must be section.key=value"),
    (["data..train=x"], "must be section.key=value"),
    (
        ["data.validation=v", "fineTuner.validationIndicatorCol=held"],
        "fineTuner.validationIndicatorCol='held' would take validation rows from data.train",
    ),
    (
        ["data.validation=v", "fineTuner.validationFraction=0.2"],
        "but data.validation holds them already: leave out fineTuner.validationFraction",
    ),
    (["outptu=x"], "unknown section 'outptu'. Did you mean 'output'"),
    (["fineTuner.loss=nowhere:loss"], "no module 'nowhere' in the folder of the YAML file"),
    (["grower=5"], "grower must be a mapping of names to values. Got int instead"),
    (["grower.roundz=3"], "grower: unknown key 'roundz'. Did you mean 'rounds'"),
    (["grower.rounds=many"], "grower: The 'rounds' option must be a whole number"),
    (["grower={rounds: 0, maxServingCost: 0.5}"], "maxServingCost"),
    (["grower.parts=[unit]"], "grower: parts names an unknown kind 'unit'. Did you mean 'units'"),
    (["grower.labelCol=y"], "grower: unknown key 'labelCol'. Did you mean fineTuner.labelCol?"),
    (["grower.rounds=2", "fineTuner.numFolds=5"], "the job has a section 'grower': run `sparkdiff grow` instead"),
    (
        ["improver.arms=[refit]", "fineTuner.maxSeconds=5"],
        "fineTuner.maxSeconds=5 is not possible with a section improver",
    ),
    (
        ["grower.rounds=2", "fineTuner.tune=threshold"],
        "fineTuner.tune='threshold' is not possible with a section grower: only FineTuner has it",
    ),
    (
        ["data.validation=v", "fineTuner.numFolds=5"],
        "fineTuner.numFolds=5 lets all rows of data.train decide, but data.validation",
    ),
    (
        ["fineTuner.numFolds=5", "fineTuner.validationIndicatorCol=held"],
        "validationIndicatorCol='held' exclude each other",
    ),
    (["grower.rounds=2", "search.metric=rmse"], "the job has the sections 'search' and 'grower', which are two jobs"),
    (["grower.rounds=2"], "the job has a section 'grower': run `sparkdiff grow` instead"),
    (['output="a\\0b"'], "cannot be a path"),
    (['data.train.path="a\\ud800b"'], "cannot be a path"),
]


@pytest.mark.parametrize(
    "given", ["data.validation=v", "fineTuner.validationIndicatorCol=held", "fineTuner.timeCol=day"]
)
def test_auto_takes_the_rows_as_they_are_divided(here: Path, given: str) -> None:
    assert load(given, "fineTuner.numFolds=auto").options["numFolds"] == "auto"


@pytest.mark.parametrize(("overrides", "said"), WRONG, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_what_is_wrong_is_one_line_and_2(here: Path, overrides: list[str], said: str, capsys: Any) -> None:
    assert main(["finetune", "--config", "conf/job.yaml", *overrides]) == WRONG_INPUT
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pipeline: \xff\xfe", "is not UTF-8 text (invalid start byte at byte 10): save it as UTF-8"),
        (b"a: [", "is not YAML: "),
        (b"a: !!int x", "is not YAML: "),
        (b"a: &a [*a]", "is not YAML: "),
        (
            b"fineTuner: {labelCol: y}\npipeline: x\nfineTuner: {seed: 1}",
            "is not YAML: the key 'fineTuner' is repeated in line 3: leave one out",
        ),
        (b"fineTuner: {seed: 1, 'a': 2, seed: 3}", "is not YAML: the key 'seed' is repeated in line 1"),
        (b"- a", "must hold the sections pipeline, data"),
        (b"5", "must hold the sections"),
        (b"", "the job has no 'pipeline'"),
        (b"fineTuner: 5\npipeline: x\ndata: {train: x}\noutput: x", "fineTuner must be a mapping"),
        (b"pipeline: 5\ndata: {train: x}\noutput: x", "pipeline must be the path"),
        (b"pipeline: x\ndata: {train: {path: 2024-01-01}}\noutput: x", "data.train.path must be text"),
    ],
)
def test_a_file_that_is_no_job(here: Path, content: bytes, said: str, capsys: Any) -> None:
    (here / "wrong.yaml").write_bytes(content)
    assert main(["finetune", "--config", "wrong.yaml"]) == WRONG_INPUT
    assert said in capsys.readouterr().err


def test_a_key_may_stand_again_in_what_is_merged(here: Path) -> None:
    own = "test: {<<: *rows, <<: {format: csv}, where: day > 6}"
    (here / "conf" / "job.yaml").write_text(JOB.replace("test: *rows", own))
    assert load().data["test"] == {**load().data["train"], "where": "day > 6"}


def test_a_job_without_the_section_of_its_command(here: Path, capsys: Any) -> None:
    assert main(["grow", "--config", "conf/job.yaml"]) == WRONG_INPUT
    assert capsys.readouterr().err == "error: the job has no section 'grower': run `sparkdiff finetune` instead\n"
    assert main(["search", "--config", "conf/job.yaml", "grower.rounds=2"]) == WRONG_INPUT
    assert capsys.readouterr().err == "error: the job has a section 'grower': run `sparkdiff grow` instead\n"


def test_a_file_that_isnt_there(here: Path, capsys: Any) -> None:
    for path, said in (
        ("no.yaml", "No such file"),
        ("conf", "Is a directory"),
        ("s3a://b/x.yaml", "must be a file on the file system of this"),
    ):
        assert main(["finetune", "--config", path]) == WRONG_INPUT
        assert said in capsys.readouterr().err


def test_files_may_have_a_url_and_a_byte_order_mark(here: Path, monkeypatch: Any) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(starting, "run", lambda config: loaded.append(config) or FINISHED)
    (here / "conf" / "mark.yaml").write_text(JOB.strip(), encoding="utf-8-sig")
    assert main(["finetune", "--config", f"file://{here}/conf/mark.yaml"]) == 0
    assert loaded[0].output == here / "runs" / "churn"


def test_an_empty_section_can_be_overridden(here: Path) -> None:
    (here / "conf" / "job.yaml").write_text(JOB.replace("{seed: 0, cacheDir: caches}", ""))
    assert load("fineTuner.maxEpochs=5").options == {"maxEpochs": 5}


KEYS = st.sampled_from(
    [
        "pipeline",
        "data",
        "data.train",
        "data.train.path",
        "data.train.options",
        "data.train.where",
        "data.test",
        "output",
        "output.path",
        "output.mode",
        "fineTuner",
        "spark",
        "spark.spark.x",
        "",
        "data.",
        "output.path.x",
        "1",
        "~",
        *(f"fineTuner.{name}" for name in FIELDS if name != "loss"),  # whose module would be imported
    ]
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="{}[]:,&*!|>'\"%@`#-?~. \n\t=0x1_aeinoy\\<", max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)


@settings(max_examples=200, deadline=None)
@example("output", '"\\ud800"')
@example("data", "&a {train: *a}")
@example("fineTuner.maxEpochs", "!!int ''")
@example("fineTuner.seed", "!!bool x")
@example("data.train.path", "2024-13-45")
@example("pipeline", "!!timestamp x")
@example("fineTuner.lossParams", "!!set {balanced}")
@given(KEYS | st.text(max_size=12), VALUES)
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    base = ["pipeline=models/churn", "data.train=rows.csv", "output=out"]
    try:
        config = load_config(None, [*base, f"{key}={value}"])
    except InputError:
        return
    assert config.output.is_absolute()
    found = [path for path in paths(config).values() if places.local(path) is not None]
    assert all(Path(path).is_absolute() or loading.is_function(path) for path in found)


# Before Spark starts --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: Any, **more: Any) -> Any:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(starting, "start_session", start)
    monkeypatch.setattr(loading, "start_session", start)
    for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def saved(here: Path) -> Path:
    """What looks like a saved model, and rows."""
    (here / "models" / "churn" / "metadata").mkdir(parents=True)
    (here / "rows.csv").touch()
    return here


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "models/chrn"], "no Spark ML model can be loaded from {here}/models/chrn: it does not exist"),
        (["plan", "models"], "no Spark ML model can be loaded from {here}/models: it has no folder 'metadata'"),
        (["plan", "file:{here}/models"], "no Spark ML model can be loaded from {here}/models: it has no folder"),
        (["verify", "models/churn", "--data", "row.csv"], "data.verify cannot be read: there is no {here}/row.csv"),
        (["verify", "models/churn", "--data", "row*.json"], "data.verify cannot be read: there is no {here}/row*.json"),
        (["verify", "models/churn", "--data", "rows.csv", "--options", "[1"], "--options must be a JSON object"),
        (
            ["verify", "models/churn", "--data", "rows.csv", "--options", '{{"schema": 5}}'],
            "data.verify.schema must be",
        ),
        (["diff", "models/churn", "models/chrn"], "no Spark ML model can be loaded from {here}/models/chrn"),
        (["diff", "models/churn", "models/churn", "--data", "row.csv"], "data.diff cannot be read: there is no"),
        (["diff", "models/churn", "models/churn", "--format", "csv"], "--format says how to read rows: name them by"),
        (["finetune", "pipeline=models/chrn"], "no Spark ML model can be loaded from {here}/models/chrn"),
        (["finetune", "data.train.path=row.csv"], "data.train cannot be read: there is no {here}/row.csv"),
        (["finetune", "data.test=row-*.csv"], "data.test cannot be read: there is no {here}/row-*.csv"),
        (["finetune", "output=/proc/run"], "output='/proc/run' cannot be used: "),
        (["finetune", "output=rows.csv/run"], "output='{here}/rows.csv/run' cannot be used: Not a directory"),
        (["finetune", "fineTuner.cacheDir=/proc/caches"], "cacheDir='/proc/caches' cannot be used: "),
        (["finetune", "fineTuner.checkpointDir=rows.csv"], "checkpointDir='{here}/rows.csv' cannot be used: "),
    ],
)
def test_what_lies_here_is_looked_at_first(
    saved: Path, no_spark: None, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ["pipeline=models/churn", "data.train=rows.csv", "output=runs/x"] if arguments[0] == "finetune" else []
    before = sorted(saved.rglob("*"))
    assert main([arguments[0], *job, *(a.format(here=saved) for a in arguments[1:])]) == WRONG_INPUT
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert said.format(here=saved) in told[0]
    assert sorted(saved.rglob("*")) == before


@pytest.mark.parametrize(
    ("summary", "others", "foreign"),
    [
        ("{}", ["thesis.tex"], "summary.json"),
        ("no JSON", [], "summary.json"),
        ('{"fingerprints": {}}', ["model", "plan.json"], "model"),
        (None, ["rows.csv"], "rows.csv"),
    ],
)
def test_overwrite_deletes_nothing_but_a_run(
    saved: Path,
    no_spark: None,
    summary: str | None,
    others: list[str],
    foreign: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = saved / "run"
    output.mkdir()
    if summary is not None:
        (output / "summary.json").write_text(summary)
    for name in others:
        (output / name).touch()
    told = ["pipeline=models/churn", "data.train=rows.csv", "output.path=run", "output.mode=overwrite"]
    assert main(["finetune", *told]) == WRONG_INPUT
    assert f"output {output} contains {foreign}, which is not of sparkdiff's run" in capsys.readouterr().err
    assert {p.name for p in output.iterdir()} == {*others, *(["summary.json"] if summary is not None else [])}
    for path in output.iterdir():
        path.unlink()
    with pytest.raises(AssertionError, match="Spark was started"):
        main(["finetune", *told])
    for name in ("model", "summary.json"):
        (output / name).write_text('{"fingerprints": {}}')
    folder_marker.mark(output, folder_marker.OUTPUT, ["model", "summary.json", "report.html"])
    (output / "notes.md").touch()
    assert main(["finetune", *told]) == WRONG_INPUT
    assert f"output {output} contains notes.md, which is not of sparkdiff's run" in capsys.readouterr().err
    (output / "notes.md").unlink()
    with pytest.raises(AssertionError, match="Spark was started"):
        main(["finetune", *told])


def test_an_output_that_is_a_file_or_holds_a_damaged_summary(
    saved: Path, no_spark: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = saved / "run"
    told = ["finetune", "pipeline=models/churn", "data.train=rows.csv", "output.path=run", "fineTuner.runId=mine"]
    output.touch()
    assert main([*told, "output.mode=overwrite"]) == WRONG_INPUT
    assert f"output {output} is a file: choose a folder" in capsys.readouterr().err
    output.unlink()
    output.mkdir()
    (output / "summary.json").write_text("half of i")
    assert main(told) == WRONG_INPUT
    assert f"output {output} exists: choose another folder" in capsys.readouterr().err


@given(st.text(min_size=1, max_size=120).filter(lambda name: "/" not in name and "\0" not in name))
def test_each_folder_has_a_run_id(name: str) -> None:
    assert folder_name(steps.own_id(Path("/runs", name)))
    assert steps.own_id(Path("/runs/bikeshare")) == f"bikeshare-{hashlib.sha256(b'/runs/bikeshare').hexdigest()[:8]}"


def test_what_lies_elsewhere_is_not(saved: Path, no_spark: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ["plan", "models/churn"],
        ["plan", "s3a://bucket/models"],
        ["diff", "models/churn", "models/churn"],
    ):
        with pytest.raises(AssertionError, match="Spark was started"):
            main(arguments)
    monkeypatch.setenv("SPARK_REMOTE", "sc://far.away")
    for arguments in (["plan", "/on/the/server"], ["verify", "/there", "--data", "/rows"]):
        with pytest.raises(AssertionError, match="Spark was started"):
            main(arguments)


def test_no_java(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:

    monkeypatch.setattr(sessions.SparkSession, "getActiveSession", lambda: None)
    for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "PYSPARK_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)

    def told(home: str | None) -> str:
        monkeypatch.setenv("JAVA_HOME", home) if home else monkeypatch.delenv("JAVA_HOME", raising=False)
        assert main(["plan", "models/churn"]) == WRONG_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        return line

    monkeypatch.setenv("PATH", str(saved))
    assert "JAVA_HOME is unset, and no java on PATH runs: set JAVA_HOME to the folder of a Java 17" in told(None)
    assert "JAVA_HOME=/nowhere has no bin/java that runs: set JAVA_HOME to the folder of a Java 17" in told("/nowhere")
    (saved / "bin").mkdir()
    (saved / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"1.7.0_99\"' >&2\n")
    (saved / "bin" / "java").chmod(0o755)
    assert f"JAVA_HOME={saved} is Java 7, and Spark" in told(str(saved))
    (saved / "bin" / "java").write_text("#!/bin/sh\nexit 3\n")
    assert f"JAVA_HOME={saved} doesn't run, and Spark" in told(str(saved))


# Suggestions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "hint"),
    [
        ("metric", "auc", "'areaUnderROC'"),
        ("metric", "roc_auc", "'areaUnderROC'"),
        ("metric", "AUROC", "'areaUnderROC'"),
        ("metric", "average_precision", "'areaUnderPR'"),
        ("metric", "neg_log_loss", "'logLoss'"),
        ("metric", "neg_root_mean_squared_error", "'rmse'"),
        ("metric", "mean_squared_error", "'squared' or 'mse'"),
        ("metric", "f1_score", "'f1'"),
        ("loss", "mse", "'squared'"),
        ("loss", "crossEntropy", "'logLoss'"),
    ],
)
def test_names_of_other_libraries_are_known(option: str, name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"can't be '{name}'. Did you mean {hint}\\? It must be"):
        Options.of({option: name})


# How Spark starts -----------------------------------------------------------------------------------------------------


def test_a_small_job_starts_spark_for_short_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "rows.csv").write_text("x" * 100)
    (here / "table").mkdir()
    (here / "table" / "part-0.parquet").write_text("x" * 50)
    sizes = {"rows.csv": 100, "table": 50, "*.csv": math.inf, "s3://b/c": math.inf}
    for path, size in sizes.items():
        assert loading.size_of({"train": {"path": path}}, here) == size
    assert loading.size_of({"train": "rows.csv", "test": "rows:load"}, here) == math.inf
    assert loading.size_of({"train": {"table": "churn"}}, here) == math.inf
    assert loading.size_of({}, here) == 0
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=4")
    with jvm.java_options("", jvm.QUICK):  # of two settings Java takes the last, the user's
        assert os.environ["SPARK_SUBMIT_OPTS"] == f"{jvm.QUICK} -XX:TieredStopAtLevel=4"
    assert os.environ["SPARK_SUBMIT_OPTS"] == "-XX:TieredStopAtLevel=4"
    monkeypatch.delenv("SPARK_SUBMIT_OPTS")
    with pytest.raises(ZeroDivisionError), jvm.java_options(jvm.QUICK):
        raise ZeroDivisionError
    assert "SPARK_SUBMIT_OPTS" not in os.environ


def test_tracking_is_checked_before_anything_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_section, "NEEDS", {})
    found = load(
        "tracking.jsonLines=events.jsonl", "tracking.mlflow.experiment=7", "tracking.mlflow.registerOriginal=true"
    )
    assert found.tracking == {
        "jsonLines": str(here / "events.jsonl"),
        "mlflow": {"experiment": "7", "registerOriginal": True},
    }
    (here / "conf" / "job.yaml").write_text(JOB + "tracking: {tensorboard: ../tb, mlflow: }\n")
    assert load().tracking == {"tensorboard": str(here / "conf" / ".." / "tb"), "mlflow": {}}
    for uri in ("http://host:5000", "databricks", "databricks://x", "sqlite:///m.db", "file:///m", "uc:http://host"):
        assert (load(f"tracking.mlflow.uri={uri}").tracking or {})["mlflow"] == {"uri": uri}
    (here / "conf" / "job.yaml").write_text(JOB + "tracking: {mlflow: {uri: ../mlruns}}\n")
    assert load().tracking == {"mlflow": {"uri": str(here / "conf" / ".." / "mlruns")}}
    assert request_of(load()) == request_of(load("tracking.mlflow.experiment=other"))
    for override, message in (
        ("tracking.wandb=x", "unknown key 'wandb'"),
        ("tracking.jsonLines=s3a://bucket/x", r"tracking\.jsonLines must be a path on the file system of this machine"),
        (f"tracking.jsonLines={here}", "is a folder"),
        ("tracking.mlflow=here", r"tracking\.mlflow must be a mapping"),
        ("tracking.mlflow.url=x", "unknown key 'url'. Did you mean 'uri'"),
        ("tracking.mlflow.registerOriginal=x", "must be true or false"),
        ("tracking.mlflow.alias=champion", "move the alias yourself"),
        ("tracking=3", "tracking must be a mapping"),
    ):
        with pytest.raises(InputError, match=message):
            load(override)
    monkeypatch.setattr(tracking_section, "NEEDS", {"mlflow": "no_such_package"})
    with pytest.raises(InputError, match=r"sparkdiff\[mlflow\]"):
        load()


def test_json_is_all_of_stdout(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Summary:
        decision = "kept original"

        def asdict(self) -> dict[str, Any]:
            return {"decision": self.decision, "reason": "r", "metric": "mae", "p": 1.0, "options": {}, "records": []}

    def ran(settings: Config) -> Any:
        print("the plan")
        return Summary()

    monkeypatch.setattr(starting, "run", ran)
    assert main(["finetune", "--config", "conf/job.yaml", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "output": str(here / "runs/churn"),
        "model": str(here / "runs/churn/model"),
        "accepted": False,
        "decision": "kept original",
        "reason": "r",
        "metric": "mae",
        "p": 1.0,
    }
    assert err == "the plan\n"
    assert main(["finetune", "--config", "conf/job.yaml"]) == 0
    assert capsys.readouterr().out.startswith("the plan\n")


def test_the_format_of_rows_is_inferred_from_the_file_name() -> None:
    inferred = {"header": True, "inferSchema": True}
    for path, format, options, expected in (
        ("rows", "", "{}", (None, {})),
        ("a/rows.csv", "", "{ }", ("csv", inferred)),
        ("a/rows.csv.gz", "", "{}", ("csv", inferred)),
        ("a/rows.tsv", "", "{}", ("csv", {**inferred, "sep": "\t"})),
        ("a/rows.ndjson", "", "{}", ("json", {})),
        ("rows.txt", "CSV", "{}", ("CSV", inferred)),
        ("rows.csv", "", '{"sep": ";", "HEADER": false}', ("csv", {"inferSchema": True, "sep": ";", "HEADER": False})),
        ("rows.csv", "", '{"schema": "a int"}', ("csv", inferred)),
        ("rows.csv", "parquet", "{}", ("parquet", {})),
    ):
        found = source_of(path, format, options)
        assert (found.get("format"), found.get("options") or {}) == expected, path
    assert parse_source("train", "rows.csv") == {"path": "rows.csv", "format": "csv", "options": inferred}
    assert parse_source("train", {"path": "rows.csv", "format": "csv"}) == {"path": "rows.csv", "format": "csv"}
    assert parse_source("train", {"table": "rows.csv"}) == {"table": "rows.csv"}
