"""The claims of TIME (thesis, Chapter 5): what is exact, and what it costs.

`time_main` has those against other methods, `time_settings` those on its settings, `time_exact` what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from cfx_lib.bench import time_ablations, time_study
from cfx_lib.bench.claims import Claim, Evidence, Finding, Row, exact, larger, needs_gpu, smaller
from cfx_lib.bench.ledger import time_exact, time_main, time_settings

FEW, FEWER = 8, 6
"""Faces of the tables that are made in fast mode; of the one with ACE, which is slow."""

# ------------------------------------------------------------------------------------------------------ what is exact


def inverted(evidence: Evidence) -> Finding:
    evidence.computed()
    return exact("largest error of the latents after 14 of 20 steps, w = 3", time_exact.round_trip(), 1e-6, 2)


def drifts(evidence: Evidence) -> Finding:
    evidence.computed()
    return exact(
        "largest difference of the two formulas, on random numbers", time_exact.drifts_apart(), 1e-12
    )


def labels_only(evidence: Evidence) -> Finding:
    evidence.computed()
    difference, read = time_exact.recited()
    what = "largest difference of the pixels, plus one for each look inside"
    return exact(what, difference + len(read), 0.0, 2)


def others_fail(evidence: Evidence) -> Finding:
    evidence.computed()
    working = time_exact.explain_labels()
    return exact("how many of DiME and ACE explain a box that gives labels only", len(working), 0.0, 1)


def no_gradient(evidence: Evidence) -> Finding:
    evidence.computed()
    return exact("tensors kept for a gradient during an explanation", time_exact.kept_for_gradients(), 0.0, 2)


def few_numbers(evidence: Evidence) -> Finding:
    evidence.computed()
    ours, theirs = time_exact.learned_numbers()
    return smaller("learned numbers: TIME's vectors, against the weights of DiME's and ACE's model", ours, theirs)  # fmt: skip


def words_tell(evidence: Evidence) -> Finding:
    evidence.computed()
    one, zero = time_exact.called_smiling()
    return larger("drawings that the black box calls 1: of its word 1, of its word 0", one, zero)


def one_answer(evidence: Evidence) -> Finding:
    evidence.computed()
    dime = evidence.value("dime_diversity", "diversity", label="full, stochastic")
    return smaller("difference of explanations with other seeds: TIME, DiME", time_exact.diversity(), dime)


EXACT = (
    Claim(
        "time.inversion-exact",
        "Sect. 5.3.3, Eq. 5.7 and 5.8",
        "EDICT's inversion with a phrase, and its denoising with the same phrase, give the latents of the image back.",
        inverted,
    ),
    Claim(
        "time.drifts",
        "Sect. 5.3.3, Eq. 5.9 to 5.11",
        "Classifier-free guidance plus a negative drift away from the source is guidance between the two classes: the "
        "empty text falls out.",
        drifts,
    ),
    Claim(
        "time.black-box",
        "Table 5.1; Sect. 5.1",
        "TIME sees nothing of the classifier but labels: with a list of the same answers in place of the network its "
        "counterfactuals are the same.",
        labels_only,
    ),
    Claim(
        "time.others-need-more",
        "Table 5.1",
        "DiME and ACE need more than labels: neither explains a classifier that gives no gradient.",
        others_fail,
    ),
    Claim(
        "time.no-gradient",
        "Table 5.1; Sect. 5.2.2",
        "TIME explains without optimising anything: no gradient is computed.",
        no_gradient,
    ),
    Claim(
        "time.few-numbers",
        "Table 5.1; Sect. 5.1",
        "With a text-to-image model at hand TIME learns some vectors for a classifier, fewer numbers than the diffusion model "
        "that DiME and ACE need to be trained on the data set.",
        few_numbers,
    ),
    Claim(
        "time.words-tell",
        "Sect. 5.3.2 (drawings as the test: ours)",
        "The learned words carry what the classifier knows: it calls drawings of its word for class 1 by that class more "
        "often than drawings of its word for class 0.",
        words_tell,
    ),
    Claim(
        "time.one-answer",
        "Chapter 5, Epilogue",
        "TIME's explanations of a face are less diverse than DiME's.",
        one_answer,
    ),
)

# ------------------------------------------------------------------------------------------------------------- cost


def cost(what: str, column: str, less: tuple[str, str], more: tuple[str, str]) -> Callable:
    """The check that a method with its settings takes less than another."""

    def check(e: Evidence) -> Finding:
        a, b = (e.value("time_cost", column, method=m, settings=kind) for m, kind in (less, more))
        return smaller(f"{what}: {less[0]}, {more[0]}", a, b)

    return check


WORST = {
    "TIME": ("TIME", "here, every attempt"),
    "ACE": ("ACE", "here"),
    "DiME": ("DiME", "here, full inner chain"),
}
COST = (
    Claim(
        "time.operations-ace",
        "Sect. 5.4.1",
        "TIME takes fewer operations an explanation than ACE, even in its worst case (here every attempt; the thesis takes tau = 35).",
        cost("10^9 operations", "gflops", WORST["TIME"], WORST["ACE"]),
    ),
    Claim(
        "time.operations-dime",
        "Sect. 5.4.1",
        "ACE takes fewer operations an explanation than DiME with its full inner chain.",
        cost("10^9 operations", "gflops", WORST["ACE"], WORST["DiME"]),
    ),
    Claim(
        "time.seconds-ace",
        "Sect. 5.4.1",
        "TIME takes less time an explanation than ACE, even in its worst case (here every attempt; the thesis takes tau = 35; one run, "
        "no interval).",
        cost("seconds", "seconds", WORST["TIME"], WORST["ACE"]),
    ),
    Claim(
        "time.seconds-dime",
        "Sect. 5.4.1",
        "ACE takes less time an explanation than DiME with its full inner chain (one run, no interval).",
        cost("seconds", "seconds", WORST["ACE"], WORST["DiME"]),
    ),
    Claim(
        "time.teraflops",
        "Sect. 5.4.1",
        "With Stable Diffusion and 35 steps TIME takes 98 TFLOPs and 45 seconds, ACE 279 and 62, DiME 1004 and 163.",
        lambda e: needs_gpu("operations and seconds with the published networks"),
        "The published networks and the authors' cluster are not here. Of small networks the order is tested: time.operations-ace and those after it.",
    ),
    Claim(
        "time.street-scenes",
        "Table 5.7; Sect. 5.4.3",
        "On street scenes (BDD100k) TIME changes most parts of the image, as S³ shows.",
        lambda e: needs_gpu("counterfactuals of BDD100k"),
        "Street scenes and a text-to-image model that can draw them are not here.",
    ),
)

CLAIMS: tuple[Claim, ...] = (*EXACT, *time_main.CLAIMS, *time_settings.CLAIMS, *COST)
LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "time_inversion": lambda: time_study.inversion(2, (20,)),
    "time_main": lambda: islice(time_study.main_table(FEWER), 4),  # the methods on the fair classifier
    "time_steps": lambda: time_settings.corners(FEW),
    "time_guidance": lambda: time_ablations.guidance(FEW),
}
