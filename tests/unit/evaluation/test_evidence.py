"""The parts of the data checks that need no Spark: ranks, leaks, drift, outliers, duplicates, against scipy-like references."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.evaluation.guard import Verdict
from sparkdiff.evaluation.row_evidence import (
    RowHashes,
    Spread,
    auc,
    auc_with_variance,
    drift,
    farness,
    leaks_class,
    leaks_number,
    midranks,
)
from sparkdiff.evaluation.row_warnings import too_few_rows
from sparkdiff.tensors.rows import Rows, SparseRows

Form = Callable[[Tensor], Rows]


def sparse(x: Tensor) -> SparseRows:
    return SparseRows.from_csr(x.to_sparse_csr())


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random(seed), dtype=torch.float64)


# Ranks and leaks ------------------------------------------------------------------------------------------------------


def pairs_auc(x: Tensor, y: Tensor, k: int) -> float:
    """By its definition: the share of (class, rest) pairs in the right order, ties counting half."""
    a, b = x[y == k][:, None], x[y != k][None]
    return float(((a > b).double() + (a == b).double() / 2).mean())


def test_auc_is_the_share_of_ordered_pairs() -> None:
    x = torch.stack([normal(0, 200), normal(1, 200).round(), torch.zeros(200, dtype=torch.float64)], 1)
    y = torch.randint(0, 3, (200,), generator=random(2))
    found = auc(x, y, 3)
    for j in range(3):
        for k in range(3):
            assert float(found[j, k]) == pytest.approx(pairs_auc(x[:, j], y, k), abs=1e-12)


def test_ranks_share_ties() -> None:
    assert midranks(torch.tensor([[3.0], [1.0], [3.0], [2.0]]))[:, 0].tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize("form", [lambda x: x, sparse], ids=["dense", "sparse"])
def test_a_feature_that_tells_a_class_is_found_and_no_other(form: Form) -> None:
    y = torch.randint(0, 3, (600,), generator=random(1)).double()
    x = normal(2, 600, 5)
    x[:, 3] = (y == 2) * -1.0  # a flag, negative, filled in a third of the rows
    x[:, 1] = (y == 0).double() + 0.45 * normal(3, 600)  # strong, but honest: AUC about 0.94
    assert [(j, k) for j, k, _ in leaks_class(form(x), y, 3, 0.999)] == [(3, 2)]
    x[:5, 3] = x[:5, 3].flip(0) - 1.0 * (y[:5] != 2)  # five rows of noise lower the AUC
    assert leaks_class(form(x), y, 3, 0.999) == []


def test_a_class_of_few_rows_proves_nothing() -> None:
    y = torch.zeros(500, dtype=torch.float64)
    y[:29] = 1
    assert leaks_class(y[:, None], y, 2, 0.999) == []
    y[29] = 1
    assert [(j, k) for j, k, _ in leaks_class(y[:, None], y, 2, 0.999)] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("form", [lambda x: x, sparse], ids=["dense", "sparse"])
def test_a_feature_that_is_the_number_is_found_and_no_other(form: Form) -> None:
    y = normal(0, 400).exp()
    x = normal(1, 400, 4)
    x[:, 2] = -(y.log() ** 3)  # monotone: Spearman only
    x[:, 3] = 5 * y + 1 + 0.01 * normal(2, 400)  # both, with noise
    x[:, 0] = y + 0.2 * normal(3, 400)  # 0.99
    x[:, 1] = 0.0
    x[int(y.argmax()), 1] = 1e9  # one row that coincides with the largest label
    found = leaks_number(form(x), y, 0.999)
    assert {(j, name) for j, name, _ in found} == {(2, "Spearman"), (3, "Pearson"), (3, "Spearman")}
    values = {(j, name): r for j, name, r in found}
    assert values[3, "Pearson"] == pytest.approx(np.corrcoef(x[:, 3], y)[0, 1], abs=1e-9)
    assert values[2, "Spearman"] == pytest.approx(-1.0)


def test_sparse_columns_without_entries_are_counted_past() -> None:
    y = (torch.arange(400) % 2).double()
    x = torch.zeros(400, 9, dtype=torch.float64)
    x[:, 4], x[::7, 2], x[:, 7] = y, 1.0, normal(0, 400)
    columns, rows = sparse(x).compact()
    assert columns.tolist() == [2, 4, 7]
    assert torch.equal(rows.to_dense(), x[:, [2, 4, 7]])
    assert {j for j, _, _ in leaks_class(sparse(x), y, 2, 0.999)} == {4}
    assert {j for j, _, _ in leaks_number(sparse(x), x[:, 7], 0.999)} == {7}


# Drift ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runs", "within"), [(75, 0.2), pytest.param(300, 0.12, marks=pytest.mark.nightly)])
def test_the_error_of_a_clustered_auc_is_what_repeating_shows(runs: int, within: float) -> None:
    areas, errors = [], []
    for seed in range(runs):
        effect = normal(seed, 60).repeat_interleave(10)  # 60 clusters of 10 rows, 30 of them on each side
        margin = effect + normal(1000 + seed, 600)
        cluster = torch.arange(60).repeat_interleave(10)
        area, variance = auc_with_variance(margin, cluster % 2 == 0, cluster)
        areas.append(area)
        errors.append(math.sqrt(variance))
    assert float(np.mean(errors)) == pytest.approx(float(np.std(areas)), rel=within)
    _, naive = auc_with_variance(margin, cluster % 2 == 0, torch.arange(600))
    assert math.sqrt(naive) < 0.6 * float(np.std(areas))  # what ignoring the clusters would say


def alarmed(columns: list[Rows], held: Tensor, cluster: Tensor) -> bool:
    seen = drift(columns, held, cluster)
    return seen.auc > 0.55 and seen.auc - 0.5 > 4 * seen.error


@pytest.mark.parametrize("runs", [2, pytest.param(60, marks=pytest.mark.nightly)])
def test_drift_is_silent_without_any(runs: int) -> None:
    loud = 0
    for seed in range(runs):
        x = normal(seed, 900, 12)
        wide = sparse(
            torch.where(torch.rand(900, 300, generator=random(seed)) < 0.05, normal(seed + 500, 900, 300), 0.0)
        )
        held = torch.rand(900, generator=random(seed + 900)) < 0.25
        loud += alarmed([x, wide], held, torch.arange(900))
        user = torch.arange(900) // 9  # features of the user, so that rows of a user are alike
        own = normal(seed + 2000, 100, 12)[user]
        loud += alarmed([own + 0.1 * x], (torch.rand(100, generator=random(seed)) < 0.4)[user], user)
    assert loud == 0


def test_drift_names_what_moved() -> None:
    x, held = normal(0, 2000, 6), torch.arange(2000) < 600
    x[held, 4] += 1.0
    x[:, 1] = 10 + 3 * x[:, 1]
    wide = normal(1, 2000, 40)
    wide[wide < 1.0] = 0.0
    seen = drift([x, sparse(wide)], held, torch.arange(2000))
    # Two normals one standard deviation apart: the best AUC is Phi(1 / sqrt 2).
    assert seen.auc == pytest.approx(0.76, abs=4 * seen.error)
    assert int(seen.shares[0].argmax()) == 4
    assert float(seen.shares[0][4]) > 0.9
    assert float(seen.shifts[0][4]) == pytest.approx(1 / math.sqrt(1 + 0.21), abs=0.1)


# Outliers -------------------------------------------------------------------------------------------------------------


def spread(*batches: Tensor, form: Form = lambda x: x) -> tuple[Spread, Tensor]:
    usual = batches[0].median(0).values if form is not sparse else torch.zeros(batches[0].shape[1], dtype=torch.float64)
    out = Spread(usual)
    for b in batches:
        out.add(form(b))
    return out, usual


@pytest.mark.parametrize("form", [lambda x: x, sparse], ids=["dense", "sparse"])
def test_a_stream_gives_what_all_rows_at_once_give(form: Form) -> None:
    x = normal(0, 700, 6).round(decimals=1)
    x[:, 3] = 0.0
    x[:, 4] = (x[:, 4] > 2).double()
    x[500, 1] = x[7, 1] = -999.0
    x[600, 1] = 400.0
    s, usual = spread(x[:100], x[100:550], x[550:], form=form)
    away = (x - usual).abs()
    for j in range(6):
        rest = away[:, j][away[:, j] < away[:, j].max()]
        assert float(s.far[j]) == float(away[:, j].max())  # type: ignore[index]
        assert float(s.next[j]) == float(rest.max() if len(rest) else 0.0)
        assert float(s.square[j]) == pytest.approx(float(rest.square().sum()), rel=1e-12)
        assert int(s.others[j]) == int((rest > 0).sum())
        if j != 3:
            assert int(s.count[j]) == int((away[:, j] == away[:, j].max()).sum())
        assert int(s.support()[j]) == int((away[:, j] > 0).sum())
    assert s.farthest(1) == -999.0


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_a_sentinel_does_not_hide_behind_itself(rows: int) -> None:
    x = 20 + 8 * normal(0, 3000, 3)
    x[:rows, 1] = 999999.0
    s, _ = spread(x)
    z = farness("train", {"train": s})
    assert z.nonzero()[:, 0].tolist() == [1]
    assert float(z[1]) == pytest.approx(999979 / 8, rel=0.05)
    ordinary = float((999999 - x[:, 1].mean()) / x[:, 1].std())
    assert ordinary < 55  # where |x - mean| / std would see little


def test_training_rows_measure_a_sentinel_of_validation() -> None:
    train, usual = spread(normal(0, 2000, 2))
    rows = normal(1, 40, 2)
    rows[:30, 0] = -200.0
    held = Spread(usual)
    held.add(rows)
    both = {"train": train, "validation": held}
    assert farness("validation", both)[0] == pytest.approx(200, rel=0.1)
    assert float(farness("validation", both)[1]) == 0.0
    assert farness("train", both).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("form", [lambda x: x, sparse], ids=["dense", "sparse"])
def test_what_columns_naturally_look_like_is_no_outlier(form: Form) -> None:
    alarms = torch.zeros(7, dtype=torch.int64)
    for seed in range(40):
        u = torch.rand(5000, generator=random(seed), dtype=torch.float64)
        rare = torch.poisson(torch.full((5000,), 0.01, dtype=torch.float64), generator=random(seed))
        student = normal(seed + 1, 5000) / normal(seed + 2, 5000, 3).norm(dim=1) * 3**0.5  # 3 degrees of freedom
        columns = [u, normal(seed, 5000), -u.log(), normal(seed, 5000).exp(), (u < 3e-4).double(), rare, student]
        x = torch.stack(columns, 1)
        train, usual = spread(x[:3000], x[3000:4000], form=form)
        held = Spread(usual)
        held.add(form(x[4000:]))
        for split in ("train", "validation"):
            alarms += farness(split, {"train": train, "validation": held}) > 0
    assert alarms[:6].tolist() == [0] * 6
    assert int(alarms[6]) <= 1  # its tail is so heavy that one value in 5,000 now and then stands quite alone


# Duplicates -----------------------------------------------------------------------------------------------------------


def hashed(train: Tensor, held: Tensor, form: Form = lambda x: x) -> RowHashes:
    out = RowHashes(len(train) + len(held))
    for split, rows in (("train", train), ("validation", held)):
        out.add(split, [form(rows[:, 1:]), rows[:, 1]], rows[:, 0])
    return out


@pytest.mark.parametrize("form", [lambda x: x, sparse], ids=["dense", "sparse"])
@pytest.mark.parametrize("copies", [6, 400])
def test_copied_rows_are_counted(form: Form, copies: int) -> None:
    x = normal(0, 2500, 5)
    x[:, 2] = 0.0
    held = torch.cat([x[:copies], x[2000:]])
    held[:, 2] = -0.0  # the same number
    found = hashed(x[:2000], held, form).overlap()
    assert found is not None
    assert (found.rows, found.share) == (copies, copies / (500 + copies))
    other = held.clone()
    other[:, 0] += 1.0  # another label: another row
    assert hashed(x[:2000], other, form).overlap() is None


@pytest.mark.parametrize("values", [2, 10, 40, 3000])
def test_equal_rows_of_discrete_data_are_chance(values: int) -> None:
    for seed in range(25):
        skewed = (values * torch.rand(3000, generator=random(seed)) ** 3).floor()  # some values are far more common
        x = torch.stack([torch.randint(0, 3, (3000,), generator=random(seed)).double(), skewed.double()], 1)
        assert hashed(x[:2000], x[2000:]).overlap() is None


@pytest.mark.parametrize("values", [40, 3000, 10**9])
def test_copies_are_seen_among_chance(values: int) -> None:
    x = torch.randint(0, values, (3000, 2), generator=random(0)).double()
    found = hashed(x[:2000], torch.cat([x[2000:], x[:600]])).overlap()
    assert found is not None
    assert found.rows >= 600


@pytest.mark.parametrize("values", [3000, 10**9])
def test_a_table_loaded_twice_is_seen(values: int) -> None:
    once = torch.randint(0, values, (1500, 2), generator=random(0)).double()
    x = once.repeat(2, 1)[torch.randperm(3000, generator=random(1))]
    found = hashed(x[:2000], x[2000:]).overlap()
    assert found is not None
    assert "twice" in found.chance


def test_of_many_rows_a_sample_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkdiff.evaluation.row_evidence.MOST_HASHES", 512)
    x = normal(0, 20_000, 3)
    seen = hashed(x[:16_000], torch.cat([x[16_000:], x[:4_000]]))
    assert sum(len(h) for h in seen.hashes["train"]) < 512
    found = seen.overlap()
    assert found is not None
    assert found.share == pytest.approx(0.5, abs=0.15)
    assert found.rows == pytest.approx(4000, rel=0.3)


# Few rows -------------------------------------------------------------------------------------------------------------


def verdict(accepted: bool = False, level: float = 0.025) -> Verdict:
    return Verdict(accepted, 0, 0.1, 1.0, 0.2, level)


def test_too_few_rows_says_what_could_be_seen() -> None:
    gains, weights = 0.01 + normal(0, 1, 400), torch.ones(400, dtype=torch.float64)
    (text,) = too_few_rows(gains, weights, verdict(), 2.0)
    error = float(gains.std()) / 20 / 2.0
    assert f"at least {(1.95996 + 0.84162) * error:.0%}" in text
    assert f"standard error of its gain is {error:.1%}" in text
    assert too_few_rows(gains, weights, verdict(accepted=True), 2.0) == []
    assert too_few_rows(gains, weights, verdict(level=1.0), 2.0) == []
    assert f"at least {(37.0471 + 0.84162) * error:.0%}" in too_few_rows(gains, weights, verdict(level=1e-300), 2.0)[0]
    assert too_few_rows(gains / 4, weights, verdict(), 2.0) == []  # a gain of 2% can be seen
    diverged = torch.cat([gains, torch.full((1, 400), math.inf, dtype=torch.float64)])
    assert too_few_rows(diverged, weights, verdict(), 2.0) == [text]
    for ruin in (1e80, 1e200, 1e300):  # of the best epoch, where all made it worse
        assert too_few_rows((gains - 1) * ruin, weights, verdict(), 2.0) == []


@pytest.mark.parametrize("unit", [1e-170, 1e-300, 1e100, 1e200])
def test_a_correlation_knows_no_unit(unit: float) -> None:
    x, y = normal(0, 400, 2), normal(1, 400)
    found = leaks_number(torch.cat([x, (y + 0.001)[:, None]], 1) * unit, y * unit, 0.99)
    assert [(j, round(r, 5)) for j, _, r in found] == [(2, 1.0), (2, 1.0)]
