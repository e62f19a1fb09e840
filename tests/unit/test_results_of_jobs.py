"""What a finished job tells last: where its results are, and a command to go on with, which can be given as it is."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparkdiff.cli.config import load_config
from sparkdiff.cli.scripts import _result, _results

GIVEN = ["pipeline=models/churn", "data.train.path=my rows.csv", "fineTuner.labelCol=y", "output.path=runs/fair"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "churn").mkdir(parents=True)
    (tmp_path / "runs" / "fair" / "offers" / "cheap").mkdir(parents=True)
    (tmp_path / "runs" / "fair" / "report.html").touch()
    return tmp_path


def test_what_is_accepted_is_compared_with_the_original(folder: Path) -> None:
    assert _results(load_config(None, GIVEN), kept=False) == [
        "saved runs/fair/model (plain Spark ML)",
        "offer: runs/fair/offers/cheap",
        "report: runs/fair/report.html",
        "next: sparkdiff diff models/churn runs/fair",
    ]
    (folder / "runs" / "fair" / "report.html").unlink()  # without the extra report
    made = load_config(None, [*GIVEN, "pipeline=here:pipeline"])
    assert _results(made, kept=False)[2:] == ["next: sparkdiff plan runs/fair"]


def test_after_a_kept_original_an_improvement_is_next(folder: Path) -> None:
    job = load_config(None, GIVEN)
    (*_, last) = _results(job, kept=True)
    command, verb, *words = shlex.split(last.removeprefix("next: "))
    then = load_config(None, words)
    assert (command, verb, then.command) == ("sparkdiff", "improve", "improve")
    assert (then.pipeline, then.data, then.options) == (job.pipeline, job.data, job.options)
    assert (then.where, then.improver) == (f"{folder}/runs/fair-improved", {"budget": "30m"})
    of_finetune = ["fineTuner.tune=threshold", "fineTuner.maxSeconds=60"]  # which an improvement refuses
    more = ["fineTuner.runId=mine", "data.train.options.password=hidden", "improver.budget=90s", *of_finetune]
    for one in more:
        assert _results(load_config(None, [*GIVEN, one]), kept=True)[-1] == "next: sparkdiff plan runs/fair"


def test_the_json_of_a_job_shows_no_login() -> None:
    found = SimpleNamespace(asdict=lambda: {"decision": "tuned", "gain": 0.1})
    assert _result(found, "s3a://me:hidden@bucket/fair") == {
        "output": "s3a://...@bucket/fair",
        "model": "s3a://...@bucket/fair/model",
        "accepted": True,
        "decision": "tuned",
        "gain": 0.1,
    }
