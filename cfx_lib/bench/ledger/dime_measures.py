"""The claims of DiME's chapter on adversarial pixels, and on the measures MNAC, CD and diversity. See `dime.py`."""

from __future__ import annotations

from cfx_lib.bench.claims import Claim, Evidence, Finding, exact, larger, needs_gpu, smaller
from cfx_lib.bench.ledger import computed
from cfx_lib.bench.ledger.dime_live import through
from cfx_lib.bench.ledger.rules import FEW, TENTH, alike, higher, lower


def _theorem(e: Evidence) -> Finding:
    e.computed()
    return exact("largest difference of the two correlations", computed.correlations_of_pairs(), 1e-12)


def _mnac(e: Evidence) -> Finding:
    e.computed()
    hides, reveals = computed.stories()["the mouth"], computed.stories()["mouth and glasses"]
    return larger("MNAC, mouth and glasses against the mouth alone", reveals["mnac"], hides["mnac"])


def _cd(e: Evidence) -> Finding:
    e.computed()
    hides, reveals = computed.stories()["the mouth"], computed.stories()["mouth and glasses"]
    return smaller("CD, mouth and glasses against the mouth alone", reveals["cd"], hides["cd"])


def _brittle(method: str) -> dict[str, str]:
    return {"classifier": "brittle", "attribute": "smile", "method": method}


ADVERSARIAL = (
    Claim(
        "dime.forehead",
        "Fig. 3.6",
        "Allowed to change the forehead only, DiME makes fewer faces smile for the classifier than the attack PGD does.",
        lower(
            "flip rate through the forehead, DiME against PGD (eps 8)",
            *("dime_masks", "flip_rate", through("forehead", "dime-during"), through("forehead", "pgd-8")),
        ),
        "The attack fails through the forehead too: the classifiers of these drawings do not look there for a smile, so the test "
        "cannot separate the two.",
    ),
    Claim(
        "dime.mouth",
        "Fig. 3.6",
        "DiME flips more faces through the mouth, which has to do with a smile, than through the forehead, which has not.",
        higher(
            "flip rate of DiME, mouth against forehead",
            *(
                "dime_masks",
                "flip_rate",
                through("mouth", "dime-during"),
                through("forehead", "dime-during"),
            ),
        ),
    ),
    Claim(
        "dime.masks-alike",
        "Fig. 3.6",
        "A mask during the optimisation and one pasted at the end flip equally many faces through the mouth, within 10 points "
        "(margin ours).",
        alike(
            "flip rate through the mouth, mask during against at the end",
            *(
                "dime_masks",
                "flip_rate",
                through("mouth", "dime-during"),
                through("mouth", "dime-end"),
                TENTH,
            ),
        ),
        FEW,
    ),
    Claim(
        "dime.semantic",
        "Sect. 3.5.2 (an oracle as the judge: this course)",
        "DiME's flips are edits that can be seen and those of the attack PGD are not: on an undefended classifier an independent "
        "network confirms more of DiME's attempts than of PGD's.",
        higher(
            "confirmed flips, DiME against PGD",
            *("dime_pgd", "semantic_flip_rate", _brittle("DiME, preset fast"), _brittle("PGD")),
        ),
    ),
)
METRICS = (
    Claim(
        "dime.theorem-1",
        "Theorem 1",
        "The correlation of two attributes is the correlation of their changes between two independent draws of faces.",
        _theorem,
    ),
    Claim(
        "dime.mnac",
        "Sect. 3.4.5 (rendered explanations: ours)",
        "MNAC may punish the better explanation: it can be larger for one that reveals a spurious correlation than for one that hides it.",
        _mnac,
    ),
    Claim(
        "dime.cd",
        "Sect. 3.4.5, principle (i) (rendered explanations: ours)",
        "CD amends this failure of MNAC: it is smaller for explanations that reveal a spurious correlation than for those that hide it.",
        _cd,
    ),
    Claim(
        "dime.stochastic",
        "Sect. 3.3.3",
        "Over five seeds a stochastic inner chain gives more diverse counterfactuals than the chain of its means.",
        higher(
            "mean l1 between seeds, stochastic chain against its mean",
            *("dime_diversity", "diversity", {"label": "full, stochastic"}, {"label": "full, mean"}),
        ),
        "The thesis argues this and does not measure it. The noise of the start and of the outer steps differs from seed to seed "
        "with either chain, and may matter more than that of the inner chain.",
    ),
    Claim(
        "dime.celeba",
        "Table 3.1",
        "On photographs of CelebA DiME's counterfactuals have a lower FID than those of DiVE and STEEX.",
        lambda e: needs_gpu("photographs of 128 pixels, and the networks of the other two methods"),
        "Neither the photographs nor the other methods are part of this course.",
    ),
)
CLAIMS: tuple[Claim, ...] = ADVERSARIAL + METRICS
