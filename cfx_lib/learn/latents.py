"""What notebook 05 needs beside the library: latents as pictures, a sampler with guidance, and the cast of `paper` mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cfx_lib import zoo
from cfx_lib.methods.latent_guidance import ddim_step, ddim_timesteps
from cfx_lib.methods.prompts import class_prompts
from cfx_lib.types import CFResult
from cfx_lib.worlds import folders, targets

__all__ = [
    "Cast",
    "Preview",
    "fit_preview",
    "generate",
    "noised",
    "photographs",
    "quiet",
    "with_pictures",
]


# ---------------------------------------------------------------------------------------------- latents as pictures


@dataclass(frozen=True)
class Preview:
    """A linear map from the channels of a latent to colours: `weights` (c+1, 3), `explained` the share of their variance."""

    weights: Tensor = field(repr=False)
    explained: float

    def __call__(self, z: Tensor) -> Tensor:
        """Latents (N,c,h,w) as small images (N,3,h,w), about [-1,1]."""
        return torch.einsum("nchw,ck->nkhw", z, self.weights[:-1]) + self.weights[-1].view(1, -1, 1, 1)


def fit_preview(model: Any, x: Tensor) -> Preview:
    """The linear map that fits the colours of the images `x` (N,3,H,W), averaged over a latent place, best (least squares)."""
    with torch.no_grad():
        z = model.encode(x).float()
    colours = torch.nn.functional.avg_pool2d(x.float(), model.factor).movedim(1, -1).flatten(0, 2)
    values = torch.cat([z.movedim(1, -1).flatten(0, 2), torch.ones(len(colours), 1).to(z)], 1)
    weights = torch.linalg.lstsq(values.cpu().double(), colours.cpu().double()).solution.to(z)
    left = (colours - values @ weights).square().sum()
    return Preview(weights, float(1 - left / (colours - colours.mean(0)).square().sum()))


def with_pictures(result: CFResult, preview: Callable[[Tensor], Tensor]) -> CFResult:
    """A recorded result whose steps hold previews of the latents in their place, so that widgets can show them."""
    return replace(result, steps=[replace(step, z=preview(step.z)) for step in result.steps])


def quiet() -> None:
    """No progress bars of diffusers and transformers, and no notes on their own type hints, in a notebook's cells."""
    from diffusers.utils import logging as diffusers_messages
    from transformers.utils import logging as transformers_messages

    for messages in (diffusers_messages, transformers_messages):
        messages.set_verbosity_error()
        messages.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------- sampling


def noised(model: Any, z: Tensor, t: int, noise: Tensor) -> Tensor:
    """Eq. 2 (LDCE) in the latent space: sqrt(alpha_t) z + sqrt(1 - alpha_t) noise; (N,c,h,w) twice -> (N,c,h,w)."""
    alpha_bar = float(model.alpha_bar[t])
    return alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * noise


@torch.no_grad()
def generate(
    model: Any,
    wanted: Sequence[str] | Tensor,
    guide: Callable[[Tensor, Tensor, float], Tensor],
    *,
    eta: float = 2.0,
    steps: int = 25,
    seed: int = 0,
    size: int | None = None,
) -> Tensor:
    """Images from noise, one for each text (or class): DDIM with classifier-free guidance, (N,3,size,size) in [-1,1].

    `guide(eps_uc, eps_c, eta)`: the combination of Eq. 8 (LDCE). The noise is the same for every text.
    """
    alphas, times = model.alpha_bar, ddim_timesteps(len(model.alpha_bar), steps).tolist()
    side, n = (size or model.native_size) // model.factor, len(wanted)
    draw = torch.randn(1, model.channels, side, side, generator=torch.Generator().manual_seed(seed))
    z, condition, empty = (
        draw.repeat(n, 1, 1, 1).to(model.device),
        model.condition(wanted),
        model.unconditional(n),
    )
    chain = [float(alphas[0]), *(float(alphas[t]) for t in times)]
    for i in reversed(range(steps)):
        t = torch.full((n,), times[i], device=z.device)
        eps = guide(model.eps(z, t, empty), model.eps(z, t, condition), eta)
        z = ddim_step(z, eps, chain[i + 1], chain[i])
    return model.decode(z).clamp(-1, 1)


# ----------------------------------------------------------------------------------------------------- paper mode


@dataclass(frozen=True)
class Cast:
    """Who takes part: images `x` (N,3,H,W) with the classes wanted, the explained classifier, a judge, and prompts.

    `region` (1,1,h,w) bool: the latent places that notebook 05 swaps. `words`: prompts worth looking at. `settings`: of LDCE.
    """

    model: Any
    classifier: Any
    judge: Any
    x: Tensor
    target: Tensor
    prompts: Mapping[int, str]
    names: Mapping[int, str]
    region: Tensor
    words: tuple[str, ...]
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)


PAIRS = {  # of ImageNet: LDCE, Table 2 and Fig. 1 and 3: class -> class asked for
    340: 339, 293: 286, 285: 283, 970: 973, 805: 574, 339: 340,
}  # fmt: skip
NAMES = {
    340: "zebra", 339: "sorrel horse", 293: "cheetah", 286: "cougar", 285: "Egyptian cat", 283: "Persian cat", 970: "alp",
    973: "coral reef", 805: "soccer ball", 574: "golf ball",
}  # fmt: skip


def photographs(
    n: int,
    checkpoint: Any = "lambdalabs/miniSD-diffusers",
    classifier: Any = "timm/resnet50.a1_in1k",
    judge: Any = "timm/convnext_tiny.fb_in1k",
    *,
    folder: str | None = None,
    size: int = 256,
    device: str = "cuda",
    guide: Callable[[Tensor, Tensor, float], Tensor] | None = None,
    steps: int = 50,
) -> Cast:
    """The cast of `paper` mode: a published Stable Diffusion, a `timm` classifier of ImageNet, photographs of size 256.

    `checkpoint`, `classifier`, `judge`: hub names (downloaded when there is a network), folders, or models; "CompVis/stable-diffusion-v1-4"
    is the larger checkpoint. `folder`: of photographs; their target classes are near ones of the written-down tree of
    ImageNet, so the classifier's answer has to be in it. Without a folder the photographs are drawn by the model itself,
    from the prompts of the classes of LDCE's Table 2. Raises ValueError where no image can be used, FileNotFoundError for a
    checkpoint that is not there.
    """
    options = {"dtype": "bf16" if device != "cpu" else "fp32", "device": device}
    model = zoo.latent_diffusion(checkpoint, **options)
    networks = [zoo.load(m, device=device) if isinstance(m, str) else m for m in (classifier, judge)]
    template, names = "imagenet", dict(NAMES)
    if folder is None:
        given = list(PAIRS)[:n]
        wanted = list(class_prompts(template, {k: NAMES[k] for k in given}).values())
        guide = guide or (lambda uc, c, eta: uc + eta * (c - uc))
        x = torch.cat(
            [
                generate(model, [w], guide, eta=5.0, steps=steps, seed=k, size=size)
                for k, w in enumerate(wanted)
            ]
        ).float()
        target = torch.tensor([PAIRS[k] for k in given])
    else:
        x, _ = folders.load(folder, size=size)
        tree = targets.tree_of("imagenet")
        said = networks[0].predict(x.to(device)).cpu()
        rows = torch.tensor(
            [k for k, label in enumerate(said.tolist()) if label in tree.classes], dtype=torch.long
        )[:n]
        if len(rows) == 0:
            raise ValueError(
                f"none of the {len(x)} images of {folder} is taken for a class of the small tree of ImageNet; expected at "
                "least one. Take photographs of common animals or things, or leave CFX_IMAGES empty."
            )
        x, target = x[rows], targets.semantic(x[rows], said[rows], "imagenet", k=1)
        names = {k: name for k, (name, _) in tree.classes.items()}
    asked = {k: names[k] for k in target.tolist()}
    side = size // model.factor
    region = torch.zeros(1, 1, side, side, dtype=torch.bool)
    region[..., side // 4 : -(side // 4), side // 4 : -(side // 4)] = True
    words = tuple(
        class_prompts(template, {k: names[k] for k in list(dict.fromkeys(target.tolist()))[:4]}).values()
    )
    return Cast(
        model, networks[0], networks[1], x.to(device), target.to(device), class_prompts(template, asked), names,
        region.to(device), words, "paper/imagenet", {"norm": "released"},
    )  # fmt: skip
