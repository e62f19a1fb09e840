"""ExtendedTuner: what estimators share that have settings of their own beside the options of FineTuner."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pyspark.ml import Estimator, Pipeline
from pyspark.sql import DataFrame

from sparkdiff.costs import Cost
from sparkdiff.data.splits import Source
from sparkdiff.errors import InputError, check_dataframe
from sparkdiff.estimator import FineTuner
from sparkdiff.fine_tuning.option_params import checked
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.options import Options, refuse
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import Phases


def _names(settings: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(settings))


class ExtendedTuner(FineTuner):
    """A FineTuner with settings of its own, and another procedure."""

    WHY_REFUSED: ClassVar[Mapping[str, str]] = {}
    """Options of fine-tuning that it does not have, and why."""
    DESCRIBE: ClassVar[Callable[..., str]]
    """The plan of a fitted pipeline, as text: of the pipeline, the options, the settings and the rows."""
    PROCEDURE: ClassVar[Callable[..., Outcome]]
    """Runs on a fitted pipeline, or on an unfitted Pipeline: with the options, the settings, the sources and the phases."""

    def options(self) -> Options:
        """The resolved options; rows are divided as shows the smallest gains where `numFolds` is not set."""
        found = super().options()
        return found if self.isSet("numFolds") else dataclasses.replace(found, numFolds="auto")

    def _run(self, given: Any, options: Options, sources: Sequence[Source], phases: Phases) -> Outcome:
        if not isinstance(given, Pipeline):  # what is wrong is found before anything is fitted
            self.DESCRIBE(plain(given), options, self.settings(), sources[0].df)
        return self.PROCEDURE(given, options, self.settings(), sources, phases)

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name, why in self.WHY_REFUSED.items():
            if given.get(name):
                raise InputError(f"{name} is no option of {type(self).__name__}: {why}")
        own = {name: value for name, value in given.items() if name in _names(self.SETTINGS)}
        others = {name: value for name, value in given.items() if name not in own}
        problems, found = [], dict[str, Any]()
        for kind, part in ((Options, others), (self.SETTINGS, own)):
            try:
                found |= checked(kind, part)
            except InputError as e:
                problems.append(str(e))
        refuse(problems)
        return found

    def settings(self) -> Any:
        """The resolved options beside those of fine-tuning."""
        names = _names(self.SETTINGS)
        return self.SETTINGS.of({p.name: v for p, v in self._paramMap.items() if p.name in names})

    def explain(self, dataset: DataFrame) -> str:
        """The plan of `fit` of these rows, as text: what would be tried, what not, and why. Runs no Spark job.

        Raises:
            InputError: the pipeline is not fitted, or it or an option does not fit.
        """
        given = self._given()
        check_dataframe("the dataset of explain()", dataset)
        if isinstance(given, Estimator):
            raise InputError(
                f"{given.uid} isn't fitted, and its columns are not known before: explain a fitted pipeline"
            )
        return self.DESCRIBE(plain(given), self.options(), self.settings(), dataset)

    def cost(self, dataset: DataFrame) -> Cost:
        """Not known: what is tried depends on what is found.

        Raises:
            InputError: always.
        """
        own = type(self).__name__
        raise InputError(
            f"the cost of {own} is not known before: what it tries depends on what it finds. explain(df) tells what it may try, "
            "and FineTuner's cost(df) what one training takes"
        )

    def saved_params(self) -> dict[str, Any]:
        return super().saved_params() | {n: v for n, v in self.settings().asdict().items() if self.isSet(n)}
