"""Eight methods under three conditions: their counterfactuals, every metric of the papers, and the truth.

A condition is a classifier and the attribute that is explained. `fill` makes the counterfactuals and keeps them, `measured`
gives the metrics as `Value`s, `numbers` the same for many resamples of the faces at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study, dvce_study
from cfx_lib.bench import agreement as ranks
from cfx_lib.bench.dime_study import Row, classifier_of, dime, faces, oracle_of, preset_of
from cfx_lib.bench.kept import explained, joined, pre_explanations, pretended
from cfx_lib.methods.baselines import PGD
from cfx_lib.methods.dime import DiME
from cfx_lib.metrics import (
    attributes,
    closeness,
    features,
    frechet,
    realism,
    reconstruction,
    shortcuts,
    similarity,
    transition,
)
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

CONDITIONS = {
    f"{name}:{a}": (name, a)
    for name, a in (("smile-old", "smile"), ("smile-old", "old"), ("brittle", "smile"))
}
METHODS = ("PGD", "SVCE", "DiME", "DiME, masked", "ACE, pre-explanation", "ACE", "DVCE", "DVCE, no cone")
PUBLISHED = {  # metric -> the direction that is better
    **dict.fromkeys(("flip_rate", "confidence", "cout"), "higher"),
    **dict.fromkeys(("l1", "l1.5", "l2", "lpips"), "lower"),
    **dict.fromkeys(("s3", "fs", "fva"), "higher"),
    **dict.fromkeys(("mnac", "cd", "fid", "sfid", "crossover_fid", "im1", "im2"), "lower"),
}
TRUTHS = {"edit_error": "lower", "semantic_flip_rate": "higher", "collateral_changes": "lower"}
ALL_COUNT = (
    "flip_rate",
    "confidence",
    "cout",
    *TRUTHS,
)  # flipped or not; all others: flipped images, as in the papers
SETS = ("cd", "fid", "sfid", "crossover_fid")  # these have no scores of single images
SHARED = {  # what a metric and a truth have in common by construction
    **{(m, "semantic_flip_rate"): "flips" for m in ("flip_rate", "confidence", "cout")},
    **{(m, "edit_error"): "pixel norm" for m in ("l1", "l1.5", "l2")},
    **{(m, t): "oracle" for m in ("mnac", "cd") for t in ("semantic_flip_rate", "collateral_changes")},
    ("semantic_flip_rate", "collateral_changes"): "oracle",
    ("collateral_changes", "semantic_flip_rate"): "oracle",
}
SIGN = {name: 1.0 if better == "higher" else -1.0 for name, better in (PUBLISHED | TRUTHS).items()}
RESAMPLES, SPLITS = 1000, 10  # of the faces, and of sFID, as in the thesis


def oracle() -> Any:
    """The judge of attributes, trained apart from what is explained."""
    return dime_study._model("personas/oracle")


# --------------------------------------------------------------------------------------------- counterfactuals


def methods_of(name: str, attribute: str) -> dict[str, Any]:
    """The methods on a classifier, with their presets; the mask is that of "fast/masked", on DiME's settings.

    SVCE, made for robust networks, gets the explained one like all others.
    """
    classifier, full = classifier_of(name, attribute), f"personas/{name}:{attribute}"
    guided = preset_of(DiME, name, attribute)
    return {
        "PGD": PGD(classifier),
        "SVCE": dvce_study.svce(full, classifier=classifier),
        "DiME": dime(classifier, guided),
        "DiME, masked": dime(classifier, guided, self_mask=DiME.PRESETS["fast/masked"]["self_mask"]),
        "ACE": ace_study.ace(name, attribute),
        "DVCE": dvce_study.dvce(full),
        "DVCE, no cone": dvce_study.dvce(full, robust=None),
    }


def counterfactuals(condition: str, n: int = 64) -> dict[str, list[CFResult]]:
    """The counterfactuals of all methods for n test faces, from the cache folder where they are there."""
    name, attribute = CONDITIONS[condition]
    x, _ = faces("test", attribute, n)
    target = 1 - classifier_of(name, attribute).predict(x)
    found = {}
    for label, method in methods_of(name, attribute).items():
        results = explained(method, x, target)
        if label == "ACE":
            found["ACE, pre-explanation"] = pre_explanations(results, method.classifier)
        found[label] = results
    return found


def fill(*conditions: str, n: int = 64) -> None:
    """Make the counterfactuals of some conditions (all by default) and keep them."""
    for condition in conditions or CONDITIONS:
        for label, results in counterfactuals(condition, n).items():
            print(condition, label, metrics.flip_rate(results), flush=True)


def other_faces(attribute: str, n: int) -> Tensor:
    """The next test faces after the n studied ones, a face of either class in turn: (3n,C,H,W)."""
    return faces("test", attribute, 4 * n)[0][n:]


def references(condition: str, n: int) -> dict[str, list[CFResult]]:
    """What counterfactuals are compared with: nothing changed, the true minimal change, another face of the target class."""
    name, attribute = CONDITIONS[condition]
    x, _ = faces("test", attribute, n)
    classifier = classifier_of(name, attribute)
    target, others = 1 - classifier.predict(x), other_faces(attribute, n)
    pools = {1: iter(others[::2]), 0: iter(others[1::2])}
    shown = {
        "copy of the input": x,
        "true counterfactual": dime_study._truth(name, attribute, n, "test")[0],
        "another face": torch.stack([next(pools[wanted]) for wanted in target.tolist()]),
    }
    return {label: [pretended(x, images, target, classifier)] for label, images in shown.items()}


# ------------------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True, eq=False)
class Measured:
    """Results, their metrics as the papers count and over all faces, and their grades by the truth."""

    results: list[CFResult]
    published: Row
    every: Row
    grades: Row


def values(results: list[CFResult], attribute: str, cout: metrics.Value, everyone: bool) -> Row:
    """All published metrics; `everyone`: over all faces, else over the flipped ones where the papers count these."""
    every = torch.ones(sum(map(len, results)), dtype=torch.bool)
    some = {"where": every if everyone else "flipped"}
    lengths = {"per_pixel": True, "unit_range": True, **some}
    return {
        "flip_rate": metrics.flip_rate(results),
        "confidence": metrics.mean_confidence(results),
        "cout": cout,
        **{f"l{p:g}": metrics.lp_norm(results, p=p, **lengths) for p in (1.0, 1.5, 2.0)},
        "lpips": closeness.lpips(results, **some),
        "s3": similarity.s3(results, **some),
        "fs": similarity.fs(results, **some),
        "fva": similarity.fva(results, **some),
        "mnac": attributes.mnac(results, **some),
        "cd": attributes.correlation_difference(results, query=attribute, labels=labels("train"), **some),
        "fid": realism.fid(results, **some),
        "sfid": realism.sfid(results, splits=SPLITS, **some),
        "crossover_fid": realism.crossover_fid(results, groups=((0,), (1,)), **some),
        "im1": reconstruction.im1(results, attribute=attribute, **some),
        "im2": reconstruction.im2(results, attribute=attribute, **some),
    }


def grades(results: list[CFResult], name: str, attribute: str, n: int) -> Row:
    """The truths, over all faces, flipped or not, and the other grades. Without a true counterfactual: no edit error."""
    _, factors = faces("test", attribute, n)
    everyone, factor = torch.ones(n, dtype=torch.bool), personas.FACTOR_OF[attribute]
    named = {"factors": factors, "factor": factor, "oracle": oracle(), "where": everyone}
    graded = dime_study.graded(results, name, attribute, n)
    return {
        "edit_error": graded.pop("edit_error"),
        "semantic_flip_rate": metrics.semantic_flip_rate(results, oracle_of(attribute)),
        "collateral_changes": shortcuts.collateral_changes(results, **named).changed,
        **graded,
    }


@lru_cache(maxsize=len(CONDITIONS))
def measured(condition: str, n: int) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """All methods and all references of a condition."""
    name, attribute = CONDITIONS[condition]

    def measure(results: list[CFResult]) -> Measured:
        cout = transition.cout(results, classifier=classifier_of(name, attribute))
        both = (values(results, attribute, cout, everyone) for everyone in (False, True))
        return Measured(results, *both, grades(results, name, attribute, n))

    groups = counterfactuals(condition, n), references(condition, n)
    return tuple({label: measure(results) for label, results in group.items()} for group in groups)


# ------------------------------------------------------------------------------------ numbers of resampled faces


def weights_of(condition: str, n: int) -> np.ndarray:
    """The resamples, (1 + RESAMPLES, n); conditions with the same faces share them."""
    return ranks.weights(n, RESAMPLES, seed=list(personas.FACTOR_OF).index(CONDITIONS[condition][1]))


@lru_cache(maxsize=2 * len(CONDITIONS))
def numbers(condition: str, n: int, everyone: bool = False) -> dict[str, np.ndarray]:
    """Every metric and truth of the M methods in all resamples: name -> (1 + RESAMPLES, M), signed so that higher is better.

    Row 0 is that of `measured`, without resampling. `everyone`: over all faces, as in `values`.
    """
    w, scores = weights_of(condition, n), scores_of(condition, n)
    flipped = [joined(m.results, "flipped").numpy() for m in measured(condition, n)[0].values()]
    keep = np.stack(flipped) | everyone
    counted = {k: v if k in ALL_COUNT else np.where(keep, v, np.nan) for k, v in scores.items()}
    found = {k: ranks.weighted_mean(v, w) for k, v in counted.items()}
    sizes = np.where(np.isnan(scores["edit_error"]), np.nan, sizes_of(condition, n))
    found["edit_error"] = ranks.weighted_ratio(
        scores["edit_error"] * sizes, sizes, w
    )  # pooled, as in the library
    found |= set_numbers(condition, n, keep, w)
    return {name: SIGN[name] * found[name] for name in (*PUBLISHED, *TRUTHS)}


@lru_cache(maxsize=len(CONDITIONS))
def scores_of(condition: str, n: int) -> dict[str, np.ndarray]:
    """The scores of single images, name -> (M,n), over all faces; the edit error is relative to each face's true edit."""
    name, attribute = CONDITIONS[condition]
    methods = measured(condition, n)[0].values()
    x_true, _, there = dime_study._truth(name, attribute, n, "test")
    single = {"x_true": x_true, "where": there, "pooled": False}
    found = {k: np.stack([m.every[k].scores for m in methods]) for k in PUBLISHED if k not in SETS}
    found |= {k: np.stack([m.grades[k].scores for m in methods]) for k in TRUTHS}
    errors = [metrics.edit_error(m.results, **single).scores for m in methods]
    return found | {"edit_error": np.stack(errors)}


def sizes_of(condition: str, n: int) -> np.ndarray:
    """The l1 norm of each true edit, (n,)."""
    name, attribute = CONDITIONS[condition]
    x, _ = faces("test", attribute, n)
    return closeness.lp_distance(dime_study._truth(name, attribute, n, "test")[0], x).numpy()


def set_numbers(condition: str, n: int, keep: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """CD, FID, sFID and cross-over FID for the weightings w: name -> (R,M). `keep` (M,n): counterfactuals that count.

    A face that a resample holds several times stays in one half of sFID's splits, which are the library's.
    """
    name, attribute = CONDITIONS[condition]
    methods = list(measured(condition, n)[0].values())
    x, source = joined(methods[0].results, "x"), joined(methods[0].results, "logits_before").argmax(1).numpy()
    network = features.feature_network(None, x)
    seen = [x, *(joined(m.results, "x_cf") for m in methods)]
    real, *fakes = (features.embed(network, images).double().numpy() for images in seen)
    before, *after = (oracle().attributes_of(images).numpy().astype(np.int64) for images in seen)
    query = oracle().attributes.index(attribute)
    wanted = attributes.attribute_correlations(labels("train"), query).nan_to_num().numpy()
    keys = frechet.content_keys(x)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SETS}
    for fake, decided, kept in zip(fakes, after, keep, strict=True):
        there, v = (w * kept).sum(1) > 0, w * kept
        gaps = np.abs(wanted - np.nan_to_num(ranks.weighted_correlations(decided - before, query, v))).sum(1)
        found["cd"].append(np.where(there, gaps, np.nan))
        found["fid"].append(ranks.weighted_frechet(real, fake, w, v))
        halves = [side for half in realism._halves(keys, kept, SPLITS, 0) for side in (half, ~half)]
        parts = [ranks.weighted_frechet(real, fake, w * ~side, v * side) for side in halves]
        found["sfid"].append(np.mean(parts, 0))
        parts = [ranks.weighted_frechet(real, fake, w * (source == k), v * (source != k)) for k in (0, 1)]
        found["crossover_fid"].append(np.mean(parts, 0))
    return {name: np.stack(columns, 1) for name, columns in found.items()}


@lru_cache(maxsize=2)
def labels(split: str) -> Tensor:
    """The attributes of a population's faces, (20000,A) bool, columns as the oracle's: "train" is fair, "biased" is not."""
    drawn = personas.sample(
        personas.SPLIT_SIZES[split], personas.SPLIT_SEEDS[split], personas._population(split)
    )
    return personas.attributes(drawn)[:, [personas.ATTRIBUTES.index(a) for a in oracle().attributes]]
