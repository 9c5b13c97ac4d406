"""The presets of the methods on pixels: the papers' numbers, those of released code where it differs, and `fast`.

Those of the methods on latents, LDCE and TIME, are in `latent_presets.py`.
"""

from __future__ import annotations

from typing import Any

from .augment import Augment
from .masks import SelfMask

__all__ = ["ACE", "BLENDED", "DIME", "DVCE", "PGD", "SVCE"]

Settings = dict[str, dict[str, Any]]

_FAST: dict[str, Any] = {
    "steps": 50,
    "start": 25,
    "lambda_c": (40.0, 80.0, 160.0),
    "lambda_p": 0.0,
    "lambda_1": 0.05,
    "lambda_2": 0.05,
    "loss": "logit",
    "inner": "one-step",
}

# Thesis, Sect. 3.4.2; lambda_p = 30 and lambda_1 = 0.05 for all data sets are the defaults of the class.
DIME: Settings = {
    "paper/celeba": {"steps": 200, "start": 60, "lambda_c": (8.0, 10.0, 15.0)},
    "paper/celebahq": {"steps": 200, "start": 60, "lambda_c": (25.0, 30.0, 40.0)},
    "paper/bdd": {"steps": 200, "start": 45, "lambda_c": (50.0, 55.0)},
    # The released code guides with the raw signed logit instead of log p, noises x one index beyond the first
    # step that is denoised, and does not cut the result to the range of images.
    "released/celeba": {
        "steps": 200,
        "start": 60,
        "lambda_c": (8.0, 10.0, 15.0),
        "loss": "logit",
        "noise_offset": 1,
        "clamp": False,
    },
    # The personas, chosen on validation faces: from alpha_bar about 0.1, one network call a step. With the raw logit the
    # useful lambda_c follows the length of the classifier's gradient, which is longer without noise augmentation; an age
    # is spread over the face: with fast/age more of its flips are confirmed, and more of the face is repainted. fast/masked
    # keeps the pixels that hardly change, as FastDiME does.
    "fast": _FAST,
    "fast/age": _FAST | {"lambda_c": (80.0, 160.0, 320.0)},
    "fast/brittle": _FAST | {"lambda_c": (5.0, 10.0, 20.0, 40.0)},
    "fast/masked": _FAST | {"self_mask": SelfMask()},
}

# Thesis, Sect. 3.5.2: 50 iterations, eps 2, 4 and 8 (in 1/255).
PGD: Settings = {
    "paper/eps2": {"eps": 2.0},
    "paper/eps4": {"eps": 4.0},
    "paper/eps8": {"eps": 8.0},
    "fast": {"eps": 8.0},
}

# Thesis, Sect. 4.4.1 and Appendix A.1: PGD, 50 iterations, dilation 15, lambda_d 0.001 (l1) or 0.1 (l2) for all;
# tau and the respacing by data set, the threshold by data set, distance and attribute.
_CELEBA: dict[str, Any] = {"steps": 50, "start": 5, "threshold": 0.15}
_HQ: dict[str, Any] = {"steps": 25, "start": 5, "threshold": 0.15}
_BDD: dict[str, Any] = {"steps": 100, "start": 5, "threshold": 0.05}
_ACE_FAST: dict[str, Any] = {
    "steps": 25,
    "start": 3,
    "iterations": 40,
    "step_size": 6.0,
    "lambda_d": 0.0002,
    "dilation": 7,
    "threshold": 0.2,
}
ACE: Settings = {
    "paper/celeba": _CELEBA,
    "paper/celeba/l2": _CELEBA | {"distance": "l2"},
    "paper/celebahq": _HQ,
    "paper/celebahq/l2-smile": _HQ | {"distance": "l2", "threshold": 0.1},
    "paper/celebahq/l2-age": _HQ | {"distance": "l2", "threshold": 0.05},
    "paper/bdd": _BDD,
    "paper/bdd/l2": _BDD | {"distance": "l2", "threshold": 0.1},
    "paper/imagenet": _HQ,
    "paper/imagenet/l2": _HQ | {"distance": "l2"},
    # Sect. 4.4.6: the other attacks need twice the iterations. It gives no step sizes; these are ours.
    "paper/celeba/gd": _CELEBA | {"attack": "gd", "iterations": 100, "step_size": 255.0},
    "paper/celeba/cw": _CELEBA | {"attack": "cw", "iterations": 100, "loss": "margin"},
    # The released scripts: batches of 3 images, over which only the class loss is averaged (batches of one, hence
    # the paper's numbers, for CelebA-HQ and BDD); twice the iterations for ImageNet.
    "released/celeba": _CELEBA | {"lambda_c": 1 / 3},
    "released/imagenet": _HQ | {"iterations": 100},
    # The personas, chosen on 8 to 40 validation faces: from alpha_bar 0.93, three steps; the paper's loss, whose pull
    # ends with the flip, and a smaller lambda_d, since the class gradients are weaker here; steps long enough to recolour
    # a mouth; 15 pixels of 128 are 7 of 64. An age is spread over the face: from alpha_bar 0.60, with a lower threshold.
    # Without noise augmentation the gradients are longer, and speckle passes more easily: from 0.89.
    "fast": _ACE_FAST,
    "fast/age": _ACE_FAST | {"steps": 10, "step_size": 4.0, "lambda_d": 0.0001, "threshold": 0.15},
    "fast/brittle": _ACE_FAST | {"steps": 20, "lambda_d": 0.001, "threshold": 0.3},
}

# DVCE, Sect. 3.1 to 3.3: T = 200 from the half, C_c = 0.1, C_d = 0.15, alpha = 30, l1, for all images and classifiers;
# these are the defaults of the class. Its App. B.6 averages the gradients over views, here 16.
_DVCE: dict[str, Any] = {"steps": 200, "start": 100, "C_c": 0.1, "C_d": 0.15, "angle": 30.0, "distance": "l1"}
DVCE: Settings = {
    "paper/imagenet": _DVCE,
    "paper/imagenet/views": _DVCE | {"augment": Augment(16)},
    # The released code scales by ||eps|| instead of ||mu||, goes along the classifier's own gradient where the robust
    # one lies in the cone, and returns the last unguided estimate.
    "released/imagenet": _DVCE | {"scale": "eps", "inside": "v", "output": "x0_hat"},
    # Its published commands also leave the denoiser out of the distance's gradient.
    "released/imagenet/undenoised": _DVCE
    | {"scale": "eps", "inside": "v", "output": "x0_hat", "distance_grad": "x0_hat"},
    # One step in four, the paper's cone, both weights larger: with 0.1 and 0.15 about half of the faces flip and one
    # photograph in four. The personas, chosen on validation faces for smile and age, clean and brittle network alike:
    # from the half (alpha_bar about 0.09), a distance as heavy as the class, which keeps what need not change.
    "fast": {"steps": 50, "start": 25, "C_c": 0.3, "C_d": 0.3},
    # An age is spread over the face: from alpha_bar about 0.013 and pushed and held harder, one of eight settings on 32
    # validation faces that "fast" was not chosen on (94 % flipped and confirmed; "fast" there: 78 and 72 %).
    "fast/age": {"steps": 50, "start": 33, "C_c": 0.5, "C_d": 0.5},
    # Photographs of 32x32 pixels, chosen on training photographs: from alpha_bar about 0.03, where the other network
    # confirms nearly all flips; from the half, with the same weights, it confirms fewer.
    "fast/fashion": {"steps": 50, "start": 30, "C_c": 0.3, "C_d": 0.2},
}

# DVCE, Sect. 4.1: the smallest radius with confidence above 0.9; 75 iterations and momentum 0.9 are the released ones.
SVCE: Settings = {
    "paper/imagenet": {"radii": (50.0, 75.0, 100.0, 150.0), "p": 1.5, "iterations": 75, "momentum": 0.9},
    "released/imagenet": {"radii": 150.0, "p": 1.5, "iterations": 75, "momentum": 0.9, "random_start": True},
    # The paper's radii for as large a change of a pixel: times (d / (3 * 224**2))**(2/3) for d values in an image.
    "fast": {"radii": (9.4, 14.1, 18.8, 28.2), "iterations": 40},
    # Chosen on training photographs: as large a change as the paper's flips one photograph in three, three times that all.
    "fast/fashion": {"radii": (5.0, 7.5, 10.0, 15.0), "iterations": 40},
}

# DVCE, Sect. 4.1 and Fig. 2: six pairs (C_c, C_d), l2 ten times C_d; the values of all but the released one are ours.
_BLENDED_FAST: dict[str, Any] = {
    "steps": 50,
    "start": 25,
    "weights": ((5.0, 5.0), (5.0, 50.0), (20.0, 5.0), (20.0, 50.0), (60.0, 5.0), (60.0, 50.0)),
    "lambda_range": 3.0,
}
BLENDED: Settings = {
    "paper/imagenet": {"steps": 100, "start": 75},
    "released/imagenet": {"steps": 100, "start": 75, "weights": ((25.0, 1000.0),)},
    # The means over pixels weigh less where there are fewer of them. Larger weights flip no more validation faces.
    "fast": _BLENDED_FAST,
    # The same for photographs, from where DVCE starts; of three sets of weights the one with the fewest white specks.
    "fast/fashion": _BLENDED_FAST | {"start": 30, "lambda_range": 0.5},
}
