"""The `full` measurements of notebook 07: HiT against a ViT of its size, and its maps against maps made after the fact.

`python -m cfx_lib.bench study hit` writes them to data/results/; `--only NAME` makes one again. The shipped networks are
measured on test images, n of them in each table; networks that a table trains itself are those of `hit_trained`. Maps
explain the predicted class. Times are those of the machine that a result names, on as many threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cfx_lib import hit, metrics, zoo
from cfx_lib.bench import dime_study, hit_probes
from cfx_lib.bench.dime_study import Row
from cfx_lib.bench.hit_probes import MAPS, POSTHOC
from cfx_lib.bench.hit_trained import ablation, shortcut
from cfx_lib.methods.posthoc import network_of
from cfx_lib.metrics.value import Value
from cfx_lib.types import frozen_models
from cfx_lib.worlds import fashion, personas

__all__ = ["TABLES", "images_of", "model", "run"]

FASHION = ("fashion/hit", "fashion/vit", "fashion/hit-pool")
FACES = ("personas/hit:smile", "personas/hit:old", "personas/vit:smile", "personas/vit:old")


@lru_cache(maxsize=8)
def model(name: str) -> Any:
    """A shipped classifier, "world/name" or "world/name:attribute"."""
    name, _, attribute = name.partition(":")
    loaded = zoo.load(name)
    return loaded.for_attribute(attribute) if attribute else loaded


@lru_cache(maxsize=4)
def images_of(name: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images of a model's world, and their labels (N,) long: classes, or the attribute of the name."""
    if name.startswith("fashion/"):
        return fashion.load("test", n)
    x, factors = personas.load("test", min(n, personas.SPLIT_SIZES["test"]))
    column = personas.ATTRIBUTES.index(name.partition(":")[2])
    return x, personas.attributes(factors)[:, column].long()


def predicted(classifier: Any, x: Tensor) -> Tensor:
    with frozen_models(classifier):
        return classifier.predict(x)


# -------------------------------------------------------------------------------- accuracy and cost (Table 6.1)

PAPER_TABLE_6_1 = {  # ImageNet accuracy, GMACs (the table says GFLOps), million parameters
    "hit_base_patch16_224": (0.715, 13.1, 81.8),
    "deit_base_patch16_224": (0.811, 17.6, 86.4),
    "hit_small_patch16_224": (0.673, 3.3, 20.8),
    "deit_small_patch16_224": (0.798, 4.6, 22.1),
}


def accuracy(n: int) -> Iterator[Row]:
    """Table 6.1 in miniature: accuracy, size and time of the shipped networks, and the full sizes as they are counted.

    "gap": accuracy less that of the HiT of the same world, on the same images. "contributions_ratio": time of the exact
    sum over the time of the forward pass alone, batch 64.
    """
    firsts: dict[str, Value] = {}
    for name in (*FASHION, *FACES):
        classifier, (x, labels) = model(name), images_of(name, n)
        right = metrics.rate(predicted(classifier, x) == labels)
        world = name.split("/")[0] + name.partition(":")[2]
        first = firsts.setdefault(world, right)
        row: Row = {"kind": "measured", "model": name, "accuracy": right, "n": len(x)}
        if right is not first:
            row["gap"] = metrics.difference(right, first)
        if ":old" not in name:  # the same network as ":smile"
            row |= _size(network_of(classifier), x.shape[-1]) | timings(classifier, x)
        yield row
    for name, (paper_accuracy, paper_gmacs, paper_params) in PAPER_TABLE_6_1.items():
        with torch.device("meta"):
            network = timm.create_model(name)
        paper = {
            "paper_accuracy": paper_accuracy,
            "paper_gmacs": paper_gmacs,
            "paper_params_m": paper_params,
        }
        yield {"kind": "counted", "model": name, **_size(network, 224), **paper}


def _size(network: nn.Module, side: int) -> Row:
    counted = hit.counts(network, side)
    return {"params": counted["params"], "macs": counted["macs"]}


def timings(classifier: Any, x: Tensor, repeats: int = 20) -> Row:
    """Milliseconds an image in batches of 1 and 64, mean of repeated runs; for a HiT the sum's time over the pass's."""
    row: Row = {}
    with frozen_models(classifier), torch.no_grad():
        for size in (1, 64):
            part = x[:size]
            calls = {"forward": lambda part=part: classifier(part)}
            if isinstance(network_of(classifier), hit.HiT):
                calls["contributions"] = lambda part=part: hit.contributions(classifier, part)
            taken = seconds_of(calls, repeats)
            row[f"ms_{size}"] = metrics.average(1000 * taken["forward"] / len(part), unit="ms")
            if size > 1 and "contributions" in taken:
                row["contributions_ratio"] = metrics.ratio(taken["contributions"], taken["forward"])
    return row


def seconds_of(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Tensor]:
    """The time of each call, `repeats` times, in turn, so that a slow moment of the machine meets all: name -> (repeats,)."""
    for call in calls.values():  # the first call is slower
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in taken.items()}


def tokens(n: int, sides: Sequence[int] = (32, 64, 128)) -> Iterator[Row]:
    """The cost of one image by the number of tokens (patches of 4), n images in a batch: HiT, Eq. 6.6's model and ViT.

    In the size of the shipped networks. "macs": counted by formula; "flops": seen by the counter, two for one MAC.
    """
    size = {"patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 3.0}
    names = {
        "HiT": "hit_custom",
        "Eq. 6.6": "vit_hindered_small_patch16_224",
        "ViT": "vit_tiny_patch16_224",
    }
    for side in sides:
        networks = {
            label: timm.create_model(name, num_classes=10, img_size=side, **size).eval()
            for label, name in names.items()
        }
        x = torch.zeros(n, 1, side, side)
        with torch.no_grad():
            calls = {label: lambda m=m, x=x: m(x) for label, m in networks.items()}
            taken = seconds_of(calls, 10)
            for label, network in networks.items():
                counted = hit.counts(network, side)
                yield {
                    "model": label,
                    "tokens": (side // 4) ** 2,
                    "macs": counted["macs"],
                    "attention_macs": counted["attention"],
                    "flops": metrics.measure_flops(calls[label]) / n,
                    "ms": metrics.average(1000 * taken[label] / n, unit="ms"),
                    "batch": n,
                }


# ------------------------------------------------------------------ insertion and deletion (Table 6.2, Fig. 6.3)

AREAS = ("insertion", "deletion")


def areas(name: str, maps: Tensor, x: Tensor, target: Tensor, replacement: str, steps: int) -> Row:
    steps = min(steps, maps[0].numel())
    return metrics.insertion_deletion(model(name), x, maps, target, replacement=replacement, steps=steps)


def faithful(n: int, only: Sequence[str] = ()) -> Iterator[Row]:
    """Table 6.2: insertion and deletion on HiT, a patch a step, its own map against others; "_gap": less HiT's, same images.

    "HiT, less the mean class", the second and third "Grad-CAM" and "random" are not the thesis's. `only`: some of the maps,
    "HiT" first.
    """
    name = "fashion/hit"
    x, _ = images_of(name, n)
    target = predicted(model(name), x)
    makers = MAPS | {
        "HiT, less the mean class": hit_probes.against_others,
        "Grad-CAM, a layer earlier": lambda c, x, t: POSTHOC["Grad-CAM"](
            c, x, t, layer=network_of(c).blocks[-2].norm1
        ),
        "Grad-CAM, signed": lambda c, x, t: POSTHOC["Grad-CAM"](c, x, t, relu=False),
        "random": hit_probes.at_random,
    }
    wanted = {label: makers[label] for label in only or makers}
    maps = {label: make(model(name), x, target) for label, make in wanted.items()}
    for replacement in ("zero", "blur"):
        own: Row = {}
        for label, found in maps.items():
            row = areas(name, found, x, target, replacement, 64)
            own = own or row
            gaps = {f"{k}_gap": metrics.difference(row[k], own[k]) for k in AREAS if row is not own}
            values = {k: row[k] for k in AREAS} | gaps
            yield {"model": name, "map": label, "replacement": replacement, **values, "n": n}


ACROSS = {  # network -> the maps that Fig. 6.3 compares
    "fashion/hit": ("HiT", "rollout"),
    "fashion/hit-pool": ("HiT",),
    "fashion/vit": ("Grad-CAM", "rollout", "integrated gradients"),
    "personas/hit:smile": ("HiT", "rollout"),
    "personas/vit:smile": ("Grad-CAM", "rollout", "integrated gradients"),
}


def nauc(n: int) -> Iterator[Row]:
    """Fig. 6.3: the normalised areas of maps on different networks, in 32 steps whatever the number of patches."""
    for name, labels in ACROSS.items():
        x, _ = images_of(name, n)
        target = predicted(model(name), x)
        for label in labels:
            maps = MAPS[label](model(name), x, target)
            for replacement in ("zero", "blur"):
                row = areas(name, maps, x, target, replacement, 32)
                values = {key.replace(" nAUC", "_nauc"): row[key] for key in row if "nAUC" in key}
                yield {"model": name, "map": label, "replacement": replacement, **values, "n": len(x)}


# --------------------------------------------------------------------------------- layers and sanity (Fig. 6.5, 6.6)


LAYERED = {
    "fashion/hit": True,
    "fashion/hit-pool": False,
    "personas/hit:smile": True,
}  # network -> ablations, too


def layers(n: int) -> Iterator[Row]:
    """Fig. 6.5. "contribution": a layer's part in the margin of the predicted class over the mean class; "share" of all.

    "ablation": accuracy when only some layers' attention moves the class token; see `hit_probes.kept_layers`.
    """
    for name, ablated in LAYERED.items():
        classifier, (x, labels) = model(name), images_of(name, n)
        parts = hit_probes.layer_parts(classifier, x, predicted(classifier, x)).double()
        for layer in range(parts.shape[1]):
            row = {"part": "contribution", "model": name, "layer": layer, "n": len(x)}
            row["contribution"] = metrics.average(parts[:, layer])
            row["share"] = float(parts[:, layer].sum() / parts.sum())
            yield row
        if not ablated:
            continue
        whole = metrics.rate(predicted(classifier, x) == labels)
        yield {"part": "ablation", "model": name, "kind": "whole", "accuracy": whole, "n": len(x)}
        for kind, layer, right in hit_probes.ablations(classifier, x, labels):
            row = {"part": "ablation", "model": name, "kind": kind, "layer": layer, "n": len(x)}
            yield row | {"accuracy": metrics.rate(right)}


def sanity(n: int, seeds: int = 3, compared: hit_probes.Maps = MAPS) -> Iterator[Row]:
    """Fig. 6.6: |r| of maps before and after the layers down to a stage were randomised; mean of the seeds for each image.

    "chance" is the |Pearson r| of unrelated maps of normal numbers: what a map that sees the network should fall to.
    """
    for name, maps in (("fashion/hit", compared), ("personas/hit:smile", {"HiT": MAPS["HiT"]})):
        x, _ = images_of(name, n)
        for label, stage, before, after in hit_probes.sanity(model(name), x, maps, seeds):
            row: Row = {"model": name, "map": label, "stage": stage, "n": n, "seeds": seeds}
            row["chance"] = hit_probes.chance_correlation(before[0].numel())
            for kind in ("spearman", "pearson"):
                for top in (1.0, 0.2) if label == "HiT" else (1.0,):
                    scores = metrics.map_correlation(before, after, kind, top).scores
                    each = torch.tensor(scores).view(seeds, -1).mean(0)
                    row[kind if top == 1 else f"{kind}_top"] = metrics.average(each)
            yield row


TABLES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {  # name -> (rows, number of images)
    "hit_accuracy": (accuracy, 10_000),
    "hit_faithful": (faithful, 256),
    "hit_nauc": (nauc, 256),
    "hit_layers": (layers, 2_000),
    "hit_sanity": (sanity, 64),
    "hit_ablation": (ablation, 10_000),
    "hit_tokens": (tokens, 8),
    "hit_shortcut": (shortcut, 64),
}


def run(only: list[str] | None = None, n: int | None = None, save: bool = True) -> None:
    """Make the tables (all, or those in ``only``), print them and keep them in data/results/."""
    dime_study.run(only, n, save, TABLES)
