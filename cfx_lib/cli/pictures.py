"""Explanations as PNG files: before, after, what changed, and the three side by side with a caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["difference", "picture", "save"]

SMALLEST = 192  # pixels a side that a part of the panel has at least
STRIP, GAP = 20, 6
GAIN = 10.0  # at most


def picture(x: Tensor) -> Image.Image:
    """(C,H,W) in [-1,1], C 1 or 3 -> an image."""
    pixels = ((x.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def difference(x: Tensor, x_cf: Tensor) -> tuple[Image.Image, float]:
    """What changed, around middle grey (no change), times a gain that makes the largest change fill the range; the gain.

    Lighter: more of a colour after than before. The gain is at most 10, so that nothing is made of rounding.
    """
    change = (x_cf - x).detach().cpu().float()  # (C,H,W) in [-2,2]
    gain = min(GAIN, 1.0 / max(change.abs().max().item(), 1e-12))
    return picture(change * gain), gain


def save(
    folder: Path, name: str, x: Tensor, x_cf: Tensor, captions: tuple[str, str]
) -> dict[str, str | float]:
    """Write NAME-before.png, NAME-after.png, NAME-difference.png and the panel NAME.png: their names and the gain."""
    changed, gain = difference(x, x_cf)
    parts = {"before": picture(x), "after": picture(x_cf), "difference": changed}
    files: dict[str, str | float] = {"panel": f"{name}.png"}
    for what, image in parts.items():
        files[what] = f"{name}-{what}.png"
        image.save(folder / files[what])
    texts = (*captions, f"difference, times {gain:.2g}")
    panel(list(parts.values()), texts).save(folder / files["panel"])
    return files | {"difference_gain": round(gain, 4)}


def panel(images: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Images of one size side by side, small ones enlarged by whole pixels, a caption under each."""
    width, height = images[0].size
    factor = max(1, -(-SMALLEST // width))
    width, height = width * factor, height * factor
    sheet = Image.new("RGB", (len(images) * (width + GAP) + GAP, height + STRIP + 2 * GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (image, text) in enumerate(zip(images, captions)):
        left = GAP + k * (width + GAP)
        sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, GAP))
        while len(text) > 4 and draw.textlength(text, font) > width:
            text = text[:-4].rstrip(". ") + "..."
        draw.text((left, GAP + height + 3), text, fill="black", font=font)
    return sheet
