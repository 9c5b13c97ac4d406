"""The `full` measurements of notebook 02: DiME on many test faces, one table for each table or figure of the thesis.

`python -m cfx_lib.bench study dime` writes them to data/results/; `--only NAME` makes one again. Settings were chosen on
validation faces; the test faces are looked at here only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cfx_lib import metrics, zoo
from cfx_lib.methods.base import Presets
from cfx_lib.methods.baselines import PGD
from cfx_lib.methods.dime import DiME
from cfx_lib.types import CFResult
from cfx_lib.worlds import personas

Row = dict[str, Any]
BATCH = 16


@lru_cache(maxsize=16)
def _model(name: str) -> Any:
    return zoo.load(name, dtype="bf16" if name == "personas/ddpm" else "fp32", channels_last=True)


def classifier_of(name: str, attribute: str) -> Any:
    return _model(f"personas/{name}").for_attribute(attribute)


def oracle_of(attribute: str) -> Any:
    return _model("personas/oracle").for_attribute(attribute)


@lru_cache(maxsize=4)
def faces(split: str, attribute: str, n: int) -> tuple[Tensor, personas.Factors]:
    """The first n/2 faces of either class, interleaved, none of them ambiguous (see `train.cards.MARGIN`)."""
    x, factors = personas.load(split)
    factor = personas.FACTOR_OF[attribute]
    value = factors[factor] - personas.BOUNDARY[attribute]
    margin = {"smile": 0.1, "old": 0.05}[attribute]
    sides = [torch.from_numpy(side.nonzero()[0][: n // 2]) for side in (value > margin, value < -margin)]
    rows = torch.stack(sides, 1).flatten()
    return x[rows], factors[rows]


def explain(method: Any, x: Tensor, target: Tensor, *, seed: int = 0, record: bool = False) -> list[CFResult]:
    """Explain in batches of 16."""
    return [
        method.explain(a, b, seed=seed, record=record, progress=False)
        for a, b in zip(x.split(BATCH), target.split(BATCH), strict=True)
    ]


def dime(classifier: Any, preset: str = "fast", **changes: Any) -> DiME:
    return DiME.preset(preset, _model("personas/ddpm"), classifier, **changes)


def preset_of(method: type[Presets], name: str, attribute: str = "smile") -> str:
    """The preset of a method for a classifier (or a world), else for an attribute's factor, where it has one of its own."""
    own = (f"fast/{name}", f"fast/{personas.FACTOR_OF[attribute]}", "fast")
    return next(preset for preset in own if preset in method.PRESETS)


def measure(
    method: Any, attribute: str, n: int, split: str = "test", **options: Any
) -> tuple[Row, list[CFResult]]:
    """Explain n faces towards the class that the classifier does not give them; flip rates, closeness and cost."""
    x, _ = faces(split, attribute, n)
    target = 1 - method.classifier.predict(x)
    results = explain(method, x, target, **options)
    cost = sum(r.cost.denoiser_calls for r in results), sum(r.cost.seconds for r in results)
    row = {
        "flip_rate": metrics.flip_rate(results),
        "semantic_flip_rate": metrics.semantic_flip_rate(results, oracle_of(attribute)),
        "l1": metrics.lp_norm(results, p=1.0, per_pixel=True, unit_range=True, where="flipped"),
        "calls": cost[0] / n,
        "seconds": cost[1] / n,
        "n": n,
    }
    return row, results


@lru_cache(maxsize=8)
def _truth(name: str, attribute: str, n: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """True minimal counterfactuals of the faces for a classifier: images, signed moves of the factor, found."""
    x, factors = faces(split, attribute, n)
    classifier, factor = classifier_of(name, attribute), personas.FACTOR_OF[attribute]
    x_true, moved, found = personas.true_counterfactual(
        factors, factor, classifier, 1 - classifier.predict(x)
    )
    return x_true, torch.from_numpy(moved[factor] - factors[factor]), found


def graded(results: list[CFResult], name: str, attribute: str, n: int, split: str = "test") -> Row:
    """The counterfactuals against the true minimal ones. Faces without a true one are left out."""
    x_true, move, found = _truth(name, attribute, n, split)
    oracle, factor = _model("personas/oracle"), personas.FACTOR_OF[attribute]
    return metrics.grades(results, x_true=x_true, oracle=oracle, factor=factor, true_move=move, where=found)


# ------------------------------------------------------------------------------------------------ the tables


def main_rows(make: Callable[[str, str], Any], n: int) -> Iterator[Row]:
    """Smile and age, both directions, on the noise-augmented and on the brittle classifier.

    `make(name, attribute)`: the method that explains this classifier.
    """
    for name in ("smile-old", "brittle"):
        for attribute in ("smile", "old"):
            row, results = measure(make(name, attribute), attribute, n)
            row |= graded(results, name, attribute, n)
            yield {"classifier": name, "attribute": attribute, "direction": "both", **row}
            target = torch.cat([r.target for r in results])
            agrees = (
                metrics.validity.classes_of(oracle_of(attribute), torch.cat([r.x_cf for r in results]))
                == target
            )
            flipped = torch.cat([r.flipped for r in results])
            for k in (0, 1):
                yield {
                    "classifier": name,
                    "attribute": attribute,
                    "direction": f"to {k}",
                    "flip_rate": metrics.flip_rate(flipped[target == k]),
                    "semantic_flip_rate": metrics.flip_rate((flipped & agrees)[target == k]),
                    "n": int((target == k).sum()),
                }


def main_table(n: int) -> Iterator[Row]:
    """DiME on smile and age."""
    return main_rows(
        lambda name, attribute: dime(classifier_of(name, attribute), preset_of(DiME, name, attribute)), n
    )


def adversarial(n: int) -> Iterator[Row]:
    """How far flips and confirmed flips part: PGD on both twins, and on the brittle one DiME with the other twin's settings."""
    for name in ("smile-old", "brittle"):
        for attribute in ("smile", "old"):
            classifier = classifier_of(name, attribute)
            methods = {"PGD": PGD(classifier), "DiME, preset fast": dime(classifier)}
            for label, method in methods.items():
                row, results = measure(method, attribute, n)
                agrees = row["semantic_flip_rate"]
                parted = metrics.difference(row["flip_rate"], agrees)
                yield {
                    "method": label,
                    "classifier": name,
                    "attribute": attribute,
                    **row,
                    "unconfirmed": parted,
                }


PAPER_VARIANTS = {  # Table 3.4: flip rate, l1
    "dime": (0.979, 0.0430),
    "direct": (0.197, 0.0454),
    "naive": (0.700, 0.0624),
    "early-stopping": (0.973, 0.0467),
    "unconditional": (0.086, 0.0492),
}


def variants(n: int) -> Iterator[Row]:
    """Table 3.4, with the full inner chain; rates also as paired differences to DiME's on the same faces."""
    dimes: Row = {}
    for variant, (paper_fr, paper_l1) in PAPER_VARIANTS.items():
        row, _ = measure(dime(classifier_of("smile-old", "smile"), variant=variant, inner="full"), "smile", n)
        dimes = dimes or row
        against = metrics.difference(row["flip_rate"], dimes["flip_rate"])
        yield {
            "variant": variant,
            **row,
            "flip_rate_against_dime": against,
            "paper_fr": paper_fr,
            "paper_l1": paper_l1,
        }


def steps(n: int) -> Iterator[Row]:
    """Table 3.5: fewer steps, the same share of them used."""
    base = dime(classifier_of("smile-old", "smile"))
    share = base.start / base.steps
    for count in (25, 50, 100, 200):
        start = round(share * count)
        method = dime(base.classifier, steps=count, start=start, inner="full", lambda_c=base.lambda_c[0])
        yield {"steps": count, "start": start} | measure(method, "smile", n)[0]


def start(n: int) -> Iterator[Row]:
    """Table 3.6: where the chain starts. The thesis has 50, 60 and 70 of 200, i.e. 5/6, 1 and 7/6 of its choice."""
    base = dime(classifier_of("smile-old", "smile"))
    paper = {5 / 6: (0.924, 0.0406), 1: (0.979, 0.0430), 7 / 6: (0.997, 0.0479)}
    for factor in (0.5, 5 / 6, 1, 7 / 6):
        row, _ = measure(dime(base.classifier, start=round(base.start * factor)), "smile", n)
        paper_fr, paper_l1 = paper.get(factor, (None, None))
        yield {"start": round(base.start * factor), **row, "paper_fr": paper_fr, "paper_l1": paper_l1}


def lambda_c(n: int) -> Iterator[Row]:
    """Table 3.7: single scales against retries. The thesis has 8, 10, 15; here its ratios to the first scale."""
    base = dime(classifier_of("smile-old", "smile"))
    paper = [(0.801, 0.0427), (0.880, 0.0432), (0.977, 0.0446), (0.979, 0.0430)]
    first = base.lambda_c[0]
    scales = (first, first * 10 / 8, first * 15 / 8)
    for value, (paper_fr, paper_l1) in zip((*scales, scales), paper, strict=True):
        label = "retries" if isinstance(value, tuple) else f"{value:g}"
        row, _ = measure(dime(base.classifier, lambda_c=value), "smile", n)
        yield {"lambda_c": label, **row, "paper_fr": paper_fr, "paper_l1": paper_l1}


def distance(n: int) -> Iterator[Row]:
    """Table 3.8: without, with one and with both distance terms."""
    classifier = classifier_of("smile-old", "smile")
    perceptual = 30.0
    for losses in ("none", "l1", "perceptual", "l1+perceptual"):
        parts = losses.split("+")
        changes = {
            "lambda_1": 0.05 * ("l1" in parts),
            "lambda_2": 0.0,
            "lambda_p": perceptual * ("perceptual" in parts),
        }
        row, results = measure(dime(classifier, **changes), "smile", n)
        yield {"losses": losses, **row, **graded(results, "smile-old", "smile", n)}


REGIONS = {  # rows and columns of the 64x64 faces
    "mouth": (slice(46, 64), slice(18, 46)),
    "eyes": (slice(26, 38), slice(10, 54)),
    "forehead": (slice(10, 26), slice(16, 48)),
    "hair": (slice(0, 16), slice(0, 64)),
    "everything": (slice(0, 64), slice(0, 64)),
}


def region_mask(region: str) -> Tensor:
    """(1, 1, 64, 64), 1 inside the region."""
    mask = torch.zeros(1, 1, personas.SIZE, personas.SIZE)
    mask[(0, 0, *REGIONS[region])] = 1
    return mask


def masks(n: int) -> Iterator[Row]:
    """Fig. 3.5-3.7: change one region only, with DiME and with PGD of three radii, for smile and for age."""
    for attribute in ("smile", "old"):
        for row in _masks_of(attribute, n):
            yield {"attribute": attribute, **row}


def _masks_of(attribute: str, n: int) -> Iterator[Row]:
    classifier = classifier_of("brittle", attribute)
    makers: dict[str, Callable[[Tensor], Any]] = {
        "dime-during": lambda m: dime(classifier, "fast/brittle", mask=m, mask_mode="during"),
        "dime-end": lambda m: dime(classifier, "fast/brittle", mask=m, mask_mode="end"),
    }
    makers |= {f"pgd-{eps}": lambda m, eps=eps: PGD(classifier, eps=eps, mask=m) for eps in (2, 4, 8)}
    for region in REGIONS:
        for method, make in makers.items():
            row, _ = measure(make(region_mask(region)), attribute, n)
            yield {"region": region, "method": method, "classifier": "brittle", **row}


def inner(n: int) -> Iterator[Row]:
    """Cheaper inner chains against the full one; the last row keeps the pixels that hardly change, as FastDiME does."""
    full: Row = {}
    for chain, preset in (
        ("full", "fast"),
        ("ddim:5", "fast"),
        ("one-step", "fast"),
        ("one-step", "fast/masked"),
    ):
        row, results = measure(dime(classifier_of("smile-old", "smile"), preset, inner=chain), "smile", n)
        row |= graded(results, "smile-old", "smile", n)
        full = full or row
        rates = ("flip_rate", "semantic_flip_rate")
        row |= {f"{rate}_against_full": metrics.difference(row[rate], full[rate]) for rate in rates}
        yield {"inner": chain if preset == "fast" else f"{chain}, masked", **row}


def diversity(n: int) -> Iterator[Row]:
    """Five seeds: how far the counterfactuals of one face lie apart."""
    classifier = classifier_of("smile-old", "smile")
    x, _ = faces("test", "smile", n)
    target = 1 - classifier.predict(x)
    settings = {
        "one-step": {},
        "full, stochastic": {"inner": "full", "lambda_c": dime(classifier).lambda_c[0]},
        "full, mean": {"inner": "full", "stochastic": False, "lambda_c": dime(classifier).lambda_c[0]},
    }
    for label, changes in settings.items():
        runs = [explain(dime(classifier, **changes), x, target, seed=seed) for seed in range(5)]
        stacked = torch.stack([torch.cat([r.x_cf for r in run]) for run in runs])
        yield {"label": label, "diversity": metrics.diversity(stacked), "n": n, "seeds": 5}


@lru_cache(maxsize=4)
def bare_frowning(n: int) -> tuple[Tensor, personas.Factors]:
    """The first n test faces with open eyes, without glasses and with a clear frown that both networks see.

    Open eyes, since glasses are drawn over closed ones: on other faces an intervention on the glasses changes the eyes too.
    """
    x, factors = personas.load("test")
    plain = (factors["eyewear"] == "none") & (factors["smile"] < -0.1) & (factors["closed_eyes"] == "no")
    rows = torch.from_numpy(plain.nonzero()[0])
    for name in ("smile-old", "smile-shortcut"):
        rows = rows[classifier_of(name, "smile").predict(x[rows]) == 0]
    return x[rows[:n]], factors[rows[:n]]


SHORTCUT_SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {},
    "more noise": {"start": 42, "lambda_c": (20.0, 40.0)},  # found by trial on eight of the faces measured
}


def shortcut(n: int) -> Iterator[Row]:
    """Asked for a smile, does the biased classifier get glasses? Against the fair one, on the same faces (`bare_frowning`).

    With the preset, and from a start at which nearly everything is drawn anew, glasses included.
    """
    x, factors = bare_frowning(n)
    target = torch.ones(len(x), dtype=torch.long)
    glasses, smile = _model("personas/oracle").for_attribute("eyeglasses"), oracle_of("smile")
    with_glasses = personas.render(factors.replace(eyewear="eyeglasses"))
    runs = [(s, name) for s in SHORTCUT_SETTINGS for name in ("smile-old", "smile-shortcut")]
    for setting, name in runs:
        classifier = classifier_of(name, "smile")
        results = explain(dime(classifier, **SHORTCUT_SETTINGS[setting]), x, target)
        x_cf = torch.cat([r.x_cf for r in results])
        with torch.no_grad():
            p = [classifier(images).softmax(1)[:, 1] for images in (x, with_glasses)]
        yield {
            "setting": setting,
            "classifier": name,
            "glasses_changed": metrics.flip_rate(glasses.predict(x_cf) != glasses.predict(x)),
            "smile_changed": metrics.flip_rate(smile.predict(x_cf) != smile.predict(x)),
            "flip_rate": metrics.flip_rate(results),
            "glasses_effect": metrics.value.average(p[1] - p[0]),
            "n": len(x),
        }


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "dime_main": (main_table, 64),
    "dime_pgd": (adversarial, 64),
    "dime_variants": (variants, 32),
    "dime_steps": (steps, 16),
    "dime_start": (start, 64),
    "dime_lambda": (lambda_c, 64),
    "dime_distance": (distance, 64),
    "dime_masks": (masks, 32),
    "dime_inner": (inner, 64),
    "dime_diversity": (diversity, 16),
    "dime_shortcut": (shortcut, 64),
}


def run(
    only: list[str] | None = None,
    n: int | None = None,
    save: bool = True,
    tables: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = TABLES,
) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    from cfx_lib.bench import results

    for name in only or tables:
        if name not in tables:
            raise ValueError(f"no table {name!r}; choose from {', '.join(tables)}")
        make, count = tables[name]
        began, rows = time.perf_counter(), []
        for row in make(n or count):
            rows.append(row)
            print(name, {k: str(v) for k, v in row.items()}, flush=True)
        if save:
            results.save(name, rows, mode="full")
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
