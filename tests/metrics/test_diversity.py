"""sigma_L against a plain double loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfx_lib.metrics import diversity

quick = settings(deadline=None, max_examples=20, derandomize=True)


def runs(seed, s=5, n=4):
    return torch.rand(s, n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def squared(a, b):
    return (a - b).square().flatten(1).mean(1)


@quick
@given(st.integers(0, 10**6), st.integers(2, 5), st.permutations(range(5)))
def test_equation_3_20(seed, s, order):
    images = runs(seed, s)
    a = images.double().numpy()
    total = 0.0
    for i in range(4):
        pairs = [np.abs(a[j, i] - a[k, i]).mean() for j in range(s) for k in range(j + 1, s)]
        total += 2 / (s * (s - 1)) * sum(pairs) / 4
    value = diversity(images)
    assert value.mean == pytest.approx(total) and value.n == 4 and value.backbone == "L1 per pixel"
    assert 0 <= value.low <= value.high <= 2
    again = diversity([images[o] for o in order if o < s])
    assert (again.mean, again.low, again.high) == pytest.approx((value.mean, value.low, value.high))
    assert diversity(images[:1].expand(s, -1, -1, -1, -1)).mean == 0


def test_another_distance_is_named():
    images = runs(0)
    value = diversity(images, squared)
    expected = np.mean([squared(images[j], images[k]).numpy() for j in range(5) for k in range(j)])
    assert value.mean == pytest.approx(expected) and value.backbone == "squared"
    assert "squared" in str(value)


class Network(torch.nn.Module):
    def forward(self, a, b):
        assert not self.training
        return squared(a, b)[:, None, None, None]  # the shape that LPIPS returns


def test_a_network_may_be_the_distance():
    network = Network().train()
    value = diversity(runs(0), network)
    assert value.mean == diversity(runs(0), squared).mean and value.backbone == "Network" and network.training


def test_results_of_several_seeds(make_result):
    x = make_result().x
    results = [make_result(x=x, seed=s) for s in range(3)]
    assert diversity(results) == diversity([r.x_cf for r in results])
    assert str(diversity([make_result(x=x[:0])] * 2)) == "undefined (n=0, L1 per pixel)"
    with pytest.raises(ValueError, match="different inputs"):
        diversity([make_result(seed=0), make_result(seed=1)])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: diversity([]), "fewer than two"),
        (lambda: diversity(runs(0)[:1]), "fewer than two"),
        (lambda: diversity(runs(0)[0]), r"\(S,N,C,H,W\)"),
        (lambda: diversity([runs(0)[0], runs(0)[1, :2]]), "expected"),
        (lambda: diversity(runs(0), lambda a, b: -squared(a, b)), "not a similarity"),
        (lambda: diversity(runs(0), lambda a, b: (a - b).abs()), r"\(4,\) expected"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call()
