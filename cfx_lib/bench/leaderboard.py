"""All methods side by side: `python -m cfx_lib.bench run --methods all --world personas --n 64 --mode full`.

Every method explains the same images towards the same classes with the same seeds, in shards (`shards`), on one machine or
many (`cluster`). Then every metric of `evaluate` is measured with its interval. A method that fails is in the table with its
error. A run's folder holds

* `shards/`: the counterfactuals, a file for each method, seed and batch of images; finished ones are not made again;
* `counterfactuals.parquet` and `leaderboard.parquet`: all of them, and the metrics; the same byte for byte however often the
  run was interrupted and whoever made the shards, on machines of one kind;
* `costs.parquet`: seconds and peak memory of each shard, which are never the same twice.

`--mode full` also writes `data/results/leaderboard.json`, which `load` reads.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cfx_lib.bench import report, results
from cfx_lib.bench.evaluate import METRICS, measure
from cfx_lib.bench.report import Row
from cfx_lib.bench.shards import Failure, Run, Shard, opened, packed
from cfx_lib.bench.subject import Subject, prepare
from cfx_lib.metrics.cost import measure_flops, measure_peak_memory
from cfx_lib.metrics.value import Value, average
from cfx_lib.types import CFResult, Cost
from cfx_lib.zoo import checksums

WORLDS = {"personas": "cfx_lib.bench.contestants:Personas"}
NAME = "leaderboard"
MODES = {"fast": 8, "full": 64}  # images
PROBES = 2  # images whose FLOPs are counted: one of either class
MEASURED = ("seconds", "peak memory")  # never the same twice
SOURCES = ("bench/leaderboard.py", "bench/shards.py")
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
    "FLOPs": "FLOPs",
}
"""What is printed of the table: metric -> heading."""


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
        """A row for each method: its `method`, a Value (or None) for each metric, and `error` (or None)."""
        found = []
        for method, label in self.labels.items():
            own = {row.metric: row.value for row in self.rows.get(method, ())}
            found.append({"method": label, **own, "error": self.errors.get(method)})
        return found

    def markdown(self) -> str:
        """The headline columns as Markdown, then what failed."""
        text = results.value_table(self.wide(), HEADLINE)
        failed = [f"* {self.labels[name]} failed: {error}" for name, error in self.errors.items()]
        return "\n\n".join([text, *(["\n".join(failed)] if failed else [])])


def run(
    methods: Sequence[str],
    settings: Settings,
    folder: str | Path,
    *,
    threads: int = 1,
    cluster: str | None = None,
    retries: int = 2,
    progress: bool = True,
) -> Table:
    """Make what is not made yet, measure, and write the files of the folder.

    methods: names of the world's methods, "all", or "references". threads: of each shard; part of the run, since the last
    digits of sums depend on it. cluster, retries: see `shards.Run.make`. Raises ValueError, before anything is computed, for
    unknown methods, settings that do not fit, and a folder of another run; OSError for a full disk.
    """
    world = world_of(settings)
    chosen = select(methods, world)
    if cluster is not None:
        from cfx_lib.bench.cluster import parsed

        parsed(cluster)
    plan = {method: shards_of(method, settings, world) for method in chosen}
    identity = {
        "settings": asdict(settings),
        "weights": weights_of(world.weights),
        "versions": results.versions(),
    }
    sources = (*SOURCES, *world.sources)
    with opened(folder, identity, sources=sources, threads=threads) as held:
        every = [shard for shards in plan.values() for shard in shards]
        options = {"cluster": cluster, "retries": retries, "progress": progress}
        failures = held.make(every, partial(make_shard, settings), **options)
        whole = {m: shards for m, shards in plan.items() if not any(s.name in failures for s in shards)}
        errors = {m: _error(shards, failures) for m, shards in plan.items() if m not in whole}
        table = Table(
            settings, {m: world.methods[m] for m in chosen}, measured(held, world, whole, progress), errors
        )
        _write(held, table, whole)
    return table


# ------------------------------------------------------------------------------------------- worlds and methods


def world_of(settings: Settings) -> Any:
    """The world of the settings, made once in a process. Raises ValueError for an unknown one."""
    return _world(settings.world, settings.n, settings.classifier)


@lru_cache(maxsize=2)
def _world(name: str, n: int, classifier: str | None) -> Any:
    place = WORLDS.get(name, name)
    module, _, what = place.partition(":")
    if not what:
        raise ValueError(
            f"world = {name!r}{_near(name, WORLDS)}; expected {', '.join(WORLDS)}, or 'MODULE:CLASS' of your own."
        )
    try:
        made = getattr(import_module(module), what)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"world = {name!r} cannot be imported: {error}.") from error
    return made(n) if classifier is None else made(n, classifier)


def select(names: Sequence[str], world: Any) -> list[str]:
    """The methods that are named, in the table's order. Raises ValueError that offers the nearest name."""
    groups = {"all": list(world.methods), "references": list(world.references)}
    known = groups | {name: [name] for name in world.methods}
    known |= {label.casefold(): [name] for name, label in world.methods.items()}
    wanted: set[str] = set()
    for given in names:
        key = given.strip().casefold()
        if key not in known:
            raise ValueError(
                f"there is no method {given!r}{_near(key, known)}; there are: {', '.join(world.methods)}; or 'all' or "
                "'references'."
            )
        wanted |= set(known[key])
    if not wanted:
        raise ValueError(f"no methods given; expected 'all' or any of: {', '.join(world.methods)}.")
    return [name for name in world.methods if name in wanted]


def _near(given: str, known: Any) -> str:
    near = difflib.get_close_matches(given, list(known), 1, cutoff=0.4)
    return f", did you mean {near[0]!r}?" if near else ""


def weights_of(prefixes: Sequence[str]) -> dict[str, str]:
    """The shipped files that count, path -> sha256, as data/SHA256SUMS lists them."""
    listed = checksums.listed() if prefixes else {}
    return {path: digest for path, digest in listed.items() if path.startswith(tuple(prefixes))}


# ---------------------------------------------------------------------------------------------------- shards


def shards_of(method: str, settings: Settings, world: Any) -> list[Shard]:
    """The shards of a method: one that counts FLOPs, then the images in batches, for one seed after the other."""
    shards = []
    if method not in world.references:
        shards.append(Shard(f"{method}.flops", {"method": method, "kind": "flops", "seed": settings.seed}))
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for start in range(0, settings.n, settings.batch):
            stop = min(start + settings.batch, settings.n)
            what = {"method": method, "kind": "images", "seed": seed, "start": start, "stop": stop}
            shards.append(Shard(f"{method}.seed{seed}.{start:05d}-{stop - 1:05d}", what))
    return shards


def make_shard(settings: Settings, shard: Shard) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a shard, an image each, and its seconds and peak memory in bytes (see `measure_peak_memory`)."""
    world, what = world_of(settings), shard.what
    method, seed = what["method"], what["seed"]
    world.load(method)  # networks are read before anything is measured
    if what["kind"] == "flops":
        rows = [slice(k, k + 1) for k in range(min(PROBES, settings.n))]
        return _flops_table(method, [measure_flops(world.explain, method, row, seed) for row in rows]), {}
    rows, done = slice(what["start"], what["stop"]), []
    peak = measure_peak_memory(lambda: done.append(world.explain(method, rows, seed)))
    (result,) = done
    return _images_table(method, seed, rows.start, result), {
        "seconds": result.cost.seconds,
        "peak_memory": peak,
    }


def _flops_table(method: str, counts: Sequence[int]) -> pa.Table:
    columns = {"method": [method] * len(counts), "index": list(range(len(counts))), "flops": list(counts)}
    return pa.table(columns, schema=pa.schema([("method", "string"), ("index", "int32"), ("flops", "int64")]))


IMAGES = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int32()),
        ("image", pa.string()),  # sha256 of the pixels of x
        ("target", pa.int32()),
        ("flipped", pa.bool_()),
        ("logits_before", pa.list_(pa.float32())),
        ("logits_after", pa.list_(pa.float32())),
        ("denoiser_calls", pa.float64()),
        ("classifier_calls", pa.float64()),
        ("x_cf", pa.binary()),  # float32, little-endian, in the shape of x
    ]
)
"""The columns of counterfactuals.parquet; calls are the batch's average."""


def _images_table(method: str, seed: int, start: int, result: CFResult) -> pa.Table:
    result, n = result.to("cpu"), len(result)
    cost = result.cost.per_image(n)
    columns = {
        "method": [method] * n,
        "seed": [seed] * n,
        "index": list(range(start, start + n)),
        "image": [hashlib.sha256(pixels).hexdigest() for pixels in _bytes(result.x)],
        "target": result.target.tolist(),
        "flipped": result.flipped.tolist(),
        "logits_before": [None] * n if result.logits_before is None else result.logits_before.tolist(),
        "logits_after": [None] * n if result.logits_after is None else result.logits_after.tolist(),
        "denoiser_calls": [float(cost.denoiser_calls)] * n,
        "classifier_calls": [float(cost.classifier_calls)] * n,
        "x_cf": _bytes(result.x_cf),
    }
    return pa.table(columns, schema=IMAGES)


def _bytes(images: Tensor) -> list[bytes]:
    return [image.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes() for image in images]


def result_of(table: pa.Table, measured: Mapping[str, Any], x: Tensor) -> CFResult:
    """The counterfactuals of a shard; x: its images (n,C,H,W). Raises ValueError if it was made for others."""
    columns = table.to_pydict()
    if columns["image"] != [hashlib.sha256(pixels).hexdigest() for pixels in _bytes(x)]:
        raise ValueError(
            f"a shard of {columns['method'][0]} was made for other images than these: another machine draws the world "
            "differently. Choose another folder."
        )
    raw = np.frombuffer(b"".join(columns["x_cf"]), "<f4").astype(np.float32)
    logits = {
        name: None if columns[name][0] is None else torch.tensor(columns[name])
        for name in ("logits_before", "logits_after")
    }
    cost = Cost(
        sum(columns["denoiser_calls"]),
        sum(columns["classifier_calls"]),
        measured["seconds"],
        peak_memory=measured["peak_memory"],
    )
    target, flipped = torch.tensor(columns["target"]), torch.tensor(columns["flipped"])
    return CFResult(x, torch.from_numpy(raw).view(x.shape), target, **logits, flipped=flipped, cost=cost)


# --------------------------------------------------------------------------------------------------- metrics


def measured(
    held: Run, world: Any, plan: Mapping[str, Sequence[Shard]], progress: bool = True
) -> dict[str, list[Row]]:
    """Every metric of the methods whose shards are all there."""
    found: dict[str, list[Row]] = {}
    shared: Subject | None = None
    for method, shards in plan.items():
        subject = _subject(held, world, shards)
        if shared is not None:
            subject.rendered = shared.rendered  # the same faces have the same true counterfactuals
        rows = measure(subject, [name for name in METRICS if name != "FLOPs"], progress)
        shared = subject if shared is None else shared
        if method in world.references:
            rows = [_free(row) if row.property == "cost" else row for row in rows]
        found[method] = _with_flops(rows, held, shards)
    return found


def _subject(held: Run, world: Any, shards: Sequence[Shard]) -> Subject:
    parts = [shard for shard in shards if shard.what["kind"] == "images"]
    x, _ = world.images
    found = [result_of(held.table(s), held.measured(s), x[s.what["start"] : s.what["stop"]]) for s in parts]
    return prepare(found, **world.judges())


def _free(row: Row) -> Row:
    return replace(row, value=None, reason="a reference, not a method")


def _with_flops(rows: list[Row], held: Run, shards: Sequence[Shard]) -> list[Row]:
    """The rows with that of the FLOPs in its place; they are those of the first images."""
    probes = [shard for shard in shards if shard.what["kind"] == "flops"]
    row = Row("cost", "FLOPs", None, "a reference, not a method")
    if probes:
        counts = held.merged(probes).column("flops").to_pylist()
        row = replace(row, value=average(torch.tensor(counts, dtype=torch.float64)), reason="")
    place = [row.metric for row in rows].index("peak memory")
    return [*rows[:place], row, *rows[place:]]


def _error(shards: Sequence[Shard], failures: Mapping[str, Failure]) -> str:
    failed = [failures[shard.name] for shard in shards if shard.name in failures]
    return f"{failed[0].error} ({len(failed)} of {len(shards)} shards; first {failed[0].shard})"


# ----------------------------------------------------------------------------------------------------- files


def _write(held: Run, table: Table, plan: Mapping[str, Sequence[Shard]]) -> None:
    every = [shard for shards in plan.values() for shard in shards]
    parts = [shard for shard in every if shard.what["kind"] == "images"]
    if parts:
        held.write("counterfactuals.parquet", packed(held.merged(parts)))
        costs = [{"shard": shard.name, **held.measured(shard)} for shard in parts]
        held.write("costs.parquet", packed(pa.Table.from_pylist(costs)))
    held.write("leaderboard.parquet", packed(pa.Table.from_pylist(_long(table), schema=_LONG)))


_LONG = pa.schema(
    [(name, pa.string()) for name in ("method", "label", "property", "metric")]
    + [(name, pa.float64()) for name in ("mean", "low", "high")]
    + [("n", pa.int64())]
    + [(name, pa.string()) for name in ("unit", "backbone", "interval", "reason")]
)


def _long(table: Table) -> list[dict[str, Any]]:
    """A line for each method and metric but the `MEASURED`; one with the reason for a method that failed."""
    lines = []
    for method, label in table.labels.items():
        about = {"method": method, "label": label}
        for row in table.rows.get(method, ()):
            value = {} if row.value is None else row.value.to_dict()
            value["interval"] = value.pop("method", None)
            if row.metric not in MEASURED:
                own = {"property": row.property, "metric": row.metric, "reason": row.reason or None}
                lines.append(about | own | value)
        if method in table.errors:
            lines.append(about | {"reason": f"failed: {table.errors[method]}"})
    return lines


def save(table: Table, *, mode: str = "full", folder: Path | None = None) -> Path:
    """Write data/results/leaderboard.json with commit, versions, machine and date: a line of methods, then one a metric."""
    methods = list(table.labels)
    head = {
        "kind": "methods",
        "methods": methods,
        "labels": [table.labels[m] for m in methods],
        "errors": [table.errors.get(m) for m in methods],
        "settings": asdict(table.settings),
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
