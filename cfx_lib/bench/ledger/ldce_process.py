"""What LDCE claims of the steps on the way, of seeds and speed, of errors that are explained, and of S3 and the flip rate."""

from __future__ import annotations

from collections.abc import Callable

from cfx_lib.bench.claims import Claim, Evidence, Finding, Row, larger, needs_gpu, smaller, within
from cfx_lib.metrics import Value

FEW = "Few faces, so the interval is wide."


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
        rows = [{"method": method, "batch": 4} for method in ("LDCE-txt", rival)]
        seconds = evidence.values("ldce_cost", "seconds", *rows)
        return smaller(f"seconds an explanation (n: timed batches): LDCE-txt, against {rival}", *seconds)

    return check


def _dime_slower(evidence: Evidence) -> Finding:
    seconds = evidence.values("dvce_cost", "seconds", {"method": "DiME, full"}, {"method": "ACE"})
    return larger(
        "seconds an explanation (n: timed batches): DiME with the whole inner chain, against ACE", *seconds
    )


OURS = "Seconds of small networks on one machine."
PROCESS: tuple[Claim, ...] = (
    Claim(
        "ldce.coarse-first",
        "App. F",
        "Counterfactuals evolve from coarse to fine (here: slow waves are a larger share of what an early step changes than of "
        "what a late one does).",
        _coarse_first,
        "Single steps of few faces are compared, and the share differs much from face to face.",
    ),
    Claim(
        "ldce.slow-waves-settle-first",
        "App. F",
        "Counterfactuals evolve from coarse to fine (here: half-way, the slow waves have less of their change left than the "
        "fast ones).",
        _low_settled,
        "Few faces, which differ much. What is left is measured relative to how much the waves change in all.",
    ),
    Claim(
        "ldce.seeds-differ",
        "App. G",
        "Different noise at the abduction gives different counterfactuals of an image: those of five seeds are not the same.",
        _diverse,
        FEW,
    ),
    Claim(
        "ldce.faster-than-dvce",
        "Sect. 4.2",
        "LDCE-txt, in a latent space, explains an image in less time than DVCE, in pixels.",
        _faster("DVCE"),
        OURS,
    ),
    Claim(
        "ldce.faster-than-ace",
        "Sect. 4.2",
        "LDCE-txt, in a latent space, explains an image in less time than ACE, in pixels.",
        _faster("ACE"),
        OURS,
    ),
    Claim(
        "ldce.dime-slower-than-ace",
        "Sect. 4.2",
        "DiME is even slower than ACE (here: with its whole inner chain at every step).",
        _dime_slower,
        OURS,
    ),
    Claim(
        "ldce.throughput",
        "Sect. 4.2",
        "On an RTX 3090 the throughput of LDCE-txt is 34 % higher than that of DVCE and 371 % higher than that of ACE.",
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
    return larger(
        "share with gray hair among those that flip, less the same without the classifier's guidance",
        beyond,
        0.0,
    )


def _s3(evidence: Evidence) -> Value:
    return evidence.value("metrics_ranks", "spearman", part="s3 and fr", source="here, all faces")


def _s3_negative(evidence: Evidence) -> Finding:
    return smaller("rank correlation of S³ and the flip rate over methods (n: faces)", _s3(evidence), 0.0)


def _s3_strong(evidence: Evidence) -> Finding:
    return within(
        "rank correlation of S³ and the flip rate over methods (n: faces)", _s3(evidence), -0.83, 0.2
    )


USE: tuple[Claim, ...] = (
    Claim(
        "ldce.errors-explained",
        "Sect. 4.3, Fig. 5",
        "Explained towards their true class, misclassified images show what the classifier missed (here: old faces that a weak "
        "classifier takes for young get gray hair, more often than without the classifier's guidance).",
        _missing,
        FEW,
    ),
    Claim(
        "ldce.errors-mended",
        "Sect. 4.3, App. J",
        "Fine-tuning the last layer with 25 images of an error type, beside the training images, lowers the error rate on 25 "
        "other images of that type.",
        _mended,
        "The setting of the appendix gives a last layer of ours far fewer steps than on ImageNet, since the training set is "
        "small, and 25 images are few. Where the new images count several times it does work.",
    ),
    Claim(
        "ldce.s3-falls-with-flips",
        "Sect. 4",
        "S³ and the flip rate are correlated negatively over methods: those that stay similar to their inputs flip fewer.",
        _s3_negative,
        FEW,
    ),
    Claim(
        "ldce.s3-strength",
        "Sect. 4",
        "S³ correlates strongly with the flip rate over methods: a Spearman rank correlation of -0.83 (here: within 0.2 of it).",
        _s3_strong,
        "The paper's figure is that of twelve rows of its Table 2. Most methods flip nearly all images here, which leaves "
        "little to rank, and there are other methods among ours.",
    ),
)
