"""Results of runs that a notebook has no time for: `data/results/NAME.json`, with all needed to trust them.

A file holds `commit, versions, machine, date, mode, weights, rows`; `rows` is a list of flat records. A metric's
`Value` is written as `{"Value": value.to_dict()}` and comes back as a `Value` (without single scores).
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cfx_lib.metrics import Value
from cfx_lib.zoo import checksums

FOLDER = Path(__file__).resolve().parents[2] / "data" / "results"
_PACKAGES = (
    "torch",
    "diffusers",
    "timm",
    "numpy",
    "safetensors",
    "dicebear-core",
    "dicebear-styles",
    "resvg-py",
)
_DECISIVE = ("cfx_lib", "data/weights", "data/personas", "data/fashion")  # what a number can depend on
_NUMBERS = ("mean", "low", "high", "n")
_FIELDS = ("commit", "versions", "machine", "date", "mode", "rows")


@dataclass(frozen=True)
class Result:
    """A stored result: where it comes from, its rows, and the sha256 of the shipped weights when it was made."""

    name: str
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]
    date: str
    mode: str
    rows: list[dict[str, Any]]
    weights: dict[str, str] = field(default_factory=dict)

    def row(self, **wanted: Any) -> dict[str, Any]:
        """The one row whose fields equal `wanted`; `KeyError` when there is none or more than one."""
        found = [r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())]
        if len(found) != 1:
            raise KeyError(f"result {self.name!r} has {len(found)} rows with {wanted}: ask for exactly one")
        return found[0]

    @property
    def origin(self) -> str:
        """One line for a caption: mode, date, commit, machine."""
        machine = f"{self.machine.get('processor', '?')}, {self.machine.get('cores', '?')} cores"
        torch = self.versions.get("torch", "?")
        return f"{self.mode} mode, {self.date[:10]}, commit {self.commit[:12]}, torch {torch}, {machine}"

    def _repr_markdown_(self) -> str:
        return value_table(self.rows) + f"\n\n*{self.origin}*"


def save(
    name: str, rows: Sequence[Mapping[str, Any]], *, mode: str = "full", folder: Path | None = None
) -> Path:
    """Write `data/results/NAME.json` in one step and return its path.

    `rows` hold numbers, strings, booleans, None, lists of these, and `Value`s; anything else raises
    `TypeError` and leaves an older file as it was. NaN and infinity are refused with `ValueError`: say None
    where nothing was measured.
    """
    if not rows:
        raise ValueError(f"result {name!r} has no rows: nothing to save")
    content = {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "weights": weights(),
        "rows": [{str(k): _plain(v, f"{name}: {k}") for k, v in row.items()} for row in rows],
    }
    path = (folder or FOLDER) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(_text(content), "utf-8")
    os.replace(part, path)
    return path


def _text(content: Mapping[str, Any]) -> str:
    """JSON with a line for each row: half as long as one with a line for each number, and a change still shows where it is."""
    options = {"ensure_ascii": False, "allow_nan": False}
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1, **options)
    rows = ",\n".join("  " + json.dumps(row, separators=(",", ":"), **options) for row in content["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def load(name: str, *, folder: Path | None = None) -> Result:
    """Read a stored result. `FileNotFoundError` names those that exist; `ValueError` for a damaged file."""
    place = folder or FOLDER
    path = place / f"{name}.json"
    if not path.exists():
        known = sorted(p.stem for p in place.glob("*.json")) if place.is_dir() else []
        raise FileNotFoundError(
            f"no stored result {name!r} in {place.name}/ (there: {', '.join(known) or 'none'}): "
            f"make it with `{command(name)}`"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        fields = {key: content[key] for key in _FIELDS}
        fields["weights"] = dict(content.get("weights", {}))  # files from before this was noted do not say
        fields["rows"] = [{k: _restored(v) for k, v in row.items()} for row in fields["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is damaged or of another format ({error!r}): make it again") from error
    return Result(name, **fields)


def command(name: str) -> str:
    """The command that makes the result `name`."""
    if name.startswith("bench-"):
        return f"python -m cfx_lib.bench {name.removeprefix('bench-')} --save"
    if name == "leaderboard":
        return "python -m cfx_lib.bench run --methods all --mode full"
    if name == "claims":
        return "python -m cfx_lib.bench claims --mode full"
    return f"python -m cfx_lib.bench study {name.split('_')[0]} --only {name}"


def weights() -> dict[str, str]:
    """The shipped weights, path in data/ -> sha256, as data/SHA256SUMS lists them; none without that file."""
    try:
        listed = checksums.listed()
    except FileNotFoundError:
        return {}
    return {path: digest for path, digest in listed.items() if path.endswith(".safetensors")}


def stale(result: Result) -> list[str]:
    """The weights of a result that have changed or gone since it was made; all of today's where it names none."""
    today = weights()
    return sorted(p for p in result.weights or today if p not in today or result.weights.get(p) != today[p])


def value_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | Sequence[str] | None = None,
    *,
    digits: int = 3,
) -> str:
    """Rows as a Markdown table; a `Value` reads `93.8 % [85.0, 97.5]`, a missing entry a dash.

    `columns` picks and orders them; as a mapping it also gives the headings. Backbones and sample sizes of
    `Value`s are written under the table, so that no number stands without them.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    headings = dict(columns) if isinstance(columns, Mapping) else {c: c.replace("_", " ") for c in columns}
    numeric = {c: any(_is_number(row.get(c)) for row in rows) for c in headings}
    lines = [
        "| " + " | ".join(_cell(h) for h in headings.values()) + " |",
        "|" + "|".join("---:" if numeric[c] else ":---" for c in headings) + "|",
    ]
    lines += ["| " + " | ".join(_cell(row.get(c), digits) for c in headings) + " |" for row in rows]
    notes = _notes([row.get(c) for row in rows for c in headings])
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")


def show_table(rows: Sequence[Mapping[str, Any]], columns: Any = None, *, digits: int = 3) -> None:
    """Display `value_table` as a table in a notebook; print it elsewhere."""
    text = value_table(rows, columns, digits=digits)
    try:
        from IPython import get_ipython
        from IPython.display import Markdown, display
    except ImportError:
        return print(text)
    return display(Markdown(text)) if get_ipython() else print(text)


def commit() -> str:
    """The commit of the checkout, with `+` when code or data differ from it; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_DECISIVE)
        return head + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def versions() -> dict[str, str]:
    """Python's version and those of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the computer is, without its name: system, processor, cores this process may use, accelerator."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": cores,
    }
    try:
        import torch
    except ImportError:
        return found
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found | {"torch_threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _is_number(value: Any) -> bool:
    return isinstance(value, Value) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value: Any, where: str) -> Any:
    """A value as JSON: a `Value` as a dict, numpy and torch scalars as numbers, to nine significant digits."""
    if isinstance(value, Value):
        said = {k: v for k, v in value.to_dict().items() if k in _NUMBERS or v}  # no empty unit or backbone
        return {"Value": _plain(said, where)}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: store None where nothing was measured")
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where) for k, v in value.items()}
    raise TypeError(f"{where}: cannot store {type(value).__name__}; give numbers, strings, lists or a Value")


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"Value"}:
        return Value.from_dict(value["Value"])
    if isinstance(value, list):
        return [_restored(v) for v in value]
    if isinstance(value, dict):
        return {k: _restored(v) for k, v in value.items()}
    return value


def _cell(value: Any, digits: int = 3) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Value):
        return str(value).rsplit(" (", 1)[0]
    if isinstance(value, float):
        return _number(value, digits)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float, digits: int) -> str:
    """Fixed digits for ordinary sizes, fewer for large ones, scientific for very small ones."""
    if not math.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 10 ** (1 - digits):
        return f"{value:.1e}"
    return f"{value:.{max(0, min(digits, digits - int(math.log10(max(abs(value), 1)))))}f}"


def _notes(values: Sequence[Any]) -> str:
    found = [v for v in values if isinstance(v, Value)]
    sizes = sorted({int(v.n) for v in found})
    backbones = sorted({v.backbone for v in found if v.backbone})
    parts = []
    if sizes:
        parts.append(f"intervals in brackets; n = {', '.join(map(str, sizes))}")
    if backbones:
        parts.append(f"backbone: {', '.join(backbones)}")
    return f"<small>{'; '.join(parts)}</small>" if parts else ""
