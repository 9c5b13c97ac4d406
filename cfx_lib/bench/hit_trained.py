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
from cfx_lib.methods.posthoc import attention_rollout, grad_cam, network_of, patch_grid
from cfx_lib.metrics import ground_truth
from cfx_lib.metrics.value import Value
from cfx_lib.train import hit as training
from cfx_lib.train.fashion import MEAN, STD
from cfx_lib.train.loop import Recipe, fit
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = training.make(arch, classes)
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    loss = training.smoothed_loss()

    def normalised(model: nn.Module, generator: torch.Generator, x: Tensor, wanted: Tensor) -> Tensor:
        return loss(model, generator, ((x + 1) / 2 - shift) / scale, wanted)

    recipe = Recipe(
        steps=steps,
        batch=batch,
        lr=2e-3,
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
SHORT = 500  # steps; the longer training has twice as many
PAPER_TABLE_6_3 = {  # (pooling, loss, times SHORT) -> ImageNet accuracy of HiT-S; "conv": of HiT-s18
    ("none", "XE", 1): 0.656,
    ("none", "XE", 2): 0.678,
    ("none", "BCE", 1): 0.599,
    ("avg", "XE", 1): 0.693,
    ("avg", "XE", 2): 0.714,
    ("conv", "XE", 1): 0.759,
}
SEEDS = 2


def ablation(n: int, steps: int | None = None) -> Iterator[Row]:
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
        about = {"pool": pool, "loss": loss, "steps": (steps or SHORT) * times, "batch": 64}
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

FACE = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 3.0}
SHORTCUT_STEPS = 600


@lru_cache(maxsize=2)
def shortcut_hit(steps: int | None = None, seed: int = 0) -> Any:
    """A HiT of the size of personas/hit that learned to smile on the biased faces, where who smiles wears glasses."""
    images, factors = personas.load_uint8("biased")
    labels = personas.attributes(factors)[:, [personas.ATTRIBUTES.index("smile")]].float()
    arch = ("hit_custom", FACE)
    network = trained(
        arch, images, labels, steps or SHORTCUT_STEPS, seed=seed, augment=training.augment_faces
    )
    found = AttributeClassifier(network, ("smile",), mean=(0.5,) * 3, std=(0.5,) * 3, name="hit-shortcut")
    return found.for_attribute("smile")


def fair_hit() -> Any:
    """The shipped HiT of faces, which learned smiles from the fair population."""
    return zoo.load("personas/hit").for_attribute("smile")


def shortcut(n: int) -> Iterator[Row]:
    """A HiT that learned smiles from biased faces against the fair one: do map and counterfactual show the glasses?

    "map": faces with a frown and glasses (`dime_study.bare_frowning`, glasses drawn on), maps of the class "smile".
    "share": what of the map lies on the patches that glasses touch, absolute and positive; "area": those patches' share of
    the image. "accuracy": smiles of fair test faces. "DiME": counterfactuals of the same and of other faces; "change": share
    of DiME's change on the glasses' patches; the map is that of the class predicted before, |map| and max(map, 0);
    see `hit_probes.agreement` for "spearman", "shared" and their "_gap" to maps of other faces.
    """
    bare, factors = dime_study.bare_frowning(n)
    glasses = personas.render(factors.replace(eyewear="eyeglasses"))
    region = ground_truth.edit_region(bare, glasses)
    classifiers = {"shortcut": shortcut_hit(), "fair": fair_hit()}
    for label, classifier in classifiers.items():
        yield from map_rows(label, classifier, bare, glasses, region)
    smiling, _ = dime_study.faces("test", "smile", n)
    plans = [("shortcut", "glasses on", glasses), ("shortcut", "bare", bare)]
    plans += [("fair", "glasses on", glasses), ("fair", "mixed", smiling)]
    for label, what, x in plans:
        patches = region if what != "mixed" else None
        yield {"network": label, "images": what, **counterfactual_row(classifiers[label], x, patches)}


def map_rows(label: str, classifier: Any, bare: Tensor, glasses: Tensor, region: Tensor) -> Iterator[Row]:
    """What maps of the class "smile" put on glasses, and what the glasses really change."""
    smile = torch.ones(len(glasses), dtype=torch.long)
    patches = hit_probes.patches_of(region, patch_grid(network_of(classifier)))
    x, factors = personas.load("test")
    truth = personas.attributes(factors)[:, personas.ATTRIBUTES.index("smile")].long()
    with torch.no_grad():
        before, after = classifier(bare), classifier(glasses)
    maps = {"HiT": hit_probes.hit_map(classifier, glasses, smile)}
    change = maps["HiT"] - hit_probes.hit_map(classifier, bare, smile)
    maps |= {
        "HiT, change by the glasses": change,
        "Grad-CAM": grad_cam(classifier, glasses, smile),
        "rollout": attention_rollout(classifier, glasses),
        "random": hit_probes.at_random(classifier, glasses, smile),
    }
    effect = metrics.average(after.softmax(1)[:, 1] - before.softmax(1)[:, 1])
    for name, found in maps.items():
        area = hit_probes.chance_of(patches)
        row: Row = {"part": "map", "network": label, "map": name, "n": len(glasses)}
        for kind in ("absolute", "positive"):
            row[f"share_{kind}"] = metrics.ratio(*hit_probes.on_region(found, patches, kind))
        top = found.flatten(1).argmax(1, keepdim=True)
        row["top_patch"] = metrics.rate(patches.flatten(1).gather(1, top)[:, 0])
        row["area"] = float(area.mean())
        if name == "HiT":
            row |= {"glasses_effect": effect, "accuracy": metrics.rate(classifier.predict(x) == truth)}
        yield row


def counterfactual_row(classifier: Any, x: Tensor, region: Tensor | None) -> Row:
    """DiME's counterfactuals of a HiT beside its map of the class that they leave; flips, and whether glasses changed.

    Where glasses are the question (`region` says where), DiME starts from the noise that can draw them anew.
    """
    setting = dime_study.SHORTCUT_SETTINGS["fast" if region is None else "more noise"]
    method, target = dime_study.dime(classifier, **setting), 1 - classifier.predict(x)
    results = dime_study.explain(method, x, target)
    x_cf = torch.cat([r.x_cf for r in results])
    grid = patch_grid(network_of(classifier))
    change = hit_probes.change_map(x, x_cf, grid)
    left = hit_probes.hit_map(classifier, x, classifier.predict(x))
    judge = dime_study._model("personas/oracle")
    with torch.no_grad():
        seen = {a: judge.for_attribute(a) for a in ("eyeglasses", "smile")}
        moved = {f"{a}_changed": metrics.flip_rate(c.predict(x_cf) != c.predict(x)) for a, c in seen.items()}
    row: Row = {"part": "DiME", "n": len(x), "flip_rate": metrics.flip_rate(results), **moved}
    if region is not None:
        patches = hit_probes.patches_of(region, grid)
        row["change"] = metrics.ratio(*hit_probes.on_region(change, patches))
        row["share_absolute"] = metrics.ratio(*hit_probes.on_region(left, patches))
        row["area"] = float(hit_probes.chance_of(patches).mean())
    for kind, size in (("absolute", left.abs()), ("positive", left.relu())):
        row |= {f"{k}_{kind}": v for k, v in hit_probes.agreement(size, change).items()}
    return row
