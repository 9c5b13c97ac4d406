"""Pictures of contributions, for notebook 07: maps in two colours, a sum as a stair, a widget that hides patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from torch import Tensor, nn

from cfx_lib import hit, zoo
from cfx_lib.learn import plots
from cfx_lib.learn.widgets import Moving
from cfx_lib.methods.layers import network_of
from cfx_lib.worlds import folders
from cfx_lib.zoo.files import read_weights

__all__ = [
    "Photographs",
    "constant",
    "depths",
    "hide",
    "over",
    "paint",
    "photographs",
    "reach",
    "ripples",
    "signed",
    "stairs",
]

AGAINST, FOR = plots.BLUE, plots.VERMILION  # a negative and a positive contribution


# ------------------------------------------------------------------------------------------------------------- maps


def signed(maps: Tensor, scale: Tensor | float | None = None) -> Tensor:
    """Contributions (N,h,w) as pictures (N,3,h,w) in [-1,1]: orange red speaks for the class, blue against, white is zero.

    `scale`: the value of the full colour, one for all or (N,); by default the largest magnitude of each map.
    """
    maps = maps.detach().float().cpu()
    strength = (maps / _scale(maps, scale)).clamp(-1, 1)[:, None]
    colours = {
        name: torch.tensor(to_rgb(c)).view(1, 3, 1, 1) for name, c in (("for", FOR), ("against", AGAINST))
    }
    full = torch.where(strength > 0, colours["for"], colours["against"])
    return 2 * (1 - strength.abs() * (1 - full)) - 1


def over(x: Tensor, maps: Tensor, scale: Tensor | float | None = None) -> Tensor:
    """Contributions (N,h,w) laid over their images (N,C,H,W), which turn grey and pale: (N,3,H,W) in [-1,1]."""
    x, maps = x.detach().float().cpu(), maps.detach().float().cpu()
    strength = (maps / _scale(maps, scale)).abs().clamp(max=1)[:, None]
    size = x.shape[-2:]
    pale = (0.25 * x.mean(1, keepdim=True) + 0.7).clamp(-1, 1).expand(-1, 3, -1, -1)
    opacity = 0.85 * F.interpolate(strength**0.7, size=size)
    return opacity * F.interpolate(signed(maps.sign(), 1.0), size=size) + (1 - opacity) * pale


def _scale(maps: Tensor, scale: Tensor | float | None) -> Tensor:
    """The value of the full colour of each map, (N,1,1), never zero."""
    if scale is None:
        scale = maps.abs().flatten(1).amax(1)
    return torch.as_tensor(scale, dtype=torch.float32).detach().cpu().reshape(-1, 1, 1).clamp(min=1e-12)


# ------------------------------------------------------------------------------------------------------------ the sum


def constant(classifier: Callable[[Tensor], Tensor], x: Tensor, contributions: Tensor) -> Tensor:
    """What the contributions (N,layers,patches,K) leave open of the logits, which has to be the head's bias: (N,K)."""
    with torch.no_grad():
        return classifier(x) - contributions.sum((1, 2)).to(x)


def paint(x: Tensor, hidden: Tensor, colour: Tensor | float) -> Tensor:
    """Images (N,C,H,W) with the patches `hidden` (h,w) or (N,h,w), bool, in `colour` (a number, or (C,1,1))."""
    hidden = hidden.expand(len(x), *hidden.shape[-2:])[:, None].float()
    mask = F.interpolate(hidden, size=x.shape[-2:]).bool().to(x.device)
    return torch.where(mask, torch.as_tensor(colour, dtype=x.dtype, device=x.device).expand_as(x), x)


def depths(classifier: Any, x: Tensor) -> Tensor:
    """The tokens of one image (1,C,H,W) as they enter the first block and leave every block: (blocks + 1, tokens, D).

    The class token comes first. For a ViT of timm, the intermediate model and a HiT without pooling.
    """
    seen: list[Tensor] = []

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0] if len(given) == 1 else torch.cat([given[0][:, None], given[1]], 1))

    def after(_: nn.Module, given: tuple[Tensor, ...], made: Any) -> None:
        whole = isinstance(made, Tensor)  # else (what attention did, patches) of a HiT
        seen.append(made if whole else torch.cat([(given[0] + made[0].update)[:, None], made[1]], 1))

    blocks = list(network_of(classifier).blocks)
    hooks = [block.register_forward_pre_hook(before) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(after))
    try:
        with torch.no_grad():
            classifier(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(seen)


def ripples(moved: Tensor, grid: tuple[int, int]) -> Tensor:
    """What `reach` gives (depths, tokens), as pictures of the patches (depths, 3, *grid): pale has not moved, blue has.

    On a logarithmic scale from a millionth to the whole length of a token.
    """
    patches = moved[:, -grid[0] * grid[1] :].reshape(-1, *grid)
    return signed(-(1 + patches.clamp(1e-6, 1).log10() / 6), 1.0).clamp(max=0.88)


def reach(classifier: Any, x: Tensor, changed: Tensor) -> Tensor:
    """How far each token moves when an image changes, at every depth: (blocks + 1, tokens), relative to its length."""
    before, after = depths(classifier, x), depths(classifier, changed)
    return (after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)


@plots._styled
def stairs(
    sums: dict[str, tuple[Tensor, float]],
    *,
    title: str | None = None,
    ylabel: str = "logit",
    end: str = "logit",
) -> plots.Picture:
    """Sums as stairs, one panel each: `{name: (contributions (P,), the constant to begin with)}`.

    The largest contributions come first; every bar goes from the sum before it to the sum after it.
    """
    fig = plots.Picture(figsize=(3.6 * len(sums) + 0.6, 3.0), layout="constrained")
    axes = fig.subplots(1, len(sums), sharey=True, squeeze=False)[0]
    for ax, (name, (values, start)) in zip(axes, sums.items(), strict=True):
        steps = np.sort(plots._array(values).ravel())[::-1]
        tops = start + np.cumsum(steps)
        bottoms = np.concatenate([[start], tops[:-1]])
        colours = [FOR if v > 0 else AGAINST for v in steps]
        ax.bar(np.arange(len(steps)), tops - bottoms, bottom=bottoms, color=colours, width=1.0)
        ax.axhline(start, color="#777777", linestyle=":", linewidth=1.0)
        ax.axhline(tops[-1], color=plots.BLACK, linewidth=1.0)
        for y, text, at in (
            (start, f"bias {start:.2f}", "top" if start <= tops[-1] else "bottom"),
            (tops[-1], f"{end} {tops[-1]:.2f}", "bottom" if start <= tops[-1] else "top"),
        ):
            place = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": at, "fontsize": 8}
            ax.annotate(text, (1.02, y), **place)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("patches, the largest contribution first")
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.12)
    axes[0].set_ylabel(ylabel)
    if title:
        fig.suptitle(title)
    return fig


# ------------------------------------------------------------------------------------------------------- the widget


def hide(
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    contribution: Tensor,
    target: int,
    *,
    colour: Tensor | float = 0.0,
    name: str = "the class",
    static: int = 6,
) -> Moving:
    """Click patches away and watch the logit: the sum without their terms, and the network asked anew.

    x (1,C,H,W). contribution (h,w): the terms of the logit of class `target`; what they leave open of it is the bias. A hidden
    patch is painted in `colour` before the network is asked anew. The static figure hides the `static` largest terms, one
    more an image. `.widget.patches` are the buttons, row by row; `.widget.told` says the numbers.
    """
    values = contribution.detach().double().cpu()
    with torch.no_grad():
        whole = float(classifier(x)[0, target])
    picture = w.Image(format="png", layout=w.Layout(width="256px", height="256px"))
    told, hidden = w.HTML(), torch.zeros(values.shape, dtype=torch.bool)

    def draw() -> None:
        painted = paint(x, hidden, colour)
        picture.value = _png(painted)
        told.value = _account(
            whole, float(values[hidden].sum()), _ask(classifier, painted, target), int(hidden.sum())
        )

    shades = signed(values[None].float())[0]
    patches = [
        _patch(float(values[r, c]), shades[:, r, c])
        for r in range(len(values))
        for c in range(len(values[0]))
    ]

    def press(k: int) -> None:
        at = divmod(k, values.shape[1])
        hidden[at] = not hidden[at]
        patches[k].description = "·" if hidden[at] else f"{float(values[at]):+.2f}"
        draw()

    for k, button in enumerate(patches):
        button.on_click(lambda _, k=k: press(k))
    draw()
    grid = w.GridBox(patches, layout=w.Layout(grid_template_columns=f"repeat({values.shape[1]}, 50px)"))
    head = w.HTML(
        f"Terms of the logit of <b>{name}</b>. Click a patch to leave its term out, again to put it back."
    )
    box = w.VBox([head, w.HBox([grid, w.VBox([picture, told])])])
    box.patches, box.told = patches, told
    return Moving(
        box,
        _hidden_figure(classifier, x, values, target, colour, static),
        "The largest terms, hidden one after the other:",
    )


def _patch(value: float, shade: Tensor) -> w.Button:
    red, green, blue = (int(127.5 * (float(v) + 1)) for v in shade)
    button = w.Button(
        description=f"{value:+.2f}", layout=w.Layout(width="50px", height="34px", margin="0px", padding="0px")
    )
    button.style.button_color = f"#{red:02x}{green:02x}{blue:02x}"
    return button


def _png(x: Tensor) -> bytes:
    from cfx_lib.learn.widgets import _png as png

    return png(plots.to_pixels(x)[0], 256)


def _ask(classifier: Callable[[Tensor], Tensor], x: Tensor, target: int) -> float:
    with torch.no_grad():
        return float(classifier(x)[0, target])


def _account(whole: float, left_out: float, asked: float, n: int) -> str:
    """The bookkeeping under the picture."""
    lines = (
        f"logit of the whole image: {whole:.3f}",
        f"terms of the {n} hidden: {left_out:.3f}",
        f"<b>sum without them: {whole - left_out:.3f}</b>",
        f"the network on the painted image: {asked:.3f}",
    )
    return "<br>".join(lines)


def _hidden_figure(
    classifier: Callable, x: Tensor, values: Tensor, target: int, colour: Tensor | float, n: int
) -> plots.Picture:
    """The image with its 0, 1, ..., n largest terms hidden, and both accounts of each."""
    order = values.flatten().argsort(descending=True, stable=True)
    place = order.argsort().view_as(values)
    painted = torch.cat([paint(x, place < k, colour) for k in range(n + 1)])
    with torch.no_grad():
        asked = classifier(painted)[:, target]
    whole = float(asked[0])
    captions = [
        f"{k} hidden\nsum {whole - float(values[place < k].sum()):.2f}\nnetwork {float(asked[k]):.2f}"
        for k in range(n + 1)
    ]
    return plots.image_grid(painted, captions, columns=n + 1)


# ----------------------------------------------------------------------------------------------------- paper mode


@dataclass(frozen=True)
class Photographs:
    """Who takes part on ImageNet: a HiT, a ViT, photographs `x` (N,3,H,W) in [-1,1], the names of the classes."""

    net: Any
    rival: Any
    x: Tensor
    names: tuple[str, ...]


def photographs(
    n: int,
    checkpoint: str | Path | None,
    folder: str | Path | None,
    *,
    vit: Any = "timm/deit_small_patch16_224.fb_in1k",
    device: str = "cuda",
) -> Photographs:
    """The cast of `paper` mode: a HiT of ImageNet in the authors' format, a ViT of `timm`, `n` of your photographs.

    `checkpoint`: the weights' file (see `cfx_lib.hit.load_released`). `folder`: of photographs. `vit`: a hub name, a folder,
    or a classifier. Raises FileNotFoundError where checkpoint or photographs are not given or not there.
    """
    if not checkpoint or not folder:
        raise FileNotFoundError(
            f"the checkpoint {checkpoint!r} and the photographs {folder!r} were given; expected a file of the authors' HiT "
            "weights in CFX_HIT and a folder of photographs in CFX_IMAGES. Or leave CFX_MODE on fast or full."
        )
    weights = read_weights(checkpoint, allow_pickle=True)
    model = hit.load_released(weights.get("model", weights)).float()
    config = model.default_cfg
    names = _imagenet(model.num_classes)
    net = (
        zoo.wrap(model, model.num_classes, mean=config["mean"], std=config["std"], names=names)
        .eval()
        .to(device)
    )
    x = folders.load(folder, size=model.img_size[0], progress=False)[0][:n]
    rival = zoo.load(vit, device=device) if isinstance(vit, (str, Path)) else vit
    return Photographs(net, rival, x.to(device), names)


def _imagenet(classes: int) -> tuple[str, ...]:
    """The names of ImageNet's classes, the first of several; numbers for another number of classes."""
    from timm.data import ImageNetInfo

    if classes != 1000:
        return tuple(f"class {k}" for k in range(classes))
    known = ImageNetInfo()
    return tuple(known.index_to_description(k).split(",")[0] for k in range(classes))
