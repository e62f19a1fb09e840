"""Callbacks that write files: a line of JSON per event, for orchestrators and `tail -f`, and a run's curves for
TensorBoard.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkdiff.errors import requires_extra
from sparkdiff.machine import secrets
from sparkdiff.report import Events
from sparkdiff.tracking.plain_values import metrics, params, plain, points


class JSONLines(Events):
    """A listener that appends a line of JSON to a file for each event, and flushes it.

    A line is an object with `event` ("phase", "epoch", "decision" or "exception"), `time` (seconds since 1970), and
    further keys: for a phase `name`, `seconds` (null until the phase ends) and `detail`; for an epoch, or a trial of a
    search, the columns of the history's row; for the decision, all values of the summary except its history; for an
    exception `error`, its text. Secrets are left out. Non-finite values are null.

    Args:
        path: the file; its folder must exist. Lines are appended to an existing file.

    Examples:
        >>> import pandas as pd
        >>> import sparkdiff
        >>> log = sparkdiff.JSONLines(f"{folder}/churn.jsonl")
        >>> tuned = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2, callbacks=[log]).fit(df)
        >>> events = pd.read_json(f"{folder}/churn.jsonl", lines=True)
        >>> sorted(events["event"].unique())
        ['decision', 'epoch', 'phase']
    """

    __module__ = "sparkdiff"

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """Write a line for the beginning, the progress or the end of a phase."""
        self._write("phase", {"name": name, "seconds": seconds, "detail": detail})

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Write a line with a row of the history."""
        self._write("epoch", secrets.hidden(row))

    def on_decision(self, record: Any) -> None:
        """Write a line with the values of the summary."""
        self._write("decision", plain(record))

    def on_exception(self, error: BaseException) -> None:
        """Write a line with the class and the text of the exception."""
        self._write("exception", {"error": secrets.redacted(f"{type(error).__name__}: {error}")})

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, default=str)
        with self.path.open(
            "a", encoding="utf-8"
        ) as file:  # opened each time: no event marks the end at which to close it
            file.write(line + "\n")


class TensorBoard(Events):
    """A listener that writes a run's curves for TensorBoard, and when the run ends its decision, figures and settings.

    Needs the package `tensorboard`: `pip install "sparkdiff[tensorboard]"`.

    Args:
        folder: the folder to write; `tensorboard --logdir` takes this folder, or one above it.

    Raises:
        InputError: the package is not installed.

    Examples:
        >>> import sparkdiff
        >>> board = sparkdiff.TensorBoard(f"{folder}/tensorboard/churn")
        >>> tuner = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2, callbacks=[board])
        >>> tuned = tuner.fit(df)  # meanwhile, `tensorboard --logdir` with the folder shows the curves
    """

    __module__ = "sparkdiff"

    def __init__(self, folder: str | Path):
        with requires_extra("tensorboard", "TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer: Any = SummaryWriter
        self.folder = str(folder)
        self._open: Any = None

    @property
    def writer(self) -> Any:
        """The writer of torch for this folder; the first use in a run creates it, and with it a file."""
        self._open = self._open or self._writer(self.folder)
        return self._open

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """Flush the file at the end of a phase."""
        if (
            seconds is not None and self._open is not None
        ):  # so that the written curves survive if the process is killed
            self._open.flush()

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row as points of curves, at the step of its epoch or trial."""
        for point in points(row):
            self.writer.add_scalar(*point)

    def on_decision(self, record: Any) -> None:
        """Write the decision, its reason, the settings other than the defaults, and the figures; close the file."""
        self.writer.add_text("decision", f"{record.decision}: {plain(record)['reason']}")
        self.writer.add_text("asked", f"```\n{json.dumps(params(record), indent=2)}\n```")
        for name, value in metrics(record).items():
            self.writer.add_scalar(f"decision/{name}", value)
        self._close()

    def on_exception(self, error: BaseException) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
