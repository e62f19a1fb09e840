"""The report of a run as one page: what it shows for each kind of run, that values stay text, that no other file is needed."""

import html.parser
import json
import math
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from sparkdiff.cli.app import main
from sparkdiff.errors import InputError
from sparkdiff.report import Drawing, charts, plan_picture
from sparkdiff.report.page import page
from sparkdiff.report.run_record import FineTuningSummary, versions
from sparkdiff.report.run_report import comparison_text, report_of, write_report

EVIL = '<script>alert("&")</script>'


def history(candidates: int, epochs: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "epoch": e,
            "candidate": c,
            "recipe": f"adam {10.0**-c:g}",
            "validationMetric": 2 - e / (c + 1) / epochs,
            **more,
        }
        for c in range(candidates)
        for e in range(epochs + 1)
    ]


def summary(**changes: Any) -> dict[str, Any]:
    compared = {
        "rows": 500,
        "changed": 0.25,
        "labels": False,
        "psi": 0.3,
        "correlation": 0.9,
        "calibration": {"measure": "meanPrediction / meanLabel", "before": 0.9, "after": 1.0},
        "bins": [{"rows": 50, "label": float(k), "before": k + 0.5, "after": k + 0.1} for k in range(10)],
        "changes": {"edges": [float(k) for k in range(-15, 16)], "counts": [*range(30)], "outside": 5},
        "others": {"rmse": {"before": 3.0, "after": 2.0}, "poisson": {"before": 1.0, "after": 1.0}},
    }
    made = FineTuningSummary(
        decision="tuned",
        reason="the best epoch's gain is larger than chance explains",
        metric="poisson",
        metricDirection="smaller",
        metrics={"train": {"before": 2.0, "after": 1.0}, "validation": {"before": 2.0, "after": 1.5}, "test": None},
        gain=0.25,
        z=9.0,
        p=1e-9,
        records=[],
        parity={"before": parity(), "after": parity()},
        stages={
            "scaler.std": {"largest": 0.5, "rootMeanSquare": 0.1},
            "glr.coefficients": {"largest": 1.0, "rootMeanSquare": 0.4},
        },
        timings={"train": 3.0},
        stream="arrow",
        cache={"hit": True, "fingerprint": "f"},
        options={"labelCol": "y"},
        versions=versions(),
        warnings=[],
        gainInterval=[0.2, None],
        compatibility=compared,
        candidates=2,
        diverged=0,
    )
    return {**made.asdict(), **changes}


def parity() -> dict[str, Any]:
    return {"rows": 100, "maxRelDiff": {"x": 1e-15}, "labelDisagreements": 0}


def slices_of(count: int, name: str = "value") -> list[dict[str, Any]]:
    return [
        {
            "column": "region",
            "value": f"{name} {k}",
            "rows": 10 + k,
            "units": 10,
            "before": 2.0,
            "after": 1.9 + k / 100,
            "gain": 0.1 - k / 100,
            "error": 0.02,
            "p": 0.5 if k else None,
        }
        for k in range(count)
    ]


def row(name: str, arm: str | None, **more: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "name": name,
        "value": 1.0,
        "test": None,
        "gain": 0.5,
        "error": None if arm is None else 0.02,
        "interval": None if arm is None else [0.4, 0.6],
        "changed": 0.1,
        "serving": 1.3,
        "seconds": 9.0,
        "p": 1e-4,
        "accepted": True,
        "offers": [],
        "why": "",
        **more,
    }


def stage_of(name: str, **more: Any) -> dict[str, Any]:
    columns = {"inputCols": ["x"], "outputCols": [f"out_{name.lower()}"]}
    facts = {"path": [0], "cached": False, "role": "translated", "trainable": True, "numParameters": 3, "reason": ""}
    return {"uid": f"{name}_17", "stageClass": f"{name}Model", **columns, **facts, **more}


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tuned": (summary(), {"records": history(3, 20)}),
    "kept": (
        summary(decision="kept original", gain=-0.01, p=0.4, gainInterval=None, stages={}),
        {"records": history(1, 5)},
    ),
    "multiclass": (
        summary(
            metric="accuracy",
            metricDirection="larger",
            compatibility={
                **summary()["compatibility"],
                "labels": True,
                "bins": None,
                "calibration": None,
                "others": {"logLoss": {"before": 1.0, "after": 0.5}},
            },
        ),
        {"records": history(1, 5)},
    ),
    "quantile": (summary(metric="quantile"), {"records": history(2, 3)}),
    "clusters": (summary(compatibility=None, metric="kMeans"), {"records": history(1, 3)}),
    "one epoch": (summary(), {"records": history(1, 1)}),
    "no epoch": (summary(compatibility={**summary()["compatibility"], "changes": None, "bins": [], "others": {}}), {}),
    "failed candidate": (
        summary(diverged=1),
        {"records": [*history(1, 5), *({**r, "candidate": 1, "validationMetric": None} for r in history(1, 5))]},
    ),
    "slices": (summary(slices=slices_of(31)), {"records": history(1, 5)}),
    "unicode": (summary(slices=slices_of(3, "Zürich 東京 🚲")), {}),
    "many rows": (summary(compatibility={**summary()["compatibility"], "rows": 10**6}), {"records": history(12, 120)}),
    "folds": (
        summary(folds=[{"fold": 1, "rows": 50, "before": 2.0, "after": 1.0, "epochs": 3}]),
        {"records": [*history(1, 4, fold=1), *history(1, 4, fold=2)]},
    ),
    "grown": (
        summary(
            decision="grown",
            rounds=[{"round": 1, "name": "a x b", "gain": 0.2, "cost": 1.0, "seconds": 2.0, "why": ""}],
            parts=[{"name": "a x b", "dropped": False, "shown": [{"a": "low", "effect": 0.3}]}],
        ),
        {},
    ),
    "improved": (
        summary(
            decision="improved",
            table=[row("your pipeline", None), row("+ 16 units", "grow", offers=["best"])],
            arms=[{"arm": "grow", "does": "adds stages", "state": "done", "why": "", "seconds": 9.0}],
            offers={"best": 1},
            proof={"rows": "5 folds", "rival": "your pipeline", "units": 812.4},
            race=[{"name": "+ 16 units", "value": 1.0, "gain": 0.5, "serving": 1.3, "seconds": 2.0}],
            budget={"given": "1m", "spent": {"grow": 9.0}},
            explanation="The loss was in the form.",
        ),
        {},
    ),
    "search": (
        {
            "decision": "winner",
            "reason": "better",
            "metric": "rmse",
            "metricDirection": "smaller",
            "validation": 1.0,
            "fresh": {"winner": 1.1, "default": 2.0},
            "optimism": -0.1,
            "p": 0.001,
            "gain": 0.4,
            "gainInterval": [0.1, 0.6],
            "settings": {"regParam": 0.1},
            "number": 1,
            "trials": 3,
            "rows": {"test": 50},
            "folds": 0,
            "warnings": [],
            "versions": {},
        },
        {
            "trials": [
                {"trial": k, "state": "complete", "rmse": v, "regParam": 0.1 * k}
                for k, v in enumerate((2.0, 1.0, math.nan))
            ]
        },
    ),
}


KINDS["rebuilt"] = (
    {
        **KINDS["improved"][0],
        "shippedStages": [
            stage_of("Scaler"),
            stage_of("Units", inputCols=["GLR_17_grown"]),
            stage_of("Sums", inputCols=[*"abcd"], outputCols=[]),
            stage_of("Sums", uid="other"),
            stage_of("GLR"),
        ],
    },
    {"plan": {"stages": [stage_of("Scaler"), stage_of("PCA"), stage_of("GLR")], "edges": [], "head": None}},
)


class Words(html.parser.HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.names, self.open = "", list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.text += " "
        self.open.append(tag)
        assert not {"src", "href"} & {k for k, v in attrs if not (v or "").startswith(("#", "data:"))}, (tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_run(kind: str) -> None:
    given, more = KINDS[kind]
    text = page(given, **more)
    shown = Words(text)
    assert "script" not in shown.names and "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert len(text) < 2_000_000
    assert given["reason"][1:] in shown.text
    for missing in ("None", "nan", "Undefined", "{{"):
        assert missing not in shown.text.replace("None.", ""), missing
    assert ("How to go back" in shown.text) and ("How good" in shown.text)


def test_an_improvement_tells_its_figures_and_what_decided() -> None:
    shown = " ".join(Words(page(KINDS["improved"][0])).text.split())
    assert "+ 16 units; serving a row costs 1.3 times the original's." in shown
    assert "+ 16 units 1 +50.00% ± 2.0% +40.00% to +60.00% 10.0% 1.3× 9 s best; p < 0.001" in shown
    assert "5 folds, 812.4 rows, groups or blocks decided; compared with your pipeline." in shown
    assert "Changed: rows whose label changes, or whose prediction moves by more than a tenth." in shown
    assert "Serving: time for a row, as a multiple of the original's." in shown
    assert "The race on the rows that explore" in shown and "grow adds stages 9.0 done" in shown


def test_the_new_pipeline_stands_beside_the_original() -> None:
    given, more = KINDS["rebuilt"]
    text = page(given, **more)
    shown = " ".join(Words(text).text.split())
    first = shown[: shown.index("How to go back")]
    assert "3 stages become 5; added: 2 × SumsModel, UnitsModel; left out: PCAModel." in first
    assert "Original: 3 stages ScalerModel x → out_scaler PCAModel left out x → out_pca GLRModel" in shown
    assert "UnitsModel added grown → out_units SumsModel added 4 columns SumsModel added x" in shown
    same = page({**given, "shippedStages": more["plan"]["stages"]}, **more)
    assert "become" not in same and "beside the original" not in same


def test_what_was_not_tested_is_not_called_no_gain() -> None:
    metrics = {"train": {"before": 2.0, "after": 2.0}, "validation": None, "test": None}
    kept = summary(decision="kept original", gain=0.0, p=1.0, gainInterval=None, compatibility=None, metrics=metrics)
    shown = " ".join(Words(page(kept)).text.split())
    assert "Nothing proven" in shown and "No gain" not in shown and "p 1.000" not in shown
    assert "The best epoch's gain is larger than chance explains." in shown
    assert "2 poisson on training rows" in shown  # and not 2 → 2
    assert "Nobody: no prediction changes." in shown


def test_stages_bear_the_names_of_the_plan() -> None:
    plan = {"stages": [stage_of("GLR", uid="glr")], "edges": [], "head": None}
    shown = " ".join(Words(page(summary(finished="2026-11-30T12:53:30Z"), plan=plan)).text.split())
    assert "GLRModel coefficients 0.4 1" in shown and "scaler std 0.1 0.5" in shown
    assert "label y; finished 2026-11-30 12:53 UTC" in shown


def test_many_crosses_of_a_part_are_named_once() -> None:
    name = "a x b, c x d, e x f"
    tried = {"round": 1, "gain": 0.2, "cost": 1.0, "seconds": 2.0}
    rounds = [{**tried, "name": name, "why": ""}, {**tried, "name": "a x b", "why": f"{name} has less loss"}]
    parts = [{"name": name, "dropped": False, "shown": [{"a": "low", "effect": 0.3}]}]
    costs = {"before": 2.0, "after": 5.0, "limit": None}
    given = summary(decision="grown", rounds=rounds, parts=parts, servingCost=costs, warnings=["odd", "odd"])
    shown = " ".join(Words(page(given)).text.split())
    assert "a x b and 2 more 1 +20.00% 1.00 2.0 joined" in shown and "a x b and 2 more has less loss" in shown
    assert "Serving a row costs 2.5 times the original's." in shown and "The plan" not in shown
    assert shown.count(name) == 2 and shown.count("Odd") == 1  # what changed, and what it learned


def test_the_first_screen_tells_decision_gain_and_changes() -> None:
    given, more = KINDS["slices"]
    shown = " ".join(Words(page(given, **more)).text.split())
    first = shown[: shown.index("Training")]
    assert (
        "Fine-tuned 25.0% better poisson (smaller is better) on held-out rows; 95% interval +20.00% to unbounded; p < 0.001 "
        "(how often luck alone shows such a gain)" in first
    )
    assert "2 → 1.5 (25.0% better) poisson on validation rows" in first
    assert "125 of 500 held-out predictions move by more than a tenth (25.0%)." in first
    assert "Of 31 slices, region = value 30 loses most: -10.0% (40 rows)." in first
    assert "2 parameters of 2 stages moved; classes, uids, Params and columns are the same." in first
    kept = Words(page(KINDS["kept"][0])).text
    assert "Original kept" in kept and "Nothing: the original is returned." in kept


@pytest.mark.parametrize(("gain", "said"), [(0.0, "No gain"), (0.02, "2.0% better, not accepted")])
def test_what_was_kept_does_not_read_as_a_gain(gain: float, said: str) -> None:
    shown = " ".join(Words(page(summary(decision="kept original", gain=gain))).text.split())
    assert f"Original kept {said} poisson (smaller is better) on held-out rows" in shown


def test_one_of_a_kind_and_two_bars() -> None:
    one = {"scaler.std": {"largest": 0.5, "rootMeanSquare": 0.1}}
    assert "1 parameter of 1 stage moved;" in Words(page(summary(stages=one))).text
    bins = {"edges": [0.0, 1.0, 2.0, 3.0], "outside": 0}
    assert charts.changes({**bins, "counts": [5, 0, 1]}) == ""  # clusters: another one or not
    assert charts.changes({**bins, "counts": [5, 1, 1]}).startswith("<svg")


def test_a_histogram_tells_how_many_rows_it_leaves_out() -> None:
    for outside, said in (
        (5, "; 5 rows with larger changes are not shown."),
        (1, "; 1 row with larger changes is not"),
    ):
        bins = {**summary()["compatibility"]["changes"], "outside": outside}
        given = summary(compatibility={**summary()["compatibility"], "changes": bins})
        assert f"on held-out rows{said}" in Words(page(given)).text


@pytest.mark.parametrize("chart", ["curves", "reliability", "best so far"])
def test_a_legend_lies_above_its_chart(chart: str) -> None:
    """So that it hides no curve; and nothing else is written among the curves."""
    svg = {
        "curves": lambda: charts.curves(history(3, 20), "poisson", "smaller"),
        "reliability": lambda: charts.reliability(summary()["compatibility"]["bins"]),
        "best so far": lambda: charts.best_so_far([2.0, 1.0, 1.5], "rmse", "smaller"),
    }[chart]()
    texts = re.findall(r'<text[^>]*?(?: x="([\d.]+)")? y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    heights = {word: float(y) for _, y, word in texts}
    legend = {"others", "original", "new", "trial", "best so far"} | {w for w in heights if w.startswith("adam")}
    numbers = [y for word, y in heights.items() if re.fullmatch(r"[−\d.]+", word)]
    assert legend & heights.keys()
    assert all(heights[word] < min(numbers) for word in legend & heights.keys())
    words = {"epoch", "poisson, validation rows", "mean prediction", "mean label", "trial", "rmse"}
    assert {w for w in heights if not re.fullmatch(r"[−\d.]+", w)} <= legend | words


def test_a_search_shows_its_trials_and_the_best_so_far() -> None:
    text = page(KINDS["search"][0], **KINDS["search"][1])
    assert 'aria-label="best so far"' in text and "3 trials; on the rows that choose." in Words(text).text
    assert text.count('<tr class="chosen">') == 1


def test_values_stay_text() -> None:
    given = summary(
        reason=EVIL,
        warnings=[EVIL],
        slices=[{**slices_of(1)[0], "value": EVIL}],
        options={"labelCol": EVIL},
        command=EVIL,
        stages={f"{EVIL}.std": {"largest": 1.0, "rootMeanSquare": 1.0}},
        parent={"path": EVIL, "hash": "h"},
    )
    stage = {
        "uid": EVIL,
        "path": [0],
        "stageClass": EVIL,
        "inputCols": [EVIL],
        "outputCols": [EVIL],
        "cached": False,
        "role": "translated",
        "trainable": True,
        "numParameters": 3,
        "reason": EVIL,
    }
    text = page(
        given,
        [{**r, "recipe": EVIL} for r in history(2, 3)],
        plan={"stages": [stage], "edges": [], "head": None},
        command=EVIL,
    )
    assert "<script" not in text and "script" not in Words(text).names
    assert Words(text).text.count("alert") >= 8


def test_metrics_that_do_not_decide_leave_out_the_one_that_does() -> None:
    text = Words(page(summary())).text
    beside = text[text.index("Metrics that did not decide") :]
    assert "rmse" in beside[:300] and "poisson" not in beside[:300]


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary(command="sparkdiff finetune --config a.yaml", **changes)))
    (folder / "history.csv").write_text(
        "epoch,candidate,recipe,validationMetric\n0,0,adam,2.0\n1,0,adam,1.5\n2,0,adam,\n"
    )
    (folder / "plan.json").write_text('{"stages": [], "edges": [], "head": null}')
    return folder


def test_a_report_of_a_folder_and_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "two", options={"labelCol": "y", "seed": 3}, gain=0.5)
    assert main(["report", str(one)]) == 0
    assert "sparkdiff finetune --config a.yaml" in (one / "report.html").read_text()
    assert (one / "report.html").read_text() == report_of(one)  # the same again
    assert main(["compare", str(one), str(two)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"two +tuned +poisson +validation +2 +1.5 +\+50.00% \(95% interval \+20.00% to unbounded\)", told)
    assert main(["compare", str(one), str(two), "--output", str(tmp_path / "both.html")]) == 0
    text = " ".join(Words((tmp_path / "both.html").read_text()).text.split())
    assert "Options that differ option one two seed 3" in text and "labelCol" not in text


def test_a_file_of_the_user_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = str(written(tmp_path / "one")), str(written(tmp_path / "two"))
    mine, ours = tmp_path / "mine.html", tmp_path / "ours.html"
    mine.write_text("<!doctype html><title>my notes on sparkdiff</title>")
    before = mine.read_bytes()
    for command in (["report", one], ["compare", one, two]):
        assert main([*command, "--output", str(mine)]) == 2
        assert f"{mine} exists and was not written by sparkdiff" in capsys.readouterr().err
        for _ in range(2):  # a page of ours is written again
            assert main([*command, "--output", str(ours)]) == 0
    drawing = Drawing(plan_picture({"stages": [], "edges": [], "head": None}, ""))
    with pytest.raises(InputError, match="exists and was not written by sparkdiff"):
        drawing.save(mine)
    drawing.save(ours)
    drawing.save(ours)
    assert mine.read_bytes() == before and ours.read_text() == drawing._repr_svg_()


@pytest.mark.parametrize("name", ["plan.json", "history.csv", "trials.csv", "lineage.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", None])
def test_a_damaged_file_is_left_out_of_the_report(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = written(tmp_path / "one")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert "Fine-tuned" in report_of(folder)
    named = [w for w in told if f"{folder / name} is damaged, and is left out of the report" in str(w.message)]
    assert named or (name.endswith("csv") and content is not None)  # text is a table with a head


def test_values_of_other_types_are_one_sentence(tmp_path: Path) -> None:
    folder = written(tmp_path / "one")
    (folder / "plan.json").write_text('{"stages": 7}')
    with pytest.raises(InputError, match=rf"the files in {folder} are not those of a run of this version"):
        report_of(folder)


def test_runs_are_compared_by_test_rows_else_by_validation_rows(tmp_path: Path) -> None:
    """Never by reference rows, which stand last; and a run without any metric is no fault."""
    held, old = {"before": 2.0, "after": 1.5}, {"before": 7.0, "after": 7.5}
    one = written(tmp_path / "one", metrics={"validation": held, "test": None, "reference": old})
    told = comparison_text([one, written(tmp_path / "two", metrics={})]).splitlines()
    assert told[2].split()[:6] == ["one", "tuned", "poisson", "validation", "2", "1.5"]
    assert told[3].split()[:5] == ["two", "tuned", "poisson", "–", "–"]


def test_wrong_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    run = written(tmp_path / "run")
    assert main(["report", str(run), "--output", str(tmp_path / "no" / "a.html")]) == 2
    assert main(["compare", str(run)]) == 2
    (run / "summary.json").write_text("[1]")
    assert main(["report", str(run)]) == 2
    (run / "summary.json").write_text('{"decision"')
    assert main(["report", str(run)]) == 2
    told = capsys.readouterr().err
    for sentence in (
        "none is no folder: name the output folder of a run",
        "is a folder without summary.json",
        "a.html cannot be written: No such file",
        "compare needs two or more runs",
        "is not the summary of a run",
        "cannot be read",
    ):
        assert sentence in told, sentence
    assert "Traceback" not in told


def test_a_chart_that_fails_costs_no_run(tmp_path: Path) -> None:
    run = written(tmp_path / "run", compatibility={"labels": False, "bins": 3})
    with pytest.warns(UserWarning, match="the run has no report.html"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_summary_writes_its_page(tmp_path: Path) -> None:
    known = {k: v for k, v in summary().items() if k != "records"}
    FineTuningSummary(**known, records=history(1, 3)).toHTML(tmp_path / "a.html")
    assert "Training" in Words((tmp_path / "a.html").read_text()).text
    with pytest.raises(FileNotFoundError):
        FineTuningSummary(**known, records=[]).toHTML(tmp_path / "no" / "a.html")


@pytest.mark.nightly
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_finds_no_fault(tmp_path: Path, width: int) -> None:
    """Chromium of Debian: nothing on its console, and no page wider than the window."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    for kind, (given, more) in KINDS.items():
        file = tmp_path / f"{kind.replace(' ', '_')}.html"
        script = "<script>document.title = document.documentElement.scrollWidth > innerWidth ? 'wide' : 'fits'</script></html>"
        file.write_text(page(given, **more).replace("</html>", script))
        ran = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                f"--window-size={width},900",
                "--dump-dom",
                f"file://{file}",
            ],
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert "CONSOLE" not in ran.stderr, (kind, ran.stderr[-500:])
        assert "<title>fits</title>" in ran.stdout, kind
