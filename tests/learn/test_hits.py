"""Helpers of notebook 07: colours say the sign, sums end at the logit, the widget keeps the books."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cfx_lib import zoo
from cfx_lib.learn import hits

WEIGHT = torch.linspace(-1, 2, 16).view(4, 4)


def linear(x):
    """Logits (N,2) of images (N,1,8,8): the second is a weighted sum of the means of 2x2 patches, plus 0.5."""
    means = torch.nn.functional.avg_pool2d(x, 2)[:, 0]
    return torch.stack([torch.zeros(len(x)), (means * WEIGHT).sum((1, 2)) + 0.5], 1)


def test_colours_say_sign_and_strength():
    red, none, blue = hits.signed(torch.tensor([[[2.0, 0.0, -2.0]]]))[0, :, 0].T
    assert red[0] > red[2] and blue[2] > blue[0] and torch.equal(none, torch.ones(3))
    half = hits.signed(torch.tensor([[[1.0]]]), 2.0)[0, :, 0, 0]
    assert torch.allclose(half, (red + 1) / 2)
    assert torch.equal(hits.signed(torch.zeros(1, 2, 2)), torch.ones(1, 3, 2, 2))


def test_a_map_over_an_image_leaves_the_rest_grey():
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, 1] = 1.0
    shown = hits.over(torch.rand(1, 3, 8, 8) * 2 - 1, maps)
    assert shown.shape == (1, 3, 8, 8)
    assert torch.equal(shown[0, 0, 4:], shown[0, 2, 4:])  # no colour
    assert (shown[0, 0, :4, 4:] > shown[0, 2, :4, 4:]).all()  # orange red


def test_the_constant_is_what_the_sum_leaves_open():
    x = torch.rand(3, 1, 8, 8)
    means = torch.nn.functional.avg_pool2d(x, 2)[:, 0]
    terms = torch.stack([torch.zeros(3, 16), (means * WEIGHT).flatten(1)], -1)[:, None]
    assert torch.allclose(hits.constant(linear, x, terms), torch.tensor([0.0, 0.5]).expand(3, 2), atol=1e-5)


def test_paint_covers_the_hidden_patches_alone():
    x, hidden = torch.rand(2, 1, 8, 8), torch.zeros(4, 4, dtype=torch.bool)
    hidden[1, 2] = True
    painted = hits.paint(x, hidden, -1.0)
    assert (painted[:, :, 2:4, 4:6] == -1).all()
    painted[:, :, 2:4, 4:6] = x[:, :, 2:4, 4:6]
    assert torch.equal(painted, x)


SIZE = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


def network(name):
    """A tiny network of random weights that are not small, so that every path shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **SIZE).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.5)
    return model


@pytest.mark.parametrize(
    ("name", "others_move"),
    [("hit_custom", False), ("vit_hindered_small_patch16_224", False), ("vit_tiny_patch16_224", True)],
)
def test_a_changed_patch_reaches_the_others_in_a_vit_alone(name, others_move):
    x = torch.rand(1, 1, 8, 8)
    changed = x.clone()
    changed[..., :4, :4] += 1
    model = network(name)
    moved = hits.reach(model, x, changed)
    assert moved.shape == (3, 5)
    assert (moved[0, 2:] == 0).all() and moved[0, 1] > 0 and moved[0, 0] == 0
    assert (moved[2, 2:] > 0).all() if others_move else (moved[1:, 2:] == 0).all()
    assert (moved[1:, :2] > 0).all()  # the class token and the patch itself
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_ripples_are_pale_where_nothing_moved():
    moved = torch.tensor([[0.5, 0.0, 0.1, 1e-9, 0.0]])  # the class token, then patches
    shown = hits.ripples(moved, (2, 2))
    assert shown.shape == (1, 3, 2, 2)
    assert (shown[0, :, 0, 0] == shown[0, :, 1, 0]).all()  # 0 and a billionth
    assert shown[0, 0, 0, 1] < shown[0, 0, 0, 0]


def test_the_depths_end_at_the_token_that_is_classified():
    x = torch.rand(1, 1, 8, 8)
    for name in ("hit_custom", "vit_tiny_patch16_224"):
        model = network(name)
        with torch.no_grad():
            assert torch.allclose(
                model.head(model.norm(hits.depths(model, x)[-1, 0])), model(x)[0], atol=1e-5
            )


def test_stairs_end_at_the_sum():
    fig = hits.stairs({"one": (torch.tensor([1.0, -0.5, 0.25]), 0.5)})
    assert "1.25" in fig.alt and "0.50" in fig.alt


def test_the_widget_keeps_the_books():
    x = torch.rand(1, 1, 8, 8)
    terms = torch.nn.functional.avg_pool2d(x, 2)[0, 0] * WEIGHT
    shown = hits.hide(linear, x, terms, 1, colour=0.0, static=3)
    button, whole = shown.widget.patches[14], float(linear(x)[0, 1])
    button.click()
    without = whole - float(terms.flatten()[14])
    assert f"sum without them: {without:.3f}" in shown.widget.told.value
    assert f"painted image: {without:.3f}" in shown.widget.told.value  # a linear network: both accounts agree
    button.click()
    assert f"sum without them: {whole:.3f}" in shown.widget.told.value
    assert "3 hidden" in shown.figure.alt


def released(path):
    """A tiny HiT in the authors' parameter names, random, with the unused last MLP: images of 8x8, patches of 4."""
    draw, d = torch.Generator().manual_seed(0), 8
    shapes = {
        "class_token": (1, 1, d), "encoder.pos_embedding": (1, 5, d), "conv_proj.weight": (d, 3, 4, 4), "conv_proj.bias": (d,),
        "encoder.ln.weight": (d,), "encoder.ln.bias": (d,), "heads.head.weight": (4, d), "heads.head.bias": (4,),
    }  # fmt: skip
    for layer in range(2):
        stem = f"encoder.layers.encoder_layer_{layer}"
        shapes |= {
            f"{stem}.ln_1.weight": (d,), f"{stem}.ln_1.bias": (d,), f"{stem}.ln_2.weight": (d,), f"{stem}.ln_2.bias": (d,),
            f"{stem}.self_attention.in_proj_weight": (3 * d, d), f"{stem}.self_attention.in_proj_bias": (3 * d,),
            f"{stem}.self_attention.out_proj.weight": (d, d), f"{stem}.self_attention.out_proj.bias": (d,),
            f"{stem}.mlp.0.weight": (4 * d, d), f"{stem}.mlp.0.bias": (4 * d,), f"{stem}.mlp.3.weight": (d, 4 * d),
            f"{stem}.mlp.3.bias": (d,),
        }  # fmt: skip
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, path)


def test_the_cast_of_paper_mode_comes_from_disk(tmp_path):
    released(tmp_path / "hit.safetensors")
    (tmp_path / "photographs").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{k}.png")
    rival = zoo.wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), 4)
    files = tmp_path / "hit.safetensors", tmp_path / "photographs"
    cast = hits.photographs(2, *files, vit=rival, device="cpu")
    assert cast.x.shape == (2, 3, 8, 8) and cast.net(cast.x).shape == (2, 4) and len(cast.names) == 4


def test_paper_mode_says_what_is_missing():
    with pytest.raises(FileNotFoundError, match="CFX_HIT"):
        hits.photographs(2, None, None)


def test_the_names_of_imagenet():
    assert hits._imagenet(1000)[340] == "zebra"
