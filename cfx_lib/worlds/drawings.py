"""Drawings to pixels: SVG text to uint8 images, and rendered sets that are kept in the cache."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def render_svg(text: str, size: int) -> np.ndarray:
    """One drawing as (size, size, 3) uint8."""
    from PIL import Image
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(svg_string=text, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_chunks(
    folder: Path,
    n: int,
    total: int,
    render: Callable[[slice], np.ndarray],
    label: str | None = None,
    chunk: int = 500,
) -> np.ndarray:
    """The first ``n`` of ``total`` images, rendered in chunks that are each written whole: what was interrupted goes on.

    ``render(rows)`` draws the images of a slice as uint8 (rows, H, W, 3); ``label`` names the progress bar (None: no bar).
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in tqdm(range(0, n, chunk), desc=label, disable=label is None, leave=False):
        path = folder / f"{start:06d}.npy"
        if not path.exists():
            partial = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
            with open(partial, "wb") as file:
                np.save(file, render(slice(start, min(start + chunk, total))))
            partial.replace(path)
        parts.append(np.load(path, allow_pickle=False))
    return np.concatenate(parts)[:n]
