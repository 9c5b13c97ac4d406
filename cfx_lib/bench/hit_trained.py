"""The tables of HiT's study that train networks themselves: what pooling, time and loss do, and a HiT with a shortcut.

Trainings count steps, not minutes, and run in float32 on the CPU, so that they come out alike on machines of any speed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib import hit, metrics, zoo
from cfx_lib.bench import dime_study, hit_probes
from cfx_lib.bench.dime_study import Row
from cfx_lib.methods.posthoc import attention_rollout, grad_cam, integrated_gradients
from cfx_lib.metrics import ground_truth
from cfx_lib.metrics.value import Value
from cfx_lib.train import hit as training
from cfx_lib.train.fashion import MEAN, STD
from cfx_lib.train.loop import Recipe, fit
from cfx_lib.train.recipes import PERSONAS_HIT
from cfx_lib.worlds import fashion, personas
from cfx_lib.zoo.classifiers import AttributeClassifier, ClassClassifier

__all__ = ["ablation", "shortcut", "shortcut_hit", "trained"]


def trained(
    arch: tuple[str, dict],
    images: Any,
    labels: Tensor,
    steps: int,
    *,
    seed: int = 0,
    augment: Any = None,
    mean: tuple = (0.5,),
    std: tuple = (0.5,),
    batch: int = 64,
) -> nn.Module:
    """A network of `timm` trained for so many steps with the recipe of `train.hit`; its moving average, in eval mode.

    images: uint8 of a world, or (M,C,H,W) in [-1,1], normalised with `mean` and `std` here. labels: (M,) long, cross-entropy,
    or (M,K) float in {0, 1}, binary cross-entropy; both with label smoothing.
    """
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    network = training.make_small(arch, classes, seed)
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    loss = training.smoothed_loss()

    def normalised(model: nn.Module, generator: torch.Generator, x: Tensor, wanted: Tensor) -> Tensor:
        return loss(model, generator, ((x + 1) / 2 - shift) / scale, wanted)

    recipe = Recipe(
        steps=steps,
        batch=batch,
        lr=3e-3,
        weight_decay=training.WEIGHT_DECAY,
        warmup=max(1, steps // 10),
        ema=0.99,
        seed=seed,
        precision="fp32",
        save_every=float("inf"),
        cpu=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        network, _ = fit(
            network, training.batches(images, labels, augment), normalised, recipe, Path(folder) / "run"
        )
    return network.eval().requires_grad_(False)


# ------------------------------------------------------------------------ pooling, time and loss (Table 6.3)

SMALL = {"img_size": 32, "in_chans": 1, "embed_dim": 48, "num_heads": 4, "mlp_ratio": 3.0}
VARIANTS: dict[str, dict] = {
    "none": SMALL | {"patch_size": 4, "depth": 6},
    "avg": SMALL | {"patch_size": 2, "pool": "avg", "depths": (2, 2, 2)},
    "conv": SMALL | {"patch_size": 2, "pool": "conv", "depths": (2, 2, 2)},
}
SHORT = 400  # steps; the longer training has twice as many
PAPER_TABLE_6_3 = {  # (pooling, loss, times SHORT) -> ImageNet accuracy of HiT-S; "conv": of HiT-s18
    ("none", "XE", 1): 0.656,
    ("none", "XE", 2): 0.678,
    ("none", "BCE", 1): 0.599,
    ("avg", "XE", 1): 0.693,
    ("avg", "XE", 2): 0.714,
    ("conv", "XE", 1): 0.759,
}
SEEDS = 2


def ablation(n: int) -> Iterator[Row]:
    """Table 6.3 in miniature: six settings, each trained twice on the 10,000 shipped training photographs, n test images.

    A row for each training, and one for both ("seed": "mean", whose interval is that of the test images alone), with the
    paired gap to the first setting. The thesis trained 300 and 600 epochs (BCE: 400 and 800); "steps" says what is done
    here. Patches are of 4x4 without pooling and of 2x2 before it, as the thesis halves its patches, too.
    """
    images, labels = fashion.load_uint8("train")
    labels = torch.from_numpy(labels).long()
    x, truth = fashion.load("test", n)
    first: Value | None = None
    for (pool, loss, times), paper in PAPER_TABLE_6_3.items():
        about = {"pool": pool, "loss": loss, "steps": SHORT * times, "batch": 64}
        wanted = labels if loss == "XE" else F.one_hot(labels, len(fashion.CLASSES)).float()
        right = []
        for seed in range(SEEDS):
            began = time.perf_counter()
            network = trained(
                ("hit_custom", VARIANTS[pool]),
                images,
                wanted,
                about["steps"],
                seed=seed,
                augment=training.augment_photographs,
                mean=MEAN,
                std=STD,
            )
            took = time.perf_counter() - began
            classifier = ClassClassifier(network, fashion.CLASSES, MEAN, STD, "ablation")
            right.append((classifier.predict(x) == truth).double())
            yield {**about, "seed": seed, "accuracy": metrics.rate(right[-1]), "seconds": took, "n": len(x)}
        both = metrics.average(torch.stack(right).mean(0), unit="%")
        first = first or both
        row = {**about, "seed": "mean", "accuracy": both, "paper": paper, "n": len(x)}
        row |= {"macs": hit.counts(network, 32)["macs"], "params": hit.counts(network, 32)["params"]}
        yield row | ({} if both is first else {"gap": metrics.difference(both, first)})


# ------------------------------------------------------------- a shortcut, and what counterfactuals say (Sect. 7.2)

FACE = PERSONAS_HIT[1]
SHORTCUT_STEPS = 400


@lru_cache(maxsize=2)
def shortcut_hit(steps: int | None = None, seed: int = 0) -> Any:
    """A HiT of the size of personas/hit that learned to smile on the biased faces, where who smiles wears glasses."""
    images, factors = personas.load_uint8("biased")
    labels = personas.attributes(factors)[:, [personas.ATTRIBUTES.index("smile")]].float()
    network = trained(
        PERSONAS_HIT, images, labels, steps or SHORTCUT_STEPS, seed=seed, augment=training.augment_faces
    )
    found = AttributeClassifier(network, ("smile",), mean=(0.5,) * 3, std=(0.5,) * 3, name="hit-shortcut")
    return found.for_attribute("smile")


def fair_hit() -> Any:
    """The shipped HiT of faces, which learned smiles from the fair population."""
    return zoo.load("personas/hit").for_attribute("smile")


def regions_of(factors: personas.Factors) -> dict[str, Tensor]:
    """Where glasses would be on these faces, and where the mouth moves: (N,64,64) bool, from renders with and without."""
    plain = factors.replace(eyewear="none", closed_eyes="no")
    pairs = {"glasses": {"eyewear": ("none", "eyeglasses")}, "mouth": {"smile": (-0.9, 0.9)}}
    return {
        name: ground_truth.edit_region(*(personas.render(plain.replace(**{k: v})) for v in values))
        for name, change in pairs.items()
        for k, values in change.items()
    }


def shortcut(n: int) -> Iterator[Row]:
    """A HiT that learned smiles from biased faces against the fair one: do map and counterfactual show the glasses?

    "map": faces with a frown and glasses (`dime_study.bare_frowning`, glasses drawn on), maps of the class "smile".
    "share_absolute", "share_positive": what of |map|, and of what speaks for the class, lies on the patches that glasses
    touch; "mouth_absolute": on those of the mouth; "area", "mouth_area": what a map without preference puts there.
    "top_patch": the largest is on the glasses. "accuracy": smiles of fair test faces. "DiME": counterfactuals
    of the same and of other faces, from the preset's noise and from so much ("more noise") that glasses can be drawn anew,
    for both networks: noise alone takes glasses away, too. "change" and "change_mouth": the shares of DiME's change; the map
    is that of the class predicted before; see `hit_probes.agreement` for "spearman", "shared" and their "_gap" to
    maps of other faces. Drawn faces are aligned: their maps resemble each other, and the gap asks for more than that.
    """
    bare, factors = dime_study.bare_frowning(n)
    worn = factors.replace(eyewear="eyeglasses")
    glasses, smiling = personas.render(worn), dime_study.faces("test", "smile", n)
    classifiers = {"shortcut": shortcut_hit(), "fair": fair_hit()}
    for label, classifier in classifiers.items():
        yield from map_rows(label, classifier, bare, glasses, regions_of(factors))
    seen = {"glasses on": (glasses, worn), "bare": (bare, factors)}
    plans = [(who, what, "more noise") for what in seen for who in classifiers]
    plans += [(who, "glasses on", "fast") for who in classifiers] + [("fair", "mixed", "fast")]
    for label, what, setting in plans:
        x, f = (seen | {"mixed": smiling})[what]
        row = counterfactual_row(classifiers[label], x, regions_of(f), dime_study.SHORTCUT_SETTINGS[setting])
        yield {"part": "DiME", "network": label, "images": what, "setting": setting, **row}


def shares(maps: Tensor, regions: dict[str, Tensor]) -> Row:
    """What of each |map| falls on the patches of glasses and mouth, what of its positive part on those of glasses, and how
    much of the image these patches are."""
    patches = {k: hit_probes.patches_of(v, tuple(maps.shape[1:])) for k, v in regions.items()}
    return {
        "share_absolute": metrics.ratio(*hit_probes.on_region(maps, patches["glasses"])),
        "share_positive": metrics.ratio(*hit_probes.on_region(maps, patches["glasses"], "positive")),
        "mouth_absolute": metrics.ratio(*hit_probes.on_region(maps, patches["mouth"])),
        "area": float(hit_probes.chance_of(patches["glasses"]).mean()),
        "mouth_area": float(hit_probes.chance_of(patches["mouth"]).mean()),
    }


def map_rows(
    label: str, classifier: Any, bare: Tensor, glasses: Tensor, regions: dict[str, Tensor]
) -> Iterator[Row]:
    """What maps of the class "smile" put on glasses and mouth, and what the glasses really change."""
    smile = torch.ones(len(glasses), dtype=torch.long)
    x, factors = personas.load("test")
    truth = personas.attributes(factors)[:, personas.ATTRIBUTES.index("smile")].long()
    with torch.no_grad():
        p = [classifier(images).softmax(1)[:, 1] for images in (bare, glasses)]
    own = hit_probes.hit_map(classifier, glasses, smile)
    maps = {
        "HiT": own,
        "HiT, change by the glasses": own - hit_probes.hit_map(classifier, bare, smile),
        "Grad-CAM": grad_cam(classifier, glasses, smile),
        "rollout": attention_rollout(classifier, glasses),
        "integrated gradients": integrated_gradients(classifier, glasses, smile),
        "random": hit_probes.at_random(classifier, glasses, smile),
    }
    patches = hit_probes.patches_of(regions["glasses"], tuple(own.shape[1:]))
    for name, found in maps.items():
        row: Row = {"part": "map", "network": label, "map": name, "n": len(glasses)}
        row |= shares(found, regions)
        top = found.flatten(1).argmax(1, keepdim=True)
        row["top_patch"] = metrics.rate(patches.flatten(1).gather(1, top)[:, 0])
        if name == "HiT":
            row["glasses_effect"] = metrics.average(p[1] - p[0])
            row["accuracy"] = metrics.rate(classifier.predict(x) == truth)
        yield row


def counterfactual_row(classifier: Any, x: Tensor, regions: dict[str, Tensor], setting: Row) -> Row:
    """DiME's counterfactuals of a HiT beside its map of the class that they leave; flips, and what really changed."""
    before = classifier.predict(x)
    results = dime_study.explain(dime_study.dime(classifier, **setting), x, 1 - before)
    x_cf = torch.cat([r.x_cf for r in results])
    left = hit_probes.hit_map(classifier, x, before)
    change = hit_probes.change_map(x, x_cf, tuple(left.shape[1:]))
    judge = dime_study._model("personas/oracle")
    row: Row = {"n": len(x), "flip_rate": metrics.flip_rate(results)}
    for attribute in ("eyeglasses", "smile"):
        seen = judge.for_attribute(attribute)
        row[f"{attribute}_changed"] = metrics.flip_rate(seen.predict(x_cf) != seen.predict(x))
    moved = shares(change, regions)
    row |= {"change": moved["share_absolute"], "change_mouth": moved["mouth_absolute"]}
    row |= shares(left, regions)
    row |= {f"{k}_absolute": v for k, v in hit_probes.agreement(left.abs(), change).items()}
    return row
