"""How far two maps are apart: values by hand, known permutations, regions, and maps that cannot be compared."""

import math
from dataclasses import replace

import numpy as np
import pytest
from shades import explanation, pair, top

from onnxcam.comparison import Compared, Comparison, Pair, pearson


def test_the_numbers_of_two_maps_with_ties_are_those_worked_out_by_hand() -> None:
    found = pair([[0.1, 0.2], [0.2, 0.4]], [[0.1, 0.3], [0.2, 0.4]]).numbers
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4, less their mean: 4.5 / sqrt(4.5 * 5).
    assert found["rank_correlation"] == pytest.approx(math.sqrt(0.9), abs=1e-12)
    # Less their means -1.25, -.25, -.25, 1.75 and -1.5, .5, -.5, 1.5 tenths: 4.5 / sqrt(4.75 * 5).
    assert found["pearson"] == pytest.approx(4.5 / math.sqrt(23.75), abs=1e-6)
    assert found["mean_difference"] == pytest.approx(0.025, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_of_permuted_values_the_rank_correlation_is_the_formula_of_rank_differences(seed: int) -> None:
    n = 30
    p = np.random.default_rng(seed).permutation(n)
    # Monotone, not linear, in the ranks: Spearman's does not see it, Pearson's does.
    found = pair((np.arange(n).reshape(5, 6) / n) ** 3, (p.reshape(5, 6) / n)).numbers
    expected = 1 - 6 * float(((np.arange(n) - p) ** 2).sum()) / (n * (n**2 - 1))
    assert found["rank_correlation"] == pytest.approx(expected, abs=1e-12)
    assert abs(found["pearson"] - expected) > 1e-3


def test_a_map_turned_over_has_correlations_of_minus_one() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 11
    found = pair(values, 1 - values).numbers
    assert found["rank_correlation"] == pytest.approx(-1, abs=1e-12)
    assert found["pearson"] == pytest.approx(-1, abs=1e-7)


def test_pearson_is_that_of_the_values_and_of_a_constant_map_there_is_none() -> None:
    a, b = np.random.default_rng(0).random((2, 7, 9))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)
    assert math.isnan(pearson(a, np.ones_like(a)))


def test_equal_maps_correlate_fully_also_where_both_are_empty() -> None:
    for values in (np.zeros((4, 4)), np.random.default_rng(0).random((4, 4))):
        same = pair(values, values)
        assert same.numbers == {"rank_correlation": 1.0, "pearson": 1.0, "mean_difference": 0.0}
        assert same.problem is None and not same.difference.any()


def test_the_difference_and_the_numbers_are_of_what_both_models_saw() -> None:
    a, b = np.random.default_rng(0).random((2, 6, 8)).astype(np.float32)
    both = Pair("picture", explanation(a, region=(0, 1, 6, 6)), explanation(b, region=(2, 0, 8, 5)))
    assert both.region == (2, 1, 6, 5)
    seen = np.zeros((6, 8), bool)
    seen[1:5, 2:6] = True
    assert np.array_equal(both.difference[seen], (b - a)[seen]) and not both.difference[~seen].any()
    inside = pair(a[1:5, 2:6], b[1:5, 2:6]).numbers
    assert both.numbers == inside != pair(a, b).numbers


def test_maps_that_cannot_be_compared_say_why_and_have_no_numbers() -> None:
    some, zero, nan = np.eye(4), np.zeros((4, 4)), np.full((4, 4), np.nan)
    apart = Pair("p", explanation(some, region=(0, 0, 2, 4)), explanation(some, region=(2, 0, 4, 4)))
    for found, why in (
        (pair(some, zero), "the map of b is empty"),
        (pair(zero, some), "the map of a is empty"),
        (pair(nan, some), "the map of a holds NaN"),
        (pair(some, np.ones((4, 4))), "the map of b is constant"),
        (apart, "the models see no common part of the picture"),
    ):
        assert found.problem == why
        assert all(math.isnan(v) for v in found.numbers.values())


def test_the_class_moved_by_label_where_there_are_labels_else_by_index() -> None:
    a = explanation(np.eye(3), best=0)
    other = replace(explanation(np.eye(3), best=2), labels=("blue", "green", "n01234567 Red"))
    bare = replace(explanation(np.eye(3), best=2), labels=None)
    assert not Pair("p", a, explanation(np.eye(3), best=0)).changed
    assert Pair("p", a, explanation(np.eye(3), best=1)).changed
    assert not Pair("p", a, other).changed  # the same label at another index
    assert Pair("p", a, bare).changed and not Pair("p", replace(a, labels=None), replace(bare, scores=a.scores)).changed


def compared(name: str, rank: float, b: str = "red", problem: str | None = None) -> Compared:
    numbers = {"rank_correlation": rank, "pearson": rank / 2, "mean_difference": 0.1}
    return Compared(name, name, numbers, (top(0, "red"), top(0, "red")), (top(0, "red"), top(1, b)), problem)


ROWS = (
    compared("one", 0.9),
    compared("two", 0.5, "green"),
    compared("three", 0.7),
    compared("four", 1.0),
    compared("five", math.nan, "blue", "the map of b is empty"),
)


def comparison(rows=ROWS) -> Comparison:
    return Comparison(None, None, None, rows, ())  # type: ignore[arg-type]


def test_the_summary_is_that_of_the_pictures_that_could_be_compared() -> None:
    found = comparison()
    expected = {"mean": 0.775, "least": 0.5, "q25": 0.65, "median": 0.8, "q75": 0.925}
    assert found.statistics == pytest.approx(expected, abs=1e-12)
    assert [p.name for p in found.ranked] == ["five", "two", "three", "one", "four"]
    assert [p.name for p in found.changed] == ["two", "five"]
    assert [p.name for p in found.incomparable] == ["five"]
    assert found.text == (
        "5 pictures: rank correlation mean 0.775, least 0.500, quartiles 0.650 0.800 0.925; "
        "Pearson mean 0.388, least 0.250; 1 cannot be compared; the class moved on 2"
    )


def test_the_table_shows_the_worst_and_then_those_whose_class_moved() -> None:
    rows = (*ROWS[:4], compared("six", 0.95, "blue"))
    columns, cells = comparison(rows).table(1)
    assert columns == ["worst, and moved", "rank correlation", "Pearson", "mean difference", "predicted"]
    assert cells == [
        ["two", "0.500", "0.250", "0.100", "red → green"],
        ["six", "0.950", "0.475", "0.100", "red → blue"],
    ]
    (cell,) = comparison(ROWS[4:]).table()[1]
    assert cell == ["five", "-", "-", "0.100", "red → blue (the map of b is empty)"]


def test_a_limit_fails_below_it_and_holds_at_it_and_a_map_that_cannot_be_compared_fails_any() -> None:
    good = comparison(ROWS[:4])
    assert good.failures({}) == good.failures({"mean": 0.775, "least": 0.5, "median": 0.8}) == []
    assert good.failures({"mean": 0.78, "least": 0.5, "q75": 0.93}) == [
        "mean 0.7750 is below 0.78",
        "q75 0.9250 is below 0.93",
    ]
    assert good.failures({"pearson.mean": 0.3875, "pearson.median": 0.401}) == ["pearson.median 0.4000 is below 0.401"]
    assert comparison().failures({"least": 0.1}) == ["1 cannot be compared (`five`: the map of b is empty)"]
    assert comparison().failures({}) == []


def test_nothing_that_can_be_compared_passes_no_limit() -> None:
    nothing = comparison(ROWS[4:] * 2)
    assert all(math.isnan(v) for v in nothing.statistics.values())
    assert nothing.failures({"mean": -1.0}) == ["2 cannot be compared (`five`: the map of b is empty)"]
    assert nothing.text == "2 pictures: none can be compared; the class moved on 2"
