"""Flip rates and confidence."""

import numpy as np
import pytest
import torch
from torch import nn

from cfx_lib.metrics import flip_rate, mean_confidence, semantic_flip_rate


class Oracle(nn.Module):
    """Says class 1 if the image is bright; records the mode in which it was asked."""

    name = "brightness"

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        bright = x.mean((1, 2, 3)) * self.scale
        return torch.stack([-bright, bright], 1)

    def predict(self, x):
        return self(x).argmax(1)


def test_flip_rate_agrees_with_numpy(make_result):
    result = make_result(n=20)
    assert flip_rate(result).mean == np.mean(result.flipped.numpy())
    assert flip_rate([result, make_result(n=5, seed=1)]).n == 25
    predictions, target = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 1, 1])
    assert flip_rate(predictions, target).mean == 0.75
    assert flip_rate(predictions == target) == flip_rate(predictions, target)


def test_semantic_flip_rate_needs_both(make_result):
    x_cf = torch.full((4, 3, 8, 8), 0.5)
    x_cf[2:] = -0.5  # the oracle sees class 1, 1, 0, 0
    result = make_result(x=-x_cf, x_cf=x_cf, target=[1, 1, 1, 0], flipped=[1, 0, 1, 1])
    oracle = Oracle()
    value = semantic_flip_rate(result, oracle)
    assert value.mean == 0.5 and value.n == 4 and value.backbone == "brightness" and value.method == "wilson"
    assert semantic_flip_rate([result, result], oracle).n == 8
    assert semantic_flip_rate(result, lambda x: oracle(x)).mean == 0.5
    assert semantic_flip_rate(result, oracle.predict).mean == 0.5
    assert semantic_flip_rate(result, torch.tensor([1, 1, 0, 0])).mean == 0.5
    assert value.mean <= flip_rate(result).mean


def test_from_source_asks_for_a_change_that_the_oracle_sees(make_result):
    x = torch.full((2, 3, 8, 8), 0.5)
    result = make_result(x=x, x_cf=x, target=[1, 1], flipped=[1, 1])  # nothing changed at all
    assert semantic_flip_rate(result, Oracle()).mean == 1.0
    assert semantic_flip_rate(result, Oracle(), from_source=True).mean == 0.0
    with pytest.raises(ValueError, match="oracle itself"):
        semantic_flip_rate(result, torch.tensor([1, 1]), from_source=True)


def test_the_oracle_is_asked_in_eval_mode_and_left_as_it_was(make_result):
    oracle = Oracle().train()
    semantic_flip_rate(make_result(n=5), oracle, batch_size=2)
    assert oracle.modes == [False] * 3
    assert oracle.training and oracle.scale.requires_grad and oracle.scale.grad is None


def test_batches_do_not_matter(make_result):
    result = make_result(n=7)
    values = {semantic_flip_rate(result, Oracle(), batch_size=b) for b in (1, 3, 100)}
    assert len(values) == 1


def test_mean_confidence_agrees_with_numpy(make_result):
    result = make_result(n=9)
    logits, target = result.logits_after.double().numpy(), result.target.numpy()
    expected = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(9), target].mean()
    assert mean_confidence(result).mean == pytest.approx(expected, abs=1e-12)
    assert mean_confidence(result.logits_after, result.target) == mean_confidence(result)
    assert 0 <= mean_confidence(result).low <= mean_confidence(result).high <= 1


def test_no_images_are_undefined(make_result):
    empty = make_result(x=torch.zeros(0, 3, 8, 8))
    for value in (flip_rate(empty), semantic_flip_rate(empty, Oracle()), mean_confidence(empty)):
        assert str(value) == "undefined (n=0)"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda r: flip_rate([]), "empty list"),
        (lambda r: flip_rate(r, r.target), "pass the result alone"),
        (lambda r: flip_rate(torch.tensor([0, 1])), "without target"),
        (
            lambda r: flip_rate(torch.tensor([0, 1]), torch.tensor([0, 1, 1])),
            r"\(3,\) given, \(2,\) expected",
        ),
        (lambda r: flip_rate(torch.tensor([0, -1]), torch.tensor([0, 1])), "classes -1 to 0"),
        (lambda r: semantic_flip_rate(r.x_cf, Oracle()), "a CFResult or a list"),
        (lambda r: semantic_flip_rate(r, torch.tensor([1])), r"\(1,\) given, \(6,\) expected"),
        (lambda r: semantic_flip_rate(r, lambda x: x.mean((1, 2, 3))), "zoo.wrap"),
        (lambda r: semantic_flip_rate(r, lambda x: torch.zeros(len(x), 20)), "for_attribute"),
        (lambda r: semantic_flip_rate(r, torch.full((6,), 2)), "0 to 1 expected"),
        (lambda r: mean_confidence(r.logits_after[:, :1], r.target), "K >= 2"),
        (lambda r: mean_confidence(r.logits_after, r.target + 2), "0 to 1 expected"),
        (lambda r: mean_confidence(r.logits_after), "expected"),
    ],
)
def test_bad_input_is_explained(make_result, call, text):
    with pytest.raises(ValueError, match=text):
        call(make_result())


def test_a_method_that_sees_no_logits_has_no_confidence(make_result):
    result = make_result()
    object.__setattr__(result, "logits_after", None)
    with pytest.raises(ValueError, match="use flip_rate"):
        mean_confidence(result)
    assert semantic_flip_rate(result, Oracle()).n == 6
