"""The mode a notebook runs in: `fast` (default, offline, two CPU cores), `full` or `paper` (GPU)."""

from __future__ import annotations

import os

MODES = ("fast", "full", "paper")


def mode(parameter: str = "") -> str:
    """Decide the mode of a notebook: its papermill parameter, else `CFX_MODE`, else `"fast"`.

    `fast` needs at most 90 s on two idle cores and no network; `full` uses the same models on more
    images; `paper` uses the published checkpoints and a GPU. Raises `ValueError` for any other word.
    """
    source = "the notebook's parameter MODE" if parameter else "the environment variable CFX_MODE"
    chosen = (parameter or os.environ.get("CFX_MODE", "") or "fast").strip().lower()
    if chosen not in MODES:
        raise ValueError(f"unknown mode {chosen!r}, given by {source}: use one of {', '.join(MODES)}")
    return chosen
