"""What all methods promise alike: the same wrong arguments are refused by the same messages, before any computing."""

import dataclasses

import pytest
import torch
from toys import Brightness, Untouched, bright, images

from cfx_lib import ACE, DVCE, LDCE, PGD, SVCE, BlendedDiffusion, DiME

WITH_DENOISER = {
    DiME: {"start": 6, "lambda_p": 0.0},
    ACE: {"start": 3},
    DVCE: {"start": 6},
    BlendedDiffusion: {"start": 6, "perceptual": False},
    LDCE: {"start": 6},
}
GUIDED_ALONE = (PGD, SVCE)


class UntouchedLatents:
    """A latent diffusion model of 8x8 colour images, conditioned on the target class, that must not be reached."""

    kind, factor, image_size, image_channels = "class", 2, 8, 3
    alpha_bar = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)

    def condition(self, labels):
        return labels

    def unconditional(self, n):
        return torch.zeros(n, dtype=torch.long)

    def encode(self, x):
        raise AssertionError("the denoiser was called")

    decode = eps = encode


WRONG = [
    (images()[0], bright(), r"shape \(3, 8, 8\); expected a float32 tensor \(N, C, H, W\)"),
    (images()[:0], bright(0), "empty batch"),
    (images() * 9, bright(), r"expected \[-1, 1\]"),
    (images() / 0, bright(), "NaN or infinite pixels"),
    (images().double(), bright(), "float64"),
    (images(), bright() + 1, "target has the class 2; the classifier has classes 0 to 1"),
    (images(), bright() - 2, "target has the class -1"),
    (images(), bright(2), r"target has shape \(2.*expected a long tensor of shape \(3,\)"),
    (images(), bright().float(), "dtype torch.float32"),
]
WRONG_FOR_THE_DENOISER = [
    (images()[:, :1], bright(), "1 channels"),
    (images(size=10), bright(), "10x10 pixels; the denoiser takes 8x8"),
]


def make(method, **changes):
    settings = {"classifier": Brightness()}
    if method in WITH_DENOISER:
        settings |= {"denoiser": Untouched(), "steps": 20, **WITH_DENOISER[method]}
    settings |= changes
    if method is LDCE:
        given = settings.pop("denoiser")
        settings["model"] = UntouchedLatents() if isinstance(given, Untouched) else given
    return method(**settings)


def name_of(method):
    return method.__name__ if isinstance(method, type) else None


@pytest.mark.parametrize("method", [*WITH_DENOISER, *GUIDED_ALONE], ids=name_of)
@pytest.mark.parametrize("x, target, message", WRONG)
def test_wrong_arguments_are_refused_before_any_computing(method, x, target, message):
    with pytest.raises(ValueError, match=message):
        make(method).explain(x, target, progress=False)


@pytest.mark.parametrize("method", WITH_DENOISER, ids=name_of)
@pytest.mark.parametrize("x, target, message", WRONG_FOR_THE_DENOISER)
def test_images_that_the_denoiser_cannot_take_are_refused(method, x, target, message):
    with pytest.raises(ValueError, match=message):
        make(method).explain(x, target, progress=False)


@pytest.mark.parametrize("method", WITH_DENOISER, ids=name_of)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 101}, "was trained with 100"),
        ({"denoiser": lambda x, t: x}, "without a schedule"),
        ({"classifier": lambda x: x.mean((1, 2, 3))}, "single logit"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_the_denoiser_is_called(method, change, message):
    with pytest.raises(ValueError, match=message):
        make(method, **change).explain(images(), bright(), progress=False)


@pytest.mark.parametrize("method", [*WITH_DENOISER, *GUIDED_ALONE], ids=name_of)
def test_a_classifier_with_other_classes_than_it_says_is_refused(method):
    classifier = Brightness()
    classifier.num_classes = 5
    with pytest.raises(ValueError, match="the classifier has 2 classes; expected 5"):
        make(method, classifier=classifier).explain(images(), bright(), progress=False)


@pytest.mark.parametrize("method", [*WITH_DENOISER, *GUIDED_ALONE], ids=name_of)
def test_settings_cannot_be_changed_after_they_were_checked(method):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(method).classifier = None


def test_the_toy_denoiser_really_refuses():
    with pytest.raises(AssertionError, match="the denoiser was called"):
        Untouched()(images(), torch.zeros(3, dtype=torch.long))
