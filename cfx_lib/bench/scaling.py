"""What workers buy: the same small leaderboard in this process, with one local worker and with two, and what a shard costs beside its explanations.

`python -m cfx_lib.bench scaling` prints it. Every run is made in a fresh temporary folder and starts with its networks loaded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from cfx_lib import metrics
from cfx_lib.bench import cluster, leaderboard
from cfx_lib.bench.scoreboard import Settings
from cfx_lib.bench.shards import Run, Shard, opened, packed

__all__ = ["METHODS", "scaling"]

Row = dict[str, Any]

METHODS = ("pgd", "svce", "dime", "time")


def scaling(
    n: int = 32,
    batch: int = 4,
    methods: Sequence[str] = METHODS,
    workers: Sequence[int] = (1, 2),
    *,
    repeats: int = 1,
    world: str = "personas",
) -> Iterator[Row]:
    """Make the shards of a leaderboard in this process, then with each number of local workers, all `repeats` times.

    n images in shards of `batch`; FLOPs are not counted. Rows: seconds to start (reading networks; for workers also starting
    processes and importing), seconds to make all shards, of which seconds of explaining, summed over the workers, the share of
    the workers' time that is something else, and how many times faster it is than one worker and than this process. In this process
    also the overhead of a shard: its wall time without its explanation's, with an interval over the shards; and the seconds of
    the metrics, which come after the shards and are never shared out. Intervals of the rest: over the repeats.

    Raises ValueError, before anything is computed, for unknown methods, numbers that do not fit, and without Dask; RuntimeError
    for a shard that cannot be made.
    """
    settings, names = Settings(world, n, batch=batch), list(workers)
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}; expected at least 1.")
    for count in workers:
        cluster.parsed(f"local:{count}")
    chosen = leaderboard.select(methods, leaderboard.world_of(settings))
    runs: dict[int, list[Row]] = {count: [] for count in (0, *names)}  # 0: this process
    tables = set()
    for _ in range(repeats):
        for count in runs:
            found = _here(settings, chosen) if count == 0 else _on_workers(settings, chosen, count)
            tables.add(found.pop("table"))
            runs[count].append(found)
    for count, rows in runs.items():
        yield _row(count, rows, runs) | {"same rows as the others": len(tables) == 1}


def _row(count: int, rows: Sequence[Row], runs: dict[int, list[Row]]) -> Row:
    """The figures of all repeats with one number of workers."""
    row: Row = {
        "run": f"{count} worker{'s' * (count > 1)}" if count else "in this process",
        "shards": rows[0]["shards"],
        "s to start": _mean(rows if count else rows[:1], "start"),  # this process has its networks afterwards
        "s": _mean(rows, "wall"),
        "s of explaining": _mean(rows, "explaining"),
        "not explaining %": 100 * (1 - _sum(rows, "explaining") / (max(count, 1) * _sum(rows, "wall"))),
    }
    for other, label in ((1, "one worker"), (0, "this process")):
        if count > other and other in runs:
            row[f"times faster than {label}"] = metrics.ratio(_of(runs[other], "wall"), _of(rows, "wall"))
    if count == 0:
        apart = torch.cat([row["overheads"] for row in rows])
        row["overhead of a shard, s"] = metrics.average(apart, unit="s")
        row["s of metrics"] = _mean(rows, "metrics")
    return row


def _of(rows: Sequence[Row], name: str) -> torch.Tensor:
    return torch.tensor([row[name] for row in rows], dtype=torch.float64)


def _mean(rows: Sequence[Row], name: str) -> Any:
    return metrics.average(_of(rows, name), unit="s")


def _sum(rows: Sequence[Row], name: str) -> float:
    return float(_of(rows, name).sum())


# ------------------------------------------------------------------------------------------------------- one run


def _here(settings: Settings, methods: Sequence[str]) -> Row:
    """All shards in this process, each timed from its call to its file on disk; then the metrics."""
    with _fresh(settings, methods) as (held, shards):
        start, _ = _timed(lambda: ready(settings, methods))
        walls = [_timed(lambda shard=shard: _make(held, settings, [shard]))[0] for shard in shards]
        explaining = [held.measured(shard)["seconds"] for shard in shards]
        plan = {method: [s for s in shards if s.what["method"] == method] for method in methods}
        world = leaderboard.world_of(settings)
        measuring, _ = _timed(lambda: leaderboard.measured(held, world, plan, progress=False))
        overheads = torch.tensor(walls, dtype=torch.float64) - torch.tensor(explaining, dtype=torch.float64)
        more = {"overheads": overheads, "metrics": measuring}
        return _facts(held, shards, start, sum(walls)) | more


def _on_workers(settings: Settings, methods: Sequence[str], count: int) -> Row:
    """All shards on so many fresh processes of this machine."""
    from distributed import Client

    with _fresh(settings, methods) as (held, shards), ExitStack() as stack:
        began = time.perf_counter()
        address = stack.enter_context(cluster.local_workers(count))
        client = stack.enter_context(Client(address, timeout="60s"))
        client.wait_for_workers(count)
        options = {"pure": False, "allow_other_workers": False}
        made = [client.submit(ready, settings, methods, workers=[w], **options) for w in client.nthreads()]
        client.gather(made)
        start = time.perf_counter() - began
        wall, _ = _timed(lambda: _make(held, settings, shards, cluster=address))
        return _facts(held, shards, start, wall)


@contextmanager
def _fresh(settings: Settings, methods: Sequence[str]) -> Iterator[tuple[Run, list[Shard]]]:
    """An empty folder of a run, and the shards of images to be made in it."""
    world = leaderboard.world_of(settings)
    every = [shard for method in methods for shard in leaderboard.shards_of(method, settings, world)]
    sources = (*leaderboard.SOURCES, *world.sources)
    with tempfile.TemporaryDirectory() as folder:
        with opened(folder, {"settings": asdict(settings)}, sources=sources) as held:
            yield held, [shard for shard in every if shard.what["kind"] == "images"]


def ready(settings: Settings, methods: Sequence[str]) -> None:
    """Load what shards need, in whichever process this is called."""
    world = leaderboard.world_of(settings)
    _ = world.images
    for method in methods:
        world.load(method)


def _make(held: Run, settings: Settings, shards: Sequence[Shard], **where: Any) -> None:
    make = partial(leaderboard.make_shard, settings)
    for failure in held.make(shards, make, retries=0, progress=False, **where).values():
        raise RuntimeError(f"{failure.shard}: {failure.error}")


def _facts(held: Run, shards: Sequence[Shard], start: float, wall: float) -> Row:
    return {
        "shards": len(shards),
        "start": start,
        "wall": wall,
        "explaining": sum(held.measured(shard)["seconds"] for shard in shards),
        "table": packed(held.merged(shards)),
    }


def _timed(do: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    done = do()
    return time.perf_counter() - began, done
