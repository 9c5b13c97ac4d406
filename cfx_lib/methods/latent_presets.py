"""The presets of the methods on latents, LDCE and TIME: the papers' numbers, those of released code, and `fast`."""

from __future__ import annotations

from typing import Any

from .presets import Settings

__all__ = ["LDCE", "LDCE_PROMPTS", "TIME", "TIME_TOKENS"]

# LDCE, Appendix E: CLIP-style prompts, {} the name of the class (for CelebA-HQ: non-smiling, smiling, old, young).
LDCE_PROMPTS: dict[str, str] = {
    "imagenet": "a photo of a {}.",
    "celebahq": "a photo of a {} person.",
    "flowers": "a photo of a {}, a type of flower.",
    "pets": "a photo of a {}, a type of pet.",
}

# LDCE, Sect. 4 and Table 5: 500 steps (a respacing factor of 2), eta = 2, l1, places of 1x1, zeros; "cls" is the column
# of the class-conditional model, "classifier-free" the starred rows of Table 6. With Algorithm 1's ||eps_c|| these weights
# make the guidance several times as long as the noise itself; they look like weights for the norm of the released code.
_LDCE: dict[str, Any] = {"steps": 500, "eta": 2.0, "distance": "l1", "patch": 1, "overwrite": "zeros"}
_LDCE_TXT = _LDCE | {"start": 191, "gamma": 50.0, "lambda_c": 3.95, "lambda_d": 1.2}
_LDCE_HQ = _LDCE | {"start": 200, "gamma": 55.0, "lambda_c": 4.0, "lambda_d": 3.3}
# The released code scales by ||eps_c - eps_uc||, noises x one index beyond the first step that is denoised, and cuts the
# estimate to the range of images for the distance; its configurations use eta = 3 and other weights.
_LDCE_RELEASED = _LDCE | {"eta": 3.0, "norm": "released", "noise_offset": 1, "clip": True}
_LDCE_FAST = _LDCE | {"steps": 25, "start": 20, "gamma": 60.0, "lambda_c": 14.0, "lambda_d": 6.0}
_LDCE_FAST |= {"norm": "released", "clip": True}
LDCE: Settings = {
    "paper/imagenet": _LDCE_TXT,
    "paper/imagenet/cls": _LDCE | {"start": 191, "gamma": 45.0, "lambda_c": 2.3, "lambda_d": 0.3},
    "paper/celebahq": _LDCE_HQ,
    "paper/celebahq/classifier-free": _LDCE_HQ | {"overwrite": "classifier-free"},
    "paper/flowers": _LDCE | {"start": 250, "gamma": 45.0, "lambda_c": 3.4, "lambda_d": 1.2},
    "paper/pets": _LDCE | {"start": 191, "gamma": 45.0, "lambda_c": 4.2, "lambda_d": 2.4},
    "released/imagenet": _LDCE_RELEASED | {"start": 191, "gamma": 45.0, "lambda_c": 3.4, "lambda_d": 1.2},
    "released/imagenet/cls": _LDCE_RELEASED
    | {"start": 171, "gamma": 40.0, "lambda_c": 2.0, "lambda_d": 0.25},
    # One step in forty, with the norm of the released code, chosen on 24 validation faces of the personas for the shipped
    # text-to-image model: from alpha_bar about 0.03, since from more than 0.1 half of the mouths stay as they are, whatever
    # the weights.
    "fast": _LDCE_FAST,
    # An age is spread over the face: most of the gradient passes, and it is held harder than "fast" in its proportion.
    "fast/age": _LDCE_FAST | {"gamma": 75.0, "lambda_c": 12.0},
    # A classifier that takes a hat for youth: from alpha_bar about 0.01, where the hat can still come off.
    "fast/old-weak": _LDCE_FAST | {"start": 22, "lambda_c": 16.0},
    # The shipped class-conditional model, whose two predictions drift apart towards the end: with the paper's norm, whose
    # length stays, and eta down to a twentieth, its faces are the cleaner ones.
    "fast/cls": _LDCE_FAST | {"start": 22, "norm": "paper", "eta": 0.1, "lambda_c": 5.0, "lambda_d": 3.0},
}

# TIME (thesis, Sect. 5.4): 50 steps of EDICT with p = 0.93, (tau, w) of the next attempt where the one before failed.
_TIME: dict[str, Any] = {"steps": 50, "p": 0.93, "leapfrog": False, "guidance": "negative", "exact": True}
_SMILE = _TIME | {"attempts": ((25, 3.0), (30, 4.0), (35, 4.0), (35, 6.0))}
_AGE = _TIME | {"attempts": ((30, 4.0), (30, 6.0), (35, 4.0), (35, 6.0))}
TIME: Settings = {
    "paper/celebahq/smile": _SMILE,
    "paper/celebahq/age": _AGE,
    # The released code ran with a library whose inverse sampler is one level off, so that its inversion is not exact.
    "released/celebahq/smile": _SMILE | {"exact": False},
    "released/celebahq/age": _AGE | {"exact": False},
    # The same shares of the chain in 20 steps; on avatars/sd the thesis's w of 3 to 6 overdo it.
    "fast": _TIME | {"steps": 20, "attempts": ((10, 1.0), (12, 1.0), (12, 2.0), (14, 4.0))},
}

# TIME's tokens (thesis, Sect. 5.4): 3 vectors a word, 800 iterations; the released training has other defaults.
_TOKENS: dict[str, Any] = {
    "vectors": 3,
    "iterations": 800,
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "batch": 64,
}
TIME_TOKENS: Settings = {
    "paper/celebahq": _TOKENS,
    "released/celebahq": _TOKENS | {"iterations": 3000, "learning_rate": 1e-4},
    "fast": _TOKENS | {"iterations": 150, "batch": 16},
}
