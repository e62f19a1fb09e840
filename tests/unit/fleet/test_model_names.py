"""Names of models in the folders that triage writes."""

from pathlib import Path

import pytest

from sparkdiff.fleet.triage_run import names_of


def test_models_of_one_name_are_told_apart_by_what_is_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_of(["a/churn/model", "b/fraud"]) == ["churn", "fraud"]
    assert names_of(["a/churn", "b/churn"]) == ["a-churn", "b-churn"]
    assert names_of(["a/churn", str(tmp_path / "b" / "churn")]) == ["a-churn", "b-churn"]
