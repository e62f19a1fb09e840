"""Clock that ends the rounds of growth when their time is over.

Its decisions are written to the folder of each round and read again, so that a run that is resumed after a crash has the same
result as without the crash.
"""

import dataclasses
import json
import math
import time
from pathlib import Path

from sparkdiff.store import files
from sparkdiff.training.distributed.worker import ROOM

EVERY = 1.0
"""Seconds between two writes of the time to the folder."""
SHARE = 2 / 3
"""Share of maxSeconds that rounds may take; the rest is for the training of all stages together."""


@dataclasses.dataclass
class Clock:
    """A clock of the seconds that the rounds have taken, including those before an interruption.

    Attributes:
        limit: seconds after which no further item begins; infinite without a limit.
        noted: seconds when the time was last written to the folder.
        begun: value of the monotonic clock at that moment.
    """

    limit: float = math.inf
    noted: float = 0.0
    begun: float = dataclasses.field(default_factory=lambda: time.monotonic())  # benchmarks replace this module's clock

    @staticmethod
    def of(maxSeconds: float | None) -> "Clock":
        return Clock(math.inf if maxSeconds is None else SHARE * maxSeconds)

    @property
    def seconds(self) -> float:
        return self.noted + time.monotonic() - self.begun

    @property
    def over(self) -> bool:
        return self.seconds >= self.limit

    def seconds_left(self, maxSeconds: float | None) -> float | None:
        """Seconds left of maxSeconds when the time was last written; at least a millisecond, so that one epoch can begin."""
        return None if maxSeconds is None else max(maxSeconds - self.noted, 1e-3)

    def resume(self, round: Path) -> frozenset[int]:
        """Set the clock to the time in a round's folder, and return the positions of the items that there was no time for.

        If the folder holds no time, write the time of this clock there.
        """
        if math.isinf(self.limit):
            return frozenset()
        noted = files.read_undamaged(round / "clock.json", lambda: _read_clock(round / "clock.json"))
        if noted is None:
            self.note(round)
            return frozenset()
        self.noted, self.begun = noted[0], time.monotonic()
        return noted[1]

    def tick(self, round: Path) -> None:
        """Write the time if `EVERY` seconds have passed since it was last written."""
        if self.seconds - self.noted > EVERY:
            self.note(round)

    def note(self, round: Path, late: frozenset[int] = frozenset()) -> None:
        """Write the time, and the positions of the items that there was no time for, to the folder of a round."""
        if math.isinf(self.limit):
            return
        self.noted, self.begun = self.seconds, time.monotonic()
        told = {"seconds": self.noted, "late": sorted(late)}
        with files.room("the time of a round", round, ROOM):
            files.write_bytes(round / "clock.json", json.dumps(told).encode())


def _read_clock(file: Path) -> tuple[float, frozenset[int]]:
    """Content of a clock's file: the seconds, and the positions of the items that there was no time for."""
    told = files.read_object(file)
    return float(told["seconds"]), frozenset(told["late"])
