"""Insertion, deletion and sanity checks: against recorded curves, plain loops and scipy, and their properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from cfx_lib import zoo
from cfx_lib.metrics.saliency import (
    area,
    blur_kernel,
    insertion_deletion,
    insertion_deletion_curves,
    map_correlation,
    normalised_area,
    patch_ranks,
    replacement_images,
)

quick = settings(deadline=None, max_examples=15, derandomize=True)
KEYS = ["insertion", "deletion", "insertion nAUC", "deletion nAUC"]


class Linear(nn.Module):
    """Logits of all pixels, so that every pixel's weight is known."""

    def __init__(self, seed=0, size=8, classes=3):
        super().__init__()
        self.net = nn.Linear(3 * size * size, classes, bias=False)
        with torch.no_grad():
            self.net.weight.copy_(
                torch.randn(self.net.weight.shape, generator=torch.Generator().manual_seed(seed)) / 4
            )

    def forward(self, x):
        assert not self.training
        return self.net(x.flatten(1))


def pictures(seed=0, n=4, size=8, grid=4):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=random) * 2 - 1
    return x, torch.randn(n, grid, grid, generator=random)


# ------------------------------------------------------------------------------------------ the recorded run


def hit(weights, x, heads=4):
    """A HiT without pooling: the class token alone attends, patches are its keys and values and see only an MLP."""

    def norm(name, tokens):
        return F.layer_norm(
            tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6
        )

    def split(tokens):
        return tokens.unflatten(2, (heads, -1)).transpose(1, 2)

    patches = F.conv2d(x, weights["conv_proj.weight"], weights["conv_proj.bias"], stride=4)
    position = weights["encoder.pos_embedding"]
    patches = patches.flatten(2).transpose(1, 2) + position[:, 1:]
    token = (weights["class_token"] + position[:, :1]).expand(len(x), -1, -1)
    for k in range(3):
        layer = f"encoder.layers.encoder_layer_{k}"
        to_qkv = zip(
            weights[f"{layer}.self_attention.in_proj_weight"].chunk(3),
            weights[f"{layer}.self_attention.in_proj_bias"].chunk(3),
            (norm(f"{layer}.ln_1", token), *[norm(f"{layer}.ln_1", patches)] * 2),
            strict=True,
        )
        q, key, value = (split(F.linear(tokens, w, b)) for w, b, tokens in to_qkv)
        seen = (q @ key.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ value
        out = f"{layer}.self_attention.out_proj"
        seen = seen.transpose(1, 2).flatten(2)
        token = token + F.linear(seen, weights[f"{out}.weight"], weights[f"{out}.bias"])
        hidden = norm(f"{layer}.ln_2", patches)
        hidden = F.gelu(F.linear(hidden, weights[f"{layer}.mlp.0.weight"], weights[f"{layer}.mlp.0.bias"]))
        patches = patches + F.linear(hidden, weights[f"{layer}.mlp.3.weight"], weights[f"{layer}.mlp.3.bias"])
    return F.linear(norm("encoder.ln", token)[:, 0], weights["heads.head.weight"], weights["heads.head.bias"])


SCALE = 4  # the recorded inputs are normalised already and leave [-1,1]; a power of two scales them without rounding


@pytest.fixture(scope="module")
def recorded(fixture):
    tensors, meta = fixture("insertion_deletion")
    weights = {k.removeprefix("state_dict."): v.double() for k, v in tensors.items() if k.startswith("state")}
    return tensors, meta, lambda x: hit(weights, SCALE * x)


def test_the_recorded_network(recorded):
    tensors, _, model = recorded
    logits = model(tensors["x"] / SCALE)
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-9, atol=1e-10)
    assert torch.equal(logits.argmax(1), tensors["class_explained"])


@pytest.mark.parametrize("replacement", ["zero", "blur"])
def test_the_recorded_curves(recorded, replacement):
    tensors, meta, model = recorded
    x = tensors["x"] / SCALE
    curves = insertion_deletion_curves(model, x, tensors["map"], replacement=replacement, batch_size=50)
    values = insertion_deletion(model, x, tensors["map"], replacement=replacement)
    assert torch.equal(curves.target, tensors["class_explained"])
    for mode in ("insertion", "deletion"):
        name, curve = f"{mode}_{replacement}", getattr(curves, mode)
        torch.testing.assert_close(curve, tensors[f"{name}.curve"], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(
            area(curve, curves.fraction), tensors[f"{name}.auc_per_image"], rtol=1e-6, atol=1e-8
        )
        assert values[mode].mean == pytest.approx(meta["auc"][name], rel=1e-6)
        largest = tensors[f"{name}.mean_curve"].max().item()
        assert values[f"{mode} nAUC"].mean == pytest.approx(meta["auc"][name] / largest, rel=1e-6)


def test_the_recorded_kernel_blur_sequence_and_area(recorded):
    tensors, meta, _ = recorded
    torch.testing.assert_close(
        blur_kernel(), tensors["gauss_kernel_2d"], rtol=0, atol=1e-9
    )  # stored as float32
    blurred = SCALE * replacement_images(tensors["x"] / SCALE, "blur")
    torch.testing.assert_close(blurred, tensors["blurred_x"], rtol=1e-5, atol=1e-7)
    assert replacement_images(tensors["x"], "zero").count_nonzero() == 0
    curves = insertion_deletion_curves(lambda x: x[:, 0, :2, 0], tensors["x"] / SCALE, tensors["map"])
    torch.testing.assert_close(curves.fraction * 16, tensors["sequence"], rtol=0, atol=0)
    for name, expected in meta["auc"].items():
        assert area(tensors[f"{name}.mean_curve"], curves.fraction).item() == pytest.approx(
            expected, rel=1e-12
        )


# ------------------------------------------------------------------------------------------ a plain loop


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 7, 16, None]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["zero", "blur"]),
)
def test_a_plain_loop_agrees(seed, steps, grid, replacement):
    x, maps = pictures(seed, grid=grid)
    model = Linear(seed).eval()
    patches = grid * grid
    steps = min(steps, patches) if steps else None
    number = steps or (8 if grid == 8 else patches)  # pixels: a row at a time
    curves = insertion_deletion_curves(model, x, maps, replacement=replacement, steps=steps, batch_size=5)
    blank = replacement_images(x.double(), replacement).float()
    for n in range(4):
        order = sorted(range(patches), key=lambda p: -maps[n].flatten()[p].item())
        label = model(x[n : n + 1]).argmax().item()
        for k in range(number + 1):
            shown = np.zeros((8, 8), dtype=bool)
            done = [p for r, p in enumerate(order) if r < k * patches / number]
            for p in done:
                side, i, j = 8 // grid, p // grid, p % grid
                shown[i * side : (i + 1) * side, j * side : (j + 1) * side] = True
            mask = torch.from_numpy(shown)
            pair = torch.stack([torch.where(mask, x[n], blank[n]), torch.where(mask, blank[n], x[n])])
            with torch.no_grad():
                p = model(pair).softmax(1)[:, label]
            assert curves.fraction[k].item() == len(done) / patches
            assert curves.insertion[n, k].item() == pytest.approx(p[0].item(), abs=1e-6)
            assert curves.deletion[n, k].item() == pytest.approx(p[1].item(), abs=1e-6)


# ------------------------------------------------------------------------------------------ properties


@quick
@given(st.integers(0, 10**6), st.permutations(range(6)), st.integers(1, 40))
def test_order_of_images_and_size_of_batches_do_not_matter(seed, order, batch_size):
    x, maps = pictures(seed, n=6)
    target = torch.randint(0, 3, (6,), generator=torch.Generator().manual_seed(seed))
    model, order = Linear(1), list(order)
    values = insertion_deletion(model, x, maps, target)
    again = insertion_deletion(model, x[order], maps[order], target[order], batch_size=batch_size)
    assert list(values) == KEYS and model.training
    for key in KEYS:
        a, b = values[key], again[key]
        assert 0 <= a.low <= a.mean <= a.high <= 1 and a.n == 6
        assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), abs=1e-6)
        assert a.scores[order] == pytest.approx(b.scores, abs=1e-6)
        assert np.mean(a.scores) == pytest.approx(a.mean)


@quick
@given(st.integers(0, 10**6))
def test_the_two_curves_meet_and_mirror(seed):
    x, maps = pictures(seed)
    curves = insertion_deletion_curves(Linear(2), x, maps)
    torch.testing.assert_close(curves.insertion[:, -1], curves.deletion[:, 0])
    torch.testing.assert_close(curves.insertion[:, 0], curves.deletion[:, -1])
    opposite = insertion_deletion_curves(Linear(2), x, -maps)  # least salient first
    torch.testing.assert_close(opposite.insertion, curves.deletion.flip(1))
    shifted = insertion_deletion_curves(Linear(2), x, 3 * maps + 5)  # only the order matters
    assert torch.equal(shifted.insertion, curves.insertion)


def test_the_true_map_of_a_linear_network_wins():
    x, maps = pictures(n=20, grid=8)
    model = Linear(3).eval()
    label = model(x).argmax(1)
    shares = (model.net.weight[label].detach().view(20, 3, 8, 8) * x).sum(1)
    true, other = (insertion_deletion(model, x, m) for m in (shares, maps))
    assert true["insertion"].low > other["insertion"].high and true["deletion"].high < other["deletion"].low
    wrong = insertion_deletion(model, x, -shares)
    assert (
        wrong["insertion"].mean < other["insertion"].mean and wrong["deletion"].mean > other["deletion"].mean
    )


def test_a_network_that_sees_nothing():
    x, maps = pictures()
    values = insertion_deletion(lambda x: torch.zeros(len(x), 2), x, maps)
    assert [values[k].mean for k in KEYS] == pytest.approx([0.5, 0.5, 1, 1])
    values = insertion_deletion(Linear(), x, maps, replacement=x)  # nothing is ever taken away
    assert values["insertion nAUC"].mean == pytest.approx(1)


def test_what_zero_is():
    x, maps = pictures()
    seen = []

    def model(images):
        seen.append(images)
        return images.mean((2, 3))

    wrapped = zoo.wrap(model, 3, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    insertion_deletion_curves(wrapped, x, maps, torch.zeros(4, dtype=torch.long), steps=1, batch_size=1)
    empty = [images.abs().amax() < 1e-6 for images in seen]
    assert sum(empty) == 8  # once per image and curve: 0 after the network's own normalisation
    grey = replacement_images(x, "zero", zero=0.5)
    assert (grey == 0.5).all()
    flat = torch.full_like(x, 0.5)
    torch.testing.assert_close(replacement_images(flat, "blur", zero=0.5), flat)
    curves = [
        insertion_deletion_curves(Linear(), x, maps, zero=z, replacement="blur").insertion
        for z in (0.0, (0.5, 0.5, 0.5))
    ]
    assert not torch.allclose(*curves)


def test_ranks():
    maps = torch.tensor([[[0.1, 0.9], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    ranks = patch_ranks(maps, torch.zeros(2, 3, 4, 6))
    assert ranks.shape == (2, 4, 6)
    assert ranks[0, ::2, ::3].tolist() == [[3, 0], [1, 2]] and ranks[1, ::2, ::3].tolist() == [[0, 1], [2, 3]]
    assert (ranks[:, :2, :3] == ranks[:, :1, :1]).all()


def test_normalised_area_of_known_curves():
    fraction = torch.tensor([0.0, 0.5, 1.0]).double()
    curves = torch.tensor(
        [[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]]
    ).double()  # areas 0.5 and 0.2; mean curve up to 0.6
    value = normalised_area(curves, fraction)
    assert value.mean == pytest.approx(0.35 / 0.6) and value.scores == pytest.approx([0.5 / 0.6, 0.2 / 0.6])
    assert value.low == pytest.approx(0.5) and value.high == pytest.approx(1.0)  # one of the images alone
    single = normalised_area(curves, fraction, torch.tensor([True, False]))
    assert single.mean == 0.5 and not single.has_interval and np.isnan(single.scores[1])
    assert not normalised_area(torch.zeros(3, 3), fraction).defined


def test_nothing_to_average_is_undefined():
    x, maps = pictures()
    for values in (
        insertion_deletion(Linear(), x[:0], maps[:0]),
        insertion_deletion(Linear(), x, maps, where=torch.zeros(4).bool()),
    ):
        assert {str(v) for v in values.values()} == {"undefined (n=0)"}
    assert insertion_deletion_curves(Linear(), x[:0], maps[:0]).insertion.shape == (0, 17)
    some = insertion_deletion(Linear(), x, maps, where=torch.tensor([True, False, True, True]))
    assert {v.n for v in some.values()} == {3} and np.isnan(some["insertion nAUC"].scores[1])


X, MAPS = pictures()
LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: insertion_deletion(Linear(), X, MAPS[:2]), "2 maps given for 4 images"),
        (
            lambda: insertion_deletion(Linear(), X, torch.zeros(4, 3, 3)),
            "3x3 patches given for images of 8x8",
        ),
        (lambda: insertion_deletion(Linear(), X, MAPS[:, None]), r"\(N,h,w\) expected"),
        (lambda: insertion_deletion(Linear(), X, MAPS * torch.nan), "NaN or infinite saliency"),
        (lambda: insertion_deletion(Linear(), X * torch.nan, MAPS), "NaN"),
        (lambda: insertion_deletion(Linear(), X * 200, MAPS), "rescale"),
        (lambda: insertion_deletion(Linear(), X, MAPS, replacement="black"), "'black'"),
        (lambda: insertion_deletion(Linear(), X, MAPS, replacement=X[:1]), "replacement: shape"),
        (lambda: insertion_deletion(Linear(), X, MAPS, steps=17), "steps=17"),
        (lambda: insertion_deletion(Linear(), X, MAPS, steps=0), "from 1 to 16"),
        (lambda: insertion_deletion(Linear(), X, MAPS, zero=(0.5, 0.5)), "one for each of 3 channels"),
        (lambda: insertion_deletion(Linear(), X, MAPS, LABELS[:2]), r"\(2,\) given, \(4,\) expected"),
        (lambda: insertion_deletion(Linear(), X, MAPS, LABELS + 3), "0 to 2 expected"),
        (lambda: insertion_deletion(lambda x: x.mean((1, 2, 3)), X, MAPS), "K >= 2 expected"),
        (lambda: insertion_deletion(lambda x: x[:, :2, 0, 0] / 0, X, MAPS), "logits"),
        (lambda: insertion_deletion(Linear(), X, MAPS, where=LABELS), "not indices"),
        (lambda: map_correlation(MAPS, MAPS[:2]), r"\(2, 4, 4\) given"),
        (lambda: map_correlation(MAPS, MAPS, "kendall"), "'kendall'"),
        (lambda: map_correlation(MAPS, MAPS, top=0), "top=0"),
        (lambda: map_correlation(MAPS, MAPS, top=0.1), "top=0.1 of 16 tokens"),
        (lambda: map_correlation(MAPS * torch.nan, MAPS), "NaN"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_network_of_attributes_is_refused():
    net = zoo.AttributeClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), ["smile", "old"])
    with pytest.raises(ValueError, match="for_attribute"):
        insertion_deletion(net, X, MAPS)
    assert insertion_deletion(net.for_attribute("smile"), X, MAPS)["insertion"].n == 4


# ------------------------------------------------------------------------------------------ sanity checks


@quick
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 1.0]), st.booleans())
def test_correlations_agree_with_scipy(seed, top, ties):
    _, a = pictures(seed, n=5)
    _, b = pictures(seed + 1, n=5)
    if ties:
        a, b = a.round(decimals=0), b.round(decimals=0)
    for kind, reference in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        expected = []
        for first, second in zip(a.flatten(1).double().numpy(), b.flatten(1).double().numpy(), strict=True):
            rows = np.argsort(-first, kind="stable")[: int(np.ceil(16 * top))]
            flat = np.ptp(first[rows]) == 0 or np.ptp(second[rows]) == 0
            expected.append(0.0 if flat else reference(first[rows], second[rows]).statistic)
        value = map_correlation(a, b, kind, top, absolute=False)
        assert (
            value.scores == pytest.approx(np.array(expected), abs=1e-12)
            and -1 <= value.low <= value.high <= 1
        )
        assert map_correlation(a, b, kind, top).scores == pytest.approx(np.abs(expected), abs=1e-12)


@quick
@given(st.integers(0, 10**6), st.sampled_from(["spearman", "pearson"]), st.permutations(range(4)))
def test_correlation_properties(seed, kind, order):
    _, a = pictures(seed)
    _, b = pictures(seed + 1)
    assert map_correlation(a, a, kind).low == pytest.approx(1)
    assert map_correlation(a, -2 * a + 1, kind, absolute=False).mean == pytest.approx(-1)
    assert map_correlation(a, -2 * a + 1, kind).mean == pytest.approx(1)
    assert map_correlation(a, b, kind).mean == pytest.approx(map_correlation(b, a, kind).mean)
    shuffled = map_correlation(a[list(order)], b[list(order)], kind)
    assert shuffled.to_dict() == pytest.approx(map_correlation(a, b, kind).to_dict())
    if kind == "spearman":
        assert map_correlation(a, a.exp(), kind).mean == pytest.approx(1)


def test_constant_maps_count_as_zero_and_are_reported():
    _, a = pictures()
    b = a.clone()
    b[:2] = 0.1
    value = map_correlation(a, b)
    assert value.mean == 0.5 and value.method == "bootstrap; 2 of 4 undefined, counted as 0"
    assert map_correlation(b, b, "pearson").mean == pytest.approx(0.5)
    kept = map_correlation(a, b, where=torch.tensor([False, True, True, True]))
    assert kept.mean == pytest.approx(2 / 3) and "1 of 3" in kept.method
    assert map_correlation(a, a).method == "bootstrap"
    assert str(map_correlation(a[:0], b[:0])) == "undefined (n=0)"


def test_unrelated_maps_score_what_the_docstring_says():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2000, 8, 8, generator=random)
    assert map_correlation(a, b, absolute=False).covers(0)
    assert map_correlation(a, b).mean == pytest.approx(0.8 / 8, rel=0.05)
