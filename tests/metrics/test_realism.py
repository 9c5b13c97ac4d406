"""FID, split FID, cross-over FID, IM1 and IM2 against their formulas, and what may be given to them."""

import pickle

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frechet import by_scipy
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from cfx_lib.metrics import backbones, features
from cfx_lib.metrics.frechet import content_keys
from cfx_lib.metrics.realism import _halves, crossover_fid, fid, im1, im2, sfid

quick = settings(deadline=None, max_examples=10, derandomize=True)


@pytest.fixture(autouse=True)
def no_inception(monkeypatch, tmp_path):
    """No test depends on what lies in the cache of this machine."""
    monkeypatch.delenv("CFX_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    features.load_inception.cache_clear()


class Tiny(nn.Module):
    """Pooled features of a small random network."""

    name = "tiny"

    def __init__(self, dim=5, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.drop = nn.Conv2d(3, dim, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.conv(x))).mean((2, 3))


tiny = Tiny()


def pictures(seed, n, size=8, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    level = torch.rand(n, 3, 1, 1, generator=random) - 0.5 + shift
    return (level + 0.3 * torch.randn(n, 3, size, size, generator=random)).clamp(-1, 1)


def f(x):
    with torch.no_grad():
        return tiny.eval()(x.float()).double().numpy()


def close(a, b, rel=1e-6):
    assert (a.n, a.backbone, a.method) == (b.n, b.backbone, b.method)
    assert [a.mean, a.low, a.high] == pytest.approx([b.mean, b.low, b.high], rel=rel, abs=1e-9)


# --- FID ---------------------------------------------------------------------------------------------------


def test_the_name_of_the_published_weights_is_torch_fidelitys():
    assert URL_INCEPTION_V3.endswith("/" + features.WEIGHTS)


def test_fid_is_equation_22_of_the_features():
    real, fake = pictures(0, 60), pictures(1, 40, shift=0.2)
    value = fid(real, fake, features=tiny)
    assert value.mean == pytest.approx(by_scipy(f(real), f(fake)), rel=1e-6)
    assert value.low < value.mean < value.high
    assert (value.n, value.backbone, value.method) == (40, "tiny", "delete-a-group jackknife")
    assert "(n=40, tiny)" in str(value)


def test_of_a_result_all_images_against_the_flipped_counterfactuals(make_result):
    result = make_result(n=40, flipped=[True] * 25 + [False] * 15)
    value = fid(result, features=tiny)
    assert value.mean == pytest.approx(by_scipy(f(result.x), f(result.x_cf[:25])), rel=1e-6)
    assert value.n == 25
    every = torch.ones(40, dtype=torch.bool)
    close(fid(result, where=every, features=tiny), fid(result.x, result.x_cf, features=tiny))
    both = fid([result, make_result(n=40, seed=1)], where=torch.ones(80, dtype=torch.bool), features=tiny)
    assert both.n == 80


@quick
@given(st.integers(0, 10**6), st.permutations(range(30)), st.integers(1, 31))
def test_order_and_batch_size_do_not_matter(seed, order, batch_size):
    real, fake, more = pictures(seed, 30), pictures(seed + 1, 30), pictures(seed + 2, 25)
    order = list(order)
    value = fid(real, fake, features=tiny)
    close(fid(real[order], fake[order], features=tiny, batch_size=batch_size), value)
    assert fid(fake, real, features=tiny).mean == pytest.approx(value.mean, rel=1e-6)
    close(fid(real[order], more, features=tiny, batch_size=batch_size), fid(real, more, features=tiny))
    close(fid(more, real, features=tiny), fid(real, more, features=tiny))
    split = sfid(real, fake, features=tiny, splits=2)
    close(sfid(real[order], fake[order], features=tiny, splits=2, batch_size=batch_size), split)


@quick
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_a_copy_has_distance_zero(seed, n):
    x = pictures(seed, n)
    value = fid(x, x.clone(), features=tiny)
    assert (value.mean, value.n) == (0, n) and (not value.has_interval or value.high == 0)
    assert fid(x, x.flip(0), features=tiny).mean == pytest.approx(0, abs=1e-12)


def test_streams_give_the_same_as_tensors():
    real, fake = pictures(0, 70), pictures(1, 45)
    batches = ((part, torch.zeros(len(part))) for part in real.split(16))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(fake), batch_size=10)
    close(fid(batches, loader, features=tiny), fid(real, fake, features=tiny))
    close(fid(list(real.split(9)), fake, features=tiny), fid(real, fake, features=tiny))


def test_fifty_thousand_images_in_constant_memory():
    held, seen = [], 0

    def stream(n, batch=250):
        nonlocal seen
        random = torch.Generator().manual_seed(n)
        for _ in range(n // batch):
            yield torch.rand(batch, 3, 16, 16, generator=random) * 2 - 1
            seen += batch
            held.append(psutil.Process().memory_info().rss)

    value = fid(stream(50_000), stream(1_000), features=lambda x: x.mean((2, 3)), batch_size=250)
    assert (seen, value.n) == (51_000, 1_000)
    assert max(held[20:]) - held[20] < 30e6  # the images alone would be 154 MB
    assert 0 < value.mean < 1e-3


def test_the_network_is_left_as_it_was():
    network = Tiny().train()
    fid(pictures(0, 10), pictures(1, 10), features=network)
    assert network.training and network.conv.weight.requires_grad and network.conv.weight.grad is None


def test_fewer_images_than_features_is_said():
    real, fake = pictures(0, 12), pictures(1, 10)
    value = fid(real, fake, features=Tiny(dim=16))
    assert value.method.endswith("rank-deficient: 10 images for 16 features")
    assert value.n == 10 and value.mean > 0 and value.has_interval
    assert "rank-deficient" in sfid(real[:10], fake, features=tiny).method


def test_too_few_images_are_undefined(make_result):
    x, none = pictures(0, 10), torch.zeros(10, dtype=torch.bool)
    for value in (
        fid(x, x[:0], features=tiny),
        fid(x[:1], x, features=tiny),
        fid(x[:0], x[:0]),
        fid(x, x, where=none, features=tiny),
        fid(make_result(flipped=[False] * 6), features=tiny),
        sfid(make_result(flipped=[False] * 6), features=tiny),
        sfid(make_result(flipped=[True] * 3 + [False] * 3), features=tiny),
        sfid(x[:0], x[:0]),
        crossover_fid(make_result(flipped=[False] * 6), groups=([0], [1]), features=tiny),
        fid(iter([x[:0]]), iter([x]), features=tiny),
    ):
        assert not value.defined and str(value).startswith("undefined (n=0")
    two = fid(x[:2], x[2:4], features=tiny)
    assert two.defined and two.n == 2


def run_out():
    batches = iter([pictures(0, 4)])
    list(batches)
    return batches


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: fid(x, features=tiny), "fake: NoneType given"),
        (lambda x: fid(x, x[:, :, :4], features=tiny), r"fake: images \(3, 4, 8\) given after \(3, 8, 8\)"),
        (lambda x: fid(iter([x, x[:, :1]]), x, features=tiny), r"real: images \(1, 8, 8\) given after"),
        (lambda x: fid(x, run_out(), features=tiny), "fake: no batch given"),
        (lambda x: fid(x, x * 127 + 128, features=tiny), "rescale"),
        (lambda x: fid(iter([(x * 127 + 128).byte()]), x, features=tiny), "rescale"),
        (lambda x: fid(x * torch.nan, x, features=tiny), "NaN or infinite pixels"),
        (lambda x: fid(x, x, features=lambda x: x.mean((2, 3)) * torch.nan), "NaN or infinite features"),
        (lambda x: fid(x, x, features=lambda x: x), r"features \(6, 3, 8, 8\) given"),
        (lambda x: fid(x, x, features=tiny, where=torch.ones(4).bool()), r"\(4,\) given, \(6,\) expected"),
        (lambda x: fid(iter([x]), x, features=tiny, where=torch.ones(6).bool()), "with an iterable"),
        (lambda x: fid([], x, features=tiny), "empty list"),
        (lambda x: fid(x, 3, features=tiny), "fake: int given"),
        (lambda x: fid(iter([{"image": x}]), x, features=tiny), "real: dict given"),
        (lambda x: fid(x, x), r"images \(3, 8, 8\) given without a network"),
        (lambda x: sfid(x, x[:4], features=tiny), "same images in the same order"),
        (lambda x: sfid(x, x, features=tiny, splits=0), "splits=0"),
        (lambda x: sfid(x, x, features=tiny, where="flipped"), "for a CFResult"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(pictures(0, 6))


def test_a_result_and_a_set_together_are_refused(make_result):
    with pytest.raises(ValueError, match="pass the result alone"):
        fid(make_result(), pictures(0, 6), features=tiny)
    with pytest.raises(ValueError, match="fake: CFResult given"):
        fid(pictures(0, 6), make_result(), features=tiny)


# --- networks ----------------------------------------------------------------------------------------------


def test_the_stand_in_embeds(monkeypatch):
    class Trunk(Tiny):
        name = "personas/perceptual"

        def embed(self, x):
            return super().forward(x)

        def forward(self, x):
            return [x]

    monkeypatch.setattr(backbones, "_load", {"personas/perceptual": Trunk()}.__getitem__)
    x = pictures(0, 8, size=64)
    value = fid(x, x.flip(3))
    assert value.backbone == "personas/perceptual" and value.defined
    assert value == fid(x, x.flip(3), features=Trunk())


def test_the_published_inception_where_its_weights_are_on_disk(monkeypatch, tmp_path):
    """Random weights in the published, older format: found, read, named, and gray images are taken."""
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "empty")
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "empty"))
    cached = tmp_path / "hub" / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    torch.save(network.state_dict(), cached, _use_new_zipfile_serialization=False)
    assert features.inception_weights() == cached
    x = pictures(0, 2, size=32)
    found = features.feature_network(None, x)
    assert found.name == "inception-v3"
    expected = network(((x + 1) * 127.5).round().to(torch.uint8))[0]
    assert torch.allclose(features.embed(found, x).float(), expected, atol=1e-6)
    gray = features.embed(found, x[:1, :1])
    assert torch.allclose(gray, features.embed(found, x[:1, :1].expand(-1, 3, -1, -1)), atol=1e-6)
    with pytest.raises(ValueError, match="2 channels"):
        found(x[:, :2])
    monkeypatch.setenv("CFX_INCEPTION", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fid(x, x)


class Rude:
    def __reduce__(self):
        return print, ("code in a weights file was run",)


def test_another_file_is_refused_and_never_run(monkeypatch, tmp_path, capsys):
    for name, content in (
        ("rude", pickle.dumps(Rude(), protocol=2)),
        ("text", b"not weights"),
        ("none", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="Inception weights expected"):
            features.Inception(tmp_path / name)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="Inception weights expected"):
        features.Inception(tmp_path / "other")
    assert "was run" not in capsys.readouterr().out


# --- split FID ---------------------------------------------------------------------------------------------


def test_sfid_is_the_mean_over_both_ways_of_every_split():
    x, x_cf, keep = pictures(0, 41), pictures(1, 41, shift=0.1), np.arange(41) % 3 > 0
    value = sfid(x, x_cf, where=torch.as_tensor(keep), features=tiny, splits=3, seed=4)
    halves = list(_halves(content_keys(x), keep, 3, 4))
    expected = []
    for half in halves:
        assert abs((half & keep).sum() - (~half & keep).sum()) <= 1 and abs(half.sum() - (~half).sum()) <= 2
        expected += [by_scipy(f(x[~side]), f(x_cf[side & keep])) for side in (half, ~half)]
    assert value.mean == pytest.approx(np.mean(expected), rel=1e-6)
    assert value.n == keep.sum() and value.low < value.mean < value.high
    assert len({tuple(half) for half in halves}) == 3
    assert value == sfid(x, x_cf, where=torch.as_tensor(keep), features=tiny, splits=3, seed=4)
    assert value.mean != sfid(x, x_cf, where=torch.as_tensor(keep), features=tiny, splits=3, seed=5).mean


def test_copies_of_an_image_stay_in_one_half():
    x = pictures(0, 12).repeat(3, 1, 1, 1)
    for half in _halves(content_keys(x), np.ones(36, dtype=bool), 5, 0):
        assert (half.reshape(3, 12) == half[:12]).all() and half[:12].sum() == 6


def test_doing_nothing_wins_fid_but_not_sfid():
    x = pictures(0, 60)
    edited = x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert fid(x, x, features=tiny).mean == 0 < fid(x, edited, features=tiny).mean
    copy, edit = sfid(x, x, features=tiny), sfid(x, edited, features=tiny)
    assert copy.mean > 0 and abs(copy.mean - edit.mean) < copy.high - copy.low


def test_sfid_covers_its_expectation():
    random, found = np.random.default_rng(0), []
    for _ in range(40):
        x = torch.as_tensor(random.normal(size=(80, 3, 1, 1)) * 0.2)
        x_cf = 0.7 * x + torch.as_tensor(random.normal(size=x.shape) * 0.1) + 0.1
        found.append(sfid(x, x_cf, features=lambda x: x.flatten(1), splits=3))
    expected = np.mean([v.mean for v in found])
    assert np.mean([v.covers(expected) for v in found]) >= 0.88


# --- cross-over FID ----------------------------------------------------------------------------------------


def test_crossover_fid_compares_with_the_classes_crossed_into():
    x, x_cf = pictures(0, 80), pictures(1, 80, shift=0.1)
    random = np.random.default_rng(0)
    source, target = random.integers(0, 4, 80), random.integers(0, 4, 80)
    keep = random.random(80) < 0.8
    value = crossover_fid(
        x,
        x_cf,
        source=torch.as_tensor(source),
        target=torch.as_tensor(target),
        groups=({0, 3}, [1]),
        where=torch.as_tensor(keep),
        features=tiny,
    )
    first, second = np.isin(source, [0, 3]), source == 1  # class 2 is left out
    over, back = first & keep & (target == 1), second & keep & np.isin(target, [0, 3])
    expected = by_scipy(f(x[second]), f(x_cf[over])) + by_scipy(f(x[first]), f(x_cf[back]))
    assert value.mean == pytest.approx(expected / 2, rel=1e-6)
    assert value.n == over.sum() + back.sum() and value.low < value.mean < value.high
    given = crossover_fid(
        x,
        x_cf,
        source=torch.as_tensor(source),
        target=torch.as_tensor(target),
        groups=((0, 3), (1,)),
        real=x.flip(0),
        real_classes=torch.as_tensor(source).flip(0),
        where=torch.as_tensor(keep),
        features=tiny,
    )
    close(given, value)


def test_crossover_fid_does_not_reward_doing_nothing(make_result):
    dark, bright = pictures(0, 40, shift=-0.3), pictures(1, 40, shift=0.3)
    x, target = torch.cat([dark, bright]), torch.arange(80).lt(40).long()
    logits = torch.nn.functional.one_hot(1 - target, 2).float()
    true = torch.cat([dark + 0.6, bright - 0.6]).clamp(-1, 1)

    def of(x_cf):
        result = make_result(x=x, x_cf=x_cf, target=target, flipped=[True] * 80)
        object.__setattr__(result, "logits_before", logits)
        return crossover_fid(result, groups=([0], [1]), features=tiny)

    assert of(true).high < of(x).low and of(x).n == 80


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"groups": ([0], [0, 1])}, "without a common one"),
        ({"groups": ([0], [])}, "without a common one"),
        ({"groups": ([0], [1], [2])}, "without a common one"),
        ({"source": None}, "source is missing"),
        ({"target": torch.zeros(3).long()}, r"target: shape \(3,\) given"),
        ({"real": pictures(0, 4)}, "one of real and real_classes"),
        ({"real": pictures(0, 4, size=4), "real_classes": torch.zeros(4).long()}, "real: shape"),
    ],
)
def test_bad_classes_are_explained(more, text):
    x, classes = pictures(0, 6), torch.arange(6) % 2
    call = {"groups": ([0], [1]), "source": classes, "target": 1 - classes, "features": tiny} | more
    with pytest.raises(ValueError, match=text):
        crossover_fid(x, x, **call)


# --- IM1 and IM2 -------------------------------------------------------------------------------------------


class Shades(nn.Module):
    """An autoencoder for every class that paints the image in the shade of the class; the global one blurs."""

    name, classes = "shades", {"tone": 3}

    def __init__(self):
        super().__init__()
        self.shades, self.drop = nn.Parameter(torch.tensor([-0.8, 0.0, 0.6])), nn.Dropout(0.5)

    def reconstruct(self, x, attribute=None, classes=None):
        if classes is None:
            return self.drop(x.mean((1, 2, 3), keepdim=True).expand_as(x))
        assert attribute == "tone"
        return self.shades[classes][:, None, None, None].expand_as(x)


def test_im1_and_im2_are_equations_2_7_and_2_8():
    x, source, target = pictures(0, 20), torch.arange(20) % 3, (torch.arange(20) + 1) % 3
    unit, shade = ((x + 1) / 2).double().numpy(), (torch.tensor([-0.8, 0.0, 0.6]) + 1).numpy() / 2
    unit = unit.reshape(20, -1)
    errors = [((unit - shade[c.numpy()][:, None]) ** 2).sum(1) for c in (target, source)]
    value = im1(x, source=source, target=target, autoencoders=Shades(), batch_size=7)
    np.testing.assert_allclose(value.scores, errors[0] / (errors[1] + 1e-6), rtol=1e-5)
    assert (value.n, value.backbone, value.method) == (20, "shades", "bootstrap")
    gap = unit.shape[1] * (shade[target.numpy()] - unit.mean(1)) ** 2
    value = im2(x, target=target, attribute="tone", autoencoders=Shades())
    np.testing.assert_allclose(value.scores, gap / (unit.sum(1) + 1e-6), rtol=1e-4)


def test_im1_is_low_where_the_target_class_is_reached():
    target = torch.tensor([2] * 10)
    reached = im1(torch.full((10, 3, 8, 8), 0.6), source=0 * target, target=target, autoencoders=Shades())
    missed = im1(torch.full((10, 3, 8, 8), -0.8), source=0 * target, target=target, autoencoders=Shades())
    assert reached.high < 1e-6 and missed.low > 1e3
    black = im2(torch.full((10, 3, 8, 8), -1.0), target=target, autoencoders=Shades())
    assert np.isfinite(black.mean)  # the norm of a black image is 0


def test_im_of_a_result_counts_the_flipped(make_result):
    result = make_result(flipped=[1, 0, 1, 1, 0, 1])
    shades = Shades().train()
    value = im1(result, autoencoders=shades)
    source = result.logits_before.argmax(1)
    given = im1(result.x_cf, source=source, target=result.target, where=result.flipped, autoencoders=shades)
    assert value == given and value.n == 4 and np.isnan(value.scores).sum() == 2
    assert im2(result, autoencoders=shades).n == 4 and shades.training
    assert str(im1(make_result(flipped=[False] * 6), autoencoders=shades)) == "undefined (n=0, shades)"
    empty = torch.zeros(0, 3, 8, 8)
    assert not im2(empty, target=torch.zeros(0).long(), autoencoders=shades).defined


def test_the_shipped_autoencoders_are_the_default(monkeypatch):
    monkeypatch.setitem(backbones.STAND_INS, "autoencoders", "personas/autoencoders")
    monkeypatch.setattr(backbones, "_load", {"personas/autoencoders": Shades()}.__getitem__)
    x, target = pictures(0, 4, size=64), torch.arange(4) % 3
    assert im2(x, target=target) == im2(x, target=target, autoencoders=Shades())
    with pytest.raises(ValueError, match="without a network"):
        im2(pictures(0, 4), target=target)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, c: im1(x, target=c, autoencoders=Shades()), "source is missing"),
        (lambda x, c: im2(x, autoencoders=Shades()), "target is missing"),
        (lambda x, c: im2(x, target=c + 3, autoencoders=Shades()), "classes 3 to 3 given, 0 to 2 expected"),
        (lambda x, c: im2(x, target=c, attribute="age", autoencoders=Shades()), "one of .'tone'. expected"),
        (lambda x, c: im2(x * 100, target=c, autoencoders=Shades()), "rescale"),
    ],
)
def test_bad_autoencoder_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(pictures(0, 6), torch.zeros(6).long())
