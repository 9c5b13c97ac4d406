"""The `full` measurements of notebook 03: ACE on many test faces, one table for each finding of the thesis's chapter 4.

`python -m cfx_lib.bench study ace` writes them to data/results/; `--only NAME` makes one again. Settings were chosen on
validation faces; the test faces are looked at here only. Faces, judges, grades and DiME are those of `dime_study`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib import metrics
from cfx_lib.bench import dime_study
from cfx_lib.bench.dime_study import (
    Row,
    classifier_of,
    dime,
    explain,
    faces,
    graded,
    measure,
    oracle_of,
    preset_of,
)
from cfx_lib.diffusion import Diffusion
from cfx_lib.methods.ace import ACE
from cfx_lib.methods.filters import diffusion_filter
from cfx_lib.types import CFResult, Noise
from cfx_lib.worlds import personas

REACHED = 0.9
"""An attack counts as through once F_tau(x') has the wanted class with this probability."""


def ace(name: str, attribute: str, preset: str | None = None, **changes: Any) -> ACE:
    """ACE on the classifier `name`, asked about `attribute`."""
    classifier = classifier_of(name, attribute)
    preset = preset or preset_of(ACE, name, attribute)
    return ACE.preset(preset, dime_study._model("personas/ddpm"), classifier, **changes)


def l2_settings(preset: str) -> dict[str, Any]:
    """What turns the settings `preset` into those with the l2 distance: its weight in the thesis's proportion, 0.1 to 0.001."""
    return {"distance": "l2", "lambda_d": 100 * ACE.PRESETS[preset].get("lambda_d", 0.001)}


def attack_settings(attack: str, method: ACE, gd_step: float) -> dict[str, Any]:
    """What turns PGD into another attack of Sect. 4.4.6, which gives no step sizes.

    GD: `gd_step`, see there. C&W: Adam's rate is PGD's step, and the margin is followed to about P = 0.95.
    """
    return {
        "pgd": {},
        "gd": {"attack": "gd", "step_size": gd_step},
        "cw": {"attack": "cw", "loss": "margin", "confidence": 3.0},
    }[attack]


def gd_step(method: ACE, results: list[CFResult]) -> float:
    """The step size with which the first step of plain gradient descent is as long (in l2) as PGD's, on average.

    `results`: of `method` with attack "pgd" and `record=True`.
    """
    first = [r.steps[0] for r in results]
    gradient = torch.cat([s.class_grad + s.dist_grad for s in first]).flatten(1)
    return method.step_size * math.sqrt(gradient.shape[1]) / float(gradient.norm(dim=1).mean())


def steps_needed(result: CFResult, reached: float = REACHED) -> Tensor:
    """Attack steps until F_tau(x') had the target with probability `reached`, (N,) float64; NaN where it never had."""
    needed = torch.full((len(result),), torch.nan, dtype=torch.float64)
    for step in result.steps:
        if step.attempt == 0:
            hit = step.rows[(step.probability >= reached) & needed[step.rows].isnan()]
            needed[hit] = float(step.i)
    return needed


def mask_area(results: list[CFResult]) -> metrics.Value:
    """Share of the image that the mask lets change."""
    masks = torch.cat([r.extra["mask"] for r in results])
    return metrics.average(masks.float().flatten(1).mean(1))


def stage_images(results: list[CFResult]) -> dict[str, Tensor]:
    """The stages of Table 4.5 by its names; `results` made with `stages=True`."""
    names = {"Pre-CE": "pre_explanation", "FR-CE": "fr_ce", "F-CE": "f_ce"}
    stages = {label: torch.cat([r.extra[key] for r in results]) for label, key in names.items()}
    return stages | {"ACE": torch.cat([r.x_cf for r in results])}


def refiltered(method: ACE, result: CFResult, seed: int = 0) -> Tensor:
    """F_tau of the pre-explanations (N,C,H,W): FR-CE, with noise of its own."""
    denoiser = method.denoiser
    diffusion = Diffusion(denoiser, denoiser.betas, method.steps, denoiser.learned_range)
    noise = Noise(seed + 1000).bind(result.x)
    with torch.no_grad():
        return diffusion_filter(diffusion, result.extra["pre_explanation"], method.start, noise.draw).clamp(
            -1, 1
        )


def kept_bytes(method: ACE, x: Tensor, target: Tensor) -> int:
    """Bytes that autograd keeps for one gradient through F_tau of the images `x`, the networks' weights left out.

    With checkpointing what one denoising step needs comes on top, for as long as the way back is inside that step.
    """
    owners = [m for m in (method.denoiser, method.classifier) if isinstance(m, nn.Module)]
    weights = {p.untyped_storage().data_ptr() for m in owners for p in m.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, an output would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        replace(method, iterations=1).explain(x, target, progress=False)
    return sum(kept.values())


# ------------------------------------------------------------------------------------------------ the tables


def main_table(n: int) -> Iterator[Row]:
    """ACE on smile and age, on the noise-augmented and on the brittle classifier."""
    return dime_study.main_rows(ace, n)


PAPER_STAGES = {  # Table 4.5: flip rates
    "smile": {"Pre-CE": 0.9982, "FR-CE": 0.9997, "F-CE": 0.9337, "ACE": 0.9986},
    "old": {"Pre-CE": 0.9955, "FR-CE": 0.9977, "F-CE": 0.9350, "ACE": 0.9935},
}


def stages(n: int) -> Iterator[Row]:
    """Table 4.5: the pre-explanation, filtered without inpainting (respaced and with all steps), and all of ACE."""
    for attribute, paper in PAPER_STAGES.items():
        method = ace("smile-old", attribute, stages=True)
        _, results = measure(method, attribute, n)
        x, target = (torch.cat([getattr(r, name) for r in results]) for name in ("x", "target"))
        x_true, _, found = dime_study._truth("smile-old", attribute, n, "test")
        for stage, images in stage_images(results).items():
            flipped = method.classifier.predict(images) == target
            agrees = oracle_of(attribute).predict(images) == target
            yield {
                "attribute": attribute,
                "stage": stage,
                "flip_rate": metrics.flip_rate(flipped),
                "semantic_flip_rate": metrics.flip_rate(flipped & agrees),
                "l1": metrics.lp_norm(x, images, per_pixel=True, unit_range=True, where=flipped),
                "edit_error": metrics.edit_error(x, images, x_true=x_true, where=found),
                "outside_share": metrics.outside_share(x, images, x_true=x_true, where=found),
                "paper_fr": paper[stage],
                "n": n,
            }


def attacks(n: int) -> Iterator[Row]:
    """Sect. 4.4.6: PGD, plain gradient descent, Carlini and Wagner's, with the iterations of PGD and twice as many."""
    base = ace("smile-old", "smile")
    x, _ = faces("test", "smile", n)
    target = 1 - base.classifier.predict(x)
    first = explain(replace(base, iterations=1), x, target, record=True)
    step, pgd = gd_step(base, first), None
    for attack in ("pgd", "gd", "cw"):
        for times in (1, 2):
            settings = attack_settings(attack, base, step) | {"iterations": times * base.iterations}
            method = replace(base, **settings)
            row, results = measure(method, "smile", n, record=times == 2)
            row |= {"attack": attack, "iterations": method.iterations, "step_size": method.step_size}
            if times == 2:
                needed = torch.cat([steps_needed(r) for r in results])
                pgd = needed if pgd is None else pgd
                row |= {
                    "reached": metrics.flip_rate(~needed.isnan()),
                    "steps_needed": metrics.average(needed),
                    "times_pgd": metrics.ratio(needed, pgd.clamp(min=1)),
                }
            yield row


def distance(n: int) -> Iterator[Row]:
    """l1 against l2 (Sect. 4.4.2), and no distance at all."""
    for attribute in ("smile", "old"):
        preset = preset_of(ACE, "smile-old", attribute)
        for label, changes in (("none", {"lambda_d": 0.0}), ("l1", {}), ("l2", l2_settings(preset))):
            method = ace("smile-old", attribute, preset, **changes)
            row, results = measure(method, attribute, n)
            yield {
                "attribute": attribute,
                "distance": label,
                "lambda_d": method.lambda_d,
                **row,
                "mask_area": mask_area(results),
                **graded(results, "smile-old", attribute, n),
            }


def cost(n: int) -> Iterator[Row]:
    """Calls and seconds of DiME and ACE on the same faces, with this world's settings and with the thesis's.

    One attempt of DiME, without retries. The thesis: ACE is 3.6 times faster (Sect. 4.4.6).
    """
    classifier = classifier_of("smile-old", "smile")
    fast, paper = ace("smile-old", "smile"), ace("smile-old", "smile", "paper/celeba")
    first = dime(classifier).lambda_c[0]
    pairs = {
        "fast": {
            "DiME, one-step": dime(classifier, lambda_c=first),
            "DiME, full": dime(classifier, lambda_c=first, inner="full"),
            "ACE": fast,
            "ACE, checkpointing": replace(fast, checkpointing=True),
        },
        "thesis": {"DiME, full": dime(classifier, "paper/celeba", lambda_c=8.0), "ACE": paper},
    }
    x, _ = faces("test", "smile", n)
    target = 1 - classifier.predict(x)
    replace(fast, iterations=2).explain(
        x[:4], target[:4], progress=False
    )  # the first calls of a network are slower
    for settings, methods in pairs.items():
        full: Tensor | None = None
        for name, method in methods.items():
            parts = zip(x.split(4), target.split(4), strict=True)
            results = [method.explain(a, b, progress=False) for a, b in parts]
            seconds = torch.tensor([r.cost.seconds / len(r) for r in results], dtype=torch.float64)
            full = seconds if name == "DiME, full" else full
            row = {
                "settings": settings,
                "method": name,
                "calls": sum(r.cost.denoiser_calls for r in results) / n,
                "seconds": metrics.cost_per_explanation(results),
                "times_faster": None if full is None else metrics.ratio(full, seconds),
                "flip_rate": metrics.flip_rate(results),
                "semantic_flip_rate": metrics.semantic_flip_rate(results, oracle_of("smile")),
                "n": n,
            }
            if isinstance(method, ACE):
                row["kept_mb"] = kept_bytes(method, x[:1], target[:1]) / 1e6
            yield row


def diversity(n: int) -> Iterator[Row]:
    """Sect. 4.4.3: five seeds. The thesis measures ACE without inpainting, since DiME has none (LPIPS there, l1 here)."""
    method = ace("smile-old", "smile")
    x, _ = faces("test", "smile", n)
    target = 1 - method.classifier.predict(x)
    runs = [explain(method, x, target, seed=seed) for seed in range(5)]
    guided = [explain(dime(method.classifier), x, target, seed=seed) for seed in range(5)]
    images = {
        "ACE": [[r.x_cf for r in run] for run in runs],
        "ACE, no inpainting": [[refiltered(method, r, seed) for r in run] for seed, run in enumerate(runs)],
        "DiME": [[r.x_cf for r in run] for run in guided],
    }
    paper = {"ACE, no inpainting": 0.110, "DiME": 0.213}
    for label, seeds in images.items():
        stacked = torch.stack([torch.cat(parts) for parts in seeds])
        yield {
            "label": label,
            "diversity": metrics.diversity(stacked),
            "paper_lpips": paper.get(label),
            "n": n,
            "seeds": 5,
        }


# What a reader of counterfactuals might conclude: the intervention, and the oracle's attribute that shows it in a picture.
Hypothesis = tuple[dict[str, Any], tuple[str, bool]]
HYPOTHESES: dict[str, dict[str, Hypothesis]] = {
    "smile": {
        "eyeglasses": ({"eyewear": "eyeglasses"}, ("eyeglasses", True)),
        "sunglasses": ({"eyewear": "sunglasses"}, ("sunglasses", True)),
        "closed eyes": ({"closed_eyes": "yes"}, ("closed_eyes", True)),
        "a moustache": ({"facial_hair": "mustache"}, ("mustache", True)),
        "a hat": ({"hair": "beanie"}, ("hat", True)),
        "a hint of a smile": ({"smile": 0.2}, ("smile", True)),
    },
    "old": {
        "eyeglasses": ({"eyewear": "eyeglasses"}, ("eyeglasses", True)),
        "a frown": ({"smile": -0.9}, ("smile", False)),
        "a beard": ({"facial_hair": "beard"}, ("beard", True)),
        "no hair": ({"hair": "bald"}, ("bald", True)),
        "a hat": ({"hair": "beanie"}, ("hat", True)),
        "older": ({"age": 0.65}, ("old", True)),
    },
}


def subjects(attribute: str, n: int) -> tuple[Tensor, personas.Factors]:
    """Test faces for interventions: clearly not smiling (or young), no eyewear, beard, hat or baldness, eyes open.

    Both the fair and the shortcut classifier give them the negative class. For "old" they smile, so that a frown is news.
    """
    x, f = personas.load("test")
    margin = {"smile": 0.1, "old": 0.05}[attribute]
    value = f[personas.FACTOR_OF[attribute]] - personas.BOUNDARY[attribute]
    rows = (value < -margin) & (f["eyewear"] == "none") & (f["closed_eyes"] == "no")
    rows &= (f["facial_hair"] == "none") & (f["hair"] != "beanie") & (f["hair"] != "bald")
    if attribute == "old":
        rows &= f["smile"] > 0.2
    found = torch.from_numpy(rows.nonzero()[0])
    for name in ("smile-old", "smile-shortcut"):
        found = found[classifier_of(name, attribute).predict(x[found]) == 0]
    return x[found[:n]], f[found[:n]]


def seen_in(oracle: Any, attribute: str, wanted: bool, x: Tensor, x_cf: Tensor) -> Tensor:
    """Whether the oracle sees `attribute` as `wanted` in the counterfactual and did not in the input, (N,) bool."""
    judge = oracle.for_attribute(attribute)
    return (judge.predict(x_cf) == int(wanted)) & (judge.predict(x) != int(wanted))


def chance(classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """P(class 1) of each image, (N,)."""
    with torch.no_grad():
        return classifier(x).softmax(1)[:, 1]


def actionability(n: int) -> Iterator[Row]:
    """Fig. 4.4 for real: what the counterfactuals show, and what happens when each hypothesis is rendered."""
    oracle = dime_study._model("personas/oracle")
    for attribute, hypotheses in HYPOTHESES.items():
        x, factors = subjects(attribute, n)
        target = torch.ones(len(x), dtype=torch.long)
        rendered = {
            h: personas.render(personas.intervene(factors, **do)) for h, (do, _) in hypotheses.items()
        }
        for name in ("smile-old", "smile-shortcut"):
            classifier = classifier_of(name, attribute)
            results = explain(ace(name, attribute), x, target)
            x_cf = torch.cat([r.x_cf for r in results])
            before = chance(classifier, x)
            for hypothesis, (_, shows) in hypotheses.items():
                after = chance(classifier, rendered[hypothesis])
                yield {
                    "attribute": attribute,
                    "classifier": name,
                    "hypothesis": hypothesis,
                    "seen": metrics.flip_rate(seen_in(oracle, *shows, x, x_cf)),
                    "flipped": metrics.flip_rate((before < 0.5) & (after > 0.5)),
                    "effect": metrics.average(after - before),
                    "flip_rate": metrics.flip_rate(results),
                    "n": len(x),
                }


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of faces)
    "ace_main": (main_table, 64),
    "ace_stages": (stages, 32),
    "ace_attacks": (attacks, 12),
    "ace_distance": (distance, 16),
    "ace_cost": (cost, 8),
    "ace_diversity": (diversity, 8),
    "ace_actionability": (actionability, 32),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
