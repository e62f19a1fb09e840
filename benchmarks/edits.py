"""What do ten edits of one pipeline cost, where caches and the rows after the first stages are kept?

A text pipeline (RegexTokenizer, StopWordsRemover, NGram, Word2Vec, StandardScaler, LogisticRegression) on the docstrings
of installed packages is fine-tuned eleven times, the first time as it is and then after one edit each, in the order in which one
might try them: settings of the last stages, of the middle ones, a stage less, a stage more. Three ways: `scratch` (no cache is
there), `caches` (one folder of caches), `reuse` (`reuseStages` too). Counted are Spark's jobs
and the CPU seconds of this process and its JVM, all of `FineTuner.fit`, of which `training` is the part that no way saves.
Spark fits the pipelines before, which isn't counted: a stage anew where it or one before it has changed, as in a notebook (fitted
again on the same rows, a Word2Vec is another model, and nothing behind it is reused).

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/edits.py --out edits.json
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import exit_code, folder_of, markdown, parse, parser, write
from pyspark.ml import Estimator, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    NGram,
    RegexTokenizer,
    SQLTransformer,
    StandardScaler,
    StopWordsRemover,
    VectorAssembler,
    Word2Vec,
)
from pyspark.sql import DataFrame, SparkSession
from sparse import real, session

import sparkdiff
from sparkdiff.jvm.sessions import count_jobs

WAYS = ("scratch", "caches", "reuse")


@dataclasses.dataclass(frozen=True)
class Form:
    """The settings of the pipeline that the edits change."""

    pattern: str = r"\W+"
    stop: bool = True
    words: int = 1
    size: int = 32
    window: int = 5
    lengths: bool = False
    centred: bool = False
    penalty: float = 1.0

    def model(self, rows: DataFrame) -> PipelineModel:
        stages: list[Any] = [RegexTokenizer(inputCol="text", outputCol="all", pattern=self.pattern)]
        if self.stop:
            stages.append(StopWordsRemover(inputCol="all", outputCol="some"))
        if self.words > 1:
            stages.append(NGram(inputCol=stages[-1].getOutputCol(), outputCol="grams", n=self.words))
        vectors = Word2Vec(
            inputCol=stages[-1].getOutputCol(),
            outputCol="meaning",
            vectorSize=self.size,
            windowSize=self.window,
            seed=1,
            maxIter=1,
            minCount=5,
        )
        inputs = ["meaning", *(["long"] if self.lengths else [])]
        if self.lengths:
            stages.append(SQLTransformer(statement="SELECT *, log(1 + size(all)) AS long FROM __THIS__"))
        scaler = StandardScaler(inputCol="features", outputCol="scaled", withMean=self.centred)
        head = LogisticRegression(featuresCol="scaled", regParam=self.penalty, maxIter=5)
        assembler = VectorAssembler(inputCols=inputs, outputCol="features")
        return fitted(rows, [*stages, vectors, assembler, scaler, head])


_known: dict[str, Any] = {}


def fitted(rows: DataFrame, stages: list[Any]) -> PipelineModel:
    """The stages, each fitted once for the settings of itself and of those before it."""
    chain, models = "", []
    for stage in stages:
        params = {
            p.name: v for p, v in stage.extractParamMap().items() if p.name != "seed" or isinstance(stage, Word2Vec)
        }
        chain += f"{type(stage).__name__} {sorted(params.items())};"
        if chain not in _known:
            _known[chain] = stage.fit(rows) if isinstance(stage, Estimator) else stage
        models.append(_known[chain])
        rows = models[-1].transform(rows)
    return PipelineModel(models)


EDITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as it is", {}),
    ("regParam 0.1", {"penalty": 0.1}),
    ("vectorSize 64", {"size": 64}),
    ("vectorSize 16", {"size": 16}),
    ("withMean", {"centred": True}),
    ("windowSize 10", {"window": 10}),
    ("pairs of words", {"words": 2}),
    ("a column more", {"words": 1, "lengths": True}),
    ("regParam 0.01", {"penalty": 0.01}),
    ("no stop words", {"stop": False}),
    ("vectorSize 32", {"size": 32}),
)
"""What each edit changes, on top of those before it."""


def cpu(spark: SparkSession) -> float:
    """CPU seconds of this process and of its JVM."""
    pid = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()  # type: ignore[union-attr]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / 100


def fit(spark: SparkSession, model: PipelineModel, rows: DataFrame, folder: Path, way: str) -> dict[str, Any]:
    """One fine-tuning, and what it cost."""
    if way == "scratch":
        shutil.rmtree(folder, ignore_errors=True)
    before = cpu(spark)
    with count_jobs(spark) as jobs:
        tuned = sparkdiff.FineTuner(
            pipeline=model,
            cacheDir=str(folder),
            reuseStages=way == "reuse",
            maxEpochs=1,
            recipe="fast",
            stream="arrow",
            guard=1.0,
        ).fit(rows)
        cache, timings = tuned.summary.cache, tuned.summary.timings
        return {
            "jobs": jobs(),
            "cpu": cpu(spark) - before,
            "seconds": sum(timings.values()),
            "training": timings["train"],
            "hit": cache["hit"],
            "read": len(cache.get("stagesRead", ())),
            "kept": len(cache.get("stagesKept", ())),
        }


def shown(found: list[dict[str, Any]]) -> str:
    lines = []
    for i, (name, _) in enumerate(EDITS[: len(found)]):
        cells = found[i]
        reuse = cells["reuse"]
        how = "the cache" if reuse["hit"] else f"{reuse['read']} stages" if reuse["read"] else "nothing"
        kept = f", keeps {reuse['kept']}" if reuse["kept"] else ""
        lines.append([name, *(f"{cells[w]['jobs']} / {cells[w]['cpu']:.1f}" for w in WAYS), how + kept])
    total = {w: (sum(f[w]["jobs"] for f in found), sum(f[w]["cpu"] for f in found)) for w in WAYS}
    lines.append(["all", *(f"{jobs} / {seconds:.0f}" for jobs, seconds in total.values()), ""])
    return markdown(["edit", *(f"{w}: jobs / CPU s" for w in WAYS), "`reuse` takes"], lines)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--folder", type=Path, help="where caches are written; by default a temporary one")
    p.add_argument("--edits", type=int, default=len(EDITS) - 1)
    p.add_argument("--copies", type=int, default=3, help="of each document, numbered, so that the rows are more")
    given = parse(p, edits=1, copies=1)
    folder = folder_of(given)
    folder.mkdir(parents=True, exist_ok=True)
    spark = session()
    table = real(("sklearn", "scipy"))
    pq.write_table(table, folder / "rows.parquet")
    rows = spark.read.parquet(f"file://{folder}/rows.parquet").selectExpr(
        f"explode(sequence(1, {given.copies})) AS copy", "text", "label"
    )
    rows.selectExpr("concat(text, ' ', copy) AS text", "label").write.parquet(f"file://{folder}/copies")
    rows = spark.read.parquet(f"file://{folder}/copies")
    form, found = Form(), []
    for name, changes in EDITS[: given.edits + 1]:
        form = dataclasses.replace(form, **changes)
        model = form.model(rows)
        found.append({way: fit(spark, model, rows, folder / f"caches-{way}", way) for way in WAYS})
        print(name, {w: (c["jobs"], round(c["cpu"], 1)) for w, c in found[-1].items()}, file=sys.stderr)
    spark.stop()
    print(f"{table.num_rows * given.copies:,} rows\n\n{shown(found)}")
    figures = {
        f"{what}, share of scratch, {way}": sum(f[way][what] for f in found) / sum(f["scratch"][what] for f in found)
        for what in ("jobs", "cpu")
        for way in WAYS[1:]
    }
    write(given, found, figures)
    return exit_code(given, figures["cpu, share of scratch, reuse"] > figures["cpu, share of scratch, caches"])


if __name__ == "__main__":
    sys.exit(main())
