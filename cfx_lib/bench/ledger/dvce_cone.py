"""What DVCE claims of its cone, and LDCE of the robust network behind it.

Two networks of clothes are explained in most tables; a claim about both holds where it holds for each. The robust network
of the same classes stands for the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cfx_lib.bench.claims import Claim, Evidence, Finding, all_of, larger, smaller, within
from cfx_lib.bench.dvce_study import EXPLAINED

RESNET, CONVNEXT = EXPLAINED
FEW = "Few images, so the interval is wide."
ONE_TRAINING = "There is one training of each network, and a small world."


def _both(check: Callable[[Evidence, str], Finding]) -> Callable[[Evidence], Finding]:
    """The check for each explained network; both must hold."""
    return lambda evidence: all_of(*(check(evidence, name) for name in EXPLAINED))


def _guided(evidence: Evidence, column: str, name: str, guide: str) -> Any:
    return evidence.value("dvce_robust", column, classifier=name, **{"guided by": guide})


# ------------------------------------------------------------------------------------------------ the cone


def _unconfirmed(name: str) -> Callable[[Evidence], Finding]:
    what = f"share that convinces the other network: without the cone less with it, {name}"
    return lambda evidence: smaller(
        what, _guided(evidence, "other_against_cone", name, "classifier alone"), 0.0
    )


def _less_change(evidence: Evidence, name: str) -> Finding:
    gap = _guided(evidence, "l2_against_cone", name, "classifier alone")
    return smaller(f"change (l2): without the cone less with it, {name}", gap, 0.0)


def _hardly_any(evidence: Evidence, name: str) -> Finding:
    share = _guided(evidence, "share_of_cone", name, "classifier alone")
    return smaller(
        f"what guidance does without the cone, as a share of what it does with it, {name}", share, 0.25
    )


def _confirmed(attribute: str) -> Callable[[Evidence], Finding]:
    def check(evidence: Evidence) -> Finding:
        about = {"classifier": "brittle", "attribute": attribute}
        rows = [about | {"method": method} for method in ("DVCE", "DVCE, no cone")]
        rates = evidence.values("dvce_personas", "semantic_flip_rate", *rows)
        return larger(
            f"share of faces whose flip the oracle confirms, {attribute}: with the cone, against without",
            *rates,
        )

    return check


def _flips(evidence: Evidence, name: str) -> Finding:
    rate = evidence.value("dvce_main", "flip_rate", classifier=name, method="DVCE")
    return larger(f"flip rate of DVCE, {name}", rate, 0.9)


CONE: tuple[Claim, ...] = (
    Claim(
        "dvce.no-cone-changes-less",
        "Sect. 3.2, Fig. 3",
        "Guided by an ordinary network alone, the image changes less than with a robust network's gradient projected onto the "
        "cone around the ordinary one's.",
        _both(_less_change),
        ONE_TRAINING,
    ),
    Claim(
        "dvce.no-cone-hardly-any-change",
        "Sect. 3.2, Fig. 3",
        "Guidance by an ordinary network alone generates hardly any change (here: less than a quarter of what guidance does "
        "with the cone).",
        _both(_hardly_any),
        "Guidance has the same length with and without the cone, and the denoiser was trained on a narrow world, which may "
        "turn nearly any push into a change of the garment. The paper shows pictures and no measure; the quarter is ours.",
    ),
    Claim(
        "dvce.no-cone-unconfirmed-resnet",
        "Sect. 3.2, Fig. 3",
        "Without the cone the images are like adversarial examples (here: fewer of those made for the ResNet convince a "
        "second network than with the cone).",
        _unconfirmed(RESNET),
        FEW,
    ),
    Claim(
        "dvce.no-cone-unconfirmed-convnext",
        "Sect. 3.2, Fig. 3",
        "Without the cone the images are like adversarial examples (here: fewer of those made for the ConvNeXt convince a "
        "second network than with the cone).",
        _unconfirmed(CONVNEXT),
        "Without the cone nearly all of these images convince the second network, too, which leaves little to gain.",
    ),
    Claim(
        "dvce.cone-confirmed-smile",
        "Sect. 3.2",
        "The cone makes the changes semantically meaningful (here: an oracle confirms flips of a brittle network of smiles on "
        "more faces with the cone than without it).",
        _confirmed("smile"),
        "Nearly all faces flip without the cone already, and the oracle confirms these flips, which leaves little to gain.",
    ),
    Claim(
        "dvce.cone-confirmed-age",
        "Sect. 3.2",
        "The cone makes the changes semantically meaningful (here: an oracle confirms flips of a brittle network of ages on "
        "more faces with the cone than without it).",
        _confirmed("old"),
        ONE_TRAINING,
    ),
    Claim(
        "dvce.flips",
        "LDCE, Table 1",
        "DVCE with the cone flips nearly all images of an ordinary network (99.56 % in the paper; here: more than 90 % for each "
        "of two networks).",
        _both(_flips),
        ONE_TRAINING,
    ),
)


# ------------------------------------------------------------------------------------------ LDCE's criticism


def _beyond_60(evidence: Evidence, name: str) -> Finding:
    share = evidence.value("dvce_angles", "beyond_60", classifier=name, part="all")
    return within(f"share of gradient pairs more than 60° apart, {name}", share, 0.9773, 0.05)


def _right_angle(evidence: Evidence, name: str) -> Finding:
    angle = evidence.value("dvce_angles", "mean_angle", classifier=name, part="all")
    return within(f"mean angle of the gradient pairs, {name}", angle, 90.0, 2.0)


def _robust_decides(evidence: Evidence, name: str) -> Finding:
    gap = _guided(evidence, "robust_over_classifier", name, "cone")
    return larger(
        f"cosine to the robust network's guidance less that to the explained one's, {name}", gap, 0.0
    )


def _faster_than_ace(evidence: Evidence) -> Finding:
    seconds = evidence.values("dvce_cost", "seconds", {"method": "DVCE"}, {"method": "ACE"})
    return smaller("seconds an explanation (n: timed batches): DVCE, against ACE", *seconds)


FAR_APART = (
    "The images have far fewer values than the paper's. The angles are smaller at the noisy steps than at the later ones; both "
    "gradients pass through the same denoiser. On faces, which have more values, the angles are wider."
)
CRITICISM: tuple[Claim, ...] = (
    Claim(
        "dvce.angles-beyond-60",
        "LDCE, App. A (Fig. 6)",
        "The gradients of the explained and of the robust network lie more than 60° apart in about 97.73 % of all pairs "
        "(here: within 5 points of that).",
        _both(_beyond_60),
        FAR_APART,
    ),
    Claim(
        "dvce.angles-orthogonal",
        "LDCE, App. A",
        "The gradients of the explained and of the robust network are nearly orthogonal, as random directions are (here: on "
        "average within 2° of 90°).",
        _both(_right_angle),
        FAR_APART,
    ),
    Claim(
        "dvce.robust-decides",
        "LDCE, App. A (Fig. 7)",
        "The robust network shapes the counterfactual, and the explained one has a limited effect (here: what guidance does "
        "with the cone is more like what the robust network does alone than like what the explained one does alone).",
        _both(_robust_decides),
        "Few photographs were explained. At most steps the two gradients lie more than 60° apart, so that their projection is "
        "nearer to the explained network's gradient than to the robust one's.",
    ),
    Claim(
        "dvce.faster-than-ace",
        "LDCE, Sect. 4.2",
        "DVCE, with one guided chain for an image, explains it in less time than ACE.",
        _faster_than_ace,
        "Seconds of small networks on one machine.",
    ),
)
