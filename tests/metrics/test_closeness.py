"""Lp norms and LPIPS against numpy and the package `lpips`, and their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfx_lib.metrics import backbones, diversity, lp_distance, lp_norm, lp_norms
from cfx_lib.metrics.closeness import lpips, lpips_distance, perceptual_network

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


class Trunk(nn.Module):
    """Two random feature maps; `weights` as a perceptual trunk has them, or None."""

    name = "toy trunk"

    def __init__(self, weighted=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2)
        self.weights = [torch.linspace(0, 1, 5), torch.linspace(2, 0.5, 4)] if weighted else None
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        assert not self.training
        first = torch.relu(self.first(x))
        return [first, torch.relu(self.second(first))]


def by_hand(x, x_cf, trunk):
    """Eq. 1 with loops over layers and places."""
    total = np.zeros(len(x))
    with torch.no_grad():
        layers = zip(trunk(x), trunk(x_cf), trunk.weights or [torch.ones(5), torch.ones(4)])
    for a, b, w in layers:
        a, b, w = (t.double().numpy() for t in (a, b, w))
        for i in range(len(x)):
            places = []
            for h, v in np.ndindex(*a.shape[2:]):
                f, g = a[i, :, h, v], b[i, :, h, v]
                f, g = (t / max(np.linalg.norm(t), 1e-10) for t in (f, g))
                places.append((w * (f - g) ** 2).sum())
            total[i] += np.mean(places)
    return total


@pytest.mark.parametrize("weighted", [True, False])
def test_lpips_equation_1(weighted):
    x, x_cf = (torch.cat([part, part.flip(3)], 2) for part in pair(0))  # (5,3,8,6)
    trunk = Trunk(weighted).train()
    value = lpips(x, x_cf, network=trunk)
    assert trunk.training and value.backbone == "toy trunk" and value.n == 5
    assert value.scores == pytest.approx(by_hand(x, x_cf, trunk.eval()), rel=1e-5)
    assert lpips_distance(trunk)(x, x_cf).detach().numpy() == pytest.approx(value.scores, rel=1e-6)


@quick
@given(st.integers(0, 10**6), st.permutations(range(5)), st.integers(1, 6))
def test_lpips_properties(seed, order, batch_size):
    x, x_cf = (torch.cat([part, part.flip(3)], 2) for part in pair(seed))
    order, trunk = list(order), Trunk().eval()
    assert lpips(x, x, network=trunk) == lpips(x_cf, x_cf, network=trunk)
    assert lpips(x, x, network=trunk).high == 0
    value = lpips(x, x_cf, network=trunk)
    assert value.low >= 0 and lpips(x_cf, x, network=trunk).scores == pytest.approx(value.scores)
    again = lpips(x[order], x_cf[order], network=trunk, batch_size=batch_size)
    assert again.scores == pytest.approx(value.scores[order], rel=1e-5)
    assert (again.low, again.high) == pytest.approx((value.low, value.high), rel=1e-5)


def test_lpips_of_a_result_asks_only_about_what_counts(make_result):
    result, trunk = make_result(flipped=[1, 0, 1, 0, 1, 1]), Trunk().eval()
    assert lpips(result, network=trunk) == lpips(result.x, result.x_cf, network=trunk)
    trunk.sizes.clear()
    flipped = lpips(result, network=trunk, where="flipped", batch_size=3)
    assert trunk.sizes == [3, 3, 1, 1] and flipped.n == 4 and len(flipped.scores) == 6
    assert (
        str(lpips(make_result(flipped=[0] * 6), network=trunk, where="flipped"))
        == "undefined (n=0, toy trunk)"
    )
    assert str(lpips(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8))) == "undefined (n=0)"


def test_lpips_serves_diversity_and_guidance():
    runs, trunk = torch.stack([torch.rand(4, 3, 8, 8) for _ in range(3)]) * 2 - 1, Trunk().eval()
    value = diversity(runs, distance=lpips_distance(trunk, batch_size=3))
    pairs = [by_hand(runs[j], runs[k], trunk) for j, k in ((0, 1), (0, 2), (1, 2))]
    assert value.mean == pytest.approx(np.mean(pairs), rel=1e-5) and value.backbone == "toy trunk"
    x = runs[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(lpips_distance(trunk)(x, runs[1]).sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(lpips_distance(trunk)(x, runs[0]).sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.fixture
def alexnet_on_disk(tmp_path, monkeypatch):
    """A random AlexNet where torch.hub looks for torchvision's; its dense layers, which LPIPS drops, hold one number."""
    from torchvision.models import AlexNet_Weights, alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = alexnet().state_dict()
    small = {
        k: torch.zeros(1).expand(v.shape) if k.startswith("classifier") else v for k, v in weights.items()
    }
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(small, folder / AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return weights


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_published_network_is_used_when_it_is_on_disk(alexnet_on_disk):
    from lpips import LPIPS

    x = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    value = lpips(x[0], x[1])
    assert value.backbone == "LPIPS alex v0.1" and value.n == 3
    package = LPIPS(net="alex", verbose=False)
    torch.testing.assert_close(package.net.slice1[0].weight, alexnet_on_disk["features.0.weight"])
    with torch.no_grad():
        expected = package(x[0], x[1]).flatten().numpy()
    assert value.scores == pytest.approx(expected, rel=1e-5) and expected.min() > 0
    assert lpips(x[0], x[1], network=package).scores == pytest.approx(expected, rel=1e-5)
    assert perceptual_network(x[0]) is perceptual_network(x[1])
    small = x[0][:, :, :31, :31]
    assert lpips(small, small).mean == 0
    with pytest.raises(ValueError, match=r"\(3, 30, 30\) given, 3 channels and at least 31 pixels"):
        lpips(small[:, :, :30, :30], small[:, :, :30, :30])
    with pytest.raises(ValueError, match="repeat the channel"):
        lpips(x[0][:, :1], x[1][:, :1])


def test_no_network_for_lpips_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(backbones.STAND_INS, "perceptual", "personas/not-there")
    with pytest.raises(FileNotFoundError, match="not-there"):
        lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="without a network"):
        lpips(pair(0)[0], pair(0)[1])


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (lambda x: x.mean((2, 3)), "feature maps"),
        (lambda x: [], "feature maps"),
        ("alex", "str given"),
    ],
)
def test_networks_that_do_not_fit_lpips_are_explained(network, text):
    with pytest.raises(ValueError, match=text):
        lpips(*pair(0), network=network)
    trunk = Trunk()
    trunk.weights = [torch.ones(5), torch.ones(7)]
    with pytest.raises(ValueError, match=r"\[5, 7\] channels given, \[5, 4\] expected"):
        lpips(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), network=trunk)
