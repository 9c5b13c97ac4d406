"""What LDCE claims of its formulas and numbers: computed here and now, by the library against arithmetic of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import dime_study, latent_probes, ldce_faces
from cfx_lib.bench.claims import Claim, Evidence, Finding, exact, larger, within
from cfx_lib.methods import latent_guidance
from cfx_lib.metrics import transition

TABLE_2 = {  # pair of classes -> S3 and flip rate (%) of ACE l1, ACE l2, LDCE-cls, LDCE-txt
    "zebra, sorrel": ((0.92, 47.0), (0.90, 81.0), (0.78, 88.0), (0.7113, 81.0)),
    "cheetah, cougar": ((0.91, 77.0), (0.88, 95.0), (0.62, 100.0), (0.59, 98.0)),
    "Egyptian cat, Persian cat": ((0.85, 85.0), (0.78, 97.0), (0.63, 99.0), (0.61, 99.0)),
}
FACES = 64


def _scores(seed: int) -> tuple[Tensor, Tensor]:
    """A classifier's score and an implicit one that have something in common, with a latent's shape."""
    first, second = torch.randn(
        2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return first, first + 1.5 * second


# ------------------------------------------------------------------------------------------------ formulas


def consensus_error() -> float:
    """How far the consensus is from Eqs. 10 and 11, patch by patch: the score itself up to the angle gamma, else zeros."""
    v, w = _scores(0)
    errors = []
    for gamma in (30.0, 50.0, 120.0, 180.0):
        for patch in (1, 2):
            found = latent_guidance.consensus(v, w, gamma, patch)
            errors.append(abs(found.numpy() - _filtered(v.numpy(), w.numpy(), gamma, patch)).max())
    return float(max(errors))


def _filtered(v: np.ndarray, w: np.ndarray, gamma: float, patch: int) -> np.ndarray:
    """Eqs. 10 and 11 in plain loops."""
    kept = np.zeros_like(v)
    for n in range(len(v)):
        for row in range(0, v.shape[2], patch):
            for column in range(0, v.shape[3], patch):
                place = (n, slice(None), slice(row, row + patch), slice(column, column + patch))
                a, b = v[place].ravel(), w[place].ravel()
                angle = math.degrees(math.acos(a @ b / math.sqrt((a @ a) * (b @ b))))
                if angle <= gamma:
                    kept[place] = v[place]
    return kept


def foreign_share() -> float:
    """The largest part of what the consensus leaves that is not the classifier's own score, over implicit classifiers."""
    v, _ = _scores(1)
    left = [latent_guidance.consensus(v, _scores(seed)[1], 50.0) for seed in range(2, 10)]
    return float(max((part * (part - v)).abs().max() for part in left))


def ddim_error() -> float:
    """How far a step of Eq. 5 without noise ends from the state of Eq. 2 at the next level, where the noise is known."""
    x, eps = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    levels = (0.01, 0.2, 0.5, 0.9, 0.999)
    errors = []
    for now in levels:
        for then in levels:
            z, wanted = (a**0.5 * x + (1 - a) ** 0.5 * eps for a in (now, then))  # Eq. 2
            errors.append((latent_guidance.ddim_step(z, eps, now, then) - wanted).abs().max())
    return float(max(errors))


def cout_error() -> float:
    """How far COUT is from Eqs. 15 and 16 summed step by step, and by how much it leaves [-1,1], whichever is more."""
    generator = torch.Generator().manual_seed(12)
    x, x_cf = 2 * torch.rand(2, 4, 3, 8, 8, generator=generator) - 1
    weight = torch.randn(3 * 8 * 8, 2, generator=generator)

    def classifier(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight

    source = classifier(x).argmax(1)
    target = 1 - source
    found = transition.cout(x, x_cf, target, classifier, source, steps=32).scores
    wanted = [_cout(*pair, classifier, int(t)) for *pair, t in zip(x, x_cf, target, strict=True)]
    return float(max(abs(found - wanted).max(), abs(found).max() - 1))


def _cout(x: Tensor, x_cf: Tensor, classifier: Callable, target: int, batch: int = 2) -> float:
    """Eqs. 15 and 16 for an image and a second class: pixels switched by the size of their change, two a step."""
    order = (x - x_cf).abs().sum(0).flatten().argsort(descending=True)
    state, curve = x.clone().flatten(1), []
    for done in range(0, len(order) + 1, batch):
        state[:, order[:done]] = x_cf.flatten(1)[:, order[:done]]
        curve.append(classifier(state.view_as(x)[None]).double().softmax(1)[0].numpy())
    area = sum((a + b) / 2 for a, b in zip(curve, curve[1:], strict=False)) / (len(curve) - 1)
    return float(area[target] - area[1 - target])


class _Once:
    """Noise that gives one draw again in every run, and other noise for each further one."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.draws = generator, 0

    def bind(self, x: Tensor) -> _Once:
        return self

    def draw(self, like: Tensor, rows: Tensor | None = None) -> Tensor:
        self.draws += 1
        source = torch.Generator().manual_seed(13) if self.draws == 1 else self.generator
        return torch.randn(like.shape, generator=source).to(like)


def sampling_spread() -> float:
    """How far two runs end from each other that share the noise of the abduction, and any further noise not."""
    x, _ = dime_study.faces("test", "smile", 2)
    method, generator = ldce_faces.ldce("smile-old", "smile", start=4), torch.Generator().manual_seed(14)
    target = 1 - method.classifier.predict(x)
    runs = [method.explain(x, target, noise=_Once(generator), progress=False).x_cf for _ in range(2)]
    return float((runs[0] - runs[1]).abs().max())


# ------------------------------------------------------------------------------------- numbers, the autoencoder


def spearman() -> float:
    """Spearman's coefficient of S3 and the flip rate over the twelve rows of Table 2: Pearson's of the ranks."""
    s3, flips = zip(*(pair for rows in TABLE_2.values() for pair in rows), strict=True)
    return float(np.corrcoef(rankdata(s3), rankdata(flips))[0, 1])


def same_answers(n: int = FACES) -> metrics.Value:
    """The share of faces of which the judge of smiles says the same after encoding and decoding."""
    x, _ = dime_study.faces("test", "smile", n)
    model, judge = ldce_faces.latent(ldce_faces.MODELS["txt"]), dime_study.oracle_of("smile")
    decoded = torch.cat([latent_probes.reconstruction(model, part) for part in x.split(16)])
    return metrics.rate(judge.predict(decoded) == judge.predict(x))


# ------------------------------------------------------------------------------------------------ the claims


def _computed(what: str, error: Callable[[], float], tolerance: float) -> Callable[[Evidence], Finding]:
    """A check that computes this error."""

    def check(evidence: Evidence) -> Finding:
        evidence.computed()
        return exact(what, error(), tolerance)

    return check


def _spearman(evidence: Evidence) -> Finding:
    evidence.computed()
    return within("rank correlation of the rows of Table 2", spearman(), -0.83, 0.005, n=12)


def _equivalent(evidence: Evidence) -> Finding:
    evidence.computed()
    return larger("share of faces of which the judge says the same after decoding", same_answers(), 0.9)


EXACT: tuple[Claim, ...] = (
    Claim(
        "ldce.consensus-rule",
        "Sect. 3.2, Eqs. 10 and 11",
        "The consensus keeps the classifier's score in each patch whose angle to the implicit classifier's is at most γ, and "
        "puts zeros elsewhere.",
        _computed("largest difference to the rule applied patch by patch", consensus_error, 0.0),
    ),
    Claim(
        "ldce.zeros-keep-the-model-out",
        "Sect. 3.2",
        "With zeros as overwrite value the implicit classifier has no direct influence: what is left after the consensus is "
        "the classifier's own score, or nothing.",
        _computed("largest part that is not the classifier's own", foreign_share, 0.0),
    ),
    Claim(
        "ldce.ddim-step",
        "Sect. 2.1, Eqs. 2 and 5",
        "A DDIM step leads from one noise level to another with the same clean image and the same noise, where the predicted "
        "noise is the true one.",
        _computed("largest difference to the state at the next level", ddim_error, 1e-9),
    ),
    Claim(
        "ldce.cout",
        "App. D, Eqs. 15 and 16",
        "COUT is the area under the curve of the wanted class less that of the factual class while the most changed pixels are "
        "inserted first, and lies between -1 and 1.",
        _computed("largest difference to the sum over the steps", cout_error, 1e-6),
    ),
    Claim(
        "ldce.sampler-deterministic",
        "App. G",
        "The sampler is deterministic: the noise of the abduction alone decides the counterfactual.",
        _computed("largest difference of two runs with the same first noise", sampling_spread, 0.0),
    ),
    Claim(
        "ldce.s3-and-flips-in-table-2",
        "Sect. 4, Table 2",
        "Over the rows of Table 2, S³ and the flip rate have a Spearman rank correlation of -0.83.",
        _spearman,
    ),
    Claim(
        "ldce.autoencoder-equivalent",
        "Sect. 2.1 and 3.1",
        "The latent space is perceptually equivalent to the pixels (here: of more than 90 % of the faces an oracle says the "
        "same after they were encoded and decoded).",
        _equivalent,
        "The autoencoder is a small one of our own, and one oracle's answers stand for perception.",
    ),
)
