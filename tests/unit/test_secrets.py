"""Secrets stay out of what is shown: those in URLs, in settings, in signed links and in mappings; all else stays as it is."""

import datetime
import json
import string
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pyspark.sql.utils import AnalysisException

from sparkdiff import InputError, errors, jvm
from sparkdiff.cli import config, doctor
from sparkdiff.cli.app import main
from sparkdiff.data.loading import source_of
from sparkdiff.errors import WRONG_INPUT, StoreError
from sparkdiff.fleet.triage_run import name_of
from sparkdiff.history.lineage import lineage
from sparkdiff.machine.secrets import hidden, is_secret, redacted, without_secret
from sparkdiff.report import Events, Phases, Progress
from sparkdiff.report.progress import Log, call_or_warn
from sparkdiff.store import files
from sparkdiff.store.files import DamagedCheckpoint

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
    "jdbc:sqlserver://h;password=SEC RET;db=x": "jdbc:sqlserver://h;password=...;db=x",
    "jdbc:sqlserver://h;password={SEC}}RET;};db=x": "jdbc:sqlserver://h;password=...;db=x",
    "password=SEC'RET&ssl=true": "password=...&ssl=true",
    "password=&user=x": "password=&user=x",
    "mongodb+srv://u:SECRET@h/db": "mongodb+srv://...@h/db",
    "authorization: Bearer SECRET was refused": "authorization: ... was refused",
    "Authorization=Basic SECRET=": "Authorization=...",
    "the header 'Bearer SECRET'": "the header 'Bearer ...'",
    'x.PlainLoginModule required username="u" password="SECRET;x";': 'x.PlainLoginModule required username="u" password=...;',
    r'{"jaas": "x required password=\"SECRET\";", "a": 1}': '{"jaas": ..., "a": 1}',
    r"{'x': 'required password=\'SECRET\';'}": "{'x': 'required password=...;'}",
    'password: "SECRET with no end': "password: ...",
    'jdbc:oracle:thin:scott/"SECRET"@//h:1521/x': "jdbc:oracle:thin:...@//h:1521/x",
    '{"u": "jdbc:oracle:thin:scott/\\"SEC @ RET\\"@//h:1521/x"}': '{"u": "jdbc:oracle:thin:...@//h:1521/x"}',
    'jdbc:oracle:oci:"sc ott"/"SEC@RET"@h': "jdbc:oracle:oci:...@h",
    "jdbc:oracle:thin:scott/SEC@RET@//h": "jdbc:oracle:thin:...@//h",
    "{'url': 'jdbc:postgresql://h/d?user=a&password=SEC RET', 'x': 1}": (
        "{'url': 'jdbc:postgresql://h/d?user=a&password=...', 'x': 1}"
    ),
    "'jdbc:x?password=SEC RET&ssl=true' was refused": "'jdbc:x?password=...&ssl=true' was refused",
    '"it\'s {password: SEC RET, header: true}"': '"it\'s {password: ..., header: true}"',
    "'jdbc:sqlserver://h;password={SEC RET}S E};db=x'": "'jdbc:sqlserver://h;password=...;db=x'",
    "password='SEC''RET' and more": "password=... and more",
    'password="SEC"RET and more': "password=... and more",
    "password={SEC}RET} and more": "password=... and more",
    "Got ('password','SEC','RET') instead": "Got ('password',...) instead",
    r"[\"password\", \"SEC\", [\"RET\"]] is wrong": r"[\"password\", ...] is wrong",
    "{'password ': 'SECRET', 'header': True}": "{'password ': ..., 'header': True}",
    "jdbc:mysql://u:1234/5SECRET@h/d": "jdbc:mysql://...@h/d",
    "https://u:12345/SECRET@h/x": "https://...@h/x",
    "s3a://u:SEC'RET@bucket/x": "s3a://...@bucket/x",
    "('password', 'SECRET": "('password', ...",
}
WHOLE = [
    "abfss://container@account.dfs.core.windows.net/rows",
    "hdfs://namenode:8020/user/a@b/rows",
    "s3a://bucket/a@b",
    "file:///a/b:c@d/e",
    "/rows/a@b:c",
    "data.train.where=tokens > 3",
    "data.train.options.sep=;",
    "/models/tokens/v1",
    "{'passRate': 0.5, 'author': 'x', 'primaryKey': ['id']}",
    "path:x",
    "numTokens: 3",
    "jdbc:oracle:thin:@//h:1521/x",
    "jdbc:postgresql://h:5432/db?user=me@example&ssl=true",
    "the option 'password' is missing, and 'x', too",
    "columns ['age', 'token']",
]


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


@settings(max_examples=60, deadline=None)
@given(st.text("ab1 '\"{}[](),:=@/\\.", max_size=6), st.text("ab1 '\"{}[](),:=@/\\.", max_size=6))
def test_no_part_of_a_quoted_password_is_shown(before: str, after: str) -> None:
    password = f"{before}SECRET{after}"
    url = f"jdbc:x://h/d?user=a&password={password}&ssl=true"
    for value in (
        {"url": url, "x": 1},
        {"x": 1, "password": password, "y": [2]},
        [("x", 1), ("password", password, 3)],
    ):
        for text in (repr(value), json.dumps(value), repr(repr(value))):
            assert "SECRET" not in redacted(f"Got {text} instead")
        assert "SECRET" not in json.dumps(hidden(value)) or isinstance(value, list)
    assert "SECRET" not in without_secret(f"data.train.options.url={url}")
    braces = password.replace("}", "}}")
    assert "SECRET" not in without_secret(f"data.train.options.url=jdbc:sqlserver://h;password={{{braces}}};db=x")


def test_the_command_of_a_job_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "data.test=s3a://user:SECRET@bucket/test",
        "spark.fs.s3a.secret.key=SECRET 2",
        'data.train.options={"password": "SECRET"}',
        "fineTuner.maxEpochs=3",
    ]
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


# Names in the documentation of the connectors, by what they connect to.
SECRET_NAMES = {
    "JDBC": (
        "password sslpassword password1 trustCertificateKeyStorePassword trustStorePassword keyStoreSecret accessToken "
        "clientKeyPassword keyVaultProviderClientKey AADSecurePrincipalSecret sslKeyStorePassword newPassword apiKey "
        "oracle.net.wallet_password javax.net.ssl.keyStorePassword"
    ),
    "Snowflake": (
        "sfPassword sfToken pem_private_key private_key_base64 private_key_pwd private_key_file_pwd token passcode "
        "oauthClientSecret proxy_password awsAccessKey awsSecretKey temporary_azure_sas_token"
    ),
    "Redshift": (
        "password temporary_aws_access_key_id temporary_aws_secret_access_key temporary_aws_session_token "
        "AccessKeyID SecretAccessKey SessionToken Client_Secret webIdentityToken"
    ),
    "BigQuery": "credentials gcpAccessToken proxyPassword OAuthAccessToken OAuthRefreshToken OAuthClientSecret OAuthPvtKey",
    "MongoDB": "password tlsCertificateKeyFilePassword AWS_SESSION_TOKEN",
    "Elasticsearch": (
        "es.net.http.auth.pass es.net.ssl.keystore.pass es.net.ssl.truststore.pass es.net.proxy.http.pass "
        "es.net.proxy.socks.pass es.net.http.header.Authorization"
    ),
    "Cassandra": (
        "spark.cassandra.auth.password spark.cassandra.connection.ssl.keyStore.password "
        "spark.cassandra.connection.ssl.trustStore.password"
    ),
    "Kafka": (
        "kafka.sasl.jaas.config kafka.ssl.key.password kafka.ssl.keystore.password kafka.ssl.truststore.password "
        "kafka.ssl.keystore.key basic.auth.user.info sasl.oauthbearer.client.credentials.client.secret"
    ),
    "Redis": "spark.redis.auth auth",
    "S3A": (
        "fs.s3a.access.key fs.s3a.secret.key fs.s3a.session.token fs.s3a.encryption.key fs.s3a.server-side-encryption.key "
        "fs.s3a.proxy.password fs.s3a.bucket.rows.secret.key fs.s3n.awsSecretAccessKey"
    ),
    "ABFS": (
        "fs.azure.account.key fs.azure.account.key.lake.dfs.core.windows.net fs.azure.sas.fixed.token "
        "fs.azure.account.oauth2.client.secret fs.azure.account.oauth2.client.secret.lake.dfs.core.windows.net "
        "fs.azure.account.oauth2.user.password fs.azure.account.oauth2.refresh.token fs.azure.client-provided-encryption-key "
        "fs.azure.sas.rows.lake.blob.core.windows.net fs.azure.sas.fixed.token.lake.dfs.core.windows.net "
        "fs.azure.encryption.encoded.client-provided-key"
    ),
    "GCS": (
        "fs.gs.auth.service.account.private.key fs.gs.auth.client.secret fs.gs.auth.refresh.token fs.gs.proxy.password "
        "fs.gs.encryption.key"
    ),
    "Iceberg": "adls.sas-token.lake adls.sas-token.lake.dfs.core.windows.net adls.auth.shared-key.account.key",
    "others": (
        "pass PASS db_pass dbPass passphrase PassPhrase passWord pwd PGPASSWORD private.key authorization Proxy-Authorization "
        "sig sslkey ssl.key hmacKey sessionKey smtppass ftppass adminPass mysql_pass redis.pass authentication.kerberos.ticket "
        "Cookie AuthHeader subscriptionKey decryptionKey sshKey jwt"
    ),
}
HARMLESS_NAMES = (
    "author authority authenticator authSource authMechanism passenger passengerId passRate passThrough passport numPasses "
    "bypass compass keyword key keyspace primaryKey foreignKey partitionKey sortKey publicKey tokenizer tokens maxTokens "
    "tokenCount minTokenLength secretary signal sigma design account accountId accessCount sfUser sfAuthenticator user dbtable "
    "url sslmode es.nodes es.net.http.auth.user spark.cassandra.auth.username kafka.sasl.mechanism kafka.security.protocol "
    "kafka.ssl.keystore.location kafka.ssl.keystore.type fs.s3a.aws.credentials.provider fs.azure.account.auth.type "
    "fs.azure.account.oauth2.client.id fs.azure.sas.token.provider.type fs.gs.auth.type fs.s3a.encryption.algorithm lowerBound "
    "boardingPass boarding_pass seasonPass hasPass numPass skiPass trespass passwordless passwordResets passwordLength "
    "sslpasswordcallback credentialType secretLevel accountKeyCount accessKeyboard accountKeyboard Ticket sessionKeyspace "
    "fs.azure.account.keyprovider.x"
)


@pytest.mark.parametrize("names", SECRET_NAMES.values(), ids=SECRET_NAMES)
def test_secrets_of_connectors_are_known_by_name(names: str) -> None:
    assert [name for name in names.split() if not is_secret(name)] == []
    for name in names.split():
        assert "hunter2" not in repr(hidden({"data": [{name: "hunter2"}], "a": {name: {"b": ["hunter2"]}}}))
        assert "hunter2" not in redacted(f"{name}=hunter2") + redacted(f'a: {{"{name}": "hunter2"}}')
        assert "hunter2" not in " ".join(
            config._command_arguments(None, [f"data.train.options.{name}=hunter2 hunter2"], {})
        )


def test_names_that_read_like_those_of_secrets_stay() -> None:
    assert [name for name in HARMLESS_NAMES.split() if is_secret(name)] == []
    assert hidden(dict.fromkeys(HARMLESS_NAMES.split(), "x")) == dict.fromkeys(HARMLESS_NAMES.split(), "x")


@pytest.mark.parametrize(
    "value",
    [
        ["hunter2", "a]hunter2"],
        {"a": {"b": "hunter2"}, "c": "hunter2"},
        [["hunter2", {"hunter2"}]],
        b"hunter2",
        "it's \"hunter2",
        datetime.date(2022, 2, 2),
        "hunter2\n",
        "{hunter2",
        "",
        None,
    ],
)
def test_a_message_shows_no_value_of_a_secret_name(value: Any) -> None:
    """Whatever it is, and however deep; what stands beside it stays."""
    said = str(InputError(f"Got {[{'a': 1, 'options': {'password': value, 'header': True}}]!r} instead"))
    assert said == "Got [{'a': 1, 'options': {'password': ..., 'header': True}}] instead"
    assert str(InputError(f"Got {[('password', value)]!r}")) == "Got [('password', ...)]"


MALFORMED = [
    "{format: jdbc, options: {url: 'jdbc:postgresql://h/d', user: u, password: hunter2}}",
    "{format: jdbc, options: {dbtable: t, url: 'jdbc:sqlserver://h;user=u;password=hunter2 hunter2;db=x'}, path: x}",
    "{format: jdbc, table: t, options: {url: 'jdbc:mysql://u:hunter2@h/d', passphrase: hunter2}}",
    "{format: parquet, options: {fs.s3a.secret.key: hunter2}}",
    "{options: {private.key: hunter2, nested: {auth: [hunter2, 'hunter2 b']}}}",
    "{path: x, options: [{password: hunter2}]}",
    "{path: x, options: {password: {a: hunter2}}}",
    "{path: x, options: 'user=u&password=hunter2'}",
    "{path: {password: hunter2}}",
    "[{format: x, options: {authorization: 'Bearer hunter2'}}]",
    "[[password, hunter2]]",
    "{format: kafka, table: t, path: x, options: {kafka.sasl.jaas.config: 'x required password=\"hunter2\";'}}",
    "{format: jdbc, options: {password: *hunter2}}",
    "{format: jdbc, options: {password: !hunter2}}",
    "{format: jdbc, options: {password: 'a'hunter2}}",
    "{path: x, options: [user, u, password, hunter2]}",
    "{path: x, options: 'user u password hunter2'}",
    "{path: x, options: {'password ': hunter2, a: [1]}}",
    "{path: x, options: {'password hunter2': [1]}}",
    "{path: x, table: y, options: {'password hunter2': 1}}",
    "{path: x, 'password hunter2': 1}",
    "{path: x, options: {'password hunter2': 1, 'password hunter2': 2}}",
    "{path: [user, u, password, hunter2]}",
]


@pytest.mark.parametrize("section", MALFORMED)
def test_a_malformed_section_prints_no_secret(section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text(f"pipeline: models/churn\ndata:\n  train: {section}\noutput: {tmp_path}/out\n")
    assert main(["finetune", "--config", f"{tmp_path}/job.yaml"]) == WRONG_INPUT
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "data.train" in said or "is not YAML" in said


@pytest.mark.parametrize(
    "words",
    [
        ["data.train=rows:f", "data.train.options.password=hunter 2"],
        ["spark.fs.s3a.secret.key=[hunter 2]"],
        ["data.train.options.password=hunter 2", "data.train.options={x: [1], password: hunter 2}"],
        ["fineTuner.tags={token: hunter 2}", "fineTuner.tags.token.x=1"],
        ["spark=[{password: hunter 2}]"],
        ["spark=spark.hadoop.fs.s3a.secret.key hunter 2"],
        ["spark=[spark.hadoop.fs.s3a.secret.key, hunter 2]"],
        ["spark={fs.s3a.secret.key hunter 2: [1]}"],
        ["spark={hadoop.fs.s3a.secret.key hunter 2: x}"],
        ["tracking=token hunter 2"],
        ["tracking.mlflow=token hunter 2"],
        ["fineTuner.tags=[token, x, hunter 2]"],
        ["data.train={path: x, options: token hunter 2}", "data.train.options.header=true"],
    ],
)
def test_a_malformed_override_prints_no_secret(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    base = ["pipeline=models/churn", "data.train=x.csv", "output=out"]
    assert main(["finetune", *base, *words]) == WRONG_INPUT
    said = capsys.readouterr().err
    assert "hunter" not in said and " 2" not in said


def test_a_store_that_fails_prints_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: Any) -> None:
        raise StoreError(5, "no access for s3a://user:hunter2@lake", "s3a://user:hunter2@lake/x")

    monkeypatch.setattr("sparkdiff.cli.config.load_config", refused)
    main(["finetune", "--output", "x"])
    assert "hunter2" not in capsys.readouterr().err


def test_a_url_in_a_command_holds_no_part_of_a_secret() -> None:
    words = [
        "data.train.options.url=jdbc:postgresql://h/d?user=u&password=a hunter2&ssl=true",
        "data.train.options={password: a hunter2, header: true}",
        "data.train.options={url: 'jdbc:x;password=a hunter2;db=x', header: true}",
    ]
    assert config._command_arguments(None, words, {}) == (
        "data.train.options.url=jdbc:postgresql://h/d?user=u&password=...&ssl=true",
        "data.train.options={password: ..., header: true}",
        "data.train.options={url: 'jdbc:x;password=...;db=x', header: true}",
    )
    assert hidden({"url": "jdbc:x?user=u&password=a hunter2"}) == {"url": "jdbc:x?user=u&password=..."}


PIECES = (
    "' \" { } [ ( \\ a a: a= a@ x://u: s3a://u: s3a:// x://a:b@ token= token:{ token={} token=x; token.blob token=\\' 'token=x "
    "\\\" ('password','a' ['token',[ jdbc:oracle:x: jdbc:oracle:x:\" jdbc:oracle:x:\"\"/\" bearer datetime.x( x:1?a= Aa pass."
)


@pytest.mark.parametrize("piece", [*PIECES.split(), " ", "a b=", "token=' \""])
def test_a_long_text_is_searched_in_linear_time(piece: str) -> None:
    """Ten times the text takes at most about ten times as long, whatever it is made of and whatever surrounds it."""

    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        texts = [text, f"@{text} @", f"token={text}'", f"'{text}\\"]
        begun = time.process_time()
        for one in texts:
            redacted(one)
        is_secret(text)
        return time.process_time() - begun

    assert seconds(50_000) < 40 * max(seconds(5_000), 0.005)


def test_a_warning_holds_no_secret(tmp_path: Path) -> None:
    def refused() -> None:
        raise OSError("no access to s3a://user:hunter2@lake")

    file = tmp_path / "password=hunter2"
    file.write_text("no checkpoint")
    with pytest.warns(DamagedCheckpoint, match=r"the checkpoint .*password=\.\.\. is ignored") as warned:
        assert files.load(file) is None
    assert "hunter2" not in str(warned[0].message) and warned[0].filename == __file__
    with pytest.warns(RuntimeWarning, match=r"it failed: .*s3a://\.\.\.@lake"):
        call_or_warn("it failed", refused)


def test_only_one_function_issues_warnings() -> None:
    """Which leaves secrets out."""
    package = Path(errors.__file__).parent
    found = [str(f.relative_to(package)) for f in package.rglob("*.py") if "warnings.warn(" in f.read_text()]
    assert found == ["errors.py"]


def test_progress_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    class Listener(Events):
        def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
            heard.append(detail)

    phases = Phases(False, [Progress(Log()), Listener()])
    with phases.phase("save") as say:
        say.now("reading s3a://user:hunter2@lake/rows")
        say.shows("reading s3a://user:hunter2@lake/more")
        say("ftp://user:hunter2@h/out")
    assert "hunter2" not in capsys.readouterr().err and "hunter2" not in "".join(heard)
    assert heard[-1] == "ftp://...@h/out"


def test_a_finding_of_doctor_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.jvm, "folder", lambda *_args: Path())
    monkeypatch.setattr(doctor.jvm, "check_writable", lambda *_args: None)
    [found] = doctor._store("ftp://user:hunter2@h/x")
    assert found.found == "Spark can write to ftp://...@h/x"


def test_a_message_of_spark_holds_no_secret() -> None:
    for error in (AnalysisException("no access to s3a://user:hunter2@lake/x"), OSError("no s3a://user:hunter2@lake/x")):
        assert "s3a://...@lake/x" in jvm.message(error) and "s3a://...@lake/x" in jvm.cause(error)


def test_names_of_models_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkdiff.history.lineage.rows", lambda *_args, **_named: [])
    assert lineage("s3a://user:hunter2@lake/model", "0", Path()).model == "0"
    assert "hunter2" not in str(lineage("s3a://user:hunter2@lake/model", "0", Path()))
    assert "hunter2" not in name_of("s3a://user:hunter2@lake/model") + name_of("s3a://user:hunter2@lake")


def test_a_reader_option_that_is_no_json_is_not_shown() -> None:
    for options in ("user u password hunter2", '"hunter2"', '["hunter2"]', "[[1, 2, 'hunter2']]"):
        with pytest.raises(InputError, match="--options must be a JSON object") as refused:
            source_of("x", options=options)
        assert "hunter2" not in str(refused.value)
