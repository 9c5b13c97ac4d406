"""Every check passes what is right and says of what is wrong: what was given, what was expected, what to do."""

import numpy as np
import pytest
import torch

from cfx_lib.checks import check_images, check_logits, check_mask, check_start, check_target


def images(n=2, c=3, size=16):
    return torch.linspace(-1, 1, n * c * size * size).reshape(n, c, size, size)


def test_images_that_are_right():
    check_images(images())
    check_images(images(1, 1, 8), sample_size=8, channels=1, multiple_of=8)
    check_images(images() * 1.0005)  # rounding is forgiven
    check_images(images().requires_grad_())


def nan_in(x, n, value=float("nan")):
    x = x.clone()
    x[n, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    "x, options, message",
    [
        (np.zeros((1, 3, 8, 8)), {}, r"x is a ndarray; expected a float32 tensor.*torch\.as_tensor"),
        (images()[0], {}, r"x has shape \(3, 16, 16\); expected .*Use x\[None\] for a single image"),
        (torch.zeros(4), {}, r"x has shape \(4\); expected .*Reshape it"),
        (images()[:0], {}, r"x is an empty batch \(0, 3, 16, 16\); expected at least one image"),
        ((images() * 127).to(torch.uint8), {}, r"dtype torch\.uint8.*x\.float\(\) / 127\.5 - 1"),
        (images().half(), {}, r"dtype torch\.float16; expected .*Use x\.float\(\)"),
        (images().double(), {}, r"dtype torch\.float64"),
        (images(), {"channels": 1}, r"x has 3 channels .*the model takes 1\."),
        (
            images().permute(0, 2, 3, 1),
            {"channels": 3},
            r"channels seem to come last: use x\.permute\(0, 3, 1, 2\)",
        ),
        (images(), {"sample_size": 64}, r"16x16 pixels; the denoiser takes 64x64\. Resize or crop"),
        (images(size=12), {"multiple_of": 8}, r"12x12 pixels; the denoiser takes sides divisible by 8"),
        (torch.zeros(1, 3, 0, 0), {}, r"0x0 pixels"),
        (nan_in(images(), 1), {}, r"NaN or infinite pixels \(images \[1\]\); expected"),
        (nan_in(images(), 0, float("inf")), {}, r"NaN or infinite pixels \(images \[0\]\)"),
        (images() * 2, {}, r"values in \[-2, 2\]; expected \[-1, 1\]\. Rescale"),
        (images().abs() * 255, {}, r"values in \[.*255\]; expected \[-1, 1\]\. Use x / 127\.5 - 1"),
        (images() * 2, {"name": "x_cf"}, r"^x_cf has values"),
    ],
)
def test_images_that_are_wrong(x, options, message):
    with pytest.raises(ValueError, match=message):
        check_images(x, **options)


def test_targets_that_are_right():
    check_target(torch.tensor([0, 1]), 2, 2)
    check_target(torch.tensor([0, 1], dtype=torch.int32), 2)


@pytest.mark.parametrize(
    "target, message",
    [
        ([0, 1], r"target is a list; expected a long tensor of shape \(2,\), one class for each image"),
        (torch.tensor([0.0, 1.0]), r"dtype torch\.float32.*Use target\.long\(\)"),
        (torch.tensor([True, False]), r"dtype torch\.bool.*Use target\.long\(\)"),
        (torch.tensor([0, 1, 1]), r"shape \(3\); expected a long tensor of shape \(2,\)"),
        (torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (torch.tensor(1), r"shape \(\); expected .*torch\.full"),
        (torch.tensor([0, 3]), r"target has the class 3; the classifier has classes 0 to 2"),
        (torch.tensor([-1, 0]), r"target has the class -1"),
    ],
)
def test_targets_that_are_wrong(target, message):
    with pytest.raises(ValueError, match=message):
        check_target(target, 2, 3)


@pytest.mark.parametrize(
    "logits, message",
    [
        (np.zeros((2, 2)), r"returned a ndarray; expected a tensor, logits of shape \(2, K\).*zoo\.wrap"),
        (torch.zeros(2), r"a single logit \(2\); expected .*zoo\.wrap\(model, num_classes=2\)"),
        (torch.zeros(2, 1), r"a single logit \(2, 1\)"),
        (torch.zeros(3, 4), r"returned \(3, 4\) for 2 images"),
        (torch.zeros(2, 4, 1), r"returned \(2, 4, 1\) for 2 images"),
        (torch.zeros(2, 5), r"the classifier has 5 classes; expected 4"),
        (torch.full((2, 4), float("nan")), r"NaN or infinite logits; check its weights"),
    ],
)
def test_logits_that_are_wrong(logits, message):
    check_logits(torch.zeros(2, 4), 2, 4)
    with pytest.raises(ValueError, match=message):
        check_logits(logits, 2, 4)


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            None,
            r"mask is a NoneType; expected a tensor \(N or 1, C or 1, H, W\) = \(2 or 1, 3 or 1, 16, 16\)",
        ),
        (torch.ones(16, 16), r"mask has shape \(16, 16\); expected"),
        (torch.ones(3, 1, 16, 16), r"mask has shape \(3, 1, 16, 16\)"),
        (torch.ones(2, 1, 8, 8), r"mask has shape \(2, 1, 8, 8\)"),
        (torch.full((1, 1, 16, 16), 2.0), r"values outside \[0, 1\]"),
        (torch.full((1, 1, 16, 16), float("nan")), r"or NaN"),
    ],
)
def test_masks_that_are_wrong(mask, message):
    for right in (torch.ones(1, 1, 16, 16), torch.zeros(2, 3, 16, 16), torch.ones(2, 1, 16, 16).bool()):
        check_mask(right, images())
    with pytest.raises(ValueError, match=message):
        check_mask(mask, images())


@pytest.mark.parametrize("start, steps", [(0, 50), (51, 50), (-3, 50)])
def test_starts_that_are_wrong(start, steps):
    check_start(1, 1)
    check_start(50, 50)
    with pytest.raises(
        ValueError, match=rf"start = {start} with steps = {steps}; expected 1 <= start <= steps"
    ):
        check_start(start, steps)
