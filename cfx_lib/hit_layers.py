"""The parts of a Hindered Transformer: tokens, the attention of the class token, the block, the pooling."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp, PatchEmbed, trunc_normal_
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

__all__ = [
    "ClassAttention",
    "HinderedBlock",
    "IntermediateBlock",
    "Pool",
    "Tokenised",
    "Used",
    "describe",
    "stage_sizes",
]

POOLS = (None, "avg", "conv")
EPS = 1e-6  # of every LayerNorm
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what DeiT's recipe normalises with


class Used(NamedTuple):
    """What one layer's attention did: the class token's update (N,d), weights (N,heads,P), values (N,heads,P,d_k)."""

    update: Tensor
    attention: Tensor
    values: Tensor


class ClassAttention(nn.Module):
    """Multi-head attention with one query, the class token (thesis, Eq. 6.1-6.2 with L_q = 1).

    `forward(query (N,d), target (N,P,d))` -> :class:`Used`; the attention sums to 1 over the tokens. Linear in P.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)

    def forward(self, query: Tensor, target: Tensor) -> Used:
        n, patches, dim = target.shape
        heads = self.num_heads
        q = self.q(query).view(n, heads, 1, dim // heads) * self.scale
        k, v = self.kv(target).view(n, patches, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
        attention = self.attn_drop((q @ k.transpose(-2, -1)).softmax(-1))  # a(v, x^q, x^t) of Eq. 6.4
        mixed = (attention @ v).reshape(n, dim)  # [Attn^1; ...; Attn^h]
        return Used(self.proj_drop(self.proj(mixed)), attention.squeeze(2), v)

    def contributions(self, used: Used, readout: Tensor) -> Tensor:
        """Eq. 6.5 read out: sum_i a (v W_v^i + b_v^i) W_o^i + b_o / P, times `readout` (K,d) -> (N,P,K).

        The readout is multiplied into W_o first, so that no update of d numbers is formed for each patch.
        """
        weighted = (used.attention.unsqueeze(-1) * used.values).transpose(1, 2).flatten(2)  # (N,P,d)
        bias = readout @ self.proj.bias / weighted.shape[1]
        return weighted @ (readout @ self.proj.weight).T + bias


class HinderedBlock(nn.Module):
    """One layer of HiT (thesis, Eq. 6.7): attention moves the class token, the MLP moves each patch by itself.

    One LayerNorm serves query and patches. The `last` layer has no MLP: nothing would read the patches after it.
    Post-hoc methods find a layer's patch tokens, normalised, (N,P,d), at the input of `attn.kv`.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, drops: tuple[float, float], last: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = ClassAttention(dim, num_heads, *drops)
        self.norm2 = None if last else nn.LayerNorm(dim, EPS)
        self.mlp = None if last else Mlp(dim, hidden, drop=drops[1])

    def forward(self, token: Tensor, x: Tensor) -> tuple[Used, Tensor]:
        """token (N,d), x (N,P,d) -> what attention did, the token's update first in it, and the new x."""
        used = self.attn(self.norm1(token), self.norm1(x))  # MHA(x_l[0], x_l[1:])
        if self.mlp is not None:
            x = x + self.mlp(self.norm2(x))  # x_{l+1}[1:] = x_l[1:] + MLP(x_l[1:])
        return used, x


class IntermediateBlock(nn.Module):
    """One layer of the intermediate model (thesis, Eq. 6.6): the class token attends to all, the MLP moves all."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drops: tuple[float, float]) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, EPS), ClassAttention(dim, num_heads, *drops)
        self.norm2, self.mlp = nn.LayerNorm(dim, EPS), Mlp(dim, hidden, drop=drops[1])

    def forward(self, x: Tensor) -> Tensor:
        """x (N,1+P,d), class token first -> the same after the layer."""
        normed = self.norm1(x)
        update = self.attn(normed[:, 0], normed).update  # MHA(x_l[0], x_l)
        x = torch.cat([x[:, :1] + update[:, None], x[:, 1:]], 1)  # x'_l
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    """Halves the grid of patch tokens between two stages (thesis, Sect. 6.4.6 and Table 6.3).

    "avg": the mean of 2x2 tokens, then a linear map without bias where the width changes. "conv": a 3x3 convolution of
    stride 2, after which a token knows its neighbours. The class token passes the linear map alone.
    """

    def __init__(self, kind: str, dim: int, dim_out: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1) if kind == "conv" else None
        self.proj = nn.Linear(dim, dim_out, bias=False) if dim != dim_out else nn.Identity()

    def forward(self, token: Tensor, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """token (N,d), x (N,rows*columns,d) -> (N,d'), (N,rows*columns/4,d')."""
        maps = x.transpose(1, 2).unflatten(2, grid)
        maps = self.conv(maps) if self.kind == "conv" else nn.functional.avg_pool2d(maps, 2)
        x = maps.flatten(2).transpose(1, 2)
        return self.proj(token), x if self.kind == "conv" else self.proj(x)


class Tokenised(nn.Module):
    """What HiT and the intermediate model share: patch and position embedding, last LayerNorm, head, timm's methods.

    Images must have the size and the channels that the model was made for. Raises ValueError.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        num_classes: int,
        dim: int,
        dim_out: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        height, width = to_2tuple(img_size)
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"images of {height}x{width} pixels cannot be cut into patches of {patch_size}x{patch_size}; expected "
                "a patch size that divides both sides. Resize the images or choose another patch_size."
            )
        self.img_size, self.patch_size, self.in_chans = (height, width), patch_size, in_chans
        self.grid = (height // patch_size, width // patch_size)
        self.num_classes, self.num_features = num_classes, dim_out
        self.patch_embed = PatchEmbed((height, width), patch_size, in_chans, dim, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        self.norm, self.head_drop = nn.LayerNorm(dim_out, EPS), nn.Dropout(drop_rate)
        self.head = nn.Linear(dim_out, num_classes) if num_classes else nn.Identity()
        self.default_cfg = self.pretrained_cfg = {
            "num_classes": num_classes,
            "input_size": (in_chans, height, width),
            "mean": MEAN,
            "std": STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }

    def init_weights(self) -> None:
        """Linear maps and embeddings from a normal of 0.02, cut at two units; biases zero."""
        for table in (self.cls_token, self.pos_embed):
            trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError for images that are not (N, in_chans, height, width)."""
        expected = (self.in_chans, *self.img_size)
        if x.ndim == 4 and tuple(x.shape[1:]) == expected:
            return
        fix = "Resize the images, or make the model with their img_size."
        if x.ndim != 4:
            fix = "Use x[None] for a single image."
        elif x.shape[1] != self.in_chans:
            fix = f"The model takes {self.in_chans} channels (in_chans)."
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (N, {', '.join(map(str, expected))}), whose sides the patch of "
            f"{self.patch_size}x{self.patch_size} divides. {fix}"
        )

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> x_0[0] (N,d) and x_0[1:] (N,P,d), position embeddings added, on both."""
        self.check_input(x)
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        return self._start().expand(len(x), -1), x

    def _start(self) -> Tensor:
        return self.cls_token[:, 0] + self.pos_embed[:, 0]  # x_0[0], (1,d)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N,d) of `forward_features` -> logits (N,classes)."""
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images, normalised, (N,C,H,W) -> logits (N,classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` classes (0: none), as in timm. `global_pool` may only be the class token."""
        if global_pool not in (None, "", "token"):
            raise ValueError(
                f"global_pool is {global_pool!r}; expected 'token': the class token is read out."
            )
        weight = self.norm.weight
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(weight.device, weight.dtype)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}


# ---------------------------------------------------------------------------------------------------- variants


def stage_sizes(
    pool: str | None,
    depth: int,
    dim: int,
    depths: Sequence[int] | None,
    dims: Sequence[int] | None,
    num_heads: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers and channels of each stage; raises ValueError for those that do not fit together."""
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}; expected None, 'avg' or 'conv'.")
    if pool is None:
        if depths is not None or dims is not None:
            raise ValueError(
                "depths and dims are for pool='avg' or 'conv'; without pooling give depth and embed_dim."
            )
        depths, dims = (depth,), (dim,)
    depths = tuple(depths) if depths is not None else (4, 4, 4)
    dims = tuple(dims) if dims is not None else (dim,) * len(depths)
    if len(dims) != len(depths) or min(depths, default=0) < 1:
        raise ValueError(
            f"depths {depths} and dims {dims}; expected one of each, at least 1, for every stage."
        )
    if any(width < 1 or width % num_heads for width in dims):
        raise ValueError(
            f"{num_heads} heads do not divide the width {dims}; expected a divisor of every width."
        )
    return depths, dims


def describe(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict tells of its variant; keys that it does not tell are left out."""
    facts: dict[str, Any] = {}
    norms = sorted(
        (int(key.split(".")[1]), weights[key].shape[0])
        for key in weights
        if re.fullmatch(r"blocks\.\d+\.norm1\.weight", key)
    )
    if "layout" in weights:
        pool, heads, *depths = weights["layout"].tolist()
        facts |= {"pool": POOLS[pool], "heads": heads, "layers in each stage": tuple(depths)}
    if norms:
        facts |= {"layers": len(norms), "widths": tuple(dict.fromkeys(width for _, width in norms))}
    if "patch_embed.proj.weight" in weights:
        _, channels, _, patch = weights["patch_embed.proj.weight"].shape
        facts |= {"channels": channels, "patch size": patch}
    for name, key, size in (
        ("MLP width", "blocks.0.mlp.fc1.bias", 0),
        ("patches", "pos_embed", 1),
        ("classes", "head.bias", 0),
    ):
        if key in weights:
            facts[name] = weights[key].shape[size] - (name == "patches")
    return facts
