"""Shards on Dask: processes of this machine ("local:N"), jobs of a Slurm cluster ("slurm:N"), or a scheduler's address.

It needs `pip install -e '.[cluster]'`. Workers send their shards back, so they need no common disk, but the same code and
weights as here. A worker that dies is replaced, and its shard is made again.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

from cfx_lib.bench.shards import Failure, Shard, described

FORMS = "'local:N' (N processes of this machine), 'slurm' or 'slurm:N' (N jobs), or the address of a scheduler, 'tcp://host:port'"


def parsed(cluster: str) -> tuple[str, int | str]:
    """("local", N), ("slurm", N) or ("address", url). Raises ValueError for anything else, or when Dask is not installed."""
    found = re.fullmatch(r"(local|slurm)(?::(\d+))?", cluster)
    address = re.fullmatch(r"(tcp|tls|ws|wss)://[^\s/:]+:\d+/?", cluster)
    if not address and not (found and int(found[2] or 1) >= 1 and (found[2] or found[1] == "slurm")):
        raise ValueError(f"cluster = {cluster!r}; expected {FORMS}.")
    wanted = ["distributed", *(["dask_jobqueue"] if found and found[1] == "slurm" else [])]
    if missing := [name for name in wanted if find_spec(name) is None]:
        raise ValueError(
            f"--cluster needs {' and '.join(missing)}, not installed here: pip install -e '.[cluster]'. Without --cluster "
            "the run needs neither."
        )
    return ("address", cluster) if address else (found[1], int(found[2] or 1))


def answers(
    cluster: str, task: Callable[[Shard], Any], todo: Sequence[Shard], retries: int
) -> Iterator[tuple[Shard, bytes | Failure]]:
    """The shards with their answers, in the order in which these come. The address of the dashboard is printed.

    `task(shard)` gives bytes or a Failure. What it raises, and the death of its worker, count as attempts: `retries` more are
    made. Raises ConnectionError when the whole cluster is lost.
    """
    from distributed import as_completed

    with _client(cluster, retries) as client:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr, flush=True)
        options = {"retries": retries, "pure": False}
        run = uuid4().hex[:8]  # others may use the same scheduler
        futures = {client.submit(task, s, key=f"{s.name}-{run}", **options): s for s in todo}
        for future in as_completed(futures):
            yield futures[future], _answer(future, futures[future], retries)
            future.release()


def _answer(future: Any, shard: Shard, retries: int) -> bytes | Failure:
    from distributed import KilledWorker

    if future.cancelled() or future.status == "lost":
        raise ConnectionError(
            f"the cluster was lost while {shard.name} was made; start again, finished shards stay."
        )
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Failure(
            shard.name, f"its worker died {retries + 1} times; see the worker's log, memory may be short"
        )
    return future.result() if error is None else Failure(shard.name, described(error))


@contextmanager
def _client(cluster: str, retries: int) -> Iterator[Any]:
    """A client of the cluster, which is taken down again if it was made here."""
    from distributed import Client

    kind, how = parsed(cluster)
    with ExitStack() as stack:
        if kind == "address":
            yield stack.enter_context(Client(how, timeout="30s"))
            return
        made = stack.enter_context(_local(how, retries) if kind == "local" else _slurm(how, retries))
        yield stack.enter_context(Client(made))


@contextmanager
def local_workers(count: int) -> Iterator[str]:
    """The address of a cluster of so many fresh processes of this machine, which end with it."""
    with _local(count, 0) as made:
        yield made.scheduler_address


def _local(count: int, retries: int) -> Any:
    """Processes with one task at a time each, and no limit of memory but the machine's."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
        scheduler_kwargs={"allowed_failures": retries},
    )


def _slurm(jobs: int, retries: int) -> Any:
    """Jobs as `jobqueue.slurm` in Dask's configuration describes them (~/.config/dask/jobqueue.yaml): cores, memory, queue."""
    import dask
    from dask_jobqueue import SLURMCluster

    job = {name: dask.config.get(f"jobqueue.slurm.{name}", None) for name in ("cores", "memory")}
    for name, given in job.items():
        if given is None:
            raise ValueError(
                f"jobqueue.slurm.{name} of a job is not set: write jobqueue.slurm.cores and jobqueue.slurm.memory, and the "
                "queue if there are several, to ~/.config/dask/jobqueue.yaml."
            )
    options = {"scheduler_options": {"allowed_failures": retries}, "worker_extra_args": ["--nthreads", "1"]}
    made = SLURMCluster(processes=1, **job, **options)
    made.scale(jobs=jobs)
    return made
