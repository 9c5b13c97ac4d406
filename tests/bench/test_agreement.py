"""Rank agreement against scipy and against cases that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg, stats

from cfx_lib.bench import agreement


def counted(w: np.ndarray) -> np.ndarray:
    """The faces that a row of weights stands for."""
    return np.repeat(np.arange(len(w)), w.astype(int))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_weights_count_every_face_once_and_then_draw_with_replacement() -> None:
    w = agreement.weights(20, 500)
    assert w.shape == (501, 20) and (w[0] == 1).all() and (w.sum(1) == 20).all()
    assert abs(w[1:].mean(0) - 1).max() < 0.2 and (w[1:] != 1).any(1).all()
    np.testing.assert_array_equal(w, agreement.weights(20, 500))
    assert (w[1:] != agreement.weights(20, 500, seed=1)[1:]).any()
    with pytest.raises(ValueError, match="at least 1"):
        agreement.weights(0, 10)


def test_weighted_numbers_are_those_of_the_faces_drawn(rng) -> None:  # noqa: ANN001
    w, scores, sizes = agreement.weights(12, 40), rng.normal(size=(3, 12)), rng.random((3, 12))
    scores[0, 3] = np.nan
    scores[2] = np.nan
    changes = rng.integers(-1, 2, (12, 4))
    changes[:, 3] = 1
    means, ratios = agreement.weighted_mean(scores, w), agreement.weighted_ratio(scores * sizes, sizes, w)
    found = agreement.weighted_correlations(changes, 0, w)
    for r in range(41):
        drawn = counted(w[r])
        kept = drawn[drawn != 3]
        assert means[r, 0] == pytest.approx(scores[0, kept].mean())
        assert means[r, 1] == pytest.approx(scores[1, drawn].mean())
        assert ratios[r, 1] == pytest.approx((scores * sizes)[1, drawn].sum() / sizes[1, drawn].sum())
        assert ratios[r, 0] == pytest.approx((scores * sizes)[0, kept].sum() / sizes[0, kept].sum())
        for k in range(3):
            a, b = changes[drawn, 0], changes[drawn, k]
            if a.std() and b.std():
                assert found[r, k] == pytest.approx(np.corrcoef(a, b)[0, 1])
            else:
                assert math.isnan(found[r, k])
    assert np.isnan(means[:, 2]).all() and np.isnan(found[:, 3]).all()


@pytest.mark.parametrize("d", [5, 40])
def test_weighted_frechet_distance_against_the_formula(rng, d: int) -> None:  # noqa: ANN001
    """With fewer features than images, and with more: there the root of the product is taken of singular matrices."""
    real, fake = rng.normal(size=(16, d)), rng.normal(size=(13, d)) * 1.5 + 1
    w, v = agreement.weights(16, 6), agreement.weights(13, 6, seed=1)
    for distance, row, other in zip(agreement.weighted_frechet(real, fake, w, v), w, v, strict=True):
        a, b = real[counted(row)], fake[counted(other)]
        first, second = np.cov(a.T), np.cov(b.T)
        root = linalg.sqrtm(first) if d < 13 else linalg.sqrtm(first + 1e-12 * np.eye(d))
        middle = root.real @ second @ root.real
        trace = np.trace(first + second) - 2 * np.sqrt(np.linalg.eigvalsh(middle).clip(0)).sum()
        assert distance == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum() + trace, rel=1e-4)


def test_frechet_distance_of_a_copy_is_zero_and_of_one_image_undefined(rng) -> None:  # noqa: ANN001
    x, w = rng.normal(size=(10, 30)), agreement.weights(10, 5)
    assert abs(agreement.weighted_frechet(x, x, w, w)).max() < 1e-9
    single = np.eye(10)[:6]
    assert np.isnan(agreement.weighted_frechet(x, x, w, single)).all()


def test_tau_b_is_scipys_with_ties_and_without_missing_methods(rng) -> None:  # noqa: ANN001
    a, b = (rng.integers(0, 6, (300, 8)).astype(float) for _ in range(2))
    a[rng.random(a.shape) < 0.2] = np.nan
    for found, x, y in zip(agreement.tau_b(a, b), a, b, strict=True):
        there = ~np.isnan(x)
        wanted = stats.kendalltau(x[there], y[there]).statistic if there.sum() >= 3 else np.nan
        assert found == pytest.approx(wanted, nan_ok=True)


def test_tau_b_is_undefined_without_an_order_and_blind_to_rounding() -> None:
    rising = np.arange(8.0)
    assert math.isnan(agreement.tau_b(np.ones(8), rising)[0])
    assert math.isnan(agreement.tau_b(np.array([1.0, 2.0, *[np.nan] * 6]), rising)[0]), (
        "two methods are no order"
    )
    assert math.isnan(agreement.tau_b(np.array([0.1 + 0.2, 0.3, 0.3]), rising[:3])[0]), (
        "all the same but for rounding"
    )
    assert agreement.tau_b(rising, -rising)[0] == -1


def test_spearman_is_scipys_and_takes_all_methods_of_a_face_along(rng) -> None:  # noqa: ANN001
    a, b = rng.integers(0, 4, (5, 9)).astype(float), rng.normal(size=(5, 9))
    b[1, 2] = np.nan
    w = agreement.weights(9, 20)
    for found, row in zip(agreement.pooled_spearman(a, b, w), w, strict=True):
        x, y = a[:, counted(row)].ravel(), b[:, counted(row)].ravel()
        assert found == pytest.approx(stats.spearmanr(x[~np.isnan(y)], y[~np.isnan(y)]).statistic)
    assert math.isnan(agreement.spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(agreement.spearman(np.array([np.nan]), np.array([1.0])))


def test_within_a_face_how_hard_the_face_is_plays_no_part(rng) -> None:  # noqa: ANN001
    """Scores that agree about the methods of each face, and disagree about which faces are easy."""
    quality, hard = np.arange(5.0)[:, None], 10.0 * rng.permutation(20)
    a, b = quality + hard, quality - hard
    assert agreement.within_face(a, b) == pytest.approx(np.ones(20))
    assert agreement.pooled_spearman(a, b, np.ones((1, 20)))[0] < -0.9
    assert np.isnan(agreement.within_face(np.ones((5, 20)), b)).all()


def test_averages_count_an_undefined_correlation_as_none() -> None:
    a, b = np.array([0.5, 0.6, np.nan]), np.array([np.nan, 0.2, 0.4])
    assert agreement.averaged([a, b]) == pytest.approx([0.25, 0.4, 0.2])
    assert np.isnan(agreement.averaged([np.full(3, np.nan)])).all()


def test_values_hold_the_estimate_and_tell_of_undefined_resamples(rng) -> None:  # noqa: ANN001
    draws = rng.normal(0.3, 0.1, 4001)
    draws[0] = 0.3
    value = agreement.valued(draws, 64)
    assert (value.low, value.high) == pytest.approx((0.1, 0.5), abs=0.02)
    assert value.n == 64 and value.method == "bootstrap of faces"
    assert agreement.valued(np.array([0.9, *draws[1:]]), 64).high == 0.9, (
        "resampling adds noise, which lowers agreement"
    )
    draws[1:401] = np.nan
    value = agreement.valued(draws, 64)
    assert value.low == 0 and "10.0% of the resamples undefined" in value.method
    assert not agreement.valued(np.array([np.nan, 0.1, 0.2]), 64).defined


def tau_of_faces(scores: np.ndarray, truth: np.ndarray, resamples: int = 300):  # noqa: ANN201
    w = agreement.weights(scores.shape[1], resamples)
    return agreement.valued(
        agreement.tau_b(*(agreement.weighted_mean(s, w) for s in (scores, truth))), len(w[0])
    )


def test_interval_of_tau_covers_that_of_endless_faces(rng) -> None:  # noqa: ANN001
    """Methods whose true means are known: the interval covers their tau about as often as it says, and never too rarely."""
    means, wanted = rng.normal(size=(2, 8)), 0
    wanted = stats.kendalltau(*means).statistic
    hits = 0
    for _ in range(60):
        faces = rng.normal(size=(2, 8, 40)) + means[:, :, None]
        hits += tau_of_faces(*faces).covers(wanted)
    assert hits >= 53, hits


def test_interval_of_tau_is_narrow_for_clear_orders_and_wide_for_none(rng) -> None:  # noqa: ANN001
    clear = np.arange(8.0)[:, None] + rng.normal(size=(2, 8, 64)) * 0.1
    sure = tau_of_faces(*clear)
    assert sure.low == sure.high == 1
    vague = tau_of_faces(*rng.normal(size=(2, 8, 64)))
    assert vague.high - vague.low > 0.5


def test_places_winners_and_shares() -> None:
    others = np.array([0.1, 0.5, np.nan, 0.9])
    assert agreement.place(0.95, others) == 1 and agreement.place(0.0, others) == 4
    assert agreement.place(0.5, others) == 3 and agreement.place(0.5, others, behind_ties=False) == 2
    assert agreement.place(-0.5, -others) == 3 and agreement.place(math.nan, others) is None
    assert agreement.winners(np.array([1.0, np.nan, 1.0])).tolist() == [True, False, True]
    assert not agreement.winners(np.array([np.nan, np.nan])).any()
    draws = np.array([[9.0, 1, 1, 1, 0], [0, 0, 1, 2, 0], [0, np.nan, 0, 0, 0]])
    assert agreement.best_shares(draws) == pytest.approx(
        [(1 + 1 / 2 + 1 / 3) / 4, (1 / 2 + 1 + 1 / 3) / 4, 1 / 12]
    )


def test_same_order_is_strict_about_ties() -> None:
    a = np.array([[1.0, 2, 3], [1, 2, 3], [1, 1, 3]])
    b = np.array([[5.0, 6, 7], [5, 5, 7], [5, 5, 7]])
    assert agreement.same_order(a, b).tolist() == [True, False, True]
