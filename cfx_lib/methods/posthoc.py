"""Saliency maps that are made after the fact, for comparison with HiT's own: Grad-CAM, attention rollout, integrated gradients.

Each asks a classifier that may be a HiT, a ViT of `timm` or, but for rollout, any other network, and gives one number a
patch: (N, rows, cols), larger is more salient, on the patch grid of the network's input. Grad-CAM and integrated gradients
are captum's; rollout reads the weights that timm's own attention computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.checks import check_images, check_logits, check_target
from cfx_lib.methods.layers import (
    CHUNK,
    FromLayer,
    attention_of,
    layer_of,
    network_of,
    patch_grid,
    repeated,
    taken_in,
)
from cfx_lib.types import frozen_models

__all__ = ["attention_rollout", "grad_cam", "integrated_gradients", "network_of", "patch_grid"]


def grad_cam(
    classifier: Any,
    x: Tensor,
    target: Tensor | None = None,
    layer: nn.Module | str | None = None,
    relu: bool = True,
) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): ReLU of the sum of a layer's features, weighted by their mean gradients.

    classifier: (N,C,H,W) in [-1,1] -> logits (N,K), of `cfx_lib.zoo`. x: images. target: (N,) long, by default the predicted
    class. layer: a module of the network or its name, whose output is (N,tokens,D) or (N,D,h,w). By default the LayerNorm
    before the last attention ("norm1" of the last block) of a HiT or ViT, which is the last place where patch tokens
    still reach the logits: later ones get no gradient, since the class token alone is classified. For another network
    it is the last module that gives a map of more than one position. relu=False keeps what speaks against the class, and
    so an order of all patches.
    Returns (N, rows, cols) float32, >= 0 with relu; a coarser layer's map is repeated over the patches that it stands for.
    A network without patches: the layer's own grid. ValueError for bad input, a layer without gradient or without a grid.
    """
    from captum.attr import LayerGradCam

    target, network = _checked(classifier, x, target), network_of(classifier)
    with frozen_models(classifier):
        layer = layer_of(classifier, network, layer, x[:1])
        found = []
        for part, wanted in zip(x.split(CHUNK), target.split(CHUNK), strict=True):
            rest = FromLayer(classifier, layer, part, patch_grid(network))
            found.append(LayerGradCam(rest, rest.maps).attribute(rest.features, wanted).detach()[:, 0])
    maps = torch.cat(found)
    if not maps.any():
        raise ValueError(
            f"nothing that {type(layer).__name__} says of the patches reaches the logits: choose an earlier layer."
        )
    return repeated((maps.relu() if relu else maps).float(), patch_grid(network))


def attention_rollout(classifier: Any, x: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, 2020): how much of each patch reaches the class token. It knows no class.

    ViT: product over the layers of (A + I)/2, A (tokens, tokens) being the attention averaged over the heads; the class
    token's row. HiT, where only the class token attends and no patch mixes: its attention averaged over heads and layers, as
    in the thesis (Table 6.2). classifier, x, returned map: see :func:`grad_cam`. A ViT's rows sum to 1 with the share that
    stays in the class token. ValueError for a network without such attention or without a class token.
    """
    from cfx_lib.hit import HiT

    check_images(x)
    network = network_of(classifier)
    with frozen_models(classifier), torch.no_grad():
        if isinstance(network, HiT):
            inputs = taken_in(classifier, network, x)
            weights = [network.attention(part).mean((1, 2)) for part in inputs.split(CHUNK)]
            return torch.cat(weights).float().view(len(x), *patch_grid(network))
        prefix = _class_token_first(network)
        rows = [_rolled_out(attention_of(classifier, network, part)) for part in x.split(CHUNK)]
    return torch.cat(rows)[:, prefix:].float().view(len(x), *patch_grid(network))


def integrated_gradients(
    classifier: Any,
    x: Tensor,
    target: Tensor | None = None,
    steps: int = 32,
    baseline: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Integrated gradients (Sundararajan et al., 2017), summed with their signs over each patch and its channels.

    The integral runs from `baseline` to x by Gauss-Legendre quadrature with `steps` points. baseline: (C,), (C,1,1) or (N,C,H,W)
    in [-1,1], by default the colour that the classifier's own normalisation turns into 0. grid: rows and columns of the map,
    by default the network's patches, else pixels. classifier, x, target: see :func:`grad_cam`. Returns (N, rows, cols)
    float32 of either sign: the sum of a map is the target's logit at x less that at the baseline (completeness).
    """
    from captum.attr import IntegratedGradients

    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps = {steps!r} given, a whole number from 1 on expected.")
    target = _checked(classifier, x, target)
    grid = grid or patch_grid(network_of(classifier)) or tuple(x.shape[2:])
    start = _baseline(classifier, x, baseline)
    with frozen_models(classifier):
        found = [
            IntegratedGradients(classifier)
            .attribute(a, b, t, n_steps=steps, internal_batch_size=4 * CHUNK)
            .detach()
            for a, b, t in zip(x.split(CHUNK), start.split(CHUNK), target.split(CHUNK), strict=True)
        ]
    return _summed(torch.cat(found).sum(1), grid)


# ------------------------------------------------------------------------------------------------- rollout


def _class_token_first(network: Any) -> int:
    """How many tokens of a ViT stand before the patches, the class token being the first. ValueError for other networks."""
    prefix = getattr(network, "num_prefix_tokens", 0)
    if patch_grid(network) is None or not prefix or getattr(network, "cls_token", None) is None:
        raise ValueError(
            f"{type(network).__name__} given, a HiT or a ViT of timm with a class token expected: rollout follows "
            "the attention to the class token."
        )
    return prefix


def _rolled_out(weights: list[Tensor]) -> Tensor:
    """The class token's row (N,T) of the product of (A + I)/2 over the layers, the first layer rightmost."""
    product = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)
    for attention in weights:
        product = (attention.mean(1) @ product + product) / 2
    return product[:, 0]


# ------------------------------------------------------------------------------------ integrated gradients


def _baseline(classifier: Any, x: Tensor, baseline: Tensor | None) -> Tensor:
    """Images (N,C,H,W) without content: those given, or the colour that the normalisation turns into 0."""
    if baseline is None:
        runner = getattr(getattr(classifier, "classifier", classifier), "runner", None)
        baseline = torch.zeros(1) if runner is None else 2 * runner.mean.detach() - 1
    start = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    if start.ndim == 1:
        start = start.view(-1, 1, 1)
    try:
        return start.expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"baseline of shape {tuple(start.shape)} given, (C,), (C,1,1) or {tuple(x.shape)} expected."
        ) from error


def _summed(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sums over the patches: (N,H,W) -> (N, rows, cols)."""
    (height, width), (rows, cols) = pixels.shape[1:], grid
    if min(grid) < 1 or height % rows or width % cols:
        raise ValueError(f"grid {grid} given for images of {height}x{width}, divisors of both expected.")
    return pixels.unflatten(2, (cols, width // cols)).unflatten(1, (rows, height // rows)).sum((2, 4))


# ------------------------------------------------------------------------------------------------- checks


def _checked(classifier: Any, x: Tensor, target: Tensor | None) -> Tensor:
    """The classes to explain (N,) long, predicted where none are given. ValueError for anything that does not fit."""
    check_images(x)
    if hasattr(classifier, "for_attribute"):
        raise ValueError("a network of attributes given, classes expected: pass model.for_attribute(name).")
    with frozen_models(classifier), torch.no_grad():
        logits = torch.cat([classifier(part) for part in (x if target is None else x[:1]).split(CHUNK)])
    if target is None:
        check_logits(logits, len(x))
        return logits.argmax(1)
    check_logits(logits, 1)
    check_target(target, len(x), logits.shape[1])
    return target.long()
