"""Lp norms against numpy, and their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfx_lib.metrics import lp_distance, lp_norm, lp_norms

quick = settings(deadline=None, max_examples=25, derandomize=True)


def pair(seed, n=5):
    x = torch.rand(2, n, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x[0], x[1]


@quick
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_equation_19(seed, p):
    x, x_cf = pair(seed)
    difference = (x.numpy().astype(np.float64) - x_cf.numpy()).reshape(5, -1)
    norms = np.linalg.norm(difference, ord=p, axis=1)
    assert lp_norm(x, x_cf, p=p).mean == pytest.approx(norms.mean(), rel=1e-12)
    assert lp_norm(x, x_cf, p=p, per_pixel=True).mean == pytest.approx(
        norms.mean() / 72 ** (1 / p), rel=1e-12
    )
    assert lp_norm((x + 1) / 2, (x_cf + 1) / 2, p=p).mean == pytest.approx(
        lp_norm(x, x_cf, p=p, unit_range=True).mean, rel=1e-6
    )


@quick
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_properties(seed, order):
    x, x_cf = pair(seed)
    assert lp_norm(x, x).mean == 0 and lp_norm(x, x).high == 0
    assert lp_norm(x, x_cf) == lp_norm(x_cf, x)
    assert lp_norm(x[list(order)], x_cf[list(order)]) == lp_norm(x, x_cf)
    norms = {p: lp_distance(x, x_cf, p=p) for p in (1, 1.5, 2)}
    means = {p: lp_distance(x, x_cf, p=p, per_pixel=True) for p in (1, 1.5, 2)}
    assert (norms[1] >= norms[1.5]).all() and (norms[1.5] >= norms[2]).all()
    assert (means[1] <= means[1.5] + 1e-12).all() and (means[1.5] <= means[2] + 1e-12).all()
    assert (means[2] <= 2).all()


def test_the_six_norms_of_a_result_and_of_its_successes(make_result):
    result = make_result(flipped=[1, 0, 1, 0, 1, 1])
    values = lp_norms(result)
    assert list(values) == ["L1", "L1.5", "L2", "L1 per pixel", "L1.5 per pixel", "L2 per pixel"]
    assert values == lp_norms(result.x, result.x_cf)
    flipped = lp_norms(result, where="flipped")
    assert flipped == lp_norms(result.x[result.flipped], result.x_cf[result.flipped])
    assert flipped["L1"].n == 4 and len(flipped["L1"].scores) == 6
    both = lp_norms([result, make_result(seed=1)])
    assert both["L2"].n == 12


def test_no_success_is_undefined(make_result):
    values = lp_norms(make_result(flipped=[False] * 6), where="flipped")
    assert {str(v) for v in values.values()} == {"undefined (n=0)"}
    empty = torch.zeros(0, 3, 4, 4)
    assert str(lp_norm(empty, empty)) == "undefined (n=0)"


def test_half_precision_is_summed_in_double():
    x = torch.zeros(1, 3, 64, 64, dtype=torch.float16)
    assert lp_norm(x, x + 1).mean == 3 * 64 * 64


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: lp_norm(x), "without x_cf"),
        (lambda x: lp_norm(x, x[:2]), r"\(2, 3, 4, 6\) given, \(5, 3, 4, 6\) expected"),
        (lambda x: lp_norm(x[0], x[0]), r"\(3, 4, 6\) given"),
        (lambda x: lp_norm(x * 127 + 127, x), "rescale"),
        (lambda x: lp_norm(x, x * torch.nan), "NaN"),
        (lambda x: lp_norm(x, x, p=0.5), "p=0.5"),
        (lambda x: lp_norm(x, x, where="flipped"), "for a CFResult"),
        (lambda x: lp_norm(x, x, where=torch.ones(4).bool()), r"\(4,\) given, \(5,\) expected"),
        (lambda x: lp_norm(x, x, where=torch.arange(5)), "not indices"),
        (lambda x: lp_norm([x], x), "list given"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(pair(0)[0])


def test_a_result_and_tensors_together_are_refused(make_result):
    result = make_result()
    with pytest.raises(ValueError, match="pass the result alone"):
        lp_norm(result, result.x_cf)
