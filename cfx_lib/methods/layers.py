"""What `methods.posthoc` reads off a network: its patches, what it takes in, its attention, one of its layers as maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CHUNK",
    "FromLayer",
    "attention_of",
    "layer_of",
    "network_of",
    "patch_grid",
    "repeated",
    "taken_in",
]

CHUNK = 64  # images at a time


def network_of(classifier: Any) -> Any:
    """The bare network that a classifier of `cfx_lib.zoo` runs; anything else is its own network."""
    runner = getattr(getattr(classifier, "classifier", classifier), "runner", None)
    if runner is None:
        return classifier
    return runner.model if runner.model is not None else runner._call[0]


def patch_grid(network: Any) -> tuple[int, int] | None:
    """Rows and columns of the patches of a HiT (the finest) or of a ViT of `timm`; None for other networks."""
    grid = getattr(network, "grid", None) or getattr(getattr(network, "patch_embed", None), "grid_size", None)
    return None if grid is None else tuple(grid)


def attention_of(classifier: Any, network: nn.Module, x: Tensor) -> list[Tensor]:
    """The attention weights of every layer, [(N,heads,T,T), ...], as timm's unfused attention computes them.

    A fused attention never has the weights, and a hook on it would get nothing without a word: it is switched off here.
    """
    layers = [m for m in network.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    before, weights = [m.fused_attn for m in layers], []
    take = [m.attn_drop.register_forward_pre_hook(lambda _m, args: weights.append(args[0])) for m in layers]
    try:
        for module in layers:
            module.fused_attn = False
        classifier(x)
    finally:
        for module, flag, handle in zip(layers, before, take, strict=True):
            module.fused_attn = flag
            handle.remove()
    square = all(w.ndim == 4 and w.shape[2] == w.shape[3] for w in weights)
    if not weights or len(weights) != len(layers) or not square:
        raise ValueError(
            f"{type(network).__name__}: {len(weights)} attention matrices of {len(layers)} layers seen; rollout takes "
            "a ViT of timm in which every token attends to every token."
        )
    return weights


def taken_in(classifier: Any, network: nn.Module, x: Tensor) -> Tensor:
    """The images as the network itself gets them: resized and normalised."""
    inputs: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    try:
        for part in x.split(CHUNK):
            classifier(part)
    finally:
        handle.remove()
    return torch.cat(inputs)


class FromLayer(nn.Module):
    """A classifier as a function of the maps (N,D,h,w) of one layer: captum's Grad-CAM weights maps, and tokens are none."""

    def __init__(
        self, classifier: Callable, layer: nn.Module, x: Tensor, grid: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.maps, self.parts = nn.Identity(), (classifier, layer, x)  # in a tuple: no submodules
        with torch.no_grad(), _watched(layer) as outputs:
            classifier(x)
        output = [out for out in outputs if _is_map(out)][-1:]
        if not output:
            raise ValueError(f"{layer} gives no tokens or maps; choose another layer for Grad-CAM.")
        self.shape, self.tokens = output[0].shape, output[0].ndim == 3
        self.features = self._as_maps(output[0], grid) if self.tokens else output[0]

    def _as_maps(self, tokens: Tensor, grid: tuple[int, int] | None) -> Tensor:
        rows, cols = _token_grid(tokens.shape[1], grid)
        self.prefix = tokens.shape[1] - rows * cols
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (rows, cols))

    def forward(self, maps: Tensor) -> Tensor:
        """maps (N,D,h,w) -> logits (N,K)."""
        classifier, layer, x = self.parts
        maps = self.maps(maps)

        def put(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or output.shape != self.shape:
                return None  # another call of the same layer
            if not self.tokens:
                return maps
            return torch.cat([output[:, : self.prefix], maps.flatten(2).transpose(1, 2)], 1)

        handle = layer.register_forward_hook(put)
        try:
            return classifier(x)
        finally:
            handle.remove()


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list]:
    """The outputs of a module, in the order of its calls."""
    outputs: list = []
    handle = layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    try:
        yield outputs
    finally:
        handle.remove()


def _is_map(out: Any) -> bool:
    if not isinstance(out, Tensor):
        return False
    return (out.ndim == 3 and out.shape[1] > 1) or (out.ndim == 4 and out.shape[2] * out.shape[3] > 1)


def layer_of(classifier: Any, network: Any, layer: nn.Module | str | None, x: Tensor) -> nn.Module:
    """The layer that Grad-CAM looks at; see :func:`grad_cam`."""
    modules = dict(network.named_modules()) if isinstance(network, nn.Module) else {}
    if isinstance(layer, str):
        if layer not in modules:
            raise ValueError(f"the network has no layer {layer!r}; it has {', '.join(list(modules)[1:])}.")
        return modules[layer]
    if layer is not None:
        return layer
    norms = [module for name, module in modules.items() if name.split(".")[-1] == "norm1"]
    if patch_grid(network) is not None and norms:
        return norms[-1]
    called: list[nn.Module] = []
    handles = [
        m.register_forward_hook(
            lambda m, _i, out: called.append(m) if _is_map(out) and out.ndim == 4 else None
        )
        for m in modules.values()
    ]
    try:
        with torch.no_grad():
            classifier(x)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError(
            f"{type(network).__name__} has no layer that gives maps: say layer=... for Grad-CAM."
        )
    return called[-1]


def _token_grid(count: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of `count` tokens, class and register tokens (at most eight, in front) left out."""
    if grid is None:
        grid = (int(count**0.5),) * 2
    for coarser in (1, 2, 4, 8, 16):
        rows, cols = grid[0] // coarser, grid[1] // coarser
        if rows * coarser == grid[0] and cols * coarser == grid[1] and 0 <= count - rows * cols <= 8:
            return rows, cols
    raise ValueError(
        f"{count} tokens given, which are no {grid[0]}x{grid[1]} patches, nor 2x2 averages of them: "
        "choose a layer that gives tokens of patches."
    )


def repeated(maps: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Maps (N,h,w) on the grid of the patches, each value repeated over those it stands for."""
    if grid is None or tuple(maps.shape[1:]) == grid:
        return maps
    down, right = grid[0] // maps.shape[1], grid[1] // maps.shape[2]
    return maps.repeat_interleave(down, 1).repeat_interleave(right, 2)
