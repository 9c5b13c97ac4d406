"""The `full` measurements of notebook 08: the papers' metrics of the methods built so far, judged by what is really true.

`python -m cfx_lib.bench study metrics` writes them to data/results/; `--only NAME` makes one again. Settings are the
methods' presets, which were chosen on validation faces, but for DiME's in `shortcut`; nothing is chosen here. Faces and
judges are those of `dime_study`, methods and metrics those of `conditions`. Counterfactuals are kept in the cache folder, so
an interrupted run goes on, and two processes can share the work:
`python -c "from cfx_lib.bench import conditions; conditions.fill('brittle:smile')"`.

`agreement_table` asks which published metric ranks the methods as the truth does. What it can show is limited:

* There are eight methods, from five families, and three conditions of one world of drawings, two of them with the same
  faces. Another choice of methods would give another rank correlation. The intervals do not cover that, they say what other
  faces would do. For the methods there are the range with one of them left out, and `p_order`, how often methods named at
  random agree as well: with eight, one order in thirty reaches a tau of 0.64.
* The truths are our choice, and not of one mind: two of them are best for who does nothing, one is best for who overdoes
  it. How far they agree with each other is in the table, as a yardstick for the metrics.
* Some pairs agree by construction (`conditions.SHARED`): a confirmed flip is a flip first, the edit error is an l1 norm, too,
  and MNAC asks the oracle that counts collateral changes.
* The best of many metrics looks better than it is. `behind_best` compares it with each of the others on the same resampled
  faces, without correction for the choice; `best_share` and `best_without` say how often it would be chosen again.
* FID and its kin see 64 faces or fewer, fewer than features: covariances without full rank. And as the papers count
  flipped images only, a method with few flips has a larger FID for that alone; `tau_all_faces` counts the same faces for
  all methods. Single images are compared over all faces, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import ace_study, dime_study, dvce_study
from cfx_lib.bench import agreement as ranks
from cfx_lib.bench.conditions import (
    CONDITIONS,
    METHODS,
    PUBLISHED,
    SHARED,
    SIGN,
    TRUTHS,
    labels,
    measured,
    methods_of,
    numbers,
    oracle,
    other_faces,
    scores_of,
    weights_of,
)
from cfx_lib.bench.dime_study import Row, bare_frowning, classifier_of, dime, faces
from cfx_lib.bench.kept import explained, joined
from cfx_lib.metrics import attributes, closeness, realism, shortcuts, similarity
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

ORDERS = 2000  # of the methods, drawn at random
Numbers = dict[str, dict[str, np.ndarray]]
"""condition -> name -> `numbers`."""
Draws = dict[tuple[str, str, str], np.ndarray]
"""(condition, metric, truth) -> a rank correlation and its bootstrap draws, (1 + resamples,); "mean" is over the others."""


def methods_table(n: int) -> Iterator[Row]:
    """Every metric and every grade of the methods, and of the references, for which all faces count."""
    for condition, (name, attribute) in CONDITIONS.items():
        for kind, group in zip(("method", "reference"), measured(condition, n), strict=True):
            for label, found in group.items():
                timed = kind == "method" and label != "ACE, pre-explanation"  # made along with ACE
                calls = sum(r.cost.denoiser_calls for r in found.results) / n
                yield {
                    "classifier": name,
                    "attribute": attribute,
                    "method": label,
                    "kind": kind,
                    "counted": "flipped" if kind == "method" else "all",
                    "flips": int(joined(found.results, "flipped").sum()),
                    "n": n,
                    **(found.published if kind == "method" else found.every),
                    **found.grades,
                    "calls": calls if timed else None,
                    "seconds": metrics.cost_per_explanation(found.results) if timed else None,
                }


# --------------------------------------------------------------------------------------------------- agreement


def agreement_table(n: int) -> Iterator[Row]:
    """Which published metric orders the methods as the truth does? Kendall's tau-b; see the limits at the top of the file."""
    found = {c: numbers(c, n) for c in CONDITIONS}
    columns = {
        "tau": taus(found),
        "tau_all_faces": taus({c: numbers(c, n, everyone=True) for c in CONDITIONS}),
    }
    columns |= single_images(n)
    shortened, chance = [taus(without(found, k)) for k in range(len(METHODS))], by_chance(found)
    for key in columns["tau"]:
        condition, metric, truth = key
        left = [float(s[key][0]) for s in shortened if not np.isnan(s[key][0])]
        yield {
            "condition": condition,
            "metric": metric,
            "truth": truth,
            "kind": "published" if metric in PUBLISHED else "truth",
            "better": (PUBLISHED | TRUTHS)[metric],
            "shares": shared(metric, truth),
            **{name: ranks.valued(c[key], n) if key in c else None for name, c in columns.items()},
            "tau_without_low": min(left, default=None),
            "tau_without_high": max(left, default=None),
            "p_order": chance.get(key),
            **compared(condition, metric, truth, found, columns["tau"]),
            **(contest(metric, truth, columns["tau"], shortened, n) if condition == "mean" else {}),
            **(reference_places(condition, metric, n) if condition != "mean" and truth == "mean" else {}),
            "n": n,
        }


def taus(found: Numbers, truths: Numbers | None = None) -> Draws:
    """Agreement of every metric (and truth) with every other truth, from the `numbers` of each condition.

    `truths`: numbers of the truths to compare with, if they are others than those in `found`.
    """
    pairs, truths = [(m, t) for m in (*PUBLISHED, *TRUTHS) for t in TRUTHS if m != t], truths or found
    return with_means(
        {(c, m, t): ranks.tau_b(v[m], truths[c][t]) for c, v in found.items() for m, t in pairs}
    )


def by_chance(found: Numbers, orders: int | None = None) -> dict[tuple[str, str, str], float]:
    """How often a tau at least as far from 0 comes about when the methods are named at random, alike in all conditions.

    The intervals ask about other faces, this asks whether so few methods can show anything. Relatives among the methods
    are taken for strangers, which makes it a little too small.
    """
    rng, every = np.random.default_rng(0), np.arange(len(METHODS))
    names = np.vstack([every, rng.permuted(np.tile(every, (orders or ORDERS, 1)), axis=1)])
    fixed = {
        c: {k: np.repeat(v[:1], len(names), axis=0) for k, v in group.items()} for c, group in found.items()
    }
    mixed = {c: {k: group[k][0][names] for k in TRUTHS} for c, group in found.items()}
    sizes = {
        key: np.abs(np.nan_to_num(draws))
        for key, draws in taus(fixed, mixed).items()
        if not np.isnan(draws[0])
    }
    shares = {key: float((size >= size[0] - 1e-12).mean()) for key, size in sizes.items()}
    return shares


def with_means(draws: Draws) -> Draws:
    """Adds the mean over the truths, and over the conditions, of each metric."""
    conditions, names = (list(dict.fromkeys(key[k] for key in draws)) for k in (0, 1))
    for c in conditions:
        for m in names:
            draws[c, m, "mean"] = ranks.averaged([draws[c, m, t] for t in TRUTHS if t != m])
    for m in names:
        for t in (*TRUTHS, "mean"):
            if t != m:
                draws["mean", m, t] = ranks.averaged([draws[c, m, t] for c in conditions])
    return draws


def single_images(n: int) -> dict[str, Draws]:
    """Agreement on single images, where a metric has scores of these: over all images, and within each face."""
    pooled, within = {}, {}
    for c in CONDITIONS:
        w, scores = weights_of(c, n), {k: SIGN[k] * v for k, v in scores_of(c, n).items()}
        for key in ((c, m, t) for m in scores for t in TRUTHS if m != t):
            a, b = scores[key[1]], scores[key[2]]
            pooled[key] = ranks.pooled_spearman(a, b, w)
            within[key] = ranks.weighted_mean(ranks.within_face(a, b)[None], w)[:, 0]
    return {"spearman": with_means(pooled), "within_face": with_means(within)}


def without(found: Numbers, k: int) -> Numbers:
    """The numbers of all faces without method k."""
    return {c: {name: np.delete(v[:1], k, axis=1) for name, v in group.items()} for c, group in found.items()}


def shared(metric: str, truth: str) -> str | None:
    """What a metric has in common with a truth, or with any of those in the mean, by construction."""
    found = [SHARED.get((metric, t)) for t in (TRUTHS if truth == "mean" else (truth,))]
    return ", ".join(dict.fromkeys(filter(None, found))) or None


def compared(condition: str, metric: str, truth: str, found: Numbers, draws: Draws) -> Row:
    """How many methods had a value of the metric, which had none (nothing flipped), and where it gave all the same."""
    conditions = list(CONDITIONS) if condition == "mean" else [condition]
    missing = {c: [METHODS[k] for k in np.flatnonzero(np.isnan(found[c][metric][0]))] for c in conditions}
    return {
        "methods": len(METHODS) - max(map(len, missing.values())),
        "left_out": [f"{label} ({c})" for c, labels_ in missing.items() for label in labels_],
        "undefined_in": [c for c in conditions if np.isnan(draws[c, metric, truth][0])],
    }


def contest(metric: str, truth: str, draws: Draws, shortened: list[Draws], n: int) -> Row:
    """The place of a metric among the published ones, and what becomes of the best with other faces or methods."""
    if metric not in PUBLISHED:
        return {}
    rivals = np.stack([draws["mean", m, truth] for m in PUBLISHED])  # (K, 1 + resamples)
    own, first = list(PUBLISHED).index(metric), ranks.winners(rivals[:, 0])
    best, is_best = rivals[int(first.argmax())], first.any() and own == int(first.argmax())
    wins = [ranks.winners(np.array([s["mean", m, truth][0] for m in PUBLISHED]))[own] for s in shortened]
    return {
        "rank": ranks.place(rivals[own, 0], np.delete(rivals[:, 0], own), behind_ties=False),
        "best_share": float(ranks.best_shares(rivals)[own]),
        "best_without": sum(map(bool, wins)),
        "behind_best": None if is_best else ranks.valued(best - rivals[own], n),
    }


def reference_places(condition: str, metric: str, n: int) -> Row:
    """Where the metric puts the true counterfactual, and a copy of the input, among the methods; over all faces."""
    methods, references = (
        {k: SIGN[metric] * (m.every | m.grades)[metric].mean for k, m in group.items()}
        for group in measured(condition, n)
    )
    others = np.array(list(methods.values()))
    return {
        "true_rank": ranks.place(references["true counterfactual"], others),
        "copy_rank": ranks.place(references["copy of the input"], others),
    }


# ------------------------------------------------------------------------------------------------ Table 4.6, LDCE

PAPER_RANKS = {  # Table 4.6: FS, S3
    "smile": {
        "Random": (0.2649, 0.4337),
        "ACE": (0.8941, 0.9876),
        "Pre-CE": (0.9200, 0.9927),
        "DiME": (0.6729, 0.9396),
    },
    "old": {
        "Random": (0.2649, 0.4337),
        "ACE": (0.7743, 0.9417),
        "Pre-CE": (0.8300, 0.9870),
        "DiME": (0.6597, 0.9379),
    },
}
OURS = {"ACE": "ACE", "Pre-CE": "ACE, pre-explanation", "DiME": "DiME"}
LDCE_TABLE_2 = {  # S3 and FR of ACE l1, ACE l2, LDCE-cls, LDCE-txt
    "zebra, sorrel": ((0.92, 0.90, 0.78, 0.7113), (47.0, 81.0, 88.0, 81.0)),
    "cheetah, cougar": ((0.91, 0.88, 0.62, 0.59), (77.0, 95.0, 100.0, 98.0)),
    "Egyptian cat, Persian cat": ((0.85, 0.78, 0.63, 0.61), (85.0, 97.0, 99.0, 99.0)),
}


def ranks_table(n: int) -> Iterator[Row]:
    """Do S3 and FS give one order (Table 4.6)? Does S3 fall where FR rises (LDCE, Sect. 4: Spearman -0.83)?"""
    for attribute in PAPER_RANKS:
        yield from table_4_6(attribute, n)
    for everyone in (False, True):
        pairs = [[numbers(c, n, everyone)[m] for c in CONDITIONS] for m in ("s3", "flip_rate")]
        source = f"here, {'all faces' if everyone else 'flipped'}"
        yield {"part": "s3 and fr", "source": source, **s3_and_fr(*pairs, n), "n": n}
    pairs = [[np.array([group[k]]) for group in LDCE_TABLE_2.values()] for k in (0, 1)]
    yield {"part": "s3 and fr", "source": "LDCE, Table 2", **s3_and_fr(*pairs, 0), "n": 12}


def table_4_6(attribute: str, n: int) -> Iterator[Row]:
    """FS and S3 of three methods and of random pairs of faces; the methods over flipped faces."""
    condition, found = f"smile-old:{attribute}", {}
    x, _ = faces("test", attribute, n)
    chosen = torch.randperm(3 * n, generator=torch.Generator().manual_seed(0))[:n]
    for name, metric in (("fs", similarity.fs), ("s3", similarity.s3)):
        found[name] = {"Random": metric(x, other_faces(attribute, n)[chosen])}
        found[name] |= {k: measured(condition, n)[0][label].published[name] for k, label in OURS.items()}
    draws = {
        k: ranks.weighted_mean(np.stack([v.scores for v in found[k].values()]), weights_of(condition, n))
        for k in found
    }
    same = ranks.same_order(draws["fs"], draws["s3"])
    for k, pair in enumerate(found["fs"]):
        yield {
            "part": "table 4.6",
            "attribute": attribute,
            "pair": pair,
            **{name: found[name][pair] for name in found},
            **{f"{name}_place": ranks.place(v[0, k], np.delete(v[0], k)) for name, v in draws.items()},
            **dict(zip(("paper_fs", "paper_s3"), PAPER_RANKS[attribute][pair], strict=True)),
            "same_order": bool(same[0]),
            "same_order_share": float(same[1:].mean()),
            "n": n,
        }


def s3_and_fr(s3: list[np.ndarray], fr: list[np.ndarray], n: int) -> Row:
    """Spearman's correlation over all methods and conditions, [(R,M), ...] twice; n faces (0: of single numbers).

    Also without one point, and inside each condition, where differences between the conditions play no part.
    """
    a, b = np.concatenate(s3, 1), np.concatenate(fr, 1)
    draws = np.array([ranks.spearman(x, y) for x, y in zip(a, b, strict=True)])
    left = [ranks.spearman(np.delete(a[0], k), np.delete(b[0], k)) for k in range(a.shape[1])]
    left = [value for value in left if not np.isnan(value)]
    inside = [ranks.spearman(x[0], y[0]) for x, y in zip(s3, fr, strict=True)]
    return {
        "spearman": ranks.valued(draws, n) if n else float(draws[0]),
        "points": int((~np.isnan(a[0] + b[0])).sum()),
        "paper": -0.83,
        "without_low": min(left, default=None),
        "without_high": max(left, default=None),
        "within": [None if np.isnan(value) else value for value in inside],
    }


# ------------------------------------------------------------------------------------------ shortcut, seeds, n


def shortcut_faces(n: int) -> Tensor:
    """Half `bare_frowning` faces, half smiling ones with eyeglasses, both networks right: all as in the biased population.

    Both directions are needed for CD: where every explanation adds a smile, its change correlates with nothing.
    """
    x, factors = personas.load("test")
    plain = (factors["eyewear"] == "eyeglasses") & (factors["smile"] > 0.1)
    rows = torch.from_numpy(plain.nonzero()[0])
    for name in ("smile-old", "smile-shortcut"):
        rows = rows[classifier_of(name, "smile").predict(x[rows]) == 1]
    return torch.cat([bare_frowning(n // 2)[0], x[rows[: n // 2]]])


SHORTCUT_METHODS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "DiME": (
        "more noise",
        lambda name: dime(classifier_of(name, "smile"), **dime_study.SHORTCUT_SETTINGS["more noise"]),
    ),
    "ACE": ("preset", lambda name: ace_study.ace(name, "smile")),
    "DVCE": ("preset", lambda name: dvce_study.dvce(f"personas/{name}:smile")),
}
"""DiME's settings were found by trial on eight of the frowning faces measured (`dime_study`), those of the others on none."""


def shortcut(n: int) -> Iterator[Row]:
    """Do explanations of the biased classifier show its shortcut, and is that a fault (MNAC) or a find (CD, recall)?"""
    x = shortcut_faces(n)
    target = 1 - classifier_of("smile-old", "smile").predict(x)
    for label, (setting, make) in SHORTCUT_METHODS.items():
        runs = {name: explained(make(name), x, target) for name in ("smile-old", "smile-shortcut")}
        for direction, where in {"both": target >= 0, "to 1": target == 1, "to 0": target == 0}.items():
            recall = shortcuts.shortcut_recall(
                runs["smile-shortcut"], runs["smile-old"], oracle=oracle(), where=where
            )
            for name, results in runs.items():
                row = {"method": label, "setting": setting, "classifier": name, "direction": direction}
                row |= attribute_changes(results, where, direction == "both")
                yield row | (recall.row() if name == "smile-shortcut" else {}) | {"n": int(where.sum())}


def attribute_changes(results: list[CFResult], where: Tensor, both: bool) -> Row:
    """What the oracle sees change; MNAC and CD of the flipped images, as in the papers, and of all. CD: both directions only."""
    before, after = (oracle().attributes_of(joined(results, name)) for name in ("x", "x_cf"))
    changed, flipped = before != after, joined(results, "flipped")
    row = {"flip_rate": metrics.flip_rate(flipped[where])}
    for name, attribute in (("smile_changed", "smile"), ("glasses_changed", "eyeglasses")):
        row[name] = metrics.flip_rate(changed[where, oracle().attributes.index(attribute)])
    row["attribute_mixing"] = attributes.attribute_mixing(
        results, planted="eyeglasses", query="smile", where=where
    )
    for ending, kept in (("", where & flipped), ("_all", where)):
        row[f"mnac{ending}"] = attributes.mnac(results, where=kept)
        for kind, split in (("fair", "train"), ("biased", "biased")):
            options = {"query": "smile", "labels": labels(split), "where": kept}
            value = attributes.correlation_difference(results, **options) if both else None
            row[f"cd_{kind}{ending}"] = value
    return row


SEEDS = 5


def diversity(n: int) -> Iterator[Row]:
    """Sigma_L over five seeds (Eq. 3.20): the thesis has DiME at 0.213 and ACE, which it measures without inpainting, at 0.110."""
    x, _ = faces("test", "smile", n)
    target = 1 - classifier_of("smile-old", "smile").predict(x)
    methods = {k: v for k, v in methods_of("smile-old", "smile").items() if k in ("DiME", "ACE", "DVCE")}
    runs = {k: [explained(m, x, target, seed=seed) for seed in range(SEEDS)] for k, m in methods.items()}
    images = {k: torch.stack([joined(run, "x_cf") for run in seeds]) for k, seeds in runs.items()}
    bare = [
        [ace_study.refiltered(methods["ACE"], r, seed) for r in run] for seed, run in enumerate(runs["ACE"])
    ]
    images["ACE, no inpainting"] = torch.stack([torch.cat(parts) for parts in bare])
    lpips = closeness.lpips_distance(closeness.perceptual_network(x))
    guided = metrics.diversity(images["DiME"], lpips)
    for label, stacked in images.items():
        value = metrics.diversity(stacked, lpips)
        yield {
            "method": label,
            "sigma_l": value,
            "sigma_l1": metrics.diversity(stacked),
            "against_dime": None if label == "DiME" else metrics.difference(value, guided),
            "paper": {"DiME": 0.213, "ACE, no inpainting": 0.110}.get(label),
            "seeds": SEEDS,
            "n": n,
        }


SIZES = (32, 64, 128, 256, 512)


def fid_table(n: int) -> Iterator[Row]:
    """FID and sFID of real faces against real faces, hence of what could not be more realistic, at several numbers of faces."""
    x, others = (personas.load(split)[0] for split in ("test", "val"))
    for k in (*(size for size in SIZES if size < n), n):
        yield {
            "fid": realism.fid(x[:k], others[:k]),
            "sfid": realism.sfid(x[:k], x[:k].clone()),
            "copy": realism.fid(x[:k], x[:k].clone()),
            "n": k,
        }


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "metrics_methods": (methods_table, 64),
    "metrics_agreement": (agreement_table, 64),
    "metrics_ranks": (ranks_table, 64),
    "metrics_shortcut": (shortcut, 32),
    "metrics_diversity": (diversity, 8),
    "metrics_fid": (fid_table, 1000),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
