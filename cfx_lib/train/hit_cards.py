"""What the cards of transformers add: size and work, how exact HiT's sum is, and a few maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cfx_lib.train import cards
from cfx_lib.worlds import fashion, personas

if TYPE_CHECKING:
    from cfx_lib.train.recipes import Job

SHOWN = 8  # images above their maps
CURVE = "\n## Training curve\n"


def hit_card(name: str, out: Path, job: Job, curve: list[dict]) -> None:
    """The card of a classifier, with parameters and multiplications; for a HiT the sum of contributions and maps too."""
    from cfx_lib import zoo
    from cfx_lib.hit import HiT, counts

    model = zoo.load(str(out))
    classes = isinstance(model, zoo.ClassClassifier)
    (cards.class_card if classes else cards.classifier_card)(name, out, job, curve)
    network = model.runner.model
    done = counts(network, job.facts["arch"][1]["img_size"])
    figures = json.loads((out / "figures.json").read_text("utf-8"))
    figures |= {"params": done["params"], "macs": done["macs"]}
    text = f"\n{done['params']:,} parameters, {done['macs']:,} multiply-accumulates an image.\n"
    if isinstance(network, HiT):
        x, target = _shown(model)
        figures["sum_error"] = sum_error(model, x)
        save_maps(model, x, target, out / "maps.png")
        text += (
            "\nThe contributions of layers and patches, with the head's bias, give the logits within "
            f"{figures['sum_error']:.1e} (the largest error of {len(x)} test images, float32).\n\n"
            f"![{len(x)} test images and the contributions of their patches to {_asked(classes)}: red for it, blue against]"
            "(maps.png)\n"
        )
    card = (out / "README.md").read_text("utf-8")
    (out / "README.md").write_text(card.replace(CURVE, text + CURVE), encoding="utf-8")
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _asked(classes: bool) -> str:
    return "the predicted class" if classes else "`smile`"


def _shown(model) -> tuple[Tensor, Tensor | None]:  # noqa: ANN001
    """Test images, and the class whose map is drawn: the predicted one (None), or "smile" for attributes."""
    if not hasattr(model, "attributes"):
        return fashion.load("test", SHOWN)[0], None
    return personas.load("test", SHOWN)[0], torch.full((SHOWN,), model.attributes.index("smile"))


@torch.no_grad()
def sum_error(model, x: Tensor) -> float:  # noqa: ANN001
    """The largest gap between a zoo HiT's logits and its contributions with the head's bias, over images (N,C,H,W)."""
    from cfx_lib.hit import contributions

    bias = model.runner.model.head.bias
    return float((contributions(model, x).sum((1, 2)) + bias - model(x)).abs().max())


@torch.no_grad()
def save_maps(model, x: Tensor, target: Tensor | None, path: Path) -> None:  # noqa: ANN001
    """Images in a row, below each its map: red adds to the logit, blue takes away, each map by its own largest value."""
    from cfx_lib.hit import contribution_map

    values = contribution_map(model, x, target)[:, None]
    values = values / values.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    values = F.interpolate(values, x.shape[-2:])
    for_it, against = values.clamp(min=0), (-values).clamp(min=0)
    colour = 1 - torch.cat([against, for_it + against, for_it], 1)  # white at 0
    cards.save_grid(torch.cat([x.expand(-1, 3, -1, -1), 2 * colour - 1]), path, columns=len(x), scale=1)
