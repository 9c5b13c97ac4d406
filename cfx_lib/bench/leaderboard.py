"""All methods side by side: `python -m cfx_lib.bench run --methods all --world personas --n 64 --mode full`.

Every method explains the same images towards the same classes with the same seeds, in shards (`shards`), on one machine or
many (`cluster`). Then every metric of `evaluate` is measured with its interval. A method that fails is in the table with its
error. A run's folder holds

* `shards/`: the counterfactuals, a file for each method, seed and batch of images; finished ones are not made again;
* `counterfactuals.parquet` and `leaderboard.parquet`: all of them, and the metrics; the same byte for byte however often the
  run was interrupted and whoever made the shards, on machines of one kind;
* `costs.parquet`: seconds and peak memory of each shard, which are never the same twice.

`--mode full` also writes `data/results/leaderboard.json`, which `scoreboard.load` reads.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cfx_lib.bench import devices, results
from cfx_lib.bench.evaluate import METRICS, measure
from cfx_lib.bench.report import Row
from cfx_lib.bench.scoreboard import LONG, Settings, Table, lines_of
from cfx_lib.bench.shards import Failure, Run, Shard, described, opened, packed, torch_threads
from cfx_lib.bench.subject import Subject, prepare
from cfx_lib.metrics.cost import measure_flops, measure_peak_memory
from cfx_lib.metrics.value import average
from cfx_lib.types import CFResult, Cost
from cfx_lib.zoo import checksums

WORLDS = {"personas": "cfx_lib.bench.contestants:Personas"}
MODES = {"fast": 8, "full": 64}  # images
CARDS = ("README.md", "figures.json", ".csv", ".svg", ".png")  # what is beside weights to be looked at
PROBES = 2  # images whose FLOPs are counted: one of either class
SOURCES = ("bench/leaderboard.py", "bench/shards.py", "bench/devices.py")
"""Code that counterfactuals depend on, beside the world's."""


def run(
    methods: Sequence[str],
    settings: Settings,
    folder: str | Path,
    *,
    threads: int = 1,
    device: str = "cpu",
    cluster: str | None = None,
    retries: int = 2,
    progress: bool = True,
) -> Table:
    """Make what is not made yet, measure, and write the files of the folder.

    methods: names of the world's methods, "all", or "references". threads: of each shard; part of the run, since the last
    digits of sums depend on it. device: see `devices.resolved`; cpu or cuda is part of the run too. Metrics are measured on
    the CPU. cluster, retries: see `shards.Run.make`. Raises ValueError, before anything is computed, for unknown methods and
    devices, settings that do not fit, and a folder of another run; OSError for a full disk.
    """
    if cluster is not None:
        from cfx_lib.bench.cluster import parsed

        parsed(cluster)
    device = devices.resolved(device, cluster)
    world = world_of(settings)
    chosen = select(methods, world)
    devices.check_world(_class_of(settings.world), settings.world, device)
    plan = {method: shards_of(method, settings, world) for method in chosen}
    identity = {
        "settings": asdict(settings),
        "weights": weights_of(world.weights),
        "versions": results.versions(),
        **({} if device == "cpu" else {"device": devices.kind(device)}),
    }
    spread = cluster is not None and not devices.elsewhere(cluster)
    make = partial(make_shard, settings, device=device, spread=spread)
    sources = (*SOURCES, *world.sources)
    with opened(folder, identity, sources=sources, threads=threads) as held:
        every = [shard for shards in plan.values() for shard in shards]
        options = {"cluster": cluster, "retries": retries, "progress": progress}
        failures = held.make(every, make, **options)
        images = {m: [s for s in shards if s.what["kind"] == "images"] for m, shards in plan.items()}
        whole = {m: shards for m, shards in images.items() if not any(s.name in failures for s in shards)}
        errors = {m: _error(shards, failures) for m, shards in images.items() if m not in whole}
        with torch_threads(threads):
            rows, bad = measured(held, world, whole, progress)
        for method, own in rows.items():
            probes = [shard for shard in plan[method] if shard.what["kind"] == "flops"]
            rows[method] = _with_flops(own, held, probes, failures)
        table = Table(settings, {m: world.methods[m] for m in chosen}, rows, errors | bad)
        _write(held, table, whole)
    return table


# ------------------------------------------------------------------------------------------- worlds and methods


def world_of(settings: Settings, device: str = "cpu") -> Any:
    """The world of the settings, made once in a process for each device. Raises ValueError for an unknown one."""
    return _world(settings.world, settings.n, settings.classifier, device)


@lru_cache(maxsize=2)
def _world(name: str, n: int, classifier: str | None, device: str) -> Any:
    made, options = _class_of(name), {} if device == "cpu" else {"device": device}
    return made(n, **options) if classifier is None else made(n, classifier, **options)


def _class_of(name: str) -> Any:
    place = WORLDS.get(name, name)
    module, _, what = place.partition(":")
    if not what:
        raise ValueError(
            f"world = {name!r}{_near(name, WORLDS)}; expected {', '.join(WORLDS)}, or 'MODULE:CLASS' of your own."
        )
    try:
        return getattr(import_module(module), what)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"world = {name!r} cannot be imported: {error}.") from error


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
    """The shipped files that decide numbers, path -> sha256, as data/SHA256SUMS lists them: no cards and no pictures of them."""
    listed = checksums.listed() if prefixes else {}
    chosen = (path for path in listed if path.startswith(tuple(prefixes)))
    return {
        path: listed[path] for path in chosen if not (path.startswith("weights/") and path.endswith(CARDS))
    }


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


def make_shard(
    settings: Settings, shard: Shard, device: str = "cpu", spread: bool = False
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a shard, an image each, and its seconds and peak memory in bytes (see `measure_peak_memory`).

    device, spread: where it computes, see `devices.own`.
    """
    device = devices.own(device, spread)
    with devices.current(device):
        return _made(settings, shard, device)


def _made(settings: Settings, shard: Shard, device: str) -> tuple[pa.Table, dict[str, Any]]:
    world, what = world_of(settings, device), shard.what
    method, seed = what["method"], what["seed"]
    world.load(method)  # networks are read before anything is measured
    if what["kind"] == "flops":
        rows = [slice(k, k + 1) for k in range(min(PROBES, settings.n))]
        return _flops_table(method, [measure_flops(world.explain, method, row, seed) for row in rows]), {}
    rows, done = slice(what["start"], what["stop"]), []
    peak = measure_peak_memory(lambda: done.append(world.explain(method, rows, seed)), device=device)
    (result,) = done
    measured = {"seconds": result.cost.seconds, "peak_memory": peak, "processor": _processor(device)}
    return _images_table(method, seed, rows.start, result), measured


def _processor(device: str) -> str:
    machine = results.machine()
    return machine["processor"] if device == "cpu" else machine["accelerator"]


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
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Every metric but the FLOPs of the methods whose shards are all there; and of which methods nothing can be measured, with the error."""
    found: dict[str, list[Row]] = {}
    errors: dict[str, str] = {}
    shared: Subject | None = None
    for method, shards in plan.items():
        try:
            subject = _subject(held, world, shards)
        except ValueError as error:  # for instance images that hold NaN
            errors[method] = described(error)
            continue
        if shared is not None:
            subject.rendered = shared.rendered  # the same faces have the same true counterfactuals
        rows = measure(subject, [name for name in METRICS if name != "FLOPs"], progress)
        shared = subject if shared is None else shared
        if method in world.references:
            rows = [_free(row) if row.property == "cost" else row for row in rows]
        found[method] = rows
    return found, errors


def _subject(held: Run, world: Any, shards: Sequence[Shard]) -> Subject:
    x, _ = world.images
    found = [result_of(held.table(s), held.measured(s), x[s.what["start"] : s.what["stop"]]) for s in shards]
    return prepare(found, **world.judges())


def _free(row: Row) -> Row:
    return replace(row, value=None, reason="a reference, not a method")


def _with_flops(
    rows: list[Row], held: Run, probes: Sequence[Shard], failures: Mapping[str, Failure]
) -> list[Row]:
    """The rows with that of the FLOPs in its place; they are those of the first images."""
    row = Row("cost", "FLOPs", None, "a reference, not a method")
    if failed := [failures[probe.name].error for probe in probes if probe.name in failures]:
        row = replace(row, reason=failed[0])
    elif probes:
        counts = held.merged(probes).column("flops").to_pylist()
        row = replace(row, value=average(torch.tensor(counts, dtype=torch.float64)), reason="")
    place = [row.metric for row in rows].index("peak memory")
    return [*rows[:place], row, *rows[place:]]


def _error(shards: Sequence[Shard], failures: Mapping[str, Failure]) -> str:
    failed = [failures[shard.name] for shard in shards if shard.name in failures]
    return f"{failed[0].error} ({len(failed)} of {len(shards)} shards; first {failed[0].shard})"


def _write(held: Run, table: Table, plan: Mapping[str, Sequence[Shard]]) -> None:
    parts = [shard for shards in plan.values() for shard in shards]
    if parts:
        held.write("counterfactuals.parquet", packed(held.merged(parts)))
        costs = [{"shard": shard.name, **held.measured(shard)} for shard in parts]
        held.write("costs.parquet", packed(pa.Table.from_pylist(costs)))
    held.write("leaderboard.parquet", packed(pa.Table.from_pylist(lines_of(table), schema=LONG)))
