"""What `cfx explain` writes and prints: pictures, the result, explanation.json, a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cfx_lib.cli import pictures
from cfx_lib.cli.choices import NETWORKS
from cfx_lib.cli.inputs import Images
from cfx_lib.types import CFResult
from cfx_lib.zoo.files import write_json

__all__ = ["as_text", "settings", "write"]


def write(
    out: Path,
    options: argparse.Namespace,
    named: dict[str, Any],
    explainer: Any,
    names: Sequence[str],
    images: Images,
    result: CFResult,
) -> dict[str, Any]:
    """Write the pictures, the result as `CFResult.load` reads it, and at last explanation.json: its content."""
    from cfx_lib.bench import results

    out, rows = _cleared(out), []
    for k, name in enumerate(images.names):
        row = _row(k, name, names, images, result)
        captions = tuple(f"{when}: {_said(row[when])}" for when in ("before", "after"))
        row["pictures"] = pictures.save(out, name, result.x[k], result.x_cf[k], captions)
        rows.append(row)
    facts = named | {
        "settings": settings(explainer),
        "seed": options.seed,
        "device": options.device,
        "dtype": options.dtype,
        "size": list(images.x.shape[2:]),
        "images": rows,
        "flipped": int(result.flipped.sum()),
        "skipped": images.skipped,
        "batches": result.extra["batches"],
        "cost": asdict(result.cost),
        "cost_per_image": asdict(result.cost.per_image(len(result))),
        "versions": results.versions(),
        "machine": results.machine(),
        "commit": results.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    result.save(out)
    write_json(out / "explanation.json", facts)
    return facts


def _cleared(out: Path) -> Path:
    """The folder, made, without the pictures of an older explanation."""
    old = out / "explanation.json"
    if old.is_file():
        for file in _listed(old):
            (out / file).unlink(missing_ok=True)
        old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    return out


def _listed(old: Path) -> list[str]:
    """The pictures that an explanation.json names; none of a damaged one."""
    try:
        images = json.loads(old.read_text("utf-8"))["images"]
        files = [file for image in images for file in image["pictures"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [file for file in files if isinstance(file, str) and Path(file).name == file]


def _row(k: int, name: str, names: Sequence[str], images: Images, result: CFResult) -> dict[str, Any]:
    """What is known of one image, before and after."""
    wanted = int(result.target[k])
    before = _answers(result.logits_before, result.extra.get("source"), k, names)
    after = _answers(result.logits_after, result.extra.get("label"), k, names)
    change = (result.x_cf[k] - result.x[k]).abs().mean().item() / 2
    return {
        "image": name,
        "size_given": list(images.sizes[k]),
        "target": {"class": wanted, "name": names[wanted]},
        "flipped": bool(result.flipped[k]),
        "already": before[0]["class"] == wanted,
        "before": before,
        "after": after,
        "target_probability": [_chance(v, k, wanted) for v in (result.logits_before, result.logits_after)],
        "mean_change": round(change, 5),
    }


def _chance(logits: Any, k: int, wanted: int) -> float | None:
    return None if logits is None else round(logits[k].softmax(0)[wanted].item(), 5)


def _answers(logits: Any, labels: Any, k: int, names: Any, most: int = 3) -> list[dict[str, Any]]:
    """The likeliest classes of an image with their probabilities; a black box gives the class alone."""
    if logits is None:
        return [{"class": int(labels[k]), "name": names[int(labels[k])], "probability": None}]
    chances = logits[k].softmax(0)
    order = chances.argsort(descending=True)[:most].tolist()
    return [{"class": c, "name": names[c], "probability": round(chances[c].item(), 5)} for c in order]


def _said(answers: list[dict[str, Any]]) -> str:
    chance = answers[0]["probability"]
    return answers[0]["name"].split(",")[0] + ("" if chance is None else f" {chance:.2f}")


def settings(explainer: Any) -> dict[str, Any]:
    """The settings of the method that are numbers, words, or None; others as text."""
    plain = (bool, int, float, str, type(None))
    values = {f.name: getattr(explainer, f.name) for f in fields(explainer) if f.name not in NETWORKS}
    return {
        k: v if isinstance(v, plain) else list(v) if isinstance(v, tuple) else repr(v)
        for k, v in values.items()
    }


def as_text(facts: dict[str, Any], out: str) -> str:
    """A line an image, and what it cost."""
    of = f" with {facts['denoiser']}" if facts["denoiser"] else ""
    preset = f"preset {facts['preset']}" if facts["preset"] else "the method's own settings"
    lines = [
        f"{facts['method']}, {preset}, on {facts['classifier']}{of}, seed {facts['seed']}, {facts['device']}"
    ]
    width = max(len(row["image"]) for row in facts["images"])
    for row in facts["images"]:
        state = "was there already" if row["already"] else "flipped" if row["flipped"] else "not flipped"
        changed = f"{_said(row['before'])} -> {_said(row['after'])}"
        wanted = row["target"]["name"].split(",")[0]
        lines.append(f"  {row['image']:{width}}  {changed:32}  wanted {wanted}: {state}")
    n, cost = len(facts["images"]), facts["cost_per_image"]
    calls = f"{cost['denoiser_calls']:.4g} denoiser and {cost['classifier_calls']:.4g} classifier calls"
    lines.append(
        f"{facts['flipped']} of {n} have their target class; an image took {cost['seconds']:.2f} s, {calls}"
    )
    if not facts["flipped"]:
        lines.append(
            "No image changed its class. Ask for more: another --preset, a larger weight of the class or more steps (--set)."
        )
    return "\n".join([*lines, f"written to {out}: pictures, explanation.json, result.json"])
