"""The leaderboard as a table: what it holds, as Markdown, as Parquet rows, and as data/results/leaderboard.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cfx_lib.bench import report, results
from cfx_lib.bench.evaluate import METRICS
from cfx_lib.bench.report import Row
from cfx_lib.metrics.value import Value

NAME = "leaderboard"
MEASURED = ("seconds", "peak memory")  # never the same twice
HEADLINE = {
    "method": "method",
    "flip rate": "flips",
    "semantic flip rate": "confirmed flips",
    "COUT": "COUT",
    "L1 per pixel": "L1 per pixel",
    "LPIPS": "LPIPS",
    "S3": "S3",
    "FID": "FID",
    "edit error": "edit error",
    "collateral changes": "collateral changes",
    "seconds": "seconds",
    "denoiser calls": "denoiser calls",
    "GFLOPs": "GFLOPs",
}
"""What is printed of the table: metric -> heading."""
SHORT = {
    name: HEADLINE[name]
    for name in (
        "method",
        "semantic flip rate",
        "L1 per pixel",
        "S3",
        "FID",
        "edit error",
        "collateral changes",
        "seconds",
        "GFLOPs",
    )
}
"""What the README shows of it."""


@dataclass(frozen=True)
class Settings:
    """What decides the counterfactuals, but for the methods. `n` images in batches of `batch`, each with `seeds` seeds.

    world: a name of `WORLDS`, or "MODULE:CLASS", see `contestants`. classifier: the explained one; None: the world's own.
    """

    world: str = "personas"
    n: int = 64
    classifier: str | None = None
    seed: int = 0
    seeds: int = 1
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("n", "seeds", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected at least 1.")


@dataclass(frozen=True)
class Table:
    """The leaderboard: rows of each method by its name, and why those without rows have none."""

    settings: Settings
    labels: Mapping[str, str]
    rows: Mapping[str, list[Row]]
    errors: Mapping[str, str]

    def wide(self) -> list[dict[str, Any]]:
        """A row for each method: its `method`, a Value (or None) for each metric and for GFLOPs, and `error` (or None)."""
        found = []
        for method, label in self.labels.items():
            own = {row.metric: row.value for row in self.rows.get(method, ())}
            own["GFLOPs"] = _scaled(own.get("FLOPs"), 1e-9)
            found.append({"method": label, **own, "error": self.errors.get(method)})
        return found

    def markdown(self, columns: Mapping[str, str] = HEADLINE) -> str:
        """Some columns as Markdown, metric -> heading, then what failed."""
        text = results.value_table(self.wide(), columns)
        failed = [f"* {self.labels[name]} failed: {error}" for name, error in self.errors.items()]
        return "\n\n".join([text, *(["\n".join(failed)] if failed else [])])


def _scaled(value: Value | None, factor: float) -> Value | None:
    if value is None:
        return None
    return replace(value, scores=None, **{k: factor * getattr(value, k) for k in ("mean", "low", "high")})


LONG = pa.schema(
    [(name, pa.string()) for name in ("method", "label", "property", "metric")]
    + [(name, pa.float64()) for name in ("mean", "low", "high")]
    + [("n", pa.int64())]
    + [(name, pa.string()) for name in ("unit", "backbone", "interval", "reason")]
)


def lines_of(table: Table, everything: bool = False) -> list[dict[str, Any]]:
    """A line for each method and metric, without the `MEASURED` ones unless `everything`; one for a method that failed."""
    lines = []
    for method, label in table.labels.items():
        about = {"method": method, "label": label}
        for row in table.rows.get(method, ()):
            value = {} if row.value is None else row.value.to_dict()
            value["interval"] = value.pop("method", None)
            if everything or row.metric not in MEASURED:
                own = {"property": row.property, "metric": row.metric, "reason": row.reason or None}
                lines.append(about | own | value)
        if method in table.errors:
            lines.append(about | {"reason": f"failed: {table.errors[method]}"})
    return lines


def save(table: Table, *, mode: str = "full", folder: Path | None = None, **how: Any) -> Path:
    """Write data/results/leaderboard.json with commit, versions, machine and date: a line of methods, then one a metric.

    how: what else belongs beside the seconds, such as the number of threads.
    """
    methods = list(table.labels)
    head = {
        "kind": "methods",
        "methods": methods,
        "labels": [table.labels[m] for m in methods],
        "errors": [table.errors.get(m) for m in methods],
        "settings": asdict(table.settings),
        "how": how,
    }
    by_name = {m: {row.metric: row for row in rows} for m, rows in table.rows.items()}
    lines = [_line(name, [by_name.get(m, {}).get(name) for m in methods]) for name in METRICS]
    return results.save(NAME, [head, *lines], mode=mode, folder=folder)


def _line(metric: str, rows: Sequence[Row | None]) -> dict[str, Any]:
    """A metric of all methods as columns, to five digits, which is a third of the size of a record for each."""
    values = [None if row is None else row.value for row in rows]
    there = [value for value in values if value is not None]
    line: dict[str, Any] = {"kind": "metric", "metric": metric, "property": METRICS[metric][0]}
    line |= {
        "unit": there[0].unit if there else "",
        "backbone": there[0].backbone if there else None,
        "interval": there[0].method.partition(", ")[0] if there else "",
    }
    for name in ("mean", "low", "high"):
        line[name] = [None if v is None else _short(v.to_dict()[name]) for v in values]
    return line | {"n": [None if v is None else v.n for v in values]}


def _short(number: float | None) -> float | int | None:
    if number is None:
        return None
    rounded = float(f"{number:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def load(folder: Path | None = None) -> tuple[Table, results.Result]:
    """The stored leaderboard, and where it comes from. Raises FileNotFoundError, or ValueError for another format."""
    stored = results.load(NAME, folder=folder)
    head, *lines = stored.rows
    try:
        methods = head["methods"]
        rows: dict[str, list[Row]] = {m: [] for m, error in zip(methods, head["errors"]) if error is None}
        for line in lines:
            for k, method in enumerate(methods):
                if method in rows:
                    rows[method].append(
                        Row(line["property"], line["metric"], _value(line, k), "not measured")
                    )
        errors = {m: e for m, e in zip(methods, head["errors"]) if e is not None}
        table = Table(Settings(**head["settings"]), dict(zip(methods, head["labels"])), rows, errors)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{NAME}.json is of another format ({error!r}): {results.command(NAME)}") from error
    return table, stored


def _value(line: Mapping[str, Any], k: int) -> Value | None:
    if line["n"][k] is None:
        return None
    own = {name: line[name][k] for name in ("mean", "low", "high", "n")}
    rest = {"backbone": line["backbone"], "unit": line["unit"], "method": line["interval"]}
    return Value.from_dict(own | rest)


def remarks(table: Table) -> list[str]:
    """What values say beside their kind of interval, once for each metric."""
    rows = [row for rows in table.rows.values() for row in rows]
    return list(dict.fromkeys(report.remarks(rows)))
