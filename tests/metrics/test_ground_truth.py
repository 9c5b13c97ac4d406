"""Grading against the true counterfactual, on hand-made squares whose numbers are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfx_lib.metrics import difference, displacement, edit_error, edit_region, mask_overlap, outside_share

quick = settings(deadline=None, max_examples=25, derandomize=True)
X = torch.zeros(4, 3, 16, 16)


def square(top=4, left=4, size=4, height=0.5, n=4):
    x = torch.zeros(n, 3, 16, 16)
    x[:, :, top : top + size, left : left + size] = height
    return x


def random_images(seed, n=6):
    return torch.rand(3, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


TRUE = square()


def test_edit_error_of_known_edits():
    assert edit_error(X, TRUE, x_true=TRUE).mean == 0
    assert edit_error(X, X, x_true=TRUE).mean == 1
    assert edit_error(X, square(height=1.0), x_true=TRUE).mean == pytest.approx(1.0)
    assert edit_error(X, square(left=10), x_true=TRUE).mean == pytest.approx(2.0)
    assert edit_error(X, square(left=10), x_true=TRUE, p=2).mean == pytest.approx(2**0.5)


@quick
@given(st.integers(0, 10**6), st.permutations(range(6)), st.sampled_from([1.0, 2.0]))
def test_edit_error_agrees_with_numpy(seed, order, p):
    x, x_cf, x_true = random_images(seed)
    a, b, c = (t.double().numpy().reshape(6, -1) for t in (x, x_cf, x_true))
    errors, sizes = np.linalg.norm(b - c, p, axis=1), np.linalg.norm(c - a, p, axis=1)
    pooled = edit_error(x, x_cf, x_true=x_true, p=p)
    single = edit_error(x, x_cf, x_true=x_true, p=p, pooled=False)
    assert pooled.mean == pytest.approx(errors.sum() / sizes.sum())
    assert single.mean == pytest.approx((errors / sizes).mean())
    order = list(order)
    shuffled = edit_error(x[order], x_cf[order], x_true=x_true[order], p=p)
    assert (shuffled.mean, shuffled.low, shuffled.high) == pytest.approx(
        (pooled.mean, pooled.low, pooled.high)
    )


def test_one_face_next_to_the_boundary_does_not_rule_the_pooled_error():
    x_true = torch.cat([TRUE[:3], square(height=1e-4, n=1)])
    assert edit_error(X, square(height=1.0), x_true=x_true).mean < 2
    assert edit_error(X, square(height=1.0), x_true=x_true, pooled=False).mean > 1000


def test_faces_without_a_true_counterfactual_are_left_out(make_result):
    x_true = torch.cat([TRUE[:3], X[:1]])
    assert edit_error(X, X, x_true=x_true).n == 3
    found = torch.tensor([True, False, False, False])
    for metric in (edit_error, outside_share, mask_overlap):
        value = metric(X, square(left=6), x_true=x_true, where=found)
        assert value.n == 1 and len(value.scores) == 4
        assert str(metric(X, TRUE, x_true=X)) == "undefined (n=0)"
        result = make_result(x=X, x_cf=TRUE, flipped=[False] * 4)
        assert str(metric(result, x_true=TRUE, where="flipped")) == "undefined (n=0)"
        assert metric(result, x_true=TRUE) == metric(X, TRUE, x_true=TRUE)


def test_outside_share_of_known_edits():
    assert outside_share(X, TRUE, x_true=TRUE).mean == 0
    assert outside_share(X, square(left=12), x_true=TRUE).mean == 1
    half_out = square(left=6)  # two of its four columns are outside
    assert outside_share(X, half_out, x_true=TRUE, dilate=1).mean == 0.5
    assert outside_share(X, half_out, x_true=TRUE, dilate=3).mean == 0.25
    assert outside_share(X, half_out, x_true=TRUE, dilate=5).mean == 0
    region = torch.zeros(4, 16, 16, dtype=torch.bool)
    region[:, :, :7] = True
    assert outside_share(X, half_out, region=region).mean == 0.75
    assert str(outside_share(X, half_out, x_true=TRUE, dilate=1)).startswith("50.0 % [")


def test_changing_nothing_gets_no_credit():
    assert not outside_share(X, X, x_true=TRUE).defined
    assert mask_overlap(X, X, x_true=TRUE).mean == 0


def test_mask_overlap_of_known_edits():
    assert mask_overlap(X, TRUE, x_true=TRUE).mean == 1
    assert mask_overlap(X, square(height=-0.2), x_true=TRUE).mean == 1
    assert mask_overlap(X, square(left=12), x_true=TRUE).mean == 0
    assert mask_overlap(X, square(left=6), x_true=TRUE).mean == pytest.approx(8 / 24)


@quick
@given(st.integers(0, 10**6))
def test_shares_are_shares_and_overlap_is_symmetric(seed):
    x, x_cf, x_true = random_images(seed)
    share = outside_share(x, x_cf, x_true=x_true, dilate=1)
    overlap = mask_overlap(x, x_cf, x_true=x_true)
    assert 0 <= share.low <= share.high <= 1 and 0 <= overlap.low <= overlap.high <= 1
    assert overlap == mask_overlap(x, x_true, x_true=x_cf)
    masks = [(np.abs((t - x).double().numpy()).sum(1)) for t in (x_cf, x_true)]
    masks = [m > 0.15 * m.max((1, 2), keepdims=True) for m in masks]
    expected = (masks[0] & masks[1]).sum((1, 2)) / (masks[0] | masks[1]).sum((1, 2))
    assert overlap.mean == pytest.approx(expected.mean())


def test_edit_region_ignores_what_cannot_be_seen_and_widens():
    assert not edit_region(X, X).any()
    assert not edit_region(X, square(height=2 * 2 / 255)).any()
    assert edit_region(X, square(height=2 * 3 / 255)).sum() == 4 * 16
    assert edit_region(X, TRUE, dilate=3).sum() == 4 * 36
    assert edit_region(X[:0], X[:0], dilate=3).shape == (0, 16, 16)
    faint = TRUE + square(left=10, height=0.05)
    assert edit_region(X, faint).sum() == 4 * 16 and edit_region(X, faint, threshold=0.05).sum() == 4 * 32


class Oracle:
    name = "oracle"

    def regress(self, x):
        return {"smile": x.mean((1, 2, 3)), "age": -x.mean((1, 2, 3))}


def test_displacement_is_positive_towards_the_target():
    moves = torch.tensor([0.2, 0.1, -0.3, -0.1])
    x_cf = X + moves[:, None, None, None]
    target = torch.tensor([1, 0, 0, 1])  # signed: 0.2, -0.1, 0.3, -0.1
    value = displacement(X, x_cf, oracle=Oracle(), factor="smile", target=target)
    assert value.mean == pytest.approx(0.075, abs=1e-7) and value.backbone == "oracle"
    age = displacement(X, x_cf, oracle=Oracle(), factor="age", target=target)
    assert age.mean == pytest.approx(-value.mean)
    plain = displacement(X, x_cf, oracle=lambda x: x.mean((1, 2, 3)), target=target)
    assert plain.mean == value.mean
    true_move = torch.tensor([0.1, -0.1, -0.1, 0.0])  # the last face has no true counterfactual
    relative = displacement(X, x_cf, oracle=Oracle(), factor="smile", target=target, true_move=true_move)
    assert relative.mean == pytest.approx(0.4 / 0.3, rel=1e-6) and relative.n == 3
    assert displacement(X, X, oracle=Oracle(), factor="smile", target=target).mean == 0


def test_displacement_of_a_result(make_result):
    result = make_result(x=X, x_cf=X + 0.5, target=[1, 1, 1, 0], flipped=[1, 1, 0, 0])
    assert displacement(result, oracle=Oracle(), factor="smile").mean == pytest.approx(0.25)
    assert displacement(result, oracle=Oracle(), factor="smile", where="flipped").mean == pytest.approx(0.5)
    assert displacement([result, result], oracle=Oracle(), factor="smile", batch_size=3).n == 8
    empty = make_result(x=X[:0])
    assert str(displacement(empty, oracle=Oracle(), factor="smile")) == "undefined (n=0, oracle)"


def test_two_methods_are_compared_on_the_same_faces():
    x_cf = square(left=6)
    gap = difference(edit_error(X, x_cf, x_true=TRUE), edit_error(X, X, x_true=TRUE))
    assert gap.mean == pytest.approx(0.0) and gap.n == 4


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: edit_error(X, X, x_true=TRUE[:2]), r"x_true: shape \(2, 3, 16, 16\) given"),
        (lambda: outside_share(X, X), "exactly one"),
        (lambda: outside_share(X, X, region=torch.zeros(4, 16, 16)), "threshold it"),
        (lambda: outside_share(X, X, region=torch.zeros(4, 8, 8).bool()), r"region: shape \(4, 8, 8\)"),
        (lambda: mask_overlap(X, X, x_true=TRUE, threshold=2), "threshold=2"),
        (lambda: edit_region(X, TRUE, dilate=4), "dilate=4"),
        (lambda: displacement(X, X, oracle=Oracle(), factor="smile"), "no target"),
        (
            lambda: displacement(X, X, oracle=Oracle(), factor="hat", target=torch.ones(4).long()),
            "factor='hat'",
        ),
        (lambda: displacement(X, X, oracle=Oracle(), factor="age", target=torch.full((4,), 2)), "0 to 1"),
        (lambda: displacement(X, X, oracle=lambda x: x, target=torch.ones(4).long()), r"\(4,\) expected"),
        (
            lambda: displacement(
                X, X, oracle=Oracle(), factor="age", target=torch.ones(4).long(), true_move=torch.ones(3)
            ),
            "true_move",
        ),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call()
