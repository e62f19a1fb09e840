"""LabelModel: an Estimator that learns from votes how good each labelling function is; its model adds class probabilities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from pyspark.ml import Estimator, Model, PipelineModel
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_dataframe, did_you_mean, kind_of
from sparkdiff.estimators.option_params import CheckedParams
from sparkdiff.labeling.estimates import (
    ABSTAINS,
    STEPS,
    Estimate,
    UndeterminedError,
    em,
    precision,
    residual_correlations,
    triplets,
)
from sparkdiff.labeling.label_summary import LabelSummary, summary_fields
from sparkdiff.labeling.posterior_stages import added_by, stages_of
from sparkdiff.labeling.votes import Votes, count_vote_patterns
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.nesting import Holder

METHODS = ("auto", "triplets", "em", "precision")
LEAST = 3
"""Smallest number of functions: without labels, fewer functions can't be distinguished from chance."""
DEPENDENT = 0.03
"""Functions count as dependent from this root mean square of the correlations of their votes that classes don't explain."""
MOST_CLASSES = 100
"""Largest number of classes, unless numClasses is set."""
OFF = 0.1
"""Largest relative difference, without a warning, between the class share that `triplets` estimates and the mean
probability that its estimate gives to the rows."""
WITHIN = 1.92
"""Largest difference of two log-likelihoods that chance explains at a level of 5% (half of chi-squared's 3.84)."""
PAIRS = 5_000
"""Smallest number of pairs of votes on a row for which method="auto" uses a full model; measured in docs/measured/labels.md."""


class _LabelParams(Params):
    votes: Param[Any] = Param(
        Params._dummy(), "votes", "SQL expressions by name, each a class (0, 1, 2, ...) or null to abstain"
    )  # type: ignore[no-untyped-call]
    method: Param[str] = Param(
        Params._dummy(),
        "method",
        "triplets (closed form, two classes), em (Dawid and Skene), precision (for few rows, and for functions that are not "
        "independent), or auto: em where the votes keep its assumptions, else precision",
        TypeConverters.toString,
    )  # type: ignore[no-untyped-call]
    numClasses: Param[int] = Param(
        Params._dummy(),
        "numClasses",
        "number of classes; if unset, one more than the largest vote",
        TypeConverters.toInt,
    )  # type: ignore[no-untyped-call]
    classBalance: Param[list[float]] = Param(
        Params._dummy(), "classBalance", "share of each class; if unset, it is estimated", TypeConverters.toListFloat
    )  # type: ignore[no-untyped-call]
    labelCol: Param[str] = Param(
        Params._dummy(),
        "labelCol",
        "column of classes, null where a row has no label; if unset, there are no labels",
        TypeConverters.toString,
    )  # type: ignore[no-untyped-call]
    weightCol: Param[str] = Param(Params._dummy(), "weightCol", "column of row weights", TypeConverters.toString)  # type: ignore[no-untyped-call]
    probabilityCol: Param[str] = Param(
        Params._dummy(),
        "probabilityCol",
        "vector of class probabilities to add; beside it columns with _0, _1, ... and _scores",
        TypeConverters.toString,
    )  # type: ignore[no-untyped-call]
    seed: Param[int] = Param(
        Params._dummy(),
        "seed",
        "seed of the sample of rows where there are very many patterns of votes",
        TypeConverters.toInt,
    )  # type: ignore[no-untyped-call]

    def value_of(self, name: str) -> Any:
        """The value of a Param; None if it is unset."""
        return self.getOrDefault(name) if self.isDefined(name) else None


PARAMS = ("votes", "method", "numClasses", "classBalance", "labelCol", "weightCol", "probabilityCol", "seed")


class LabelModel(Estimator, CheckedParams, _LabelParams, jvm.Persistent):  # type: ignore[type-arg]
    """An Estimator that learns from votes, without needing labels, how often each labelling function is right; its model
    adds class probabilities.

    A labelling function is an SQL expression whose value is a vote for a class (0, 1, 2, ...), or null to abstain, such
    as `CASE WHEN amount > 5000 AND device_new THEN 1 END`. It may call registered UDFs by name.

    The model assumes that functions are independent given the class, and better than chance on average. `fit(df)`
    returns a `LabelModelModel`.

    Args:
        votes: name -> expression, or a list of expressions, which are then their own names. At least three.
        **params: see `explainParams()`.

    Raises:
        InputError: a Param is unknown or invalid. `fit` also raises it if the votes or rows can't be used, such as votes
            that are not classes.

    Examples:
        >>> import sparkdiff
        >>> calls = "CASE WHEN calls > 3 THEN 1 WHEN calls < 2 THEN 0 END"
        >>> months = "CASE WHEN months < 24 THEN 1 END"
        >>> visits = "CASE WHEN visits < 4 THEN 1 WHEN visits > 12 THEN 0 END"
        >>> labels = sparkdiff.LabelModel({"many calls": calls, "new customer": months, "seldom here": visits}).fit(df)
        >>> print(labels.summary)
        3 functions on 600 rows, ...
        >>> scored = labels.transform(df)  # with the classes' probabilities in the vector `probability`
    """

    __module__ = "sparkdiff"

    def __init__(self, votes: Any = None, **params: Any):
        super().__init__()
        self._setDefault(method="auto", probabilityCol="probability", seed=0)
        self.setParams(**({} if votes is None else {"votes": votes}), **params)

    def _set(self, **values: Any) -> Any:
        for name in values:
            if name not in PARAMS:
                raise InputError(f"unknown option {name!r} of LabelModel. {did_you_mean(name, PARAMS)}")
        if "votes" in values:
            values["votes"] = _votes_by_name(values["votes"])
        if values.get("method", METHODS[0]) not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {values['method']!r}")
        if (n := values.get("numClasses")) is not None and (not isinstance(n, Integral) or n < 2):
            raise InputError(f"numClasses must be a whole number from 2 on, got {n!r}")
        try:
            return super()._set(**values)
        except TypeError as e:
            raise InputError(str(e)) from e

    @jvm.interruptible()
    def _fit(self, dataset: DataFrame) -> "LabelModelModel":
        check_dataframe("the dataset of fit()", dataset)
        if dataset.isStreaming:
            raise InputError(
                "fit() reads all rows, and these are a stream: fit on rows that were saved, and transform the stream"
            )
        votes, column = self.value_of("votes") or {}, self.getOrDefault("probabilityCol")
        if len(votes) < LEAST:
            raise InputError(
                f"LabelModel needs {LEAST} labeling functions or more, got {len(votes)}: without labels, fewer don't show which "
                "of them is right"
            )
        found = count_vote_patterns(
            dataset, votes, self.value_of("labelCol"), self.value_of("weightCol"), self.getOrDefault("seed")
        )
        k = _classes(found, list(votes), self.value_of("numClasses"))
        _check_telling(found, list(votes))
        _check_output(column, k, dataset.columns)
        balance = _balance(self.value_of("classBalance"), k)
        method = self.getOrDefault("method")
        if method == "triplets" and k > 2:
            raise InputError(f"method='triplets' is for two classes, and the votes name {k}: set method='em' or 'auto'")
        method, estimate, doubts = _choose_estimate(method, found, k, balance, list(votes))
        if (label := self.value_of("labelCol")) is not None and (found.known < 0).all():
            doubts = [f"labelCol={label!r} is null in all rows, so no label is used or compared with", *doubts]
        plain = stages_of(list(votes.values()), estimate, column)
        summary = summary_fields(list(votes), found, estimate)
        model = LabelModelModel(
            plain, LabelSummary(**summary | {"method": method, "warnings": [*doubts, *summary["warnings"]]})
        )
        with jvm.as_input_error(f"the votes ({', '.join(map(repr, votes))}) can't be computed by an SQLTransformer"):
            plain.transform(dataset).schema  # noqa: B018  # analysed by Spark
        return self._copyValues(model)  # type: ignore[return-value]

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Params that are set, ready for JSON, and no stages, as `write` saves them."""
        return {"params": self.params_set()}, {}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "LabelModel":
        """An Estimator with the values that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: not used, because a LabelModel holds no stages.

        Raises:
            InputError: a Param is unknown or has a wrong value.
        """
        return cls(**values["params"])


def _choose_estimate(
    method: str, votes: Votes, k: int, balance: Any, names: Sequence[str]
) -> tuple[str, Estimate, list[str]]:
    """The method that is used, its estimate, and reasons to doubt the estimate.

    Raises:
        InputError: method='triplets', and the votes don't determine the accuracies of three functions.
    """
    v, w, given = votes.patterns, votes.weights, {"balance": balance, "known": votes.known}
    on = (v != ABSTAINS).sum(1)
    pairs = float(votes.rows @ (on * (on - 1) / 2))
    if method == "precision":
        return method, precision(v, w, k, **given), []
    if method == "auto" and pairs < PAIRS:
        doubt = f"there are only {pairs:,.0f} pairs of votes on the same row, and below {PAIRS:,} a full model is often wrong"
        return "precision", precision(v, w, k, **given), [f"{doubt}. {ROUGH}"]
    try:
        found = triplets(v, w, balance) if method == "triplets" else em(v, w, k, **given)
    except UndeterminedError as e:
        raise InputError(
            f"method='triplets' can't be used: {e}; covariances of 0 or of contradicting signs tell nothing. Set method='auto', "
            "or add functions that vote on the same rows as others"
        ) from e
    size, largest, (i, j) = residual_correlations(found, v, w)
    doubts = list(_doubts(method, found, votes, balance))
    if size < DEPENDENT:
        return method if method != "auto" else "em", found, doubts
    doubt = (
        "the functions do not vote independently, given the class: "
        f"{names[i]!r} and {names[j]!r} are correlated by {largest:+.2f} beyond what it explains"
    )
    if method == "auto":
        return "precision", precision(v, w, k, **given), [f"{doubt}. {ROUGH}"]
    return method, found, [f"{doubt}, so the accuracies may be wrong; method='precision' asks for less", *doubts]


ROUGH = (
    "So accuracies are only rough, and at least those of chance, and the classes are taken for equally frequent unless \
classBalance is set (method='precision')"
)


def _doubts(method: str, found: Estimate, votes: Votes, balance: Any) -> Iterator[str]:
    """Warnings if EM did not converge, or if the votes do not determine the shares of the classes."""
    v, w, rare = votes.patterns, votes.weights, int(found.balance.argmin())
    share, own = found.balance[rare], found.posterior(v)[:, rare] @ w / w.sum()
    if not found.converged:
        yield (
            "method='em' stopped before it converged, or where the likelihood is flat: accuracies and shares may be far from the "
            "most likely ones. Set classBalance, or drop functions that hardly vote"
        )
    if balance is None and method == "triplets" and abs(own - share) > OFF * share:
        yield (
            f"method='triplets' estimates the share of class {rare} as {share:.2%}, but then gives it {own:.2%} of the rows: it "
            "can't tell the shares of the classes from these votes; set classBalance, or method='em'"
        )
    if balance is None and method != "triplets":
        half = np.where(np.arange(len(found.balance)) == rare, share / 2, found.balance * (1 - share / 2) / (1 - share))
        # EM starts only from this estimate: all starts would double the time, and a few steps show if the tables can adapt.
        there = em(v, w, len(half), balance=half, known=votes.known, start=replace(found, balance=half), maxIter=STEPS)
        if there.likelihood > found.likelihood - WITHIN:
            yield (
                f"the votes hardly tell the share of class {rare}: half of the estimated {share:.2%} would explain them about as "
                "well. Set classBalance, or add functions"
            )


def _votes_by_name(votes: Any) -> dict[str, str]:
    """Name -> expression.

    Raises:
        InputError: `votes` is neither a mapping nor a list, a name or an expression is not a string or is empty, or a list
            has an expression twice.
    """
    found = (
        dict(votes)
        if isinstance(votes, Mapping)
        else {v: v for v in votes}
        if isinstance(votes, (list, tuple))
        else None
    )
    wrong = "votes must be SQL expressions by name, {'big': 'CASE WHEN amount > 5000 THEN 1 END', ...}, got "
    if found is None:
        raise InputError(wrong + kind_of(votes))
    for name, vote in found.items():
        if not all(isinstance(x, str) and x.strip() for x in (name, vote)):
            raise InputError(f"{wrong}{name!r}: {vote!r}")
    if not isinstance(votes, Mapping) and len(found) < len(votes):
        raise InputError("votes names an expression twice: it would count twice")
    return found


def _classes(votes: Votes, names: Sequence[str], given: int | None) -> int:
    """Number of classes: `given`, or one more than the largest vote or label, at least two.

    Raises:
        InputError: there are no rows or no votes; a vote or a label is too large; or `given` is None and a class below the
            largest one occurs nowhere (class 0 of two may be missing).
    """
    if not len(votes.patterns):
        raise InputError("the data of fit() have no rows: check how they are read and filtered")
    if votes.patterns.max() == ABSTAINS:
        raise InputError(f"no function votes on any row ({', '.join(names)}): they all abstain")
    largest = int(max(votes.patterns.max(), votes.known.max()))
    if largest >= (given or MOST_CLASSES):
        highest = votes.patterns.max(0)
        who = repr(names[int(highest.argmax())]) if highest.max() == largest else "the label"
        if given is None:
            raise InputError(
                f"{who} is {largest} in some rows, so there would be {largest + 1:,} classes. A vote is the number of a class, "
                f"no id; set numClasses if there are more than {MOST_CLASSES}"
            )
        raise InputError(f"{who} is {largest} in some rows, but numClasses={given}: classes are 0 to {given - 1}")
    seen = {*votes.patterns.ravel().tolist(), *votes.known.tolist()}
    missing = [y for y in range(largest) if y not in seen]
    if given is None and missing and largest > 1:
        voters = votes.patterns.max(0) == largest
        who = repr(names[int(voters.argmax())]) if voters.any() else "the label"
        raise InputError(
            f"{who} is {largest} in some rows, but no vote and no label is {', '.join(map(str, missing))}: classes are 0, 1, 2 "
            f"and so on. Correct it, or set numClasses={largest + 1} if there are so many classes"
        )
    return max(largest + 1, 2) if given is None else given


def _check_telling(votes: Votes, names: Sequence[str]) -> None:
    """Check that at least three functions have votes that differ between rows.

    Raises:
        InputError: fewer functions do.
    """
    mute = [name for name, v in zip(names, votes.patterns.T, strict=True) if (v == v[0]).all()]
    if len(names) - len(mute) < LEAST:
        raise InputError(
            f"LabelModel needs {LEAST} functions or more whose votes differ between rows, got {len(names) - len(mute)}: "
            f"{', '.join(map(repr, mute))} abstain, or vote the same, on all rows"
        )


def _check_output(column: str, k: int, columns: Sequence[str]) -> None:
    """Check the names of the columns to add.

    Raises:
        InputError: probabilityCol is not a valid name for both SQL and VectorAssembler (it is empty, or has a dot or a
            backtick), or a column to add already exists.
    """
    if not column or "." in column or "`" in column:
        raise InputError(f"probabilityCol={column!r} must be a name without dots and backticks: choose another one")
    if taken := _colliding_columns(column, k, columns):
        raise InputError(
            f"probabilityCol={column!r} would add columns that the data have already ({', '.join(taken)}): drop them, or set "
            "probabilityCol to another name"
        )


def _colliding_columns(column: str, k: int, columns: Sequence[str]) -> list[str]:
    """Existing columns with the name of a column that a model of k classes adds."""
    casefold = casefolding()
    there = {casefold(c): c for c in columns}
    return [there[casefold(c)] for c in added_by(column, k) if casefold(c) in there]


def _balance(given: Sequence[float] | None, k: int) -> Any:
    if given is None:
        return None
    if len(given) != k or not min(given) > 0 or not abs(sum(given) - 1) <= 1e-6:  # NaN is refused, too
        raise InputError(f"classBalance must be {k} shares above 0 whose sum is 1, got {list(given)}")
    return np.array(given)


class LabelModelModel(Holder, Model, _LabelParams, jvm.Persistent):  # type: ignore[type-arg]
    """The fitted model of a LabelModel, with the same Params.

    Attributes:
        pipelineModel: plain Spark ML stages (SQLTransformer and VectorAssembler) that add the probabilities; they can be
            served without sparkdiff.
        summary: estimates for the functions, see `LabelSummary`.
    """

    __module__ = "sparkdiff"

    def __init__(self, pipelineModel: PipelineModel, summary: LabelSummary):
        super().__init__()
        self._setDefault(method="auto", probabilityCol="probability", seed=0)
        self.pipelineModel, self.summary = pipelineModel, summary

    def copy(self, extra: Any = None) -> "LabelModelModel":
        """A copy that shares the pipeline, unless `extra` sets a Param of one of its stages.

        Raises:
            InputError: `extra` (which may come from `transform(df, params)`) changes a Param with which the model was fitted.
        """
        own = {param.name: value for param, value in (extra or {}).items() if param.parent == self.uid}
        if changed := [name for name, value in own.items() if value != self.value_of(name)]:
            raise InputError(
                f"{self.uid} was fitted with its {', '.join(changed)}: set this on the LabelModel and fit again, or rename the "
                "columns of the result"
            )
        return super().copy(extra)  # type: ignore[no-any-return]

    def _transform(self, dataset: DataFrame) -> DataFrame:
        try:
            return super()._transform(dataset)  # type: ignore[no-any-return]
        except jvm.SparkError as e:
            if taken := _colliding_columns(
                self.getOrDefault("probabilityCol"), len(self.summary.balance), dataset.columns
            ):
                raise InputError(
                    f"the data have columns of these names already ({', '.join(taken)}): drop them before transform()"
                ) from e
            raise InputError(f"the votes can't be computed from the data: {jvm.cause(e)}") from e

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Params that are set and the summary, ready for JSON, and the plain stages by name, as `write` saves
        them.
        """
        return {"params": self.params_set(), "summary": self.summary.asdict()}, {"pipelineModel": self.pipelineModel}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "LabelModelModel":
        """A model with the values and the plain stages that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.
        """
        new = cls(stage("pipelineModel"), LabelSummary(**values["summary"]))
        return new._set(**values["params"])  # type: ignore[return-value]
