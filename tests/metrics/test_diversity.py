"""sigma_L against plain loops over the formula."""

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


class Features(torch.nn.Module):
    """A distance in the manner of LPIPS: between unit features of a small network."""

    name = "tiny features"

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(5, 3, 3, 3, generator=random))

    def forward(self, a, b):
        a, b = (torch.nn.functional.conv2d(x, self.weight, padding=1) for x in (a, b))
        a, b = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (a, b))
        return (a - b).square().sum(1).mean((1, 2))


@quick
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_five_runs_against_the_formula_itself(seed, batch_size):
    """Eq. 3.20 written out: a sum over images i and over runs j < k of LPIPS(x_j^i, x_k^i)."""
    images, distance, n, total = runs(seed, s=5, n=6), Features(), 5, 0.0
    for i in range(6):
        for j in range(n):
            for k in range(j + 1, n):
                with torch.no_grad():
                    total += 2 / (n * (n - 1)) * distance(images[j, i : i + 1], images[k, i : i + 1]).item()
    value = diversity(images, distance, batch_size=batch_size)
    assert value.mean == pytest.approx(total / 6, rel=1e-5) and value.n == 6
    assert value.backbone == "tiny features"
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    shuffled = diversity(images[:, order], distance)
    assert (shuffled.mean, shuffled.low, shuffled.high) == pytest.approx(
        (value.mean, value.low, value.high), rel=1e-5
    )
    assert diversity(images[:1].expand(5, -1, -1, -1, -1), distance).high == 0


def test_unsuccessful_images_count(make_result):
    x = make_result().x
    flips = ([True] * 6, [False] * 6)
    all_flipped, none_flipped = ([make_result(x=x, seed=s, flipped=f) for s in range(5)] for f in flips)
    assert diversity(all_flipped) == diversity(none_flipped) and diversity(none_flipped).n == 6


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
        (lambda: diversity(runs(0) * torch.nan), "NaN"),
        (lambda: diversity(runs(0), lambda a, b: squared(a, b) * torch.nan), "NaN"),
        (lambda: diversity(runs(0), lambda a, b: -squared(a, b)), "not a similarity"),
        (lambda: diversity(runs(0), lambda a, b: (a - b).abs()), r"\(4,\) expected"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call()
