"""Value: printing, JSON, intervals (against independent computations and by simulated coverage), differences."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cfx_lib.metrics import Value, average, difference, rate, ratio

quick = settings(deadline=None, max_examples=30, derandomize=True)
floats = st.floats(-5, 5, allow_nan=False, width=32)
UNDEFINED = average(torch.zeros(0))


def test_a_rate_prints_as_the_course_shows_it():
    assert str(rate([True] * 60 + [False] * 4)) == "93.8 % [85.0, 97.5] (n=64)"
    assert f"{rate([1, 0]):.0f}" == "50 % [9, 91] (n=2)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(0.04234, 0.0391, 0.0455, 8), "0.0423 [0.0391, 0.0455] (n=8)"),
        (Value(1234.5, 1200, 1300, 8, "VGG19"), "1234 [1200, 1300] (n=8, VGG19)"),
        (Value(0, 0, 0, 3), "0 [0, 0] (n=3)"),
        (Value(2e-9, 1e-9, 3e-9, 3), "2e-09 [1e-09, 3e-09] (n=3)"),
        (Value(1.5, math.nan, math.nan, 1, unit="s"), "1.50 s (n=1, no interval)"),
        (Value(0.03, -0.01, 0.07, 64, unit="points"), "+3.0 points [-1.0, +7.0] (n=64)"),
        (UNDEFINED, "undefined (n=0)"),
        (Value(math.nan, math.nan, math.nan, 0, "VGG19"), "undefined (n=0, VGG19)"),
    ],
)
def test_printing(value, text):
    assert str(value) == text
    assert "nan" not in text
    assert f"{value:>50}" == text.rjust(50)


def test_a_value_is_frozen_compares_pickles_and_becomes_a_float():
    value = rate([True, False, True])
    with pytest.raises(AttributeError):
        value.mean = 1.0
    assert float(value) == pytest.approx(2 / 3)
    assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(UNDEFINED)) == UNDEFINED
    assert hash(value) == hash(rate([True, True, False]))
    assert value != rate([True]) and value != 3
    with pytest.raises(ValueError):
        value.scores[0] = 5


@pytest.mark.parametrize("value", [rate([1, 0, 1]), average([1.0]), UNDEFINED, Value(1, 0, 2, 5, "lpips")])
def test_json_round_trip(value):
    text = json.dumps(value.to_dict(), allow_nan=False)
    back = Value.from_dict(json.loads(text))
    assert back == value and str(back) == str(value)


@pytest.mark.parametrize("wrong", [{}, {"mean": 1, "low": 0, "high": 2}, {**UNDEFINED.to_dict(), "extra": 1}])
def test_from_dict_says_which_names_are_wrong(wrong):
    with pytest.raises(ValueError, match="expected"):
        Value.from_dict(wrong)


@pytest.mark.parametrize(
    "numbers", [(1, 2, 3, 5), (2, 1, 1.5, 5), (1, 0, 2, -1), (math.nan, 0, 1, 3), (1, 0, 2, 1.5)]
)
def test_an_impossible_value_is_refused(numbers):
    with pytest.raises(ValueError, match="expected|use n=0|n=3"):
        Value(*numbers)


def test_covers():
    value = rate([True] * 60 + [False] * 4)
    assert value.covers(0.9) and value.covers(60 / 64) and not value.covers(0.99) and not value.covers(93.8)
    assert not UNDEFINED.covers(0.0) and not UNDEFINED.defined
    assert not average([1.0]).covers(1.0) and average([1.0]).defined and not average([1.0]).has_interval


@quick
@given(st.integers(1, 300), st.data())
def test_wilson_agrees_with_scipy(n, data):
    k = data.draw(st.integers(0, n))
    value = rate(np.arange(n) < k)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert value.high - value.low > 0 and value.mean == k / n


def test_all_successes_are_not_certain():
    assert rate([True] * 8).low < 0.7 and rate([True] * 8).high == 1.0
    assert rate([False] * 8).high > 0.3 and rate([False] * 8).low == 0.0


@quick
@given(st.lists(floats, min_size=2, max_size=40), st.integers(0, 100))
def test_average_is_the_mean_inside_its_interval_and_ignores_order_and_gaps(scores, seed):
    value = average(scores)
    assert value.mean == pytest.approx(np.mean(scores, dtype=np.float64), abs=1e-9)
    assert min(scores) - 1e-9 <= value.low <= value.mean <= value.high <= max(scores) + 1e-9
    shuffled = np.random.default_rng(seed).permutation(scores)
    assert average(shuffled) == value
    with_gaps = average(np.concatenate([[np.nan], scores, [np.nan]]))
    assert with_gaps == value and len(with_gaps.scores) == len(scores) + 2
    assert average(torch.tensor(scores, dtype=torch.float64)) == value


def test_bootstrap_agrees_with_a_plain_loop():
    scores = np.sort(np.random.default_rng(3).gamma(2.0, size=15))
    n, rng = len(scores), np.random.default_rng(0)
    means = [scores[rng.integers(0, n, n)].mean() for _ in range(20_000)]
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    value = average(scores, resamples=20_000)
    assert (value.low, value.high) == pytest.approx((low, high), rel=0.03)


def test_the_seed_and_the_level_matter_and_nothing_else_random():
    scores = np.random.default_rng(0).normal(size=20)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert average(scores) == average(scores)
    assert (np.random.get_state()[1] == before).all()
    assert average(scores, seed=1) != average(scores)
    wide, narrow = average(scores, level=0.99), average(scores, level=0.5)
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize(("n", "draw"), [(10, "normal"), (30, "exponential")])
def test_the_bootstrap_interval_covers_the_truth_about_95_times_in_100(n, draw):
    rng, trials = np.random.default_rng(7), 400
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    samples = getattr(rng, draw)(size=(trials, n))
    covered = np.mean([average(s, resamples=500, seed=i).covers(truth) for i, s in enumerate(samples)])
    assert 0.90 <= covered <= 0.985


def test_the_wilson_interval_covers_the_truth_about_95_times_in_100():
    samples = np.random.default_rng(1).random((1000, 40)) < 0.9
    covered = np.mean([rate(s).covers(0.9) for s in samples])
    assert 0.92 <= covered <= 0.99


def test_the_paired_rate_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    a = rng.random((600, 40)) < 0.9
    b = a & (rng.random((600, 40)) < 0.9)  # the true difference is 0.9 - 0.81
    covered = np.mean([difference(rate(p), rate(q)).covers(0.09) for p, q in zip(a, b, strict=True)])
    assert 0.92 <= covered <= 0.995


def test_ratio_is_a_ratio_of_sums():
    top, bottom = np.array([1.0, 2.0, 9.0]), np.array([2.0, 0.0, 4.0])
    value = ratio(top, bottom)
    assert value.mean == 2.0 and value.n == 3
    assert np.mean(value.scores) == pytest.approx(2.0)
    assert ratio(top[::-1].copy(), bottom[::-1].copy()) == value
    assert not ratio([0.0], [0.0]).defined
    assert ratio([1, np.nan, 3], [1, 5, 1]).mean == 2.0
    with pytest.raises(ValueError, match="3 numerators and 2"):
        ratio([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="signed"):
        ratio([1, 2], [1, -2])


@quick
@given(st.lists(floats, min_size=2, max_size=30))
def test_difference_to_itself_is_zero_and_it_is_antisymmetric(scores):
    a = average(scores)
    assert difference(a, a) == Value(0, 0, 0, len(scores), method="bootstrap")
    b = average(np.square(scores))
    assert difference(a, b).mean == pytest.approx(-difference(b, a).mean, abs=1e-12)
    assert difference(a, b).mean == pytest.approx(a.mean - b.mean, abs=1e-9)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    face = rng.normal(size=50)
    a, b = average(face + 0.1 * rng.normal(size=50) + 1), average(face + 0.1 * rng.normal(size=50))
    gap = difference(a, b)
    assert gap.covers(1.0) and gap.high - gap.low < (a.high - a.low) / 2


def test_difference_of_rates_agrees_with_bonett_and_price():
    a, b = np.array([1] * 50 + [0] * 14), np.array([1] * 40 + [0] * 10 + [1] * 2 + [0] * 12)
    gap = difference(rate(a), rate(b))
    p12, p21 = (10 + 1) / 66, (2 + 1) / 66
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 66)
    assert gap.mean == pytest.approx(8 / 64)
    assert (gap.low, gap.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)
    assert str(gap).startswith("+12.5 points [")
    same = difference(rate([True] * 8), rate([True] * 8))
    assert same.mean == 0 and same.low < 0 < same.high


def test_difference_uses_the_images_that_both_have_and_needs_pairs():
    gap = difference(average([1.0, np.nan, 3.0, 4.0]), average([0.0, 1.0, np.nan, 2.0]))
    assert gap.n == 2 and gap.mean == 1.5
    assert not difference(UNDEFINED, UNDEFINED).defined
    with pytest.raises(ValueError, match="3 and 2 images"):
        difference(average([1.0, 2.0, 3.0]), average([1.0, 2.0]))
    with pytest.raises(ValueError, match="without scores"):
        difference(Value(1, 0, 2, 5), average([1.0] * 5))
    with pytest.raises(ValueError, match="same metric"):
        difference(rate([True]), average([1.0]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: average(np.zeros((2, 2))), "one score per image"),
        (lambda: average([np.inf, 1.0]), "infinite"),
        (lambda: rate([0.5, 1.0]), "use average"),
        (lambda: average([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: average([1.0, 2.0], resamples=3), "at least 100"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call()
