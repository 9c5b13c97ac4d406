"""The `full` measurements of notebook 05: LDCE on faces, from a small text-to-image model and a class-conditional one.

`python -m cfx_lib.bench study ldce` writes them to data/results/; `--only NAME` makes one again. Settings were chosen on
validation faces (`ldce_settings`); the test faces are looked at in the other tables only. Faces, judges and grades are
those of `dime_study`. Counterfactuals of `ldce_main` are kept in the cache folder, so an interrupted run goes on, and two
processes can share the work: `python -c "from cfx_lib.bench import ldce_study; ldce_study.fill('smile-old:old')"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfx_lib import metrics
from cfx_lib.bench import dime_study, latent_probes, ldce_faces, model_errors
from cfx_lib.bench.conditions import CONDITIONS
from cfx_lib.bench.dime_study import Row, classifier_of, explain, faces, graded, oracle_of
from cfx_lib.bench.dvce_study import cost_of, gaps
from cfx_lib.bench.kept import explained, joined, pretended
from cfx_lib.bench.ldce_errors import HAT, errors
from cfx_lib.bench.ldce_faces import MODELS, WEAK, latent, ldce, prompts_of, variants_of
from cfx_lib.methods.ldce import LDCE, random_share
from cfx_lib.metrics import closeness, features, frechet, realism, similarity, transition
from cfx_lib.metrics.value import Value
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

__all__ = [
    "HAT",
    "TABLES",
    "WEAK",
    "counterfactuals",
    "fill",
    "latent",
    "ldce",
    "prompts_of",
    "run",
    "variants_of",
]


# ------------------------------------------------------------------------------------------- counterfactuals


def counterfactuals(condition: str, n: int = 64) -> dict[str, list[CFResult]]:
    """The counterfactuals of all methods for n test faces, from the cache folder where they are there."""
    name, attribute = CONDITIONS[condition]
    x, _ = faces("test", attribute, n)
    target = 1 - classifier_of(name, attribute).predict(x)
    return {label: explained(method, x, target) for label, method in variants_of(name, attribute).items()}


def fill(*conditions: str, n: int = 64) -> None:
    """Make the counterfactuals of some conditions (all by default) and keep them."""
    for condition in conditions or CONDITIONS:
        for label, results in counterfactuals(condition, n).items():
            print(condition, label, metrics.flip_rate(results), flush=True)


# ----------------------------------------------------------------------------------------------- measurements


def short(results: list[CFResult], attribute: str) -> Row:
    """What every table says: flips, who confirms them, closeness of the flipped ones, realism, cost."""
    lengths = {"per_pixel": True, "unit_range": True, "where": "flipped"}
    return {
        "flip_rate": metrics.flip_rate(results),
        "semantic_flip_rate": metrics.semantic_flip_rate(results, oracle_of(attribute)),
        "l1": metrics.lp_norm(results, p=1.0, **lengths),
        "fid": realism.fid(results),
        **cost_of(results),
        "n": sum(map(len, results)),
    }


def summary(results: list[CFResult], name: str, attribute: str) -> Row:
    """A row of `ldce_main`. The papers' metrics count flipped images; "fid_all" all, as it depends on their number."""
    n = sum(map(len, results))
    everyone = torch.ones(n, dtype=torch.bool)
    return short(results, attribute) | {
        "l2": metrics.lp_norm(results, p=2.0, per_pixel=True, unit_range=True, where="flipped"),
        "confidence": metrics.mean_confidence(results),
        "cout": transition.cout(results, classifier=classifier_of(name, attribute)),
        "sfid": realism.sfid(results),
        "s3": similarity.s3(results),
        "fid_all": realism.fid(results, where=everyone),
        **graded(results, name, attribute, n),
    }


def fid_gap(a: list[CFResult], b: list[CFResult]) -> Value:
    """FID of a less FID of b, all images, flipped or not, with the jackknife interval of `metrics.realism` for the gap."""
    x, parts = joined(a, "x"), []
    network = features.feature_network(None, x)
    keys, real = frechet.content_keys(x), features.embed(network, x)
    for results in (a, b):
        found = frechet.GroupedStatistics()
        found.add(real, keys, True)
        found.add(features.embed(network, joined(results, "x_cf")), keys, False)
        parts.append(found.distances())
    if any(part is None for part in parts):
        return Value(np.nan, np.nan, np.nan, 0, method="delete-a-group jackknife of the difference")
    first, second = parts
    apart = frechet.Distances(
        first.value - second.value, first.without - second.without, first.share, first.n, first.dim
    )
    value, _, high = frechet.jackknife([apart])
    return Value(
        value,
        2 * value - high,
        high,
        len(x),
        network.name,
        method="delete-a-group jackknife of the difference",
    )


# ------------------------------------------------------------------------------------------------ the tables

PIXELS = 3 * 256**2  # of an image of the paper's
PAPER_TABLE_1 = {  # ImageNet: L1, L2 (here as means over the values), FID, sFID, FR
    "DVCE": (9709, 38, 15.1, 21.14, 0.9956),
    "LDCE-no consensus": (12337, 41, 21.7, 27.1, 0.984),
    "LDCE-cls": (12375, 42, 14.03, 19.25, 0.831),
    "LDCE-txt": (11577, 41, 21.0, 26.5, 0.844),
}
PAPER_TABLE_6 = {  # CelebA HQ: FID, sFID, COUT for smile and for age
    ("ACE", "smile"): (3.21, 20.2, 0.5496),
    ("LDCE-txt", "smile"): (13.6, 25.8, 0.3428),
    ("LDCE-txt, classifier-free overwrite", "smile"): (15.3, 26.7, 0.5938),
    ("ACE", "old"): (5.31, 21.7, 0.3984),
    ("LDCE-txt", "old"): (14.2, 25.6, 0.3297),
    ("LDCE-txt, classifier-free overwrite", "old"): (15.5, 27.1, 0.4155),
}


def paper_columns(label: str, attribute: str) -> Row:
    row: Row = {}
    if label in PAPER_TABLE_1:
        l1, l2, fid, sfid, flips = PAPER_TABLE_1[label]
        row |= {"paper_l1": l1 / PIXELS, "paper_l2": l2 / PIXELS**0.5, "paper_fid": fid, "paper_sfid": sfid}
        row["paper_flip"] = flips
    if (label, attribute) in PAPER_TABLE_6:
        names = ("paper_celebahq_fid", "paper_celebahq_sfid", "paper_celebahq_cout")
        row |= dict(zip(names, PAPER_TABLE_6[label, attribute], strict=True))
    return row


def main_table(n: int) -> Iterator[Row]:
    """Tables 1, 2 and 6 in miniature: the variants, DVCE and ACE on the same faces; gaps are against LDCE-txt.

    A class-conditional model that knows no ages cannot be asked for one. The two further conditions take half the faces.
    """
    for condition, (name, attribute) in CONDITIONS.items():
        count = n if condition == "smile-old:smile" else max(2, n // 2)
        yield from main_rows(counterfactuals(condition, count), name, attribute)


def main_rows(found: dict[str, list[CFResult]], name: str, attribute: str) -> Iterator[Row]:
    """The rows of `main_table` for the counterfactuals of a classifier's methods, LDCE-txt first among them."""
    columns, txt = ("flip_rate", "semantic_flip_rate", "l1", "s3", "cout"), {}
    for label, results in found.items():
        row = summary(results, name, attribute)
        txt = txt or row
        if label != "LDCE-txt":
            row |= gaps(row, txt, columns, "txt")
            row["fid_all_against_txt"] = fid_gap(results, found["LDCE-txt"])
        about = {"classifier": name, "attribute": attribute, "method": label}
        yield {**about, **row, **paper_columns(label, attribute)}


PAPER_SECONDS = {"LDCE-txt": 156 / 4, "DVCE": 210 / 4, "ACE": 184.0}  # Sect. 4.2, on an RTX 3090


def cost(n: int) -> Iterator[Row]:
    """Seconds, calls and peak memory of LDCE, DVCE and ACE in one run, in batches of 4 and 8; "speedup": over LDCE-txt.

    The paper: DVCE takes 34 % longer, ACE 371 %. Peak memory is the rise of the process's resident memory.
    """
    name, attribute = "smile-old", "smile"
    x, _ = faces("test", attribute, n)
    target = 1 - classifier_of(name, attribute).predict(x)
    methods = variants_of(name, attribute)
    methods = {label: methods[label] for label in ("LDCE-txt", "DVCE", "ACE")}
    for method in methods.values():  # the first calls of a network are slower
        method.explain(x[:2], target[:2], progress=False)
    for batch in (4, 8):
        ours: Value | None = None
        for label, method in methods.items():
            runs: list[CFResult] = []

            def all_batches(method: Any = method, batch: int = batch, runs: list = runs) -> None:
                parts = zip(x.split(batch), target.split(batch), strict=True)
                runs.extend(method.explain(a, b, progress=False) for a, b in parts)

            peak = metrics.measure_peak_memory(all_batches) / 2**20
            seconds = metrics.cost_per_explanation(runs)
            ours = ours or seconds
            yield {
                "method": label,
                "batch": batch,
                **cost_of(runs),
                "seconds": seconds,
                "times_ours": seconds.mean / ours.mean,
                "peak_mb": peak,
                "flip_rate": metrics.flip_rate(runs),
                "paper_seconds": PAPER_SECONDS[label],
                "paper_times_ours": PAPER_SECONDS[label] / PAPER_SECONDS["LDCE-txt"],
                "n": n,
            }


def direct(n: int) -> Iterator[Row]:
    """Sect. 3.1: the gradient straight in the latent, without diffusion; the change is also measured from D(E(x))."""
    for name in ("smile-old", "brittle"):
        x, _ = faces("test", "smile", n)
        classifier, model = classifier_of(name, "smile"), ldce_faces.latent(MODELS["txt"])
        target = 1 - classifier.predict(x)
        plain = latent_probes.reconstruction(model, x)
        runs = {
            "reconstruction": [pretended(x, plain, target, classifier)],
            "descent": [latent_probes.latent_descent(model, classifier, x, target)],
            "descent, distance": [latent_probes.latent_descent(model, classifier, x, target, lambda_d=0.5)],
            "LDCE-txt": explained(ldce(name, "smile"), x, target),
        }
        for label, results in runs.items():
            x_cf = joined(results, "x_cf")
            row = short(results, "smile") | {"classifier": name, "method": label}
            lengths = {"per_pixel": True, "unit_range": True}
            row["l1_from_reconstruction"] = metrics.lp_norm(plain, x_cf, p=1.0, **lengths)
            if "descent" in label:
                row["moves"] = metrics.average(results[0].extra["moves"])
            row["unconfirmed"] = metrics.difference(row["flip_rate"], row["semantic_flip_rate"])
            yield row


def _shares(angles: Tensor, gamma: float) -> Value:
    """Share of latent pixels with an angle up to gamma; angles (N,...), interval over the faces."""
    hits = torch.where(angles.isnan(), torch.nan, (angles <= gamma).double())
    return metrics.average(hits.flatten(1).nanmean(1), unit="%")


MOUTH = (slice(11, 16), slice(4, 12))  # latent rows and columns of `dime_study.REGIONS["mouth"]`


def consensus_table(n: int) -> Iterator[Row]:
    """Which latent pixels pass Eq. 11: own scores against those of other faces and against random directions.

    "of the same target": the implicit score of another face that is asked for the same; "of the other target": of one
    that is asked for the opposite; "own, against the opposite": the implicit score eps_c - eps_c' of the two prompts, not
    the paper's. Rows with "step" are single steps of the own pairs, the noisiest first.
    """
    name, attribute = "smile-old", "smile"
    x, _ = faces("test", attribute, n)
    target = 1 - classifier_of(name, attribute).predict(x)
    for kind in MODELS:
        method = ldce(name, attribute, kind)
        results = explain(method, x, target, record=True)
        used, channels = method.gamma, method.model.channels
        pairs: dict[str, Row] = {
            "own": {},
            "of the same target": {"shift": 2},
            "of the other target": {"shift": 1},
            "own, against the opposite": {"opposite": True},
        }
        angles = {k: latent_probes.pair_angles(method, results, **v) for k, v in pairs.items()}
        own = None
        for label, found in angles.items():
            row: Row = {"kind": kind, "pairs": label, "part": "all", "gamma": used, "n": n}
            row |= {"passed": _shares(found, used), "passed_50": _shares(found, 50.0)}
            mouth = found[:, :, MOUTH[0], MOUTH[1]] if found.shape[-1] == 16 else found
            row["passed_mouth"] = _shares(mouth, used)
            row |= {"random": random_share(used, channels), "random_50": random_share(50.0, channels)}
            own = own or row
            yield row | gaps(row, own, ("passed",), "own") if label != "own" else row
        for k, step in enumerate(results[0].steps):
            row = {
                "kind": kind,
                "pairs": "own",
                "part": "step",
                "step": k,
                "t": step.t,
                "gamma": used,
                "n": n,
            }
            at = angles["own"][:, k]
            yield row | {"passed": _shares(at, used), "passed_50": _shares(at, 50.0)}


def _tried(method: LDCE, x: Tensor, target: Tensor, attribute: str) -> Row:
    """A setting: flips, closeness, and the share of latent pixels that passed beside that of random directions."""
    results = explain(method, x, target)
    passed = metrics.average(joined_extra(results, "passed").double().mean(1), unit="%")
    chance = random_share(method.gamma, method.model.channels, method.patch)
    return {**short(results, attribute), "passed": passed, "random": chance}


def _varied(changes: dict[Any, Row], key: str, n: int, first: Any) -> Iterator[Row]:
    """LDCE-txt on smile with changed settings, a row for each; gaps are against the row `first`."""
    name, attribute = "smile-old", "smile"
    x, _ = faces("test", attribute, n)
    target = 1 - classifier_of(name, attribute).predict(x)
    rows = {k: _tried(ldce(name, attribute, **v), x, target, attribute) for k, v in changes.items()}
    for label, row in rows.items():
        apart = gaps(row, rows[first], ("flip_rate", "semantic_flip_rate"), "first")
        yield {key: label, **row, **(apart if label != first else {})}


def joined_extra(results: list[CFResult], name: str) -> Tensor:
    return torch.cat([r.extra[name] for r in results])


def gamma(n: int) -> Iterator[Row]:
    """The consensus threshold: from nearly nothing that passes to all (180 degrees: no consensus)."""
    yield from _varied({g: {"gamma": float(g)} for g in (30, 40, 50, 60, 75, 90, 180)}, "gamma", n, first=180)


def patch(n: int) -> Iterator[Row]:
    """The size of the patches that pass or not together; the paper takes 1x1."""
    yield from _varied({p: {"patch": p} for p in (1, 2, 4)}, "patch", n, first=1)


def frequency(n: int) -> Iterator[Row]:
    """App. F, coarse to fine: energy by spatial frequency of the decoded estimate's change at each step.

    "difference": from the input; "change": what the step itself changed; "left": how far it still is from the end, in
    each band as a share of the final difference's energy in that band. Cycles an image: see `latent_probes.BANDS`.
    """
    x, _ = faces("test", "smile", n)
    method = ldce("smile-old", "smile")
    results = explain(method, x, 1 - method.classifier.predict(x), record=True)
    path, steps = latent_probes.x0_path(results), results[0].steps
    final = latent_probes.band_energy(path[-1] - x)
    for k, step in enumerate(steps):
        row: Row = {"step": k, "t": step.t, "n": n}
        seen = {"difference": path[k] - x, "change": path[k + 1] - path[k]}
        for label, change in seen.items():
            energy = latent_probes.band_energy(change)
            total = sum(energy.values())
            row[f"{label}_energy"] = metrics.average(total)
            row |= {f"{label}_{band}": metrics.ratio(part, total) for band, part in energy.items()}
        left = latent_probes.band_energy(path[-1] - path[k])
        row |= {f"left_{band}": metrics.ratio(part, final[band]) for band, part in left.items()}
        yield row


def seeds(n: int) -> Iterator[Row]:
    """App. G: five seeds a face; how far the counterfactuals lie apart, and whether they all flip. And each seed alone."""
    x, _ = faces("test", "smile", n)
    distance = closeness.lpips_distance(closeness.perceptual_network(x))
    usual = ldce("smile-old", "smile")
    later = ldce("smile-old", "smile", start=max(usual.start, round(0.96 * usual.steps)))
    for label, method in {"LDCE-txt": usual, "LDCE-txt, from 96 %": later}.items():
        runs = method.explain_many(x, 1 - method.classifier.predict(x), seeds=5, progress=False)
        flips = torch.stack([r.flipped for r in runs])
        yield {
            "method": label,
            "start": method.start,
            "diversity": metrics.diversity(runs, distance),
            "diversity_l1": metrics.diversity(runs),
            "to_input": metrics.average(
                torch.cat([distance(r.x, r.x_cf) for r in runs]).double(), backbone=distance.name
            ),
            "flip_rate": metrics.flip_rate(runs),
            "all_flip": metrics.flip_rate(flips.all(0)),
            "any_flips": metrics.flip_rate(flips.any(0)),
            "n": n,
            "seeds": 5,
        }


Problem = tuple[str, str, str]


def _full(steps: int, start: int, gamma: float, lambda_c: float, lambda_d: float, **more: Any) -> Row:
    """A setting in full, so that it does not depend on the preset."""
    plain = {"steps": steps, "start": start, "gamma": gamma, "lambda_c": lambda_c, "lambda_d": lambda_d}
    return plain | {"eta": 2.0, "norm": "released"} | more


SETTINGS: dict[Problem, dict[str, Row]] = {
    ("smile-old", "smile", "txt"): {
        "preset": {},
        "1": _full(50, 36, 50.0, 8.0, 1.2),
        "2": _full(50, 36, 60.0, 3.95, 1.2, norm="paper", eta=0.1),
        "3": _full(50, 36, 90.0, 3.95, 3.0, norm="paper", eta=0.1),
        "4": _full(50, 40, 75.0, 30.0, 8.0),
        "5": _full(50, 40, 60.0, 30.0, 4.0),
        "6": _full(50, 40, 75.0, 30.0, 15.0),
        "7": _full(50, 40, 75.0, 16.0, 6.0),
        "8": _full(50, 40, 75.0, 3.95, 2.0, norm="paper", eta=0.2),
        "9": _full(50, 42, 75.0, 20.0, 10.0),
        "10": _full(25, 20, 60.0, 16.0, 6.0),
        "11": _full(50, 40, 60.0, 12.0, 5.0),
        "12": _full(50, 38, 50.0, 12.0, 5.0),
        "13": _full(25, 20, 75.0, 12.0, 6.0),
        "14": _full(25, 20, 60.0, 12.0, 5.0),
    },
    ("smile-old", "old", "txt"): {"preset": {}, "1": _full(25, 22, 60.0, 16.0, 6.0)},
    ("smile-old", "smile", "cls"): {
        "preset": {},
        "1": _full(25, 20, 60.0, 12.0, 6.0),
        "2": _full(25, 20, 75.0, 12.0, 6.0),
        "3": _full(25, 20, 60.0, 30.0, 12.0),
        "4": _full(25, 20, 60.0, 2.5, 2.0),
        "5": _full(25, 20, 60.0, 5.0, 4.0),
        "6": _full(25, 18, 60.0, 3.5, 2.0),
        "7": _full(25, 20, 75.0, 3.5, 2.0),
        "8": _full(25, 20, 60.0, 3.5, 1.5),
        "9": _full(25, 20, 60.0, 4.0, 2.0, norm="paper", eta=0.1),
        "10": _full(25, 20, 60.0, 6.0, 3.0, norm="paper", eta=0.1),
    },
    (WEAK, "old", "txt"): {
        "preset": {},
        "1": _full(25, 20, 75.0, 12.0, 6.0),
        "2": _full(25, 22, 75.0, 16.0, 3.0),
    },
}
"""Network, attribute, kind -> the settings that were tried on validation faces; "preset" is what came of it."""
SEARCHED = ("steps", "start", "gamma", "eta", "lambda_c", "lambda_d", "norm")


def validation(name: str, attribute: str, n: int) -> tuple[Tensor, Tensor]:
    """Validation faces and targets: the other class, and for the weak classifier the true class of faces it gets wrong."""
    if name != WEAK:
        x, _ = faces("val", attribute, n)
        return x, 1 - classifier_of(name, attribute).predict(x)
    x, factors = personas.load("val")
    truth = torch.from_numpy(factors["age"] > personas.BOUNDARY["old"] + model_errors.CLEAR).long()
    found = model_errors.find(classifier_of(name, attribute), x, truth)
    rows = found.rows[found.labels == 1].sort().values[:n]
    return x[rows], truth[rows]


def settings(n: int) -> Iterator[Row]:
    """The search for the presets, on validation faces only."""
    for (name, attribute, kind), tried in SETTINGS.items():
        x, target = validation(name, attribute, n)
        for label, changes in tried.items():
            method = ldce(name, attribute, kind, **changes)
            row = {"classifier": name, "attribute": attribute, "kind": kind, "setting": label}
            row |= {k: getattr(method, k) for k in SEARCHED}
            yield {**row, "chosen": label == "preset", "split": "val", **_tried(method, x, target, attribute)}


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "ldce_main": (main_table, 64),
    "ldce_cost": (cost, 8),
    "ldce_direct": (direct, 16),
    "ldce_consensus": (consensus_table, 16),
    "ldce_gamma": (gamma, 32),
    "ldce_patch": (patch, 32),
    "ldce_frequency": (frequency, 16),
    "ldce_seeds": (seeds, 8),
    "ldce_settings": (settings, 16),
    "ldce_errors": (errors, 50),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
