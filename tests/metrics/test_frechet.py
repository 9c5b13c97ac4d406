"""The Fréchet distance against recorded numbers, scipy, torchmetrics and closed forms; its interval by simulation."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from cfx_lib.metrics.frechet import GROUPS, GroupedStatistics, content_keys, frechet_distance, jackknife

quick = settings(deadline=None, max_examples=15, derandomize=True)
seeds, dims = st.integers(0, 10**6), st.integers(1, 7)


def features(seed, n, dim, shift=0.0):
    random = np.random.default_rng([seed, n, dim])
    return random.normal(size=(n, dim)) @ random.normal(size=(dim, dim)) + shift


def moments(f):
    return f.mean(0), np.atleast_2d(np.cov(f, rowvar=False))


def by_scipy(f1, f2):
    """LDCE, Eq. 22 as printed."""
    (mu1, sigma1), (mu2, sigma2) = moments(f1), moments(f2)
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * np.real(root))


def statistics(f1, f2, keys1=None, keys2=None, batch=16):
    found = GroupedStatistics()
    for f, keys, real in ((f1, keys1, True), (f2, keys2, False)):
        keys = np.arange(len(f)) if keys is None else keys
        for start in range(0, len(f), batch):
            rows = slice(start, start + batch)
            found.add(torch.as_tensor(f[rows]), keys[rows], real)
    return found


def test_recorded_distances(fixture):
    tensors, meta = fixture("11_metrics_fid")
    for case in meta["cases"]:
        get = {k.removeprefix(case["prefix"]): v for k, v in tensors.items() if k.startswith(case["prefix"])}
        if "mu1" in get:
            found, rtol = frechet_distance(get["mu1"], get["sigma1"], get["mu2"], get["sigma2"]), 1e-9
        else:
            found, rtol = statistics(get["f1"], get["f2"]).distances().value, case["tolerance"]["rtol"]
        assert found == pytest.approx(float(get["fid"]), rel=rtol), case["prefix"]
        assert found == pytest.approx(case["second_formula"], rel=min(rtol, 1e-6)), case["prefix"]


@quick
@given(seeds, dims, st.integers(0, 40))
def test_against_scipy_and_torchmetrics(seed, dim, more):
    f1, f2 = features(seed, dim + 10, dim), features(seed + 1, dim + 10 + more, dim, shift=0.3)
    found = statistics(f1, f2).distances()
    assert (found.n, found.dim) == (len(f1), dim)
    assert found.value == pytest.approx(by_scipy(f1, f2), rel=1e-7)
    assert found.value == pytest.approx(frechet_distance(*moments(f1), *moments(f2)), rel=1e-9)
    metric = FrechetInceptionDistance(torch.nn.Identity(), normalize=True, input_img_size=(dim,))
    metric.set_dtype(torch.float64)
    metric.update(torch.as_tensor(f1), real=True)
    metric.update(torch.as_tensor(f2), real=False)
    assert found.value == pytest.approx(float(metric.compute()), rel=1e-7)


@quick
@given(seeds, dims)
def test_closed_form_of_two_gaussians(seed, dim):
    random = np.random.default_rng(seed)
    (mu1, mu2), (a, b) = random.normal(size=(2, dim)), random.uniform(0.1, 3, (2, dim))
    turn, _ = np.linalg.qr(random.normal(size=(dim, dim)))
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()  # commuting covariances
    found = frechet_distance(turn @ mu1, turn * a @ turn.T, turn @ mu2, turn * b @ turn.T)
    assert found == pytest.approx(expected, rel=1e-10)


@quick
@given(seeds, dims, st.integers(2, 30))
def test_symmetric_zero_for_equal_sets_and_never_negative(seed, dim, n):
    f1, f2 = moments(features(seed, n, dim)), moments(features(seed + 1, n, dim))
    assert frechet_distance(*f1, *f1) == 0
    assert frechet_distance(*f1, *f2) == pytest.approx(frechet_distance(*f2, *f1), rel=1e-6)
    assert frechet_distance(*f1, f1[0], f1[1] * (1 + 1e-15)) >= 0


def test_few_images_in_many_features():
    f = features(0, 6, 40)
    found = statistics(f, f[:, ::-1].copy()).distances()
    assert found.value == pytest.approx(by_scipy(f, f[:, ::-1]), rel=1e-3)
    assert statistics(f, f).distances().value == 0
    moved = statistics(f, f + 1e-3).distances().value  # far below the rounding of a root of the product
    assert moved == pytest.approx(40e-6, rel=1e-6)


def test_moments_without_a_group():
    f, keys = features(3, 50, 4), np.random.default_rng(0).integers(0, 1000, 50)
    found = statistics(f, f + 1, keys, keys)
    assert found.counts(real=True).tolist() == [(keys % GROUPS == g).sum() for g in range(GROUPS)]
    for g in (None, 0, 7):
        kept = f if g is None else f[keys % GROUPS != g]
        mean, covariance = found.moments(real=True, without=g)
        np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-10)
        np.testing.assert_allclose(covariance, np.cov(kept.T), rtol=1e-9, atol=1e-12)


def test_the_state_does_not_grow():
    found, sizes = GroupedStatistics(), set()
    for batch in range(20):
        found.add(torch.randn(64, 5), np.arange(64), real=batch % 2 == 0)
        sizes.add(sum(s.numel() for m in found.metrics for s in m.metric_state.values()))
    assert sizes == {2 * GROUPS * (1 + 5 + 25)}
    assert all(s.dtype == torch.float64 for m in found.metrics for s in m.metric_state.values() if s.ndim)


def test_keys_know_the_image_alone():
    x = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    keys = content_keys(x)
    assert keys.shape == (12,) and len(set(keys)) == 12 and (keys >= 0).all()
    assert (content_keys(x.flip(0))[::-1] == keys).all()
    assert np.concatenate([content_keys(part) for part in x.split(5)]).tolist() == keys.tolist()
    assert content_keys(x.double())[3] == keys[3]
    assert len(content_keys(x[:0])) == 0


def test_equal_groups_give_the_textbook_jackknife():
    f1, f2 = features(1, 10 * GROUPS, 3), features(2, 10 * GROUPS, 3)
    found = statistics(f1, f2).distances()
    value, low, high = jackknife([found])
    spread = found.without - found.without.mean()
    error = np.sqrt((GROUPS - 1) / GROUPS * (spread**2).sum())
    assert value == found.value and high - value == pytest.approx(2.262157 * error, rel=1e-6)
    assert low == pytest.approx(max(0, value - 2.262157 * error), rel=1e-6)
    assert jackknife([found, found]) == pytest.approx((value, low, high))


def percentile_bootstrap(f1, f2, random, resamples=40):
    draws = [[f[random.integers(0, len(f), len(f))] for f in (f1, f2)] for _ in range(resamples)]
    return np.quantile([frechet_distance(*moments(a), *moments(b)) for a, b in draws], (0.025, 0.975))


def test_simulated_coverage():
    """Two Gaussians whose distance is known; the interval aims at its expectation for 100 images."""
    random, scale, dim, n = np.random.default_rng(0), np.linspace(0.5, 1.5, 6), 6, 100
    found, intervals, resampled = [], [], []
    for run in range(100):
        f1, f2 = random.normal(size=(n, dim)) * scale, random.normal(size=(n, dim)) + 0.2
        keys = random.integers(0, 10**9, (2, n))
        value, *interval = jackknife([statistics(f1, f2, *keys, batch=n).distances()])
        found.append(value)
        intervals.append(interval)
        resampled += [percentile_bootstrap(f1, f2, random)] if run < 30 else []
    truth = 6 * 0.2**2 + ((1 - scale) ** 2).sum()
    expected = np.mean(found)
    assert truth < expected < 2 * truth  # biased: the interval is not one for n = infinity
    hits = [low <= expected <= high for low, high in intervals]
    assert np.mean(hits) >= 0.91
    assert np.mean([high - low for low, high in intervals]) < 8 * np.std(found)
    assert np.mean([low <= expected <= high for low, high in resampled]) < 0.8


def test_too_few_images():
    f = features(0, 5, 3)
    assert statistics(f[:1], f).distances() is None
    assert GroupedStatistics().distances() is None
    only_one_group = statistics(f, f + 1, np.zeros(5, int), np.zeros(5, int)).distances()
    assert np.isnan(jackknife([only_one_group])[1:]).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, s: frechet_distance(m, s[:2], m, s), r"\(2, 3\) given"),
        (lambda m, s: frechet_distance(m, s, m[:2], s[:2, :2]), "3 and 2 features"),
        (lambda m, s: frechet_distance(m * np.nan, s, m, s), "NaN"),
        (lambda m, s: frechet_distance(m, -s, m, s), "negative eigenvalues"),
        (lambda m, s: frechet_distance(m, s + np.triu(s, 1) + 1e-1 * np.tri(3), m, s), "not symmetric"),
    ],
)
def test_bad_moments_are_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(*moments(features(0, 20, 3)))


def test_another_number_of_features_is_explained():
    found = statistics(features(0, 5, 3), features(1, 5, 3))
    with pytest.raises(ValueError, match="4 features given after 3"):
        found.add(torch.zeros(2, 4), np.arange(2), real=False)
