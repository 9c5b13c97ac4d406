"""What LDCE claims of the latent space, of diffusion in it and of the consensus."""

from __future__ import annotations

from collections.abc import Callable

from cfx_lib.bench.claims import Claim, Evidence, Finding, larger, smaller
from cfx_lib.bench.ledger.ldce_tables import NONE

FEW = "Few faces, so the interval is wide."


def _direct(classifier: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        about = {"classifier": classifier, "method": "descent"}
        rate = evidence.value("ldce_direct", "semantic_flip_rate", **about)
        return smaller(
            f"share of faces whose flip by the gradient alone the oracle confirms, {classifier}", rate, 0.5
        )

    return check


def _diffusion(classifier: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        rows = [{"classifier": classifier, "method": method} for method in ("LDCE-txt", "descent")]
        rates = evidence.values("ldce_direct", "semantic_flip_rate", *rows)
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
    sizes = evidence.values("ldce_gamma", "l1", {"gamma": 30}, {"gamma": 180})
    return smaller("change (l1) of the flipped: with γ = 30°, against without the consensus", *sizes)


CONSENSUS: tuple[Claim, ...] = (
    Claim(
        "ldce.gradient-alone-adversarial",
        "Sect. 3.1",
        "The classifier's gradient alone, straight in the latent space, makes adversarial changes only (here: of a classifier "
        "that was trained with noise an oracle confirms flips on fewer than half of the faces).",
        _direct("smile-old"),
        FEW,
    ),
    Claim(
        "ldce.gradient-alone-adversarial-brittle",
        "Sect. 3.1",
        "The classifier's gradient alone, straight in the latent space, makes adversarial changes only (here: of a brittle "
        "classifier an oracle confirms flips on fewer than half of the faces).",
        _direct("brittle"),
        FEW,
    ),
    Claim(
        "ldce.diffusion-means-more",
        "Sect. 3.1",
        "A diffusion model on the latents makes semantically more meaningful changes than the gradient alone (here: an oracle "
        "confirms more flips, on a classifier that was trained with noise).",
        _diffusion("smile-old"),
        FEW,
    ),
    Claim(
        "ldce.diffusion-means-more-brittle",
        "Sect. 3.1",
        "A diffusion model on the latents makes semantically more meaningful changes than the gradient alone (here: an oracle "
        "confirms more flips, on a brittle classifier).",
        _diffusion("brittle"),
        FEW,
    ),
    Claim(
        "ldce.consensus-means-more",
        "Sect. 3.2",
        "The consensus makes changes semantically more meaningful (here: an oracle confirms more flips with it than without "
        "it, on a classifier that was trained with noise).",
        _meaning("smile-old"),
        "Every flip of this classifier is confirmed with and without the consensus, so that there is nothing to gain.",
    ),
    Claim(
        "ldce.consensus-means-more-brittle",
        "Sect. 3.2",
        "The consensus makes changes semantically more meaningful (here: an oracle confirms more flips with it than without "
        "it, on a brittle classifier).",
        _meaning("brittle"),
        FEW,
    ),
    Claim(
        "ldce.consensus-above-chance",
        "Sect. 3.2",
        "The classifier's gradient and the implicit classifier's score estimate the same gradient (here: they agree at more "
        "places of the latent than random directions would).",
        _above_chance,
        "The comparison with random directions is ours.",
    ),
    Claim(
        "ldce.strict-costs-flips",
        "Sect. 4 (implementation details)",
        "The threshold γ controls the trade-off of validity and closeness (here: 30° flips fewer images than no consensus).",
        _strict,
        "Most images flip at any threshold here, and the faces are few.",
    ),
    Claim(
        "ldce.strict-closer",
        "Sect. 4 (implementation details)",
        "The threshold γ controls the trade-off of validity and closeness (here: 30° changes the image less than no consensus, in "
        "the l1 norm).",
        _strict_closer,
        FEW,
    ),
)
