"""Clicks counted and averaged, against RITM's recorded numbers and against hand-computed ones."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.metrics.noc import (
    Row,
    Spread,
    auc,
    ge_max,
    interval,
    known,
    mean_at,
    noc,
    over_groups,
    per_object_rows,
    reached,
    summarise,
)

GOLDEN = Path(__file__).parent.parent / "golden"
RITM = json.loads((GOLDEN / "unit_fixture.json").read_text())["noc"]


def trace(
    values: list[float], name: str = "a", dataset: str = "d", metric: str = "iou", seconds: float = 0.5, **more: object
) -> Trace:
    n = len(values)
    return Trace(
        id=name,
        dataset=dataset,
        clicks=(Click(1, 2, True),) * n,
        scores={metric: tuple(values)},
        seconds=(seconds,) * n,
        until={metric: 0.9},
        **more,  # type: ignore[arg-type]
    )


def numbers(rows: list[Row]) -> dict[str, float]:
    return {row.measure: row.value for row in rows}


# One object


@pytest.mark.parametrize("case", RITM)
def test_recorded_ritm_numbers(case: dict) -> None:
    """Mean NoC and the count of ">=20". RITM takes early ends without success for failures, too."""
    means, failed = case["res"]
    for threshold, mean, count in zip(case["thr"], means, failed, strict=True):
        clicks = [noc(values, threshold, case["max_clicks"]) for values in case["ious"]]
        assert np.mean(clicks) == mean
        assert sum(ge_max(values, threshold, case["max_clicks"]) for values in case["ious"]) == count


def test_success_at_the_last_click_is_no_failure() -> None:
    """RITM's ">=20" and the number of failures differ on exactly this."""
    late, never = [0.1] * 19 + [0.95], [0.1] * 20
    assert [noc(v, 0.9, 20) for v in (late, never)] == [20, 20]
    assert [ge_max(v, 0.9, 20) for v in (late, never)] == [True, True]
    assert [reached(v, 0.9) for v in (late, never)] == [True, False]


def test_threshold_itself_counts_and_later_loss_does_not() -> None:
    assert noc([0.5, 0.9, 0.2], 0.9, 20) == 2
    assert noc([0.5, np.nextafter(0.9, 0), 0.2], 0.9, 20) == 20


def test_clicks_beyond_the_limit_do_not_count() -> None:
    """A trace of 20 clicks can be asked what 3 clicks would have given."""
    values = [0.1, 0.2, 0.3, 0.95, 0.99]
    assert noc(values, 0.9, 3) == 3
    rows = numbers(summarise([trace(values)], "iou", thresholds=(0.9,), max_clicks=3))
    assert rows["NoF@90"] == 1
    assert rows[">=3@90"] == 1
    assert rows["mean@3"] == 0.3
    assert "mean@5" not in rows


def test_known() -> None:
    assert known([0.5, 0.91], 0.9, 20)
    assert not known([0.5, 0.91], 0.95, 20)
    assert known([0.5] * 20, 0.95, 20)
    assert not known([0.5] * 10, 0.95, 20)


def test_last_value_is_kept() -> None:
    values = [0.5, 0.8, 0.9]
    assert [mean_at(values, k) for k in (1, 2, 3, 4, 20)] == [0.5, 0.8, 0.9, 0.9, 0.9]
    assert auc(values, 3) == pytest.approx((0.5 + 0.8 + 0.9) / 3)
    assert auc(values, 5) == pytest.approx((0.5 + 0.8 + 3 * 0.9) / 5)
    assert auc([1.0], 20) == 1


# Summary


def test_rows_their_order_and_values() -> None:
    traces = [
        trace([0.5, 0.81, 0.95], "a", seconds=1.0),
        trace([0.92], "b", seconds=3.0),
        trace([0.1] * 20, "c", seconds=0.5),
        trace([0.6] * 19 + [0.9], "d", seconds=0.5),
    ]
    rows = summarise(traces, "iou", thresholds=(0.8, 0.9), ks=(1, 5))
    assert [row.measure for row in rows] == [
        *("NoC@80", "NoC@90", "NoF@80", "NoF@90", ">=20@80", ">=20@90", "mean@1", "mean@5", "AUC", "SPC"),
    ]
    assert {(row.dataset, row.metric, row.n) for row in rows} == {("d", "iou", 4)}
    value = numbers(rows)
    assert value["NoC@80"] == (2 + 1 + 20 + 20) / 4
    assert value["NoC@90"] == (3 + 1 + 20 + 20) / 4
    assert value["NoF@80"] == value["NoF@90"] == 0.25
    assert value[">=20@80"] == value[">=20@90"] == 2
    assert value["mean@1"] == pytest.approx((0.5 + 0.92 + 0.1 + 0.6) / 4)
    assert value["mean@5"] == pytest.approx((0.95 + 0.92 + 0.1 + 0.6) / 4)
    areas = (0.5 + 0.81 + 18 * 0.95) / 20, 0.92, 0.1, (19 * 0.6 + 0.9) / 20
    assert value["AUC"] == pytest.approx(sum(areas) / 4)
    # All seconds over all clicks: the mean of the objects' own means would be 1.25.
    assert value["SPC"] == pytest.approx((3 + 3 + 10 + 10) / 44)


def test_censored_threshold_is_left_out() -> None:
    """A loop that was content at 0.90 cannot say when 0.95 would have come; one such object is enough."""
    stopped, full = trace([0.5, 0.91], "a"), trace([0.5, 0.96] + [0.97] * 18, "b")
    assert "NoC@95" in numbers(summarise([full], "iou"))
    value = numbers(summarise([stopped, full], "iou"))
    assert value["NoC@90"] == 2
    assert not {"NoC@95", "NoF@95", ">=20@95"} & value.keys()


def test_traces_of_fewer_clicks_do_not_answer_for_more() -> None:
    """10 clicks without success are not 20 clicks without success."""
    failed = trace([0.5] * 10)
    assert numbers(summarise([failed], "iou", max_clicks=10))["NoC@90"] == 10
    assert "NoC@90" not in numbers(summarise([failed], "iou", max_clicks=20))


def test_datasets_stay_apart_and_in_order() -> None:
    traces = [trace([0.9], "1", "zoo"), trace([0.1, 0.9], "2", "ant"), trace([0.1, 0.1, 0.9], "3", "zoo")]
    rows = [row for row in summarise(traces, "iou") if row.measure == "NoC@90"]
    assert [(row.dataset, row.value, row.n) for row in rows] == [("zoo", 2, 2), ("ant", 2, 1)]


def test_threshold_names() -> None:
    """0.55 and 0.29 are not exact in binary: 100 * 0.55 prints as 55.00000000000001."""
    rows = numbers(summarise([trace([1.0])], "iou", thresholds=(0.55, 0.29, 0.925, 1.0)))
    assert [name for name in rows if name.startswith("NoC")] == ["NoC@55", "NoC@29", "NoC@92.5", "NoC@100"]


def test_metric_that_was_not_measured() -> None:
    with pytest.raises(HrsegError, match=r"d/a: no 'biou' scores.*`metrics` biou"):
        summarise([trace([0.9])], "biou")


def test_without_seconds_there_is_no_spc() -> None:
    unmeasured = Trace("a", "d", (Click(0, 0, True),), {"iou": (0.9,)}, (), {"iou": 0.9})
    assert "SPC" not in numbers(summarise([trace([0.9]), unmeasured], "iou"))


def test_nothing_to_summarise() -> None:
    assert summarise([], "iou") == []


# Intervals


def random_traces(n: int, seed: int) -> list[Trace]:
    """Objects solved at click 1 to 20, all equally likely: NoC@90 is 10.5 on average."""
    clicks = np.random.default_rng(seed).integers(1, 21, size=n)
    return [trace([0.2] * (c - 1) + [0.9], str(i)) for i, c in enumerate(clicks)]


def noc90(traces: list[Trace], seed: int = 0, resamples: int = 1000) -> Row:
    rows = summarise(traces, "iou", thresholds=(0.9,), ks=(), seed=seed, resamples=resamples)
    return next(row for row in rows if row.measure == "NoC@90")


def test_what_is_counted_unless_asked() -> None:
    """The columns of the papers' tables; and the same intervals for everybody, who can then compare them."""
    traces = random_traces(9, 1)
    rows = summarise(traces, "iou")
    targets = [f"{name}@{t}" for name in ("NoC", "NoF", ">=20") for t in (80, 85, 90)]
    assert [row.measure for row in rows] == [*targets, *(f"mean@{k}" for k in (1, 3, 5, 10, 20)), "AUC", "SPC"]
    assert noc90(traces, seed=0, resamples=1000) in rows
    assert "NoC@95" in numbers(summarise([trace([0.95])], "iou"))
    over, under = np.random.default_rng(0).random((2, 30))
    assert interval(over, under) == interval(over, under, seed=0, resamples=1000)
    assert interval(over, under) != interval(over, under, resamples=1001)


def test_intervals_are_seeded() -> None:
    traces = random_traces(40, 1)
    assert noc90(traces) == noc90(traces)
    assert noc90(traces, seed=1) != noc90(traces)


def test_intervals_are_the_published_ones() -> None:
    """Of the roots of 0 to 9 with seed 0, recorded 2026-11-30: tables that were printed once can be printed again."""
    low, high = interval(np.sqrt(np.arange(10.0)), np.ones(10))
    assert (low, high) == pytest.approx((1.347686, 2.454436), abs=1e-6)


def test_interval_has_the_width_theory_says() -> None:
    """Twice 1.96 standard errors of the mean, of a sample large enough for the normal distribution."""
    row = noc90(random_traces(1000, 2), resamples=2000)
    assert row.low < row.value < row.high
    assert row.high - row.low == pytest.approx(2 * 1.96 * np.sqrt((20**2 - 1) / 12 / 1000), rel=0.1)


def test_intervals_cover() -> None:
    """Of 95 % intervals from 60 samples of 50 objects, about 57 hold the true mean; fewer than 51 is very unlikely."""
    rows = [noc90(random_traces(50, seed), resamples=200) for seed in range(60)]
    assert sum(row.low <= 10.5 <= row.high for row in rows) >= 51


def test_seconds_per_click_are_resampled_as_a_ratio() -> None:
    """With the same pace on every object, however many clicks it takes, there is nothing uncertain about it."""
    traces = [trace([0.1] * n + [0.9], str(n), seconds=0.25) for n in range(19)]
    spc = next(row for row in summarise(traces, "iou") if row.measure == "SPC")
    assert [spc.value, spc.low, spc.high] == pytest.approx([0.25, 0.25, 0.25])


# Groups of clicks


def rows_of(*values: float, dataset: str = "d", n: int = 4) -> list[Row]:
    """Rows of NoC@80, NoC@85 ... and SPC."""
    names = [f"NoC@{80 + 5 * k}" for k in range(len(values) - 1)]
    return [Row(dataset, "iou", name, v, v, v, n) for name, v in zip([*names, "SPC"], values, strict=True)]


def test_spread_over_groups_by_hand() -> None:
    """Of 2 and 4 the mean is 3 and the deviation sqrt(2); what one group does not know, and seconds, are left out."""
    assert over_groups([rows_of(2, 5, 0.1), rows_of(4, 0.3)]) == [Spread("d", "iou", "NoC@80", 3, 2**0.5, 2, 4)]
    assert over_groups([rows_of(4, 0.3), rows_of(2, 5, 0.1)]) == [Spread("d", "iou", "NoC@80", 3, 2**0.5, 2, 4)]
    (spread,) = over_groups([rows_of(1, 0), rows_of(2, 0), rows_of(6, 0)])
    assert (spread.mean, spread.std, spread.groups) == (3, pytest.approx(7**0.5), 3)
    with pytest.raises(HrsegError, match="two or more"):
        over_groups([rows_of(1, 0)])
    for other in (rows_of(1, 0, dataset="e"), rows_of(1, 0, n=5)):
        with pytest.raises(HrsegError, match="other datasets, metrics or numbers of objects"):
            over_groups([rows_of(1, 0), rows_of(1, 0), other])


def test_numbers_cannot_be_changed() -> None:
    (row, _), (spread,) = rows_of(1, 0), over_groups([rows_of(1, 0)] * 2)
    for one in (row, spread):
        assert replace(one, n=9).n == 9
        with pytest.raises(FrozenInstanceError):
            one.n = 9  # type: ignore[misc]


# Per object


def test_per_object_rows() -> None:
    both = Trace(
        id="a",
        dataset="d",
        clicks=(Click(1, 2, True), Click(3, 4, False), Click(5, 6, True)),
        scores={"iou": (0.5, 0.93, 0.92), "biou": (0.1, 0.2, 0.9)},
        seconds=(0.1, 0.2, 0.312345),
        until={"iou": 0.9, "biou": 0.9},
        size=(480, 640),
        area=1234,
    )
    header, rows = per_object_rows([both, trace([0.5] * 20, "b", size=(10, 20), area=5)], thresholds=(0.9, 0.925, 0.95))
    assert header == [
        *("id", "height", "width", "area", "clicks", "seconds"),
        *("iou_final", "iou_best", "iou_noc@90", "iou_noc@92.5", "iou_noc@95"),
        *("iou_reached@90", "iou_reached@92.5", "iou_reached@95"),
        *("biou_final", "biou_best", "biou_noc@90", "biou_noc@92.5", "biou_noc@95"),
        *("biou_reached@90", "biou_reached@92.5", "biou_reached@95"),
    ]
    assert rows[0] == [
        *("a", 480, 640, 1234, 3, 0.6123),
        *(0.92, 0.93, 2, 2, "", 1, 1, ""),
        *(0.9, 0.9, 3, "", "", 1, "", ""),
    ]
    # The second was not scored by Boundary IoU, and used up its clicks on IoU.
    assert rows[1] == ["b", 10, 20, 5, 20, 10.0, 0.5, 0.5, 20, 20, 20, 0, 0, 0, *[""] * 8]
