"""What the study of HiT looks at inside the network: layers left out, weights drawn anew, maps on known regions, other maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib import hit, metrics
from cfx_lib.methods.posthoc import (
    attention_rollout,
    grad_cam,
    integrated_gradients,
    network_of,
    patch_grid,
)
from cfx_lib.metrics import saliency
from cfx_lib.metrics.value import Value
from cfx_lib.types import frozen_models

__all__ = [
    "MAPS",
    "POSTHOC",
    "ablations",
    "against_others",
    "agreement",
    "at_random",
    "cascade",
    "change_map",
    "chance_correlation",
    "chance_of",
    "hit_map",
    "kept_layers",
    "layer_parts",
    "on_region",
    "patches_of",
    "sanity",
]

CHUNK = 256  # images at a time


# ----------------------------------------------------------------------------------------------------- the maps


def hit_map(classifier: Any, x: Tensor, target: Tensor) -> Tensor:
    """HiT's own map of the class `target` (Eq. 6.8), (N, rows, cols), signed."""
    with torch.no_grad():
        parts = zip(x.split(CHUNK), target.split(CHUNK), strict=True)
        return torch.cat([hit.contribution_map(classifier, a, t) for a, t in parts])


def against_others(classifier: Any, x: Tensor, target: Tensor) -> Tensor:
    """HiT's map of the class `target` less the mean map of all classes: softmax does not see what all logits share."""
    found = []
    with torch.no_grad():
        for part, wanted in zip(x.split(CHUNK), target.split(CHUNK), strict=True):
            parts = hit.contributions(classifier, part).sum(1)  # (N, patches, K)
            own = parts.take_along_dim(wanted.view(-1, 1, 1), 2)[..., 0]
            found.append((own - parts.mean(2)).view(-1, *patch_grid(network_of(classifier))))
    return torch.cat(found)


def at_random(classifier: Any, x: Tensor, target: Tensor) -> Tensor:
    """Maps that know nothing: the yardstick of insertion and deletion."""
    grid = patch_grid(network_of(classifier))
    return torch.rand(len(x), *grid, generator=torch.Generator().manual_seed(0))


Maps = dict[str, Callable[[Any, Tensor, Tensor], Tensor]]
"""name -> (classifier, x, target) -> maps (N, rows, cols), larger is more salient."""
POSTHOC: Maps = {
    "Grad-CAM": grad_cam,
    "rollout": lambda classifier, x, target: attention_rollout(classifier, x),
    "integrated gradients": integrated_gradients,
}
MAPS: Maps = {"HiT": hit_map, **POSTHOC}


# --------------------------------------------------------------------------------------- layers (thesis, Fig. 6.5)


def kept_layers(layers: int) -> dict[str, list[set[int]]]:
    """Which layers stay in each of the four ablations of Fig. 6.5b, a set for each layer l.

    "excluding": all but l. "exclusive": l alone. "cumulative removed": those behind l, as layers are taken out from the
    first on. "cumulative inserted": those up to l, as they are put in from the first on.
    """
    every = set(range(layers))
    return {
        "excluding": [every - {k} for k in range(layers)],
        "exclusive": [{k} for k in range(layers)],
        "cumulative removed": [every - set(range(k + 1)) for k in range(layers)],
        "cumulative inserted": [set(range(k + 1)) for k in range(layers)],
    }


def logits_with(classifier: Any, x: Tensor, keep: set[int]) -> Tensor:
    """The logits (N,K) of a classifier whose HiT takes the attention updates of the kept layers only. x in [-1,1]."""
    network = network_of(classifier)
    network.forward = lambda images: network.forward_layers(images, keep)
    try:
        with frozen_models(classifier), torch.no_grad():
            return torch.cat([classifier(part) for part in x.split(CHUNK)])
    finally:
        del network.forward  # the class's own again


def ablations(classifier: Any, x: Tensor, labels: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """(ablation, layer, correct (N,) bool) for every ablation of `kept_layers` and every layer."""
    with torch.no_grad():
        layers = hit.contributions(classifier, x[:1]).shape[1]
    for name, sets in kept_layers(layers).items():
        for layer, keep in enumerate(sets):
            yield name, layer, logits_with(classifier, x, keep).argmax(1) == labels


def layer_parts(classifier: Any, x: Tensor, target: Tensor) -> Tensor:
    """Each layer's part (N, layers) in what sets the class `target` apart: its contribution less the mean of all classes'.

    The mean is left out since it moves no probability. A row's sum is the logit less the mean logit, head biases apart.
    """
    found = []
    with torch.no_grad():
        for part, wanted in zip(x.split(CHUNK), target.split(CHUNK), strict=True):
            layers = hit.contributions(classifier, part).sum(2)  # (N, layers, K)
            index = wanted.view(-1, 1, 1).expand(-1, layers.shape[1], 1)
            found.append(layers.gather(2, index)[..., 0] - layers.mean(2))
    return torch.cat(found)


# ------------------------------------------------------------------------------- sanity check (thesis, Fig. 6.6)


def cascade(classifier: Any, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Copies of a HiT classifier whose weights are drawn anew from the output down: the head, the blocks from the last on, the
    patch embedding with positions and class token (Adebayo et al., 2018).

    New weights are normal, with the mean and the standard deviation of the tensor that they replace, so that signals keep
    their size. Each copy has all that the one before it has. The classifier given stays as it is.
    """
    classifier = copy.deepcopy(classifier)
    generator = torch.Generator().manual_seed(seed)
    for stage, parameters in _stages(network_of(classifier)).items():
        for parameter in parameters:
            _draw_anew(parameter, generator)
        yield stage, copy.deepcopy(classifier)


def _stages(network: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters of a HiT in the order of the cascade."""
    blocks = list(network.blocks)
    groups = {"head": [*network.norm.parameters(), *network.head.parameters()]}
    groups |= {f"block {k}": list(blocks[k].parameters()) for k in reversed(range(len(blocks)))}
    seen = {id(p) for group in groups.values() for p in group}
    return groups | {"embedding": [p for p in network.parameters() if id(p) not in seen]}


@torch.no_grad()
def _draw_anew(parameter: Tensor, generator: torch.Generator) -> None:
    spread = parameter.std(correction=0) if parameter.numel() > 1 else parameter.abs().mean()
    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
    parameter.copy_(parameter.mean() + spread * noise)


def sanity(
    classifier: Any, x: Tensor, maps: Mapping[str, Callable], seeds: int = 3
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(map, stage, before, after), before and after (seeds * N, rows, cols): a map of the same class, by the trained network
    and by the one randomised down to the stage, with each seed."""
    with frozen_models(classifier), torch.no_grad():
        target = torch.cat([classifier(part) for part in x.split(CHUNK)]).argmax(1)
    before = {name: make(classifier, x, target) for name, make in maps.items()}
    after: dict[tuple[str, str], list[Tensor]] = {}
    for seed in range(seeds):
        for stage, copied in cascade(classifier, seed):
            for name, make in maps.items():
                after.setdefault((name, stage), []).append(make(copied, x, target))
    for (name, stage), found in after.items():
        yield name, stage, before[name].repeat(seeds, 1, 1), torch.cat(found)


def chance_correlation(tokens: int) -> float:
    """The mean |r| of two unrelated maps of so many tokens, sqrt(2 / (pi (P - 1))): what an absolute correlation falls to."""
    return (2 / (torch.pi * (tokens - 1))) ** 0.5


# --------------------------------------------------------------------------------- maps on a region, and other maps


def patches_of(region: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches show any pixel of a region: (N,H,W) bool -> (N, rows, cols) bool."""
    height, width = region.shape[1] // grid[0], region.shape[2] // grid[1]
    return region.unflatten(2, (grid[1], width)).unflatten(1, (grid[0], height)).any(4).any(2)


def on_region(maps: Tensor, patches: Tensor, kind: str = "absolute") -> tuple[Tensor, Tensor]:
    """What of each map falls on the patches, and all of it: maps (N,h,w), patches (N,h,w) bool -> (N,), (N,).

    kind: "absolute" counts |value|, "positive" what speaks for the class. Pass the two to `metrics.ratio` for a share.
    """
    if kind not in ("absolute", "positive"):
        raise ValueError(f"kind={kind!r} given, 'absolute' or 'positive' expected.")
    size = (maps.abs() if kind == "absolute" else maps.relu()).double()
    return (size * patches).sum((1, 2)), size.sum((1, 2))


def change_map(x: Tensor, x_cf: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much a counterfactual changed each patch: the mean of |x_cf - x| over its pixels, (N, rows, cols)."""
    return nn.functional.adaptive_avg_pool2d((x_cf - x).abs().mean(1, keepdim=True), grid)[:, 0]


def agreement(maps: Tensor, others: Tensor, *, top: float = 0.2, shifts: int = 8) -> dict[str, Value]:
    """Do two kinds of maps (N,h,w) of the same images agree, more than those of different images do?

    "spearman": mean rank correlation, signed. "shared": share of `others` that falls on the `top` share of a map's patches.
    Each also "_shuffled", with the other image so many places further on (mean over `shifts` shifts), and "_gap", the paired
    difference: what layout alone, eyes above mouths, does not explain. Pass sizes: both maps >= 0.
    """
    found: dict[str, Value] = {}
    for name, score in (("spearman", _rank_correlation), ("shared", _shared(top))):
        own = score(maps, others)
        moved = [score(maps, others.roll(k, 0)) for k in range(1, min(shifts, len(maps) - 1) + 1)]
        shuffled = torch.stack(moved).mean(0)
        found[name], found[f"{name}_shuffled"] = metrics.average(own), metrics.average(shuffled)
        found[f"{name}_gap"] = metrics.difference(own, shuffled)
    return found


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor(saliency.map_correlation(a, b, absolute=False).scores)


def _shared(top: float) -> Callable[[Tensor, Tensor], Tensor]:
    def share(a: Tensor, b: Tensor) -> Tensor:
        count = max(1, round(top * a[0].numel()))
        rows = a.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :count]
        b = b.flatten(1).double()
        return b.gather(1, rows).sum(1) / b.sum(1)

    return share


def chance_of(patches: Tensor) -> Tensor:
    """The share of patches (N,) that a region takes: what a map without any preference puts on it."""
    return patches.double().mean((1, 2))
