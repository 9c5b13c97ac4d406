"""Helpers of notebook 07: colours say the sign, sums end at the logit, the widget keeps the books."""

import pytest
import torch

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
    assert torch.equal(shown[0, 0, 4:], shown[0, 2, 4:])  # grey
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


def test_reach_is_zero_where_nothing_moved():
    def tokens(x):
        first = x.reshape(1, 4, 16)
        return torch.cat([first, first + first.mean(1, keepdim=True)])

    x = torch.rand(1, 1, 8, 8)
    changed = x.clone()
    changed[0, 0, 0] += 1
    moved = hits.reach(tokens, x, changed)
    assert moved.shape == (2, 4)
    assert moved[0, 0] > 0 and (moved[0, 1:] == 0).all() and (moved[1] > 0).all()


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


@pytest.mark.parametrize("size", [(8, 8), (4, 2)])
def test_larger_repeats_values(size):
    maps = torch.arange(4.0).view(1, 2, 2)
    fine = hits.larger(maps, size)
    assert fine.shape == (1, *size) and set(fine.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
