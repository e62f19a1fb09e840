"""How much of a fleet's kept gain does triage reach, and for how many core-seconds? A replay of the runs of benchmarks/fleet.py.

Leave one data set out: the runs of a set are forecast by a model that was learned from those of all other sets. Then all runs
are one fleet, ordered as triage orders them. Gains are relative, 0 where the original was kept, and count up to 50%. The
core-seconds are those that were measured: of the facts of every pipeline, which triage pays first, and of the runs, of one that
is stopped those until then. Against it: "run everything with patience", and the same runs in a random order (mean of 1,000
orders). Everything is also told without the runs of bike sharing's PCA pipelines.

Starts no Spark. Fails where less than half of the core-seconds is saved at 95% of the kept gain. --priors writes the runs that
sparkdiff ships, from which forecasts start; without --folder, these are replayed.

    python benchmarks/triage.py --folder runs/fleet
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, read_lines, surroundings, write

from sparkdiff.fleet.triage_run import SHARE
from sparkdiff.history import run_table
from sparkdiff.history.pipeline_facts import earlier_run_facts
from sparkdiff.history.run_forecasts import EARLY, MOST, PRIORS, Forecast, Forecaster, PastRun, priors

WANTED, SAVED = 0.95, 0.5
"""The share of the kept gain that is to be reached, and the least share of core-seconds saved there."""
ORDERS = 1000
SMALL = 1000
"""Rows of a table from which on it is no small one."""
STEPS = ("first", "again", "new")
"""Of a cell, in their order."""
OWN = ("set", "kind", "step", "planted", "factsSeconds", "stopsAfter")
"""What a shipped run holds beside what forecasts learn from."""
PLAN = (
    "rows",
    "heldOut",
    "parameters",
    "width",
    "stages",
    "trainedStages",
    "trainedBeforeHead",
    "candidates",
    "regParam",
)
"""Facts that need no rows, with the kind of the head."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the fleet.

    Attributes:
        known: what a forecast learns from it.
        factsSeconds: core-seconds of its facts.
        stopsAfter: core-seconds until triage stops it; None if it does not.
    """

    set: str
    kind: str
    step: str
    planted: bool
    known: PastRun
    factsSeconds: float
    stopsAfter: float | None

    @property
    def gain(self) -> float:
        return min(self.known.gain, MOST) if self.known.kept else 0.0

    def spent(self, stopping: bool) -> float:
        return self.known.coreSeconds if self.stopsAfter is None or not stopping else self.stopsAfter

    def reached(self, stopping: bool) -> float:
        return self.gain if self.stopsAfter is None or not stopping else 0.0


def runs_of(folder: Path) -> list[Run]:
    """The runs that both the store and runs.jsonl have. Of a step that the store has twice, because its cell was stopped and
    begun again, the last row counts; and the store knows of a run only what earlier steps of its cell left there.
    """
    rows = [row for row in run_table.rows(folder / "store") if (row["tags"] or {}).get("cell")]
    by_name = {(row["tags"]["cell"], row["tags"]["step"]): row for row in rows}
    lines = read_lines(folder / "runs.jsonl")
    out = []
    for line in lines:
        row = by_name.get((line["cell"], line.get("step")))
        if row is not None and "refused" not in line:
            out.append(_run(line, row, before(line, by_name)))
    return out


def before(line: Mapping[str, Any], byName: Mapping[tuple[str, str], Any]) -> list[Any]:
    """Rows of the store by the earlier steps of a run's cell."""
    earlier = STEPS[: STEPS.index(line["step"])]
    return [byName[line["cell"], step] for step in earlier if (line["cell"], step) in byName]


def _run(line: Mapping[str, Any], row: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> Run:
    metric, options = line["facts"]["metric"], json.loads(row["options"])
    facts = line["facts"] | earlier_run_facts(before, row["parent"], metric, row["metric"], options)
    known = PastRun(facts, line["tuned"], line["gain"] if line["tuned"] else 0.0, line["coreSeconds"])
    return Run(
        line["set"], line["kind"], line["step"], line["planted"], known, line["factsSeconds"], stops_after(line, row)
    )


def stops_after(line: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Core-seconds after which triage stops a run: it has no gain after EARLY epochs, and would go on."""
    sign = 1.0 if row["metricDirection"] == "smaller" else -1.0
    values = [p for p in row["curves"] if 0 < p["epoch"] <= EARLY and math.isfinite(p["value"])]
    start = next(sign * p["value"] for p in row["curves"] if p["epoch"] == 0)
    last = max(p["epoch"] for p in row["curves"])
    if last <= EARLY or min((sign * p["value"] for p in values), default=math.inf) < start:
        return None
    return float(line["phases"]["check"] + line["epochs"][str(EARLY + 1)])


# Replay ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Curve:
    """Shares of the core-seconds of running everything, and of its kept gain, after each run of an order."""

    spent: Any  # (runs + 1,)
    gain: Any  # (runs + 1,)

    def needed(self, share: float) -> float:
        """The share of the core-seconds at which so much of the kept gain is reached; infinite if it never is."""
        there = np.flatnonzero(self.gain >= share - 1e-12)
        return float(self.spent[there[0]]) if len(there) else math.inf


def curve(runs: Sequence[Run], order: Sequence[int], *, facts: bool, stopping: bool) -> Curve:
    whole, kept = sum(r.known.coreSeconds for r in runs), sum(r.gain for r in runs)
    first = sum(r.factsSeconds for r in runs) if facts else 0.0
    spent = np.cumsum([first, *(runs[i].spent(stopping) for i in order)]) / whole
    return Curve(spent, np.cumsum([0.0, *(runs[i].reached(stopping) for i in order)]) / kept)


def forecasts(runs: Sequence[Run], names: Callable[[str], bool] = lambda _name: True) -> list[Forecast]:
    """Of each run, by a model of the runs of all other sets.

    Args:
        names: which facts are known.
    """
    chosen = [dataclasses.replace(r.known, facts={k: v for k, v in r.known.facts.items() if names(k)}) for r in runs]
    out: dict[int, Forecast] = {}
    for left in dict.fromkeys(r.set for r in runs):
        forecaster = Forecaster([k for k, r in zip(chosen, runs, strict=True) if r.set != left])
        out |= {i: forecaster(chosen[i].facts) for i, r in enumerate(runs) if r.set == left}
    return [out[i] for i in range(len(runs))]


def ranked(found: Sequence[Forecast]) -> list[int]:
    return sorted(range(len(found)), key=lambda i: -found[i].worth)


def at_its_own_end(runs: Sequence[Run], found: Sequence[Forecast], share: float) -> tuple[float, float]:
    """Shares of core-seconds and of kept gain where triage stops by itself: after so much of the gain that it expects."""
    order, whole, reached, count = ranked(found), sum(f.expected for f in found), 0.0, 0
    while count < len(order) and reached / whole < share:
        reached, count = reached + found[order[count]].expected, count + 1
    drawn = curve(runs, order, facts=True, stopping=True)
    return float(drawn.spent[count]), float(drawn.gain[count])


def random_order(runs: Sequence[Run], share: float) -> float:
    """The mean share of core-seconds that random orders need."""
    random = np.random.default_rng(0)
    orders = (random.permutation(len(runs)) for _ in range(ORDERS))
    return float(np.mean([curve(runs, [*o], facts=False, stopping=False).needed(share) for o in orders]))


def area(found: Sequence[Forecast], runs: Sequence[Run]) -> float:
    """How well the forecast probability ranks kept runs before others (area under ROC)."""
    p, kept = np.array([f.probability for f in found]), np.array([r.known.kept for r in runs])
    if kept.all() or not kept.any():
        return math.nan
    higher = (p[kept][:, None] > p[~kept]).mean() + 0.5 * (p[kept][:, None] == p[~kept]).mean()
    return float(higher)


def told(name: str, runs: Sequence[Run]) -> dict[str, float]:
    """Print the figures of these runs, and return them."""
    found = forecasts(runs)
    plan = forecasts(runs, lambda n: n in PLAN or n.startswith("head:"))
    order, cheap = ranked(found), ranked(plan)
    wide = forecasts(runs, lambda n: n != "entries")
    curves = {
        "triage": curve(runs, order, facts=True, stopping=True),
        "triage, no run stopped": curve(runs, order, facts=True, stopping=False),
        "triage, if facts cost nothing": curve(runs, order, facts=False, stopping=True),
        "triage, cells counted by the width of sparse rows": curve(runs, ranked(wide), facts=True, stopping=True),
        "by the plan alone": curve(runs, cheap, facts=False, stopping=False),
        "everything, stopped early": curve(runs, range(len(runs)), facts=False, stopping=True),
        "run everything with patience": curve(runs, range(len(runs)), facts=False, stopping=False),
    }
    shares = (0.5, 0.8, 0.9, WANTED, 0.99)
    rows = [[n, *(_share(c.needed(s)) for s in shares)] for n, c in curves.items()]
    rows[-1][1:] = ["100%"] * len(shares)  # of everything, whatever the order
    rows.append(["random order", *(_share(random_order(runs, s)) for s in shares)])
    kept = sum(r.known.kept for r in runs)
    small = [r for r in runs if r.known.facts["rows"] < SMALL]
    facts, of_small, of_others = map(facts_share, (runs, small, [r for r in runs if r not in small]))
    print(f"\n{name}: {len(runs)} runs of {len({r.set for r in runs})} sets, {kept} with gain, ", end="")
    print(
        f"{sum(r.planted for r in runs)} planted; {sum(r.known.coreSeconds for r in runs):,.0f} core-seconds, ", end=""
    )
    print(
        f"facts {facts:.0%} of them "
        f"({of_small:.0%} below {SMALL:,} rows, else {of_others:.0%}); AUC of the probability {area(found, runs):.3f}"
    )
    print(markdown(["core-seconds for this share of the kept gain", *(f"{s:.0%}" for s in shares)], rows))
    ends = {s: at_its_own_end(runs, found, s) for s in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)}
    rows = [[f"{s:.0%}", f"{spent:.0%}", f"{gain:.0%}"] for s, (spent, gain) in ends.items()]
    print(markdown(["`share` of the expected gain", "core-seconds", "of the kept gain"], rows))
    spent, gain = at_its_own_end(runs, found, SHARE)
    return {
        f"{name}: saved at 95%": 1 - curves["triage"].needed(WANTED),
        f"{name}: by itself, core-seconds": spent,
        f"{name}: by itself, gain": gain,
        f"{name}: AUC": area(found, runs),
    }


def facts_share(runs: Sequence[Run]) -> float:
    """The core-seconds of the facts over those of the runs."""
    return sum(r.factsSeconds for r in runs) / max(sum(r.known.coreSeconds for r in runs), 1e-9)


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "never"


def ship(runs: Sequence[Run], path: Path) -> None:
    """Write the runs that sparkdiff ships, a line each."""
    lines = []
    for r in runs:
        own = {k: getattr(r, k) for k in OWN} | dataclasses.asdict(r.known)
        short = {k: _short(v) if isinstance(v, float) else v for k, v in own.items()}
        lines.append(json.dumps(short | {"facts": {n: _short(v) for n, v in r.known.facts.items()}}))
    about = {"madeBy": "benchmarks/fleet.py and benchmarks/triage.py --priors", "date": surroundings()["date"]}
    path.write_text(f'{json.dumps(about)[:-1]}, "runs": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def shipped() -> list[Run]:
    """The runs that sparkdiff ships."""
    found = json.loads(PRIORS.read_text(encoding="utf-8"))["runs"]
    return [Run(**{k: r[k] for k in OWN}, known=k) for r, k in zip(found, priors(), strict=True)]


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--folder", type=Path, help="of benchmarks/fleet.py; without it, the runs that sparkdiff ships"
    )
    options.add_argument(
        "--priors", type=Path, nargs="?", const=PRIORS, help="where to write the runs that sparkdiff ships"
    )
    given = parse(options)
    runs = runs_of(given.folder) if given.folder else shipped()
    if given.priors:
        ship(runs, given.priors)
    figures = told("all", runs)
    rest = [r for r in runs if (r.set, r.kind) != ("bikeshare", "pca")]
    if len(rest) < len(runs):
        figures |= told("without bike sharing's PCA", rest)
    write(given, [dataclasses.asdict(r) for r in runs], figures)
    missed = [name for name, value in figures.items() if name.endswith("saved at 95%") and value < SAVED]
    print(f"\nless than {SAVED:.0%} saved: {', '.join(missed)}" if missed else f"\nat least {SAVED:.0%} saved")
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
