"""HiT's architectures as timm knows them, the intermediate model of Eq. 6.6, counts, and the authors' checkpoints.

Importing this module (`from cfx_lib import HiT` does) registers the names with timm:
`timm.create_model("hit_small_patch16_224", num_classes=10, img_size=64, patch_size=8)` takes every argument of HiT.
There are no weights on the hub: load the authors' with `cfx_lib.hit.load_released`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from cfx_lib.hit_layers import MEAN, STD, IntermediateBlock, Tokenised

__all__ = ["Intermediate", "counts", "load_released"]


class Intermediate(Tokenised):
    """The model between ViT and HiT (thesis, Eq. 6.6): patches do not attend, the class token still has its MLP.

    Normalised images (N,C,H,W) -> logits (N,classes). Each layer: the class token attends to all tokens, itself too;
    then the MLP moves every token. Linear in the number of tokens, but no sum: the class token's MLP mixes what the
    patches gave it, and the token feeds on itself. Sizes as in :class:`cfx_lib.hit.HiT`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        if embed_dim % num_heads:
            raise ValueError(
                f"{num_heads} heads do not divide the width {embed_dim}; expected a divisor of it."
            )
        super().__init__(img_size, patch_size, in_chans, num_classes, embed_dim, embed_dim, drop_rate)
        hidden, drops = int(embed_dim * mlp_ratio), (attn_drop_rate, proj_drop_rate)
        blocks = (IntermediateBlock(embed_dim, num_heads, hidden, drops) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.init_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """The class token after the last LayerNorm, (N,d)."""
        token, x = self.embed(x)
        return self.norm(self.blocks(torch.cat([token[:, None], x], 1))[:, 0])


# ---------------------------------------------------------------------------------------------------- counts


def counts(model: nn.Module, size: int | Sequence[int] | None = None) -> dict[str, int]:
    """Parameters and multiply-accumulates of one image (thesis, Table 6.1, whose "GFLOPs" are these).

    `model`: a HiT, the intermediate model, or a timm VisionTransformer. `size`: the side of the image (or height and
    width); the default is the model's. One MAC is one multiply-add in a convolution, a linear map, QK^T or attention
    times V; norms, softmax, GELU, average pooling and biases are not counted.

    Returns {"params", "macs", then the MACs by part: "patch_embedding", "kv_projection", "q_projection", "attention",
    "out_projection", "mlp", "pooling", "head"}. Raises ValueError for another kind of network.
    """
    if not all(hasattr(model, name) for name in ("patch_embed", "blocks", "head")):
        raise ValueError(
            f"cannot count a {type(model).__name__}; expected a HiT or a timm VisionTransformer."
        )
    conv = model.patch_embed.proj
    height, width = size if isinstance(size, Sequence) else (size, size)
    if size is None:
        height, width = model.patch_embed.img_size
    patches = (height // conv.stride[0]) * (width // conv.stride[1])
    parts = {"patch_embedding": patches * conv.weight.numel()}
    parts |= dict.fromkeys(
        ("kv_projection", "q_projection", "attention", "out_projection", "mlp", "pooling"), 0
    )
    for layer, block in enumerate(model.blocks):
        for name, macs in _layer_macs(model, block, layer, patches).items():
            parts[name] += macs
    for stage, pool in enumerate(getattr(model, "pools", ()), 1):
        parts["pooling"] += _pool_macs(pool, patches >> 2 * stage)
    parts["head"] = model.head.weight.numel() if isinstance(model.head, nn.Linear) else 0
    return {"params": sum(p.numel() for p in model.parameters()), "macs": sum(parts.values()), **parts}


def _layer_macs(model: nn.Module, block: nn.Module, layer: int, patches: int) -> dict[str, int]:
    """One layer: how many tokens ask, are asked, and pass the MLP, times the sizes of the linear maps."""
    dim = block.attn.proj.out_features
    if hasattr(model, "stages") and hasattr(model, "pools"):  # HiT
        patches >>= 2 * model.stages[layer]
        queries, targets, moved = 1, patches, patches
    elif isinstance(block, IntermediateBlock):
        queries, targets, moved = 1, patches + 1, patches + 1
    else:  # ViT
        queries = targets = moved = patches + model.num_prefix_tokens
    hidden = block.mlp.fc1.out_features if block.mlp is not None else 0
    return {
        "kv_projection": targets * 2 * dim * dim,
        "q_projection": queries * dim * dim,
        "attention": queries * targets * 2 * dim,  # QK^T, then attention times V
        "out_projection": queries * dim * dim,
        "mlp": moved * 2 * dim * hidden,
    }


def _pool_macs(pool: nn.Module, patches: int) -> int:
    """`patches` are those after the pooling. The class token passes the linear map, as patches do after a mean."""
    linear = pool.proj.weight.numel() if isinstance(pool.proj, nn.Linear) else 0
    return linear + patches * (pool.conv.weight.numel() if pool.conv is not None else linear)


# ---------------------------------------------------------------------------------------------------- released weights

RENAMED = (  # the authors' names -> ours
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
LAYER = re.compile(r"^encoder\.layers\.(?:block_(\d+)\.)?encoder_layer_(\d+)")


def load_released(weights: Mapping[str, Tensor], num_heads: int | None = None) -> Tokenised:
    """The HiT of a checkpoint in the authors' parameter names, in eval mode and in the checkpoint's precision.

    Sizes, classes and pooling are read off the tensors; stages ("block_0", ...) mean average pooling. `num_heads` is
    in no tensor: the default is one head for 64 channels, as in HiT-S and HiT-B. The unused MLP and norm of the last
    layer are dropped. Raises ValueError for tensors that are missing or that this HiT has no place for.
    """
    layers = sorted({(int(m[1] or 0), int(m[2])) for key in weights if (m := LAYER.match(key))})
    missing = [
        key
        for key in ("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight")
        if key not in weights
    ]
    if missing or not layers:
        raise ValueError(
            f"the checkpoint lacks {', '.join(missing) or 'encoder.layers.*'}; expected the authors' HiT. "
            "Weights saved by this library are loaded with zoo.load or model.load_state_dict."
        )
    from cfx_lib.hit import HiT
    from cfx_lib.zoo.files import load_into

    dim, channels, _, patch = weights["conv_proj.weight"].shape
    side = round((weights["encoder.pos_embedding"].shape[1] - 1) ** 0.5) * patch
    size = {"img_size": side, "patch_size": patch, "in_chans": channels}
    size |= {"num_classes": len(weights["heads.head.weight"]), "num_heads": num_heads or max(1, dim // 64)}
    names = {pair: number for number, pair in enumerate(layers)}
    stem = next(LAYER.match(key) for key in weights if LAYER.match(key))
    size["mlp_ratio"] = (
        weights[f"{stem[0]}.mlp.0.weight"].shape[0] / weights[f"{stem[0]}.mlp.0.weight"].shape[1]
    )
    if stem[1] is None:
        size |= {"embed_dim": dim, "depth": len(layers)}
    else:
        blocks = [block for block, _ in layers]
        first = [f"encoder.layers.block_{block}.encoder_layer_0.ln_1.weight" for block in sorted(set(blocks))]
        size |= {"pool": "avg", "depths": [blocks.count(b) for b in sorted(set(blocks))]}
        size |= {"dims": [len(weights[key]) for key in first]}
    model = HiT(**size).to(weights["class_token"].dtype)
    ours = dict(_renamed(weights, names)) | {"layout": model.layout}
    load_into(model, ours, "the authors' checkpoint")
    return model.eval()


def _renamed(
    weights: Mapping[str, Tensor], names: Mapping[tuple[int, int], int]
) -> Iterator[tuple[str, Tensor]]:
    for key, value in weights.items():
        match = LAYER.match(key)
        if match:
            number = names[int(match[1] or 0), int(match[2])]
            if number == len(names) - 1 and re.search(r"\.(mlp|ln_2)\.", key):
                continue  # nothing reads the last layer's patches
            key = f"blocks.{number}" + key[match.end() :]
        for pattern, ours in RENAMED:
            key = re.sub(pattern, ours, key)
        if ".self_attention.in_proj_" in key:  # [Q; K; V]
            stem, kind = key.split("self_attention.in_proj_")
            q, kv = value.split([len(value) // 3, 2 * len(value) // 3])
            yield f"{stem}attn.q.{kind}", q
            yield f"{stem}attn.kv.{kind}", kv
        else:
            yield key, value


# ---------------------------------------------------------------------------------------------------- timm


def _cfg(**more: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": MEAN,
        "std": STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **more,
    }


NAMES = (
    "hit_tiny_patch16_224",
    "hit_small_patch16_224",
    "hit_base_patch16_224",
    "hit_small_pool_patch8_224",
    "hit_base_pool_patch8_224",
    "hit_s18_pool_224",
    "hit_s18_conv_224",
    "hit_custom",
    "vit_hindered_small_patch16_224",
)
default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg() for name in NAMES})


def _hit(name: str, pretrained: bool, given: dict[str, Any], **size: Any) -> nn.Module:
    from cfx_lib.hit import HiT

    return build_model_with_cfg(HiT, name, pretrained, **{**size, **given})


@register_model
def hit_custom(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A HiT of any size, from its own arguments."""
    return _hit("hit_custom", pretrained, kwargs)


@register_model
def hit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-Ti: the sizes of ViT-Ti."""
    return _hit("hit_tiny_patch16_224", pretrained, kwargs, embed_dim=192, depth=12, num_heads=3)


@register_model
def hit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-S of Table 6.1: the sizes of ViT-S."""
    return _hit("hit_small_patch16_224", pretrained, kwargs, embed_dim=384, depth=12, num_heads=6)


@register_model
def hit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-B of Table 6.1: the sizes of ViT-B."""
    return _hit("hit_base_patch16_224", pretrained, kwargs, embed_dim=768, depth=12, num_heads=12)


@register_model
def hit_small_pool_patch8_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-S with 2x2 average pooling (Table 6.3): patches of 8, stages of 4-4-4 layers."""
    size = {"patch_size": 8, "pool": "avg", "depths": (4, 4, 4), "embed_dim": 384, "num_heads": 6}
    return _hit("hit_small_pool_patch8_224", pretrained, kwargs, **size)


@register_model
def hit_base_pool_patch8_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-B with 2x2 average pooling (Table 6.3): patches of 8, stages of 4-4-4 layers."""
    size = {"patch_size": 8, "pool": "avg", "depths": (4, 4, 4), "embed_dim": 768, "num_heads": 12}
    return _hit("hit_base_pool_patch8_224", pretrained, kwargs, **size)


S18 = {"patch_size": 4, "depths": (3, 3, 9, 3), "dims": (64, 128, 320, 512), "num_heads": 8}
"""The S18 of the MetaFormer baselines: 18 layers in four stages (3-3-9-3). The thesis gives no sizes; we take its widths
and depths, patches of 4x4 without overlap in place of the 7x7 convolution of stride 4, which would mix neighbours in
the very first step, and 8 heads in every stage."""


@register_model
def hit_s18_pool_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-s18 with 2x2 average pooling (Table 6.3); see S18 for the sizes."""
    return _hit("hit_s18_pool_224", pretrained, kwargs, pool="avg", **S18)


@register_model
def hit_s18_conv_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """HiT-s18 with 3x3 convolutions of stride 2 (Table 6.3); see S18 for the sizes."""
    return _hit("hit_s18_conv_224", pretrained, kwargs, pool="conv", **S18)


@register_model
def vit_hindered_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The intermediate model of Eq. 6.6 in the sizes of ViT-S."""
    size = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    name = "vit_hindered_small_patch16_224"
    return build_model_with_cfg(Intermediate, name, pretrained, **{**size, **kwargs})
