"""The claims of ACE: chapter 4 of Jeanneret's thesis. The stored tables are those of notebook 03.

Here: how often ACE flips, what its stages and settings do, what it costs, whether it can be acted upon.
`ace_measures.py`: the measures of notebook 08, ACE beside DiME and beside its own pre-explanation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cfx_lib import metrics
from cfx_lib.bench.claims import Claim, Evidence, Finding, exact, larger, needs_gpu, smaller, within
from cfx_lib.bench.ledger import ace_live, ace_measures, computed
from cfx_lib.bench.ledger.rules import FEW, TENTH, higher, lower

ATTRIBUTES = {"smile": "smile", "old": "age"}
NO_STEP_SIZES = (
    "The thesis gives no step sizes, and the claim hangs on them: here the first step of GD is as long as one of PGD, and Adam's rate "
    "in C&W is PGD's step. The faces are few."
)
SPARSE_ANYWAY = (
    "For this attribute both distances leave small masks, and the faces are few. Which distance is better "
    "depends on the attribute, the thesis says."
)


def _flips(classifier: str) -> Callable[[Evidence], Finding]:
    """Smile and age counted together, as if measured in one go."""

    def check(e: Evidence) -> Finding:
        pick = {"classifier": classifier, "direction": "both"}
        rates = [e.value("ace_main", "flip_rate", attribute=a, **pick) for a in ATTRIBUTES]
        flips = torch.cat([torch.arange(rate.n) < round(rate.mean * rate.n) for rate in rates])
        return larger("flip rate, smile and age together", metrics.flip_rate(flips), 0.95)

    return check


def _kept(e: Evidence) -> Finding:
    e.computed()
    return larger("faces that keep their class behind the filter", computed.classes_kept(), 0.9)


def _undone(e: Evidence) -> Finding:
    e.computed()
    return smaller("attacks that still work behind the filter", computed.attacks_left(), 0.5)


def _outside(e: Evidence) -> Finding:
    e.computed()
    return exact("largest change outside the mask", computed.ace_leaves_the_rest(), 0.0)


def _as_successful(attack: str) -> Callable[[Evidence], Finding]:
    """With twice the iterations, against PGD with as many as usual."""

    def check(e: Evidence) -> Finding:
        once = min(row["iterations"] for row in e.rows("ace_attacks", attack="pgd"))
        twice = e.value("ace_attacks", "flip_rate", attack=attack, iterations=2 * once)
        pgd = e.value("ace_attacks", "flip_rate", attack="pgd", iterations=once)
        return within(f"flip rate, {attack} with twice the iterations against pgd", twice, pgd, TENTH)

    return check


def _steps(attack: str) -> Callable[[Evidence], Finding]:
    """Until F(x') has the wanted class with the probability `ace_study.REACHED`."""

    def check(e: Evidence) -> Finding:
        times = e.value("ace_attacks", "times_pgd", attack=attack)
        return within(f"attack steps needed, {attack} over pgd", times, 2.0, 0.5)

    return check


def _times_faster(e: Evidence) -> metrics.Value:
    return e.value("ace_cost", "times_faster", settings="thesis", method="ACE")


def _calls(e: Evidence) -> Finding:
    e.computed()
    calls, back = computed.ace_calls()
    return within("denoiser calls, with the ways back through them", float(calls + back), 500.0, 25.0)


def _fewer_calls(e: Evidence) -> Finding:
    e.computed()
    ratio = computed.dime_calls(200, 60) / sum(computed.ace_calls())
    return within("calls of DiME over those of ACE, ways back counted", ratio, 3.6, 0.36)


FLIPS = (
    Claim(
        "ace.flips",
        "Sect. 4.4.1 (the classifier: ours)",
        "ACE flips at least 95 % of the faces of a classifier trained with noise, smile and age together.",
        _flips("smile-old"),
    ),
    Claim(
        "ace.flips-brittle",
        "Sect. 4.4.1",
        "ACE flips at least 95 % of the faces of a classifier trained on clean images only, smile and age together.",
        _flips("brittle"),
        "Two losses add up, as the table of notebook 08 shows for smile: some pre-explanations do not flip this twin, and of those "
        "that do, some lose the flip when the face around the mask is put back. One classifier of drawings.",
    ),
    Claim(
        "ace.filter-keeps",
        "App. A.1",
        "The diffusion filter leaves a clean face in the class that it had: more than 90 % of them (bound ours).",
        _kept,
    ),
    Claim(
        "ace.filter-undoes",
        "Sect. 4.3.1",
        "The diffusion filter removes what an attack that does not know of it added: less than half of the attacks work behind it "
        "(bound ours).",
        _undone,
    ),
    Claim(
        "ace.outside",
        "Sect. 4.3.2",
        "Outside the mask ACE's counterfactual is the input, to the last bit.",
        _outside,
    ),
)


def _stage(stage: str, attribute: str = "smile") -> dict[str, str]:
    return {"attribute": attribute, "stage": stage}


STAGES = (
    *(
        Claim(
            f"ace.all-steps-{name}",
            "Table 4.5",
            f"Filtered with all steps (F-CE) fewer pre-explanations flip than filtered with the respaced ones (FR-CE), {name}.",
            lower(
                "flip rate, F-CE against FR-CE",
                *("ace_stages", "flip_rate", _stage("F-CE", a), _stage("FR-CE", a)),
            ),
            "All of them flip here either way. The filter of this world is short, and its classifier takes the two filtered faces "
            "for the same.",
        )
        for a, name in ATTRIBUTES.items()
    ),
    Claim(
        "ace.refined-l1",
        "Fig. 4.5, shown there (l1 as its measure: ours)",
        "The refined counterfactual changes less of a face than the filtered pre-explanation (FR-CE), smile.",
        lower("l1, ACE against FR-CE", "ace_stages", "l1", _stage("ACE"), _stage("FR-CE")),
    ),
    *(
        Claim(
            f"ace.refined-outside-{name}",
            "Fig. 4.5, shown there (the true region: ours)",
            f"The refinement takes back what the filter changed without need, as hair and background: a smaller share of the change lies "
            f"outside the true region than in FR-CE, {name}.",
            lower(
                "share outside the true edit, ACE against FR-CE",
                *("ace_stages", "outside_share", _stage("ACE", a), _stage("FR-CE", a)),
            ),
        )
        for a, name in ATTRIBUTES.items()
    ),
)
SETTINGS = (
    *(
        Claim(
            f"ace.l1-sparser-{name}",
            "Sect. 4.4.2",
            f"The l1 distance lets less of the image change than the l2 distance, {name}.",
            lower(
                "share of the image in the mask, l1 against l2",
                *(
                    "ace_distance",
                    "mask_area",
                    {"attribute": a, "distance": "l1"},
                    {"attribute": a, "distance": "l2"},
                ),
            ),
            SPARSE_ANYWAY,
        )
        for a, name in ATTRIBUTES.items()
    ),
    *(
        claim
        for attack, words in (
            ("gd", "Plain gradient descent (GD)"),
            ("cw", "Carlini and Wagner's attack (C&W)"),
        )
        for claim in (
            Claim(
                f"ace.{attack}-flips",
                "Sect. 4.4.6",
                f"{words} with twice the iterations flips as many faces as PGD, within 10 points (margin ours).",
                _as_successful(attack),
                FEW,
            ),
            Claim(
                f"ace.{attack}-steps",
                "Sect. 4.4.6",
                f"{words} needs about twice as many steps as PGD to get through (1.5 to 2.5 times; margin ours).",
                _steps(attack),
                NO_STEP_SIZES,
            ),
        )
    ),
)
COST = (
    Claim(
        "ace.faster",
        "Sect. 4.4.6",
        "With the thesis's settings ACE takes less time than DiME.",
        lambda e: larger("seconds of DiME over those of ACE, by batches of 4", _times_faster(e), 1.0),
    ),
    Claim(
        "ace.how-much-faster",
        "Sect. 4.4.6",
        "With the thesis's settings ACE is about 3.6 times faster than DiME (2.6 to 4.6; margin ours).",
        lambda e: within("seconds of DiME over those of ACE, by batches of 4", _times_faster(e), 3.6, 1.0),
        "Seconds of small networks on one processor: there the way back through a call costs more, beside the call itself, than the "
        "ratio of calls lets expect. The library's DiME also shares calls between its chains.",
    ),
    Claim(
        "ace.calls",
        "Sect. 4.4.6",
        "One explanation with the thesis's settings for CelebA takes about 500 denoiser calls, if a way back through a call counts as "
        "one (that reading and the margin of 5 % are ours).",
        _calls,
    ),
    Claim(
        "ace.fewer-calls",
        "Sect. 4.4.6",
        "Counted in such calls, instead of seconds, DiME takes about 3.6 times as many as ACE (within 10 %; reading and margin ours).",
        _fewer_calls,
    ),
)


def _hypothesis(hypothesis: str, attribute: str, classifier: str) -> dict[str, str]:
    return {"attribute": attribute, "classifier": classifier, "hypothesis": hypothesis}


PLANTED = [_hypothesis("eyeglasses", "smile", name) for name in ("smile-shortcut", "smile-old")]
ACTION = (
    Claim(
        "ace.frown",
        "Fig. 4.4",
        "A frown makes a young face older for the classifier: it raises P(old).",
        lambda e: larger(
            "change of P(old) by a frown",
            e.value("ace_actionability", "effect", **_hypothesis("a frown", "old", "smile-old")),
            0.0,
        ),
        "Smile and age are drawn independently in this world, so a classifier has nothing to learn from a frown; and a frown here is a "
        "mouth bent down, without a brow to knit.",
    ),
    Claim(
        "ace.natural-adversarial",
        "Sect. 4.4.5 (glasses planted: this course)",
        "An intervention that is no smile moves a classifier that relies on it: glasses raise P(smile) more for the shortcut "
        "classifier than for the fair one.",
        higher(
            "change of P(smile) by glasses, shortcut against fair", "ace_actionability", "effect", *PLANTED
        ),
    ),
    Claim(
        "ace.shown",
        "Sect. 4.4.5 (glasses planted: this course)",
        "ACE's counterfactuals show what the classifier relies on: glasses are put on more often for the shortcut classifier than for "
        "the fair one.",
        higher("glasses put on, shortcut against fair", "ace_actionability", "seen", *PLANTED),
        "The intervention proves the shortcut, the counterfactuals do not show it: so short a filter can hardly draw glasses where "
        "there were none, and most attacks on this classifier fail. DiME draws them, from a noisier start.",
    ),
    Claim(
        "ace.imagenet",
        "Table 4.4",
        "On three pairs of ImageNet classes ACE with l2 flips more images than ACE with l1.",
        lambda e: needs_gpu("photographs of 256 pixels, and ImageNet's denoiser and classifier"),
        "These networks are too large for this machine.",
    ),
)
CLAIMS: tuple[Claim, ...] = FLIPS + STAGES + SETTINGS + COST + ACTION + ace_measures.CLAIMS
LIVE = ace_live.LIVE
