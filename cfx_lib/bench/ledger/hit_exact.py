"""What the ledger of HiT computes by itself: sizes and operations, who hears of a patch, and sums that are exact."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cfx_lib import hit, metrics
from cfx_lib.bench import hit_study
from cfx_lib.bench.hit_study import PAPER_TABLE_6_1, images_of, predicted
from cfx_lib.hit_layers import ClassAttention
from cfx_lib.methods.posthoc import attention_rollout, network_of
from cfx_lib.metrics import Value
from cfx_lib.types import frozen_models

HITS = ("fashion/hit", "fashion/hit-pool", "personas/hit:smile")
WIDTHS = {"base": 768, "small": 384}

# ------------------------------------------------------------------------------------------- Table 6.1: size and cost


def parameters_of(width: int, hindered: bool, depth: int = 12, classes: int = 1000, patches: int = 196) -> int:  # fmt: skip
    """The parameters of a ViT with patches of 16, by arithmetic; a HiT has no MLP and no second norm in its last layer."""
    linear = lambda a, b: a * b + b  # noqa: E731
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    attention = 4 * linear(width, width)
    layers = depth * (attention + mlp + 2 * 2 * width) - hindered * (mlp + 2 * width)
    tokens = linear(3 * 16**2, width) + width + (1 + patches) * width
    return tokens + layers + 2 * width + linear(width, classes)


def kinds() -> dict[str, tuple[int, bool]]:
    """The networks of Table 6.1 that are here: name -> width, and whether it is a HiT."""
    return {name: (WIDTHS[name.split("_")[1]], name.startswith("hit")) for name in PAPER_TABLE_6_1}


def parameters_off() -> float:
    """The largest deviation of the parameters from Table 6.1; 1 where the library's network and the arithmetic disagree."""
    off = []
    for name, kind in kinds().items():
        with torch.device("meta"):
            counted = sum(p.numel() for p in timm.create_model(name).parameters())
        off.append(abs(counted / 1e6 / PAPER_TABLE_6_1[name][2] - 1) + (counted != parameters_of(*kind)))
    return max(off)


def operations(name: str, side: int = 224, channels: int = 3, **size: Any) -> float:
    """The multiply-adds of one image, as a counter sees them executed, without memory or numbers."""
    with torch.device("meta"):
        network = timm.create_model(name, **size).eval()
        x = torch.zeros(1, channels, side, side)
    with torch.no_grad():
        return metrics.measure_flops(network, x) / 2


def operations_off() -> float:
    """The largest deviation of the operations from Table 6.1."""
    return max(abs(operations(name) / 1e9 / PAPER_TABLE_6_1[name][1] - 1) for name in kinds())


def saved() -> float:
    """The share of DeiT-B's operations that HiT-B does without."""
    return 1 - operations("hit_base_patch16_224") / operations("deit_base_patch16_224")


PAPER_LAYER = {  # 10^9, caption of Table 6.1, whose attention is its linear maps
    "hit_base_patch16_224": {"attention": 0.234, "mlp": 0.93},
    "deit_base_patch16_224": {"attention": 0.465, "mlp": 0.93},
}


def layer_off() -> float:
    """The largest deviation of a layer's operations from the caption of Table 6.1."""
    off = []
    for name, paper in PAPER_LAYER.items():
        with torch.device("meta"):
            counted = hit.counts(timm.create_model(name), 224)
        maps = sum(counted[f"{part}_projection"] for part in ("kv", "q", "out"))
        mlps = 11 if name.startswith("hit") else 12
        found = {"attention": maps / 12, "mlp": counted["mlp"] / mlps}
        off += [abs(found[part] / 1e9 / paper[part] - 1) for part in paper]
    return max(off)


TINY = {"patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10}


def growth(name: str) -> float:
    """How many times the operations grow from 64 to 1,024 patches."""
    small, large = (operations(name, side, 1, img_size=side, **TINY) for side in (32, 128))
    return large / small


# ------------------------------------------------------------------------------------------------- who hears of it


def tokens_at_the_end(network: nn.Module, images: Tensor) -> Tensor:
    """The patches' tokens (N,P,D) that the last layer reads (HiT), or that it leaves (ViT). images: normalised."""
    seen: list[Tensor] = []
    last = network.blocks[-1]
    if isinstance(network, hit.HiT):
        hook = last.attn.kv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:
        hook = last.register_forward_hook(lambda _, given, made: seen.append(made[:, 1:]))
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    return seen[0]


def moved(name: str) -> tuple[Tensor, int]:
    """Which patches' tokens (P,) bool move at the end when one patch of an image is inverted, and the number of that patch."""
    network, x = network_of(hit_study.model(name)), images_of(name, 1)[0]
    rows, columns = network.patch_embed.grid_size
    height, width = x.shape[2] // rows, x.shape[3] // columns
    row, column = rows // 2, columns // 2
    changed = x.clone()
    changed[..., row * height : (row + 1) * height, column * width : (column + 1) * width] *= -1
    before, after = (tokens_at_the_end(network, images) for images in (x, changed))
    far = (after - before).norm(dim=-1) / before.norm(dim=-1)
    return far[0] > 1e-6, row * columns + column


def strangers_moved(name: str) -> int:
    """How many tokens of other patches move; all of them where the patch's own does not."""
    which, own = moved(name)
    return int(which.sum()) - 1 if which[own] else len(which)


def unmoved(name: str) -> int:
    """How many patches' tokens do not move."""
    which, _ = moved(name)
    return int((~which).sum())


# --------------------------------------------------------------------------------------------------- exact sums


def attention_gap(dim: int = 24, heads: int = 4, patches: int = 9) -> float:
    """Eq. 6.5 head by head and patch by patch against the library's attention: the largest difference, in float64."""
    draw = torch.Generator().manual_seed(0)
    attention = ClassAttention(dim, heads).double()
    with torch.no_grad():
        for p in attention.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype) / dim**0.5)
        query, target = (torch.randn(2, *shape, generator=draw, dtype=torch.float64) for shape in ((dim,), (patches, dim)))  # fmt: skip
        w_k, w_v = attention.kv.weight.chunk(2)
        b_k, b_v = attention.kv.bias.chunk(2)
        total = attention.proj.bias.expand(2, -1).clone()
        for rows in torch.arange(dim).chunk(heads):
            q = query @ attention.q.weight[rows].T + attention.q.bias[rows]
            k, v = target @ w_k[rows].T + b_k[rows], target @ w_v[rows].T + b_v[rows]
            a = (torch.einsum("nd,npd->np", q, k) / len(rows) ** 0.5).softmax(1)
            total += sum(a[:, j, None] * v[:, j] @ attention.proj.weight[:, rows].T for j in range(patches))
        return float((total - attention(query, target).update).abs().max())


def normalised(name: str, n: int = 4) -> tuple[nn.Module, Tensor]:
    """The bare network of a shipped classifier, a copy in float64, and n images as it takes them."""
    classifier, x = hit_study.model(name), images_of(name, n)[0]
    ready = getattr(classifier, "classifier", classifier).runner.prepare(x)
    return copy.deepcopy(network_of(classifier)).double(), ready.double()


def sum_gap(name: str) -> float:
    """All contributions of a picture and the head's bias against the logits: the largest difference, in float64."""
    network, images = normalised(name)
    with torch.no_grad():
        total = network.contributions(images).sum((1, 2)) + network.head.bias
        return float((total - network(images)).abs().max())


def plain_gap(name: str) -> float:
    """The class token of Eq. 6.8 straight into the linear classifier, without LayerNorm, against the logits."""
    network, images = normalised(name)
    tokens: list[Tensor] = []
    hook = network.norm.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    try:
        with torch.no_grad():
            logits = network(images)
            return float((network.head(tokens[0]) - logits).abs().max())
    finally:
        hook.remove()


def looks_and_terms(n: int = 256) -> Value:
    """The rank correlation of HiT's attention weights with its map of the predicted class."""
    classifier, (x, _) = hit_study.model("fashion/hit"), images_of("fashion/hit", n)
    with frozen_models(classifier), torch.no_grad():
        maps = hit.contribution_map(classifier, x, predicted(classifier, x))
    return metrics.map_correlation(attention_rollout(classifier, x), maps, absolute=False)
