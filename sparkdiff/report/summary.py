"""The report of a fine-tuning run: decision, metrics before and after, history, parity, timings."""

from typing import TYPE_CHECKING

from sparkdiff.report.record import RunRecord
from sparkdiff.report.table import before_after

if TYPE_CHECKING:
    import pandas as pd


class FineTuningSummary(RunRecord):
    """The report of one run. `print(summary)` shows the before/after table; `history` is a pandas DataFrame.

    Its other attributes are those of `sparkdiff.report.RunRecord`: decision, reason, metrics, gain, warnings and so on.
    """

    __module__ = "sparkdiff"

    @property
    def history(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame(self.records)

    def __str__(self) -> str:
        return before_after(self.asdict())
