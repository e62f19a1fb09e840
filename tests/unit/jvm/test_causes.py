"""What is shown of Spark's messages. No Spark session."""

import pytest

from sparkdiff.jvm import cause, first_sentences

NULL = """Encountered null while assembling a row with handleInvalid = "error". Consider
removing nulls from dataset or using handleInvalid = "keep" or "skip"."""
WHOLE = NULL.replace("\n", " ")


UNRESOLVED = "cannot resolve 'x' given input columns: [a]; line 1 pos 0;"
DIVIDED = "[DIVIDE_BY_ZERO] Division by zero. SQLSTATE: 22012"
PARSED = "[PARSE_SYNTAX_ERROR] Syntax error at 'x'. SQLSTATE: 42601 (line 1, pos 7)"
FRAME = "\n\tat org.apache.spark.scheduler.Task.run(Task.scala:147)"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (NULL, WHOLE),
        (f"{NULL}{FRAME}", WHOLE),
        (f"Task 0 failed: no such thing{FRAME}", "Task 0 failed: no such thing"),
        (f"{UNRESOLVED}\n'Project ['x]", UNRESOLVED),
        (f"{DIVIDED}\n== DataFrame ==\n", DIVIDED),
        (f"\n{PARSED}\n\n== SQL ==\nx", PARSED),
        ("", ""),
    ],
)
def test_sentences_are_shown_to_their_end(message: str, shown: str) -> None:
    assert first_sentences(message) == shown


def test_what_connect_tells_as_text() -> None:
    causes = [f"org.apache.spark.SparkException: a task failed{FRAME}", f"java.lang.Error: {NULL}{FRAME}"]
    text = "\nCaused by: ".join(["Job aborted.", *causes])
    assert cause(RuntimeError(text)) == WHOLE
