"""The claims of DiME: chapter 3 of Jeanneret's thesis. The stored tables are those of notebook 02.

Here: how often DiME flips, what it costs, what its settings do. `dime_measures.py`: is it adversarial, and the measures.
"""

from __future__ import annotations

from collections.abc import Callable

from cfx_lib.bench.claims import Claim, Evidence, Finding, exact, larger, smaller, within
from cfx_lib.bench.ledger import computed, dime_live, dime_measures
from cfx_lib.bench.ledger.dime_live import smile_old
from cfx_lib.bench.ledger.rules import FEW, TENTH, above, alike, higher, lower

NOISE_TRAINED = (
    "The classifier of this table was trained with noise, unlike the thesis's, so it is partly at home at noisy images: the thesis's "
    "reason, in another world. The faces are few."
)
WEAK_DISTANCE = (
    "All intervals overlap: most of what DiME changes here is redrawn because the chain starts in deep noise, and distance terms "
    "of the thesis's weights move that little."
)


def _fewer_than_dime(variant: str) -> Callable[[Evidence], Finding]:
    """Paired, on the same faces."""
    what = f"flip rate, {variant} minus DiME, paired"
    return lambda e: smaller(what, e.value("dime_variants", "flip_rate_against_dime", variant=variant), 0.0)


def _halving_time(e: Evidence) -> Finding:
    slow, fast = (e.value("dime_steps", "seconds", steps=steps) for steps in (200, 100))
    return within("seconds of 200 steps over seconds of 100", slow / fast, 4.0, 1.0)


def _halving_calls(e: Evidence) -> Finding:
    e.computed()
    ratio = computed.dime_calls(200, 60) / computed.dime_calls(100, 30)
    return within("denoiser calls of 200 steps over calls of 100", ratio, 4.0, 0.2)


def _calls(e: Evidence) -> Finding:
    e.computed()
    return within("denoiser calls of one attempt", float(computed.dime_calls(200, 60)), 1800.0, 90.0)


def _gradient(e: Evidence) -> Finding:
    e.computed()
    return exact(
        "largest difference of a state, library against autograd", computed.dime_gradient_error(), 1e-5
    )


def _rise(e: Evidence) -> Finding:
    e.computed()
    return larger(
        "P(wanted), last third of the steps minus first, paired", computed.rise_along_the_chain(), 0.0
    )


FLIPS = (
    Claim(
        "dime.flips-smile",
        "Sect. 3.4.4",
        "DiME flips nearly every face when asked for the other smile: more than 90 % of them (bound ours).",
        above("flip rate, smile", "dime_main", "flip_rate", smile_old("smile"), 0.9),
    ),
    Claim(
        "dime.flips-age",
        "Sect. 3.4.4",
        "DiME flips nearly every face when asked for the other age: more than 90 % of them (bound ours).",
        above("flip rate, age", "dime_main", "flip_rate", smile_old("old"), 0.9),
    ),
    Claim(
        "dime.early-stopping",
        "Table 3.4",
        "DiME stopped at the first clean image that flips flips as many faces as DiME run to its end, within 10 points (margin ours).",
        alike(
            "flip rate, early stopping against DiME",
            *("dime_variants", "flip_rate", {"variant": "early-stopping"}, {"variant": "dime"}, TENTH),
        ),
        FEW,
    ),
    Claim(
        "dime.direct",
        "Table 3.4",
        "Gradients taken at the noisy states (Direct) flip fewer faces than gradients taken at clean images (DiME).",
        _fewer_than_dime("direct"),
        NOISE_TRAINED,
    ),
    Claim(
        "dime.naive",
        "Table 3.4",
        "The gradient of the input image, used at every step (Naive), flips fewer faces than gradients of the clean images on the "
        "way (DiME).",
        _fewer_than_dime("naive"),
    ),
    Claim(
        "dime.unconditional",
        "Table 3.4",
        "Noising and denoising without any gradient (Unconditional) flips fewer faces than DiME.",
        _fewer_than_dime("unconditional"),
    ),
)
SPEED = (
    Claim(
        "dime.fewer-steps",
        "Table 3.5",
        "Fewer steps flip fewer faces, started at the same share of the chain (25 against 200; the pair is ours).",
        lower("flip rate, 25 against 200 steps", "dime_steps", "flip_rate", {"steps": 25}, {"steps": 200}),
        "The direction is the thesis's, but the full chain with many steps takes long, so the faces are few.",
    ),
    Claim(
        "dime.halving-time",
        "Table 3.5",
        "With half of the steps an explanation takes a quarter of the time of all steps (3 to 5 times less; margin ours).",
        _halving_time,
        "Seconds of one machine; a ratio of two times, without an interval.",
    ),
    Claim(
        "dime.halving-calls",
        "Sect. 3.5.3",
        "The reason is the square in the number of steps: half of the steps need a quarter of the denoiser calls of all steps "
        "(within 5 %; margin ours).",
        _halving_calls,
    ),
    Claim(
        "dime.calls",
        "Sect. 3.6",
        "One attempt at the thesis's setting (60 of 200 steps) calls the denoiser about 1800 times (within 5 %; margin ours).",
        _calls,
    ),
    Claim(
        "dime.gradient",
        "Eq. 3.7",
        "Dividing the gradient at the clean image by the root of alpha_bar gives the gradient at the noisy state, if the noise between "
        "the two is held fixed: the states agree with those of automatic differentiation, without a way back through the denoiser.",
        _gradient,
    ),
    Claim(
        "dime.rise",
        "Fig. 3.8",
        "The probability of the wanted class, seen at the clean images, rises along the chain: it is larger late than early.",
        _rise,
    ),
)
SETTINGS = (
    Claim(
        "dime.start-flips",
        "Table 3.6",
        "A start in deeper noise flips more faces than one in less noise (29 of 50 steps against 12; the pair is ours).",
        higher("flip rate, start 29 against 12", "dime_start", "flip_rate", {"start": 29}, {"start": 12}),
    ),
    Claim(
        "dime.start-changes",
        "Table 3.6",
        "A start in deeper noise changes the image more than one in less noise (29 of 50 steps against 12; the pair is ours).",
        higher("l1, start 29 against 12", "dime_start", "l1", {"start": 29}, {"start": 12}),
    ),
    Claim(
        "dime.scale-flips",
        "Table 3.7",
        "The largest weight of the class gradient flips more faces than the smallest.",
        higher(
            "flip rate, lambda_c 75 against 40",
            "dime_lambda",
            "flip_rate",
            {"lambda_c": 75},
            {"lambda_c": 40},
        ),
    ),
    Claim(
        "dime.scale-changes",
        "Table 3.7",
        "The largest weight of the class gradient changes the image more than the smallest.",
        higher("l1, lambda_c 75 against 40", "dime_lambda", "l1", {"lambda_c": 75}, {"lambda_c": 40}),
    ),
    Claim(
        "dime.retries-change",
        "Table 3.7",
        "Retrying with a larger weight only what did not flip changes the images less than the largest weight for all.",
        lower(
            "l1, retries against lambda_c 75", "dime_lambda", "l1", {"lambda_c": "retries"}, {"lambda_c": 75}
        ),
    ),
    Claim(
        "dime.retries-flip",
        "Table 3.7",
        "Retries flip as many faces as the largest weight for all, within 10 points (margin ours).",
        alike(
            "flip rate, retries against lambda_c 75",
            *("dime_lambda", "flip_rate", {"lambda_c": "retries"}, {"lambda_c": 75}, TENTH),
        ),
    ),
    *(
        Claim(
            f"dime.distance-{name}",
            "Table 3.8",
            f"{words} the change smaller than no distance term does.",
            lower(
                f"l1, {losses} against none", "dime_distance", "l1", {"losses": losses}, {"losses": "none"}
            ),
            WEAK_DISTANCE,
        )
        for name, losses, words in (
            ("l1", "l1", "The l1 term makes"),
            ("perceptual", "perceptual", "The perceptual term makes"),
            ("both", "l1+perceptual", "Both distance terms together make"),
        )
    ),
    Claim(
        "dime.distance-flips",
        "Table 3.8",
        "The distance terms cost hardly any flips: with both as many as with none, within 10 points (margin ours).",
        alike(
            "flip rate, both terms against none",
            *("dime_distance", "flip_rate", {"losses": "l1+perceptual"}, {"losses": "none"}, TENTH),
        ),
    ),
)


CLAIMS: tuple[Claim, ...] = FLIPS + SPEED + SETTINGS + dime_measures.CLAIMS
LIVE = dime_live.LIVE
