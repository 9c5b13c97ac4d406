"""A one-page report of explanations as one HTML file: what was asked, what was seen, how it was tested, what stays open."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from cfx_lib.cli.pictures import difference, picture
from cfx_lib.cli.report import settings
from cfx_lib.metrics import Value
from cfx_lib.types import CFResult

__all__ = ["write_page"]

PIXELS = 104  # a side of a picture on the page, at least
COLUMNS = {
    "hypothesis": "hypothesis",
    "test": "tested by",
    "effect": "effect",
    "control": "control",
    "verdict": "verdict",
}

_STYLE = """
@page { size: A4; margin: 11mm; }
body { font: 12px/1.32 system-ui, sans-serif; margin: 1rem auto; max-width: 52rem; padding: 0 1rem; color: #1d1d1f; background: #fff; }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: .55rem 0 .2rem; border-bottom: 1px solid #0072B2; }
p { margin: .25rem 0; } .small { color: #555; font-size: .88em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .16rem .5rem .16rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } .lined td, .lined th { border-bottom: 1px solid #ddd; } .facts th { width: 9.5rem; white-space: nowrap; }
@media print { body { font-size: 10.5px; margin: 0; padding: 0; } }
figure { margin: 0; display: inline-block; text-align: center; padding: 0 .5rem .15rem 0; } figcaption { font-size: .84em; }
img { image-rendering: pixelated; display: block; margin: auto; } ul { margin: .2rem 0; padding-left: 1.2rem; }
"""


def write_page(
    path: str | Path,
    result: CFResult,
    *,
    title: str,
    classifier: str,
    data: str,
    method: Any,
    names: Sequence[str],
    figures: Mapping[str, Value],
    reading: str,
    tests: Sequence[Mapping[str, Any]],
    limits: Sequence[str],
    images: Sequence[int] = (0, 1, 2),
    seeds: Sequence[Tensor] = (),
    size: int = PIXELS,
) -> Path:
    """Write the page in one step and return its path; it holds its pictures and needs no other file.

    `result`: of `method`, whose settings are listed, as are cost, versions, machine and date. `classifier`, `data`: in a
    sentence each. `names`: of the classes. `figures`: {what: Value}, each with its interval. `reading`: the hypothesis, in
    words. `tests`: one row a tested hypothesis with the keys of `COLUMNS` ("effect" and "control" are Values; "control"
    may be left out). `limits`: what may not be concluded. `images`: the rows of `result` that are shown, chosen by you, so
    say how in `reading`; `seeds`: for each other seed the counterfactuals
    (len(images),C,H,W) of the shown images. `size`: pixels a side.

    Raises ValueError for a page that leaves out what a reader must be told: figures, tests and limits.
    """
    _check(result, names, figures, tests, limits, images, seeds)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(result, classifier, data, method, names, 1 + len(seeds)),
        f"<h2>Pictures</h2>{_pictures(result, names, images, seeds, size)}",
        f"<h2>Figures</h2>{_figures(figures)}",
        f"<h2>What was read, and what the test said</h2><p>{escape(reading)}</p>{_tests(tests)}",
        f"<h2>What may not be concluded</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in limits)}</ul>",
        _origin(),
    ]
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text("\n".join([head, "<body>", *parts, "</body></html>\n"]), "utf-8")
    os.replace(part, path)
    return path


def _check(
    result: CFResult, names: Any, figures: Any, tests: Any, limits: Any, images: Any, seeds: Any
) -> None:
    for what, given in (("figures", figures), ("tests", tests), ("limits", limits), ("images", images)):
        if not given:
            raise ValueError(
                f"a report without {what} says more than is known; expected at least one: give {what}=."
            )
    for name, value in figures.items():
        if not isinstance(value, Value):
            raise ValueError(
                f"the figure {name!r} is {value!r}; expected a metrics.Value, which has an interval."
            )
    for row in tests:
        if missing := [key for key in COLUMNS if key != "control" and key not in row]:
            raise ValueError(f"a test without {', '.join(missing)}; expected the keys {', '.join(COLUMNS)}.")
    if not all(0 <= k < len(result) for k in images):
        raise ValueError(f"images {list(images)}; expected rows of the result, 0 to {len(result) - 1}.")
    if int(result.target.max()) >= len(names):
        raise ValueError(
            f"{len(names)} names for targets up to {int(result.target.max())}; expected one a class."
        )
    if any(other.shape != result.x[: len(images)].shape for other in seeds):
        raise ValueError(
            f"the counterfactuals of another seed have another shape; expected one for each of the {len(images)} images shown."
        )


# ---------------------------------------------------------------------------------------------------- parts


def _facts(result: CFResult, classifier: str, data: str, method: Any, names: Sequence[str], runs: int) -> str:
    wanted = [names[t] for t in result.target.tolist()]
    asked = ", ".join(f"{wanted.count(name)} as “{name}”" for name in dict.fromkeys(wanted))
    chosen = ", ".join(f"{k} {_plain(v)}" for k, v in settings(method).items())
    cost = result.cost.per_image(len(result))
    spent = f"{cost.seconds:.2g} s, {cost.denoiser_calls:.4g} denoiser and {cost.classifier_calls:.4g} classifier calls an image"
    rows = {
        "Classifier": escape(classifier),
        "Images": escape(data),
        "Asked": escape(f"{len(result)} images, {asked}; {int(result.flipped.sum())} flipped"),
        "Method": f'{escape(type(method).__name__)} <span class="small">({escape(chosen)})</span>',
        "Cost": escape(spent + (f"; {runs} seeds" if runs > 1 else "; one seed")),
    }
    return (
        '<table class="facts">'
        + "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        + "</table>"
    )


def _pictures(
    result: CFResult, names: Sequence[str], images: Sequence[int], seeds: Sequence[Tensor], size: int
) -> str:
    rows = (_row(result, names, k, [x_cf[n] for x_cf in seeds], size) for n, k in enumerate(images))
    return "".join(f"<div>{row}</div>" for row in rows)


def _row(result: CFResult, names: Sequence[str], k: int, seeds: Sequence[Tensor], size: int) -> str:
    """One image: before, after, the change, and other seeds."""
    wanted = int(result.target[k])
    before, after = (_chance(logits, k, wanted) for logits in (result.logits_before, result.logits_after))
    changed, _ = difference(result.x[k], result.x_cf[k])
    shown = [
        (picture(result.x[k]), f"input{before}"),
        (picture(result.x_cf[k]), f"{names[wanted]}{after}{' ✔' if result.flipped[k] else ' ✘'}"),
        (changed, "change (grey: none)"),
    ]
    shown += [(picture(other), f"seed {n + 1}") for n, other in enumerate(seeds)]
    return "".join(_figure(image, caption, size) for image, caption in shown)


def _chance(logits: Tensor | None, k: int, wanted: int) -> str:
    return "" if logits is None else f" · P {logits[k].float().softmax(0)[wanted].item():.2f}"


def _figure(image: Any, caption: str, size: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" width="{size}" height="{size}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _figures(figures: Mapping[str, Value]) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in figures.items())
    return (
        f'<table class="lined"><tr><th>measured</th><th>value, 95 % interval, images</th></tr>{rows}</table>'
    )


def _tests(tests: Sequence[Mapping[str, Any]]) -> str:
    columns = {key: text for key, text in COLUMNS.items() if any(row.get(key) is not None for row in tests)}
    head = "".join(f"<th>{escape(text)}</th>" for text in columns.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row.get(key, '')))}</td>" for key in columns) + "</tr>"
        for row in tests
    )
    return f'<table class="lined"><tr>{head}</tr>{body}</table>'


def _origin() -> str:
    from cfx_lib.bench import results

    versions = ", ".join(f"{name} {number}" for name, number in results.versions().items())
    machine = results.machine()
    where = f"{machine.get('processor', '')}, {machine['cores']} cores" + (
        f", {machine['accelerator']}" if "accelerator" in machine else ""
    )
    date = datetime.now(UTC).isoformat(timespec="minutes")
    return f'<p class="small">{escape(f"{date} · commit {results.commit()[:12]} · {where} · {versions}")}</p>'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_plain, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
