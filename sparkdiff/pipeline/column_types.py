"""Types of the columns of a text file, as told by the fitted pipeline that is to read them: the file alone doesn't tell that a
zip code is a text.
"""

import re
from collections.abc import Sequence
from itertools import repeat
from typing import Any

from pyspark.ml import Transformer
from pyspark.ml.feature import RegexTokenizer, StringIndexerModel, Tokenizer
from pyspark.sql.types import DataType, DoubleType, NumericType, StringType, StructType

from sparkdiff import jvm
from sparkdiff.jvm.number_text import texts_of
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.nesting import flatten

_INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)


def types_by_model(model: Any, schema: StructType) -> dict[str, str]:
    """Spark's names of the types of columns that the pipeline needs in another type than that of the schema, because Spark would
    make other texts of the values than a StringIndexer has as labels, or because a tokenizer takes texts only.

    Empty for an unfitted pipeline, which has no labels.
    """
    casefold, found = casefolding(), dict[str, str]()
    fields = {casefold(field.name): field for field in schema if not isinstance(field.dataType, StringType)}
    for _, stage in flatten(model) if isinstance(model, Transformer) else ():
        if isinstance(stage, (StringIndexerModel, RegexTokenizer, Tokenizer)):
            several = isinstance(stage, StringIndexerModel) and stage.isSet(stage.inputCols)
            names = stage.getOrDefault("inputCols") if several else [stage.getInputCol()]
            for name, labels in zip(names, getattr(stage, "labelsArray", repeat(None)), strict=False):
                field = fields.get(casefold(jvm.unquoted(name)))
                if field and (needed := _type_of(labels, field.dataType)) != field.dataType.simpleString():
                    found.setdefault(field.name, needed)
    return found


def _type_of(labels: Sequence[str] | None, inferred: DataType) -> str:
    """The type of which Spark makes all of these labels: the inferred one, or else double, or else string."""
    if labels is None or not isinstance(inferred, NumericType):
        return "string"
    if not isinstance(inferred, DoubleType) and all(map(_INTEGER.fullmatch, labels)):
        return inferred.simpleString()
    # As printed by old and new releases of Java: the pipeline may have been fitted on another.
    printed = {label for java in (17, 21) for label, _, text in texts_of(labels, "double", java) if label == text}
    return "double" if printed.issuperset(labels) else "string"
