"""The claims of LDCE. Formulas are checked in `ldce_exact`, its Tables 1, 2 and 6 in `ldce_tables`, the rest here.

What LDCE claims about DVCE's cone stands in the ledger of DVCE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cfx_lib.bench import ldce_study
from cfx_lib.bench.claims import Claim, Evidence, Finding, Row, larger, needs_gpu, smaller, within
from cfx_lib.bench.dime_study import classifier_of, explain, faces
from cfx_lib.bench.ldce_faces import variants_of
from cfx_lib.bench.ledger.ldce_exact import EXACT
from cfx_lib.bench.ledger.ldce_tables import NONE, TABLE_1, TABLE_2, TABLE_6
from cfx_lib.metrics import Value

FEW = "Few faces, so the interval is wide."
N = 8
"""Faces of the tables that are made in fast mode."""


# ---------------------------------------------------------------------------------- the latent, the consensus


def _direct(classifier: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        about = {"classifier": classifier, "method": "descent"}
        rate = evidence.value("ldce_direct", "semantic_flip_rate", **about)
        return smaller(f"flips of the gradient alone that the oracle confirms, {classifier}", rate, 0.5)

    return check


def _diffusion(classifier: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        rates = [
            evidence.value("ldce_direct", "semantic_flip_rate", classifier=classifier, method=method)
            for method in ("LDCE-txt", "descent")
        ]
        return larger(f"confirmed flips: LDCE-txt, against the gradient alone, {classifier}", *rates)

    return check


def _meaning(classifier: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        about = {"classifier": classifier, "attribute": "smile", "method": NONE}
        gap = evidence.value("ldce_main", "semantic_flip_rate_against_txt", **about)
        return smaller(f"confirmed flips: without the consensus less with it, {classifier}", gap, 0.0)

    return check


def _above_chance(evidence: Evidence) -> Finding:
    about = {"kind": "txt", "pairs": "own", "part": "all"}
    shares = [evidence.value("ldce_consensus", column, **about) for column in ("passed", "random")]
    return larger("share of places that pass, against random directions", *shares)


def _strict(evidence: Evidence) -> Finding:
    gap = evidence.value("ldce_gamma", "flip_rate_against_first", gamma=30)
    return smaller("flip rate: with γ = 30° less without the consensus", gap, 0.0)


def _strict_closer(evidence: Evidence) -> Finding:
    sizes = [evidence.value("ldce_gamma", "l1", gamma=gamma) for gamma in (30, 180)]
    return smaller("change (l1) of the flipped: with γ = 30°, against without the consensus", *sizes)


CONSENSUS: tuple[Claim, ...] = (
    Claim(
        "ldce.gradient-alone-adversarial",
        "Sect. 3.1",
        "The classifier's gradient alone, straight in the latent space, makes adversarial changes: an oracle confirms fewer "
        "than half of its flips of a classifier that was trained with noise.",
        _direct("smile-old"),
        FEW,
    ),
    Claim(
        "ldce.gradient-alone-adversarial-brittle",
        "Sect. 3.1",
        "The classifier's gradient alone, straight in the latent space, makes adversarial changes: an oracle confirms fewer "
        "than half of its flips of a brittle classifier.",
        _direct("brittle"),
        FEW,
    ),
    Claim(
        "ldce.diffusion-means-more",
        "Sect. 3.1",
        "A diffusion model on the latents makes the changes mean more than the gradient alone: the oracle confirms more flips, "
        "on a classifier that was trained with noise.",
        _diffusion("smile-old"),
        FEW,
    ),
    Claim(
        "ldce.diffusion-means-more-brittle",
        "Sect. 3.1",
        "A diffusion model on the latents makes the changes mean more than the gradient alone: the oracle confirms more flips, "
        "on a brittle classifier.",
        _diffusion("brittle"),
        FEW,
    ),
    Claim(
        "ldce.consensus-means-more",
        "Sect. 3.2",
        "The consensus makes changes semantically meaningful: an oracle confirms more flips with it than without it, on a "
        "classifier that was trained with noise.",
        _meaning("smile-old"),
        "Every flip of this classifier is confirmed with and without the consensus: its gradients are meaningful already, and "
        "there is nothing to filter.",
    ),
    Claim(
        "ldce.consensus-means-more-brittle",
        "Sect. 3.2",
        "The consensus makes changes semantically meaningful: an oracle confirms more flips with it than without it, on a "
        "brittle classifier.",
        _meaning("brittle"),
        FEW,
    ),
    Claim(
        "ldce.consensus-above-chance",
        "Sect. 3.2",
        "The gradient of the classifier and the implicit classifier's estimate the same thing: more places of the latent agree "
        "than with random directions.",
        _above_chance,
        "Once the classifier is convinced its gradient is tiny and points anywhere. The paper has no such null.",
    ),
    Claim(
        "ldce.strict-costs-flips",
        "Sect. 4 (implementation details)",
        "The threshold γ trades the desiderata: a strict consensus, 30°, flips fewer images than none.",
        _strict,
        "Nearly all images flip at any threshold here, and the faces are few.",
    ),
    Claim(
        "ldce.strict-closer",
        "Sect. 4 (implementation details)",
        "The threshold γ trades the desiderata: a strict consensus, 30°, changes the image less than none, in the l1 norm.",
        _strict_closer,
        FEW,
    ),
)


# ----------------------------------------------------------------------------------- coarse to fine, seeds, cost


def _step(evidence: Evidence, share: float) -> Row:
    rows = evidence.rows("ldce_frequency")
    return rows[round(share * (len(rows) - 1))]


def _coarse_first(evidence: Evidence) -> Finding:
    early, late = (_step(evidence, share)["change_low"] for share in (1 / 6, 5 / 6))
    return larger("share of slow waves in the change of a step: early, against late", early, late)


def _low_settled(evidence: Evidence) -> Finding:
    rows = evidence.rows("ldce_frequency")
    middle = rows[len(rows) // 2]
    return smaller(
        "way left at the middle step: slow waves, against fast ones", middle["left_low"], middle["left_high"]
    )


def _diverse(evidence: Evidence) -> Finding:
    apart = evidence.value("ldce_seeds", "diversity", method="LDCE-txt")
    return larger("LPIPS distance between the counterfactuals of five seeds", apart, 0.0)


def _faster(rival: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        seconds = [
            evidence.value("ldce_cost", "seconds", method=method, batch=4) for method in ("LDCE-txt", rival)
        ]
        return smaller(f"seconds an explanation: LDCE-txt, against {rival}", *seconds)

    return check


def _dime_slower(evidence: Evidence) -> Finding:
    seconds = [evidence.value("dvce_cost", "seconds", method=method) for method in ("DiME, full", "ACE")]
    return larger("seconds an explanation: DiME with the whole inner chain, against ACE", *seconds)


OURS = "Seconds of small networks on one machine."
PROCESS: tuple[Claim, ...] = (
    Claim(
        "ldce.coarse-first",
        "App. F",
        "Counterfactuals evolve from coarse to fine: the early steps change slow waves more, as a share of what they change, "
        "than the late steps.",
        _coarse_first,
        "Single steps of few faces are compared. The drawings are flat areas with sharp edges, and the last steps still shift "
        "whole areas.",
    ),
    Claim(
        "ldce.slow-waves-settle-first",
        "App. F",
        "Counterfactuals evolve from coarse to fine: half-way, the slow waves are nearer to their end than the fast ones.",
        _low_settled,
        "Relative to how much they change in all, slow and fast waves settle at much the same pace here, with few faces.",
    ),
    Claim(
        "ldce.seeds-differ",
        "App. G",
        "Different noise at the abduction gives different counterfactuals of an image: those of five seeds lie apart.",
        _diverse,
        FEW,
    ),
    Claim(
        "ldce.faster-than-dvce",
        "Sect. 4.2",
        "LDCE-txt explains an image in less time than DVCE.",
        _faster("DVCE"),
        OURS,
    ),
    Claim(
        "ldce.faster-than-ace",
        "Sect. 4.2",
        "LDCE-txt explains an image in less time than ACE.",
        _faster("ACE"),
        OURS,
    ),
    Claim(
        "ldce.dime-slower-than-ace",
        "Sect. 4.2",
        "DiME, with its whole inner chain at every step, takes longer for an image than ACE.",
        _dime_slower,
        OURS,
    ),
    Claim(
        "ldce.throughput",
        "Sect. 4.2",
        "On an RTX 3090 LDCE-txt has a throughput that is 34 % higher than DVCE's and 371 % higher than ACE's.",
        lambda evidence: needs_gpu("seconds on an RTX 3090"),
        "It takes that machine and the published networks; how much faster it is depends on both.",
    ),
)


# ----------------------------------------------------------------------------------- errors, S3 and flip rate


def _mended(evidence: Evidence) -> Finding:
    change = evidence.value("ldce_errors", "change", part="mended", label="App. J")
    return smaller("change of the error rate on the other images of the kind", change, 0.0)


def _missing(evidence: Evidence) -> Finding:
    beyond = evidence.value("ldce_errors", "beyond_null", part="missing", attribute="gray_hair")
    return larger("gray hair after the explanation, less without the classifier's guidance", beyond, 0.0)


def _s3(evidence: Evidence) -> Value:
    return evidence.value("metrics_ranks", "spearman", part="s3 and fr", source="here, all faces")


def _s3_negative(evidence: Evidence) -> Finding:
    return smaller("rank correlation of S³ and the flip rate", _s3(evidence), 0.0)


def _s3_strong(evidence: Evidence) -> Finding:
    return within("rank correlation of S³ and the flip rate", _s3(evidence), -0.83, 0.2)


USE: tuple[Claim, ...] = (
    Claim(
        "ldce.errors-explained",
        "Sect. 4.3, Fig. 5",
        "Explained towards their true class, misclassified images show what the classifier missed: faces that a weak "
        "classifier of age takes for young get gray hair, more often than the model draws it without the classifier.",
        _missing,
        FEW,
    ),
    Claim(
        "ldce.errors-mended",
        "Sect. 4.3, App. J",
        "Fine-tuning the last layer with 25 images of an error type, beside the training images, lowers the error rate on 25 "
        "others.",
        _mended,
        "The setting of the appendix gives a last layer of ours far fewer steps than on ImageNet, since the training set is "
        "small, and 25 images are few. Where the new images count several times it does work.",
    ),
    Claim(
        "ldce.s3-falls-with-flips",
        "Sect. 4",
        "S³ and the flip rate are correlated negatively over methods: explanations that resemble their inputs flip less often.",
        _s3_negative,
        FEW,
    ),
    Claim(
        "ldce.s3-strength",
        "Sect. 4",
        "S³ correlates strongly with the flip rate over methods: a Spearman rank correlation of -0.83 (here within 0.2).",
        _s3_strong,
        "The paper's figure is that of twelve rows of its Table 2. Most methods flip nearly all images here, so that their "
        "order is mostly chance, and there are other methods among ours.",
    ),
)

CLAIMS: tuple[Claim, ...] = (*EXACT, *CONSENSUS, *TABLE_1, *TABLE_2, *TABLE_6, *PROCESS, *USE)


# ------------------------------------------------------------------------------------------------ fast mode


def _few_variants() -> Iterable[Row]:
    """The rows of LDCE's variants on smiles and the classifier that was trained with noise; the rivals are slower."""
    name, attribute = "smile-old", "smile"
    x, _ = faces("test", attribute, N)
    target = 1 - classifier_of(name, attribute).predict(x)
    methods = {k: method for k, method in variants_of(name, attribute).items() if k.startswith("LDCE")}
    return ldce_study.main_rows({k: explain(m, x, target) for k, m in methods.items()}, name, attribute)


LIVE: dict[str, Callable[[], Iterable[Row]]] = {
    "ldce_main": _few_variants,
    "ldce_direct": lambda: ldce_study.direct(N),
}
