"""The presets of the methods: the papers' numbers, those of released code where it differs, and `fast`."""

from __future__ import annotations

from typing import Any

from .masks import SelfMask

__all__ = ["DIME", "PGD"]

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
    # is spread over the face and takes more, of the push and of the distances alike. fast/masked keeps the pixels that
    # hardly change, as FastDiME does.
    "fast": _FAST,
    "fast/age": _FAST | {"lambda_c": (120.0, 240.0), "lambda_1": 0.2, "lambda_2": 0.2},
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
