"""The Hindered Transformer (HiT): a transformer whose logit is a sum over layers and patches (thesis, chapter 6).

    model = timm.create_model("hit_small_patch16_224")     # after `from cfx_lib import HiT`
    parts = model.contributions(x)                          # (N, layers, patches, classes)
    parts.sum((1, 2)) + model.head.bias                     # the logits

Patches never see each other: attention only moves the class token (Eq. 6.7). So the class token is a sum of what
single patches gave it (Eq. 6.8), and the last LayerNorm and the head, linear once its mean and scale are known, keep
the sum. Importing this module registers the architectures with timm (see :mod:`cfx_lib.hit_models`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.checks import check_target
from cfx_lib.hit_layers import POOLS, HinderedBlock, Pool, Tokenised, Used, describe, stage_sizes
from cfx_lib.hit_models import Intermediate, counts, load_released

__all__ = ["HiT", "Intermediate", "contribution_map", "contributions", "counts", "hit_of", "load_released"]

CHUNK = 16  # images at a time for a map


class HiT(Tokenised):
    """The Hindered Transformer (thesis, Eq. 6.7): normalised images (N,C,H,W) -> logits (N,classes).

    `pool`: None, one grid for all layers; "avg" or "conv" halve the grid between stages (Table 6.3), with `depths`
    layers and `dims` channels in each stage (the default is three equal ones). `depth` and `embed_dim` serve
    without pooling. With "avg" a token still holds one region of the image alone, four times as large in each stage.
    With "conv" coarse tokens also know their neighbours' regions: a contribution then belongs to the coarse token, and
    is spread over the cells that the token stands for; the sum is exact all the same.

    The MLP and the second norm of the last layer do not exist, since nothing would read their output. Pre-norm, eps
    1e-6. `grid` is the finest (rows, columns). Raises ValueError for sizes that do not fit together.
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
        pool: str | None = None,
        depths: Sequence[int] | None = None,
        dims: Sequence[int] | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        depths, dims = stage_sizes(pool, depth, embed_dim, depths, dims, num_heads)
        super().__init__(img_size, patch_size, in_chans, num_classes, dims[0], dims[-1], drop_rate)
        if any(side % 2 ** (len(depths) - 1) for side in self.grid):
            raise ValueError(
                f"a grid of {self.grid[0]}x{self.grid[1]} patches cannot be halved {len(depths) - 1} times; expected "
                f"sides divisible by {2 ** (len(depths) - 1)}. Choose another img_size or patch_size, or fewer stages."
            )
        self.pool, self.depths, self.dims, self.num_heads = pool, depths, dims, num_heads
        self.stages = [stage for stage, layers in enumerate(depths) for _ in range(layers)]  # of each layer
        drops, last = (attn_drop_rate, proj_drop_rate), len(self.stages) - 1
        self.blocks = nn.ModuleList(
            HinderedBlock(dims[stage], num_heads, int(dims[stage] * mlp_ratio), drops, layer == last)
            for layer, stage in enumerate(self.stages)
        )
        self.pools = nn.ModuleList(Pool(pool, *pair) for pair in zip(dims, dims[1:], strict=False))
        # What the other tensors' shapes do not tell; saved with them, so that another variant is recognised.
        self.register_buffer("layout", torch.tensor([POOLS.index(pool), num_heads, *depths]))
        self.register_load_state_dict_pre_hook(_check_before_loading)
        self.init_weights()

    # ------------------------------------------------------------------------------------------ the network

    def _run(self, x: Tensor, record: list[Used] | None = None) -> Tensor:
        """x_L[0] (N,d), Eq. 6.8's first line. `record` receives each layer's update, attention and values."""
        token, x = self.embed(x)
        for layer, (stage, block) in enumerate(zip(self.stages, self.blocks, strict=True)):
            if self._pooled_before(layer):
                token, x = self.pools[stage - 1](token, x, self._grid(stage - 1))
            used, x = block(token, x)
            token = token + used.update  # x_{l+1}[0] = x_l[0] + MHA(x_l[0], x_l[1:])
            if record is not None:
                record.append(used)
        return token

    def _pooled_before(self, layer: int) -> bool:
        return layer > 0 and self.stages[layer] != self.stages[layer - 1]

    def _grid(self, stage: int) -> tuple[int, int]:
        return self.grid[0] >> stage, self.grid[1] >> stage

    def forward_features(self, x: Tensor) -> Tensor:
        """The class token after the last LayerNorm, (N,d): all that the head reads."""
        return self.norm(self._run(x))

    def forward_layers(self, x: Tensor, keep: Sequence[bool] | set[int]) -> Tensor:
        """Logits (N,classes) of the sum over the `keep` layers alone (thesis, Fig. 6.5b).

        `keep`: one bool a layer, or the set of the kept layers' numbers. Every layer runs as always, asked by the whole
        token; the updates of the others are left out of Eq. 6.8, and the last LayerNorm takes its statistics from what
        remains. Dropout is off. Raises ValueError for layers that there are not.
        """
        keep, record = self._kept(keep), []
        with _without_dropout(self):
            self._run(x, record)
            token = self._start().expand(len(x), -1)
            for layer, (stage, used) in enumerate(zip(self.stages, record, strict=True)):
                if self._pooled_before(layer):
                    token = self.pools[stage - 1].proj(token)
                if layer in keep:
                    token = token + used.update
            return self.forward_head(self.norm(token))

    def _kept(self, keep: Sequence[bool] | set[int]) -> set[int]:
        layers = len(self.blocks)
        if not isinstance(keep, (set, frozenset)):
            if len(keep) != layers or not all(isinstance(flag, bool) for flag in keep):
                raise ValueError(
                    f"keep is {keep!r}; expected {layers} bools, one a layer, or a set of layer numbers."
                )
            return {layer for layer, flag in enumerate(keep) if flag}
        if not keep <= set(range(layers)):
            raise ValueError(f"keep has the layers {sorted(keep)}; the model has layers 0 to {layers - 1}.")
        return set(keep)

    # ------------------------------------------------------------------------------------------ the sum

    def contributions(self, x: Tensor) -> Tensor:
        """Eq. 6.8 through LayerNorm and head: normalised images (N,C,H,W) -> (N, layers, patches, classes).

        `.sum((1, 2)) + head.bias` is the logits. Patches are those of the finest grid, row by row; a coarser stage's
        contribution is spread evenly over the cells of its token. What belongs to no patch is spread evenly: b_o
        over the layer's patches; the class token with its position embedding, and LayerNorm's mean and shift, over
        all layers and patches. LayerNorm's statistics are those of the whole class token. Dropout is off.
        Costs one forward pass and one product of width d by the number of classes a patch and layer.
        """
        if not self.num_classes:
            raise ValueError(
                "the model has no head (num_classes=0); contributions need one. Use reset_classifier."
            )
        record: list[Used] = []
        with _without_dropout(self):
            token = self._run(x, record)  # x_L[0]
        readouts = self._readouts()
        parts = [
            self._spread(block.attn.contributions(used, readouts[stage]), stage)  # v'_l(v) + b_o / N^2
            for stage, block, used in zip(self.stages, self.blocks, record, strict=True)
        ]
        variance, mean = torch.var_mean(token, -1, correction=0, keepdim=True)
        scale = (variance + self.norm.eps).rsqrt()  # (N,1)
        start = readouts[0] @ self._start()[0]  # x_0[0]
        shared = (start - mean * readouts[-1].sum(1)) * scale + self.head.weight @ self.norm.bias
        parts = torch.stack(parts, 1) * scale[:, :, None, None]
        return parts + shared[:, None, None] / (parts.shape[1] * parts.shape[2])

    def _readouts(self) -> list[Tensor]:
        """For each stage (K,d): its class token -> logits, by later stages' linear maps, LayerNorm's scale, the head."""
        readouts = [self.head.weight * self.norm.weight]
        for pool in reversed(self.pools):
            linear = isinstance(pool.proj, nn.Linear)
            readouts.insert(0, readouts[0] @ pool.proj.weight if linear else readouts[0])
        return readouts

    def _spread(self, parts: Tensor, stage: int) -> Tensor:
        """(N, patches of a stage, K) -> (N, patches of the finest grid, K), a token's share to each of its cells."""
        if stage == 0:
            return parts
        (rows, columns), cells = self._grid(stage), 2**stage
        parts = parts.view(len(parts), rows, 1, columns, 1, -1) / cells**2
        return parts.expand(-1, -1, cells, -1, cells, -1).flatten(1, 4)

    def attention(self, x: Tensor) -> Tensor:
        """The class token's attention: (N,C,H,W) -> (N, layers, heads, patches), 1 in sum over the patches.

        On the finest grid: a coarse token's weight is spread evenly over its cells. The mean over layers and heads is
        the thesis's adapted rollout (Table 6.2). Dropout is off.
        """
        record: list[Used] = []
        with _without_dropout(self):
            self._run(x, record)
        spread = [
            self._spread(used.attention.transpose(1, 2), stage)
            for stage, used in zip(self.stages, record, strict=True)
        ]
        return torch.stack([a.transpose(1, 2) for a in spread], 1)

    # ------------------------------------------------------------------------------------------ other variants

    def check_weights(self, weights: Mapping[str, Tensor], source: Any = "the checkpoint") -> None:
        """Raises ValueError when weights are those of another variant; says what differs."""
        own, given = describe(self.state_dict()), describe(weights)
        if "layers" not in given or any(".attn.qkv." in key for key in weights):
            raise ValueError(
                f"{source} holds no HiT of this library (its tensors: {', '.join(list(weights)[:3])}, ...). "
                "Use cfx_lib.hit.load_released for the authors' checkpoints, and timm for a ViT."
            )
        differing = [
            f"{key} {given[key]}, not {own[key]}" for key in own if given.get(key, own[key]) != own[key]
        ]
        if differing:
            raise ValueError(
                f"{source} is another variant of HiT than the model: {'; '.join(differing)}. "
                "Make the model with the arguments that the weights were trained with."
            )


def _check_before_loading(model: HiT, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if any(key.startswith("blocks.") for key in own):  # a head alone may be loaded with strict=False
        model.check_weights(own)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# ---------------------------------------------------------------------------------------------------- classifiers


def hit_of(classifier: Any) -> HiT:
    """The bare HiT inside a classifier of the zoo, or the HiT itself. Raises ValueError for another network."""
    if isinstance(classifier, HiT):
        return classifier
    runner = getattr(getattr(classifier, "classifier", classifier), "runner", None)
    model = getattr(runner, "model", None)
    if isinstance(model, HiT):
        return model
    name = type(model if model is not None else classifier).__name__
    raise ValueError(
        f"the classifier's network is a {name}; expected a HiT, whose logit is a sum over patches. "
        "For other networks use a post-hoc method, such as Grad-CAM."
    )


def contributions(classifier: Any, x: Tensor) -> Tensor:
    """Eq. 6.8 for a classifier of the zoo: x (N,C,H,W) in [-1,1] -> (N, layers, patches, classes), float32.

    Sum plus the head's bias is the classifier's output: a logit a class, an output an attribute, or, for one attribute
    as two classes with logits (-l/2, +l/2), the halves of l's contributions (and of its bias). Computes in float32
    whatever the classifier's dtype. A bare HiT takes x as it is, normalised. Raises ValueError for another network.
    """
    model = hit_of(classifier)
    if model is classifier:
        return model.contributions(x)
    size = getattr(classifier, "size", None)
    if size is not None and x.shape[-1] != size:
        x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
    if x.ndim == 4 and x.shape[1] == model.in_chans:
        x = getattr(classifier, "classifier", classifier).runner.prepare(x)
    parts = model.contributions(x)
    if hasattr(classifier, "attribute"):
        half = parts[..., classifier.index] / 2
    elif getattr(classifier, "num_classes", None) == 2 and parts.shape[-1] == 1:
        half = parts[..., 0] / 2
    else:
        return parts
    return torch.stack([-half, half], -1)


@torch.no_grad()
def contribution_map(classifier: Any, x: Tensor, target: Tensor | None = None) -> Tensor:
    """The saliency map of HiT (thesis, Fig. 6.2): x (N,C,H,W) in [-1,1] -> (N, rows, columns), signed, no gradient.

    What each patch adds to the logit of `target` ((N,) long; None: the predicted class), all layers together. For an
    AttributeClassifier a target is the number of an output, and must be given. Raises ValueError for a class that there
    is not and for a classifier that is not a HiT.
    """
    model = hit_of(classifier)
    classes = getattr(classifier, "num_classes", model.num_classes)
    if target is None and hasattr(classifier, "attributes"):
        raise ValueError(
            "an AttributeClassifier predicts no single class; give `target`, the number of an output, or explain "
            "classifier.for_attribute(name)."
        )
    if target is not None:
        check_target(target, len(x), classes)
    maps = []
    for rows in torch.arange(len(x)).split(CHUNK):
        chosen = classifier(x[rows]).argmax(1) if target is None else target[rows].long()
        parts = contributions(classifier, x[rows]).sum(1)  # (n, patches, classes)
        maps.append(parts.take_along_dim(chosen.view(-1, 1, 1), 2).view(-1, *model.grid))
    return torch.cat(maps)
