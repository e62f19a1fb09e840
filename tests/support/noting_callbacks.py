"""Callbacks that note what they hear."""

from typing import Any

from sparkdiff.report import Events


class Failures(Events):
    """Keeps the exceptions that it hears of."""

    def __init__(self) -> None:
        self.heard: list[BaseException] = []

    def on_exception(self, error: BaseException) -> None:
        self.heard.append(error)


class Watcher:
    def __init__(self, broken: bool = False):
        self.broken, self.said, self.listener = broken, list[Any](), Failures()

    def on_fit_begin(self, estimator: Any) -> Events:
        self.said.append(estimator)
        if self.broken:
            raise OSError("no server")
        return self.listener

    def on_fit_end(self, listener: Events, model: Any) -> None:
        self.said.append(model)
