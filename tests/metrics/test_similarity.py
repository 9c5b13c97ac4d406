"""Cosine similarities in an embedding against numpy, and what counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfx_lib.metrics import backbones
from cfx_lib.metrics.similarity import fs, fva, s3

quick = settings(deadline=None, max_examples=15, derandomize=True)


class Embedding(nn.Module):
    """A random linear embedding; counts the images that it sees."""

    name = "toy embedding"

    def __init__(self, size=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3 * size * size, 5, bias=False)
        self.seen = 0

    def forward(self, x):
        assert not self.training
        self.seen += len(x)
        return self.linear(x.flatten(1))


def pair(seed, n=5):
    x = torch.rand(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x[0], x[1]


@quick
@given(st.integers(0, 10**6), st.permutations(range(5)), st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.5]))
def test_equations_17_b3_and_b4(seed, order, batch_size, threshold):
    x, x_cf = pair(seed)
    network = Embedding()
    with torch.no_grad():
        a, b = (network.eval()(part).double().numpy() for part in (x, x_cf))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    for metric in (s3, fs):
        value = metric(x, x_cf, network=network)
        assert value.scores == pytest.approx(expected, abs=1e-6) and value.backbone == "toy embedding"
        assert -1 <= value.low <= value.mean <= value.high <= 1
    verified = fva(x, x_cf, network=network, threshold=threshold)
    assert verified.mean == np.mean(expected > threshold) and verified.method == "wilson"
    o = list(order)
    again = fs(x_cf[o], x[o], network=network, batch_size=batch_size)  # the cosine is symmetric
    assert again.scores == pytest.approx(expected[o], abs=1e-6)


def test_equal_images_are_alike_and_negatives_are_opposite():
    x, _ = pair(0)
    network = Embedding()
    assert s3(x, x, network=network).mean == pytest.approx(1, abs=1e-12)
    assert fs(x, -x, network=network).mean == pytest.approx(-1, abs=1e-12)
    assert fva(x, x, network=network).mean == 1 and fva(x, -x, network=network).mean == 0
    assert fva(x, x, network=network).low < 1  # Wilson: five of five are not certain
    assert s3(0 * x, x, network=network).mean == 0  # an embedding of length zero


def test_only_successful_images_count_unless_said_otherwise(make_result):
    result, network = make_result(flipped=[1, 0, 1, 0, 1, 1]), Embedding().train()
    for metric in (s3, fs, fva):
        value = metric(result, network=network)
        kept = result.flipped
        assert value.n == 4 and value == metric(result.x[kept], result.x_cf[kept], network=network)
        assert np.isnan(value.scores[~kept.numpy()]).all()
        everyone = metric(result, network=network, where=torch.ones(6, dtype=torch.bool))
        assert everyone == metric(result.x, result.x_cf, network=network) and everyone.n == 6
    assert network.training
    network.seen = 0
    fs(result, network=network)
    assert network.seen == 8  # the others are not looked at


def test_no_success_is_undefined(make_result):
    failed = make_result(flipped=[False] * 6)
    for metric in (s3, fs, fva):
        assert str(metric(failed, network=Embedding())) == "undefined (n=0, toy embedding)"
        assert str(metric(failed)) == "undefined (n=0)"


@pytest.mark.parametrize(("metric", "role"), [(s3, "self-supervised"), (fs, "identity"), (fva, "identity")])
def test_the_default_network_is_for_faces_alone(metric, role, monkeypatch):
    monkeypatch.setitem(backbones.STAND_INS, role, "personas/not-there")
    faces = torch.zeros(2, 3, 64, 64)
    with pytest.raises(FileNotFoundError, match="not-there"):
        metric(faces, faces)
    with pytest.raises(ValueError, match="without a network"):
        metric(*pair(0))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: fs(x, x[:3], network=Embedding()), "same images"),
        (lambda x: fs(x, x * 40, network=Embedding()), "rescale"),
        (lambda x: fs(x, x, network=lambda z: z), r"\(5, 3, 8, 8\), embeddings \(N,D\) expected"),
        (lambda x: fs(x, x, network=lambda z: z.flatten(1) / 0), "NaN or infinite embeddings"),
        (lambda x: fva(x, x, network=Embedding(), threshold=50), "threshold=50"),
        (lambda x: s3(x, x, network=Embedding(), where=torch.arange(5)), "not indices"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(pair(0)[0])


def test_mixed_sizes_are_explained(make_result):
    with pytest.raises(ValueError, match="mixed shapes"):
        fs([make_result(size=8), make_result(size=16)], network=Embedding())
