"""Secrets stay out of what is shown: those in URLs, in settings and in signed links; other paths stay as they are."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sparkdiff.job import config
from sparkdiff.machine.secrets import redacted

pytestmark = pytest.mark.once

HIDDEN = {
    "s3a://user:SECRET@bucket/rows": "s3a://...@bucket/rows",
    "s3a://AKIA:ab/SECRET+d@e@bucket/x.parquet": "s3a://...@bucket/x.parquet",
    "s3a://:SECRET@bucket": "s3a://...@bucket",
    "https://SECRET@host/rows": "https://...@host/rows",
    "jdbc:mysql://root:SECRET@h/db": "jdbc:mysql://...@h/db",
    "jdbc:postgresql://h:5432/db?user=x&password=SECRET&ssl=true": "jdbc:postgresql://h:5432/db?user=x&password=...&ssl=true",
    "jdbc:sqlserver://h:1433;user=sa;password={SEC;RET};db=x": "jdbc:sqlserver://h:1433;user=sa;password=...;db=x",
    "jdbc:oracle:thin:scott/SECRET@//h:1521/x": "jdbc:oracle:thin:...@//h:1521/x",
    "wasbs://c@a.blob.core.windows.net/p?sv=2020&sig=SECRET%2F%3D&se=1": "wasbs://c@a.blob.core.windows.net/p?sv=2020&sig=...&se=1",
    "https://b.example/k?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET&x=1": "https://b.example/k?X-Amz-Credential=...&X-Amz-Signature=...&x=1",
    'data.train.options={"password": "SEC RET", "header": true}': 'data.train.options={"password": ..., "header": true}',
    "data.train.options={password: SECRET, header: true}": "data.train.options={password: ..., header: true}",
}  # fmt: skip
WHOLE = [
    "abfss://container@account.dfs.core.windows.net/rows", "hdfs://namenode:8020/user/a@b/rows", "s3a://bucket/a@b",
    "file:///a/b:c@d/e", "/rows/a@b:c", "data.train.where=tokens > 3", "data.train.options.sep=;", "/models/tokens/v1",
]  # fmt: skip


@pytest.mark.parametrize("text", HIDDEN)
def test_a_secret_is_left_out_and_the_rest_stays(text: str) -> None:
    assert redacted(text) == HIDDEN[text]
    assert redacted(redacted(text)) == HIDDEN[text]


@pytest.mark.parametrize("text", WHOLE)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@settings(max_examples=60, deadline=None)
@given(st.text(string.ascii_letters + "+/@%=.-_~", min_size=1), st.sampled_from(["s3a", "https", "jdbc:mysql", "ftp"]))
def test_no_password_of_a_login_is_shown(password: str, scheme: str) -> None:
    """Whatever it is made of, but for spaces and quotes; and digits before a slash may be a port elsewhere."""
    start = "0" if scheme == "s3a" else "x"
    assert redacted(f"{scheme}://user:{start}{password}0@bucket/rows") == f"{scheme}://...@bucket/rows"


def test_the_command_of_a_job_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "data.test=s3a://user:SECRET@bucket/test", "spark.fs.s3a.secret.key=SECRET 2",
        'data.train.options={"password": "SECRET"}', "fineTuner.maxEpochs=3",
    ]  # fmt: skip
    flags = {"pipeline": "s3a://user:SECRET@bucket/model", "data.train.path": "https://a.example/r?sig=SECRET"}
    found = config.load_config(None, words, {**flags, "output.path": "runs/churn"})
    command = config.command_of(found)
    assert "SECRET" not in command
    for shown in (
        "s3a://...@bucket/test",
        "s3a://...@bucket/model",
        "sig=...",
        "maxEpochs=3",
        "output.path=runs/churn",
    ):
        assert shown in command
    assert "SECRET" in str(found.data)  # the job itself has them
