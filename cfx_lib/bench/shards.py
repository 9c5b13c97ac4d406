"""A long run in shards: each is made once, written in one step as Parquet, and skipped when the run is started again.

    with opened(folder, identity) as run:
        failures = run.make(shards, make)           # or cluster="local:2", see `cluster`
        table = run.merged(shards)                  # rows in the order of `shards`, whoever made them

A folder belongs to one run: `run.json` says to which (settings, weights, versions, code), and a run that differs is refused.
`run.lock` keeps a second process out. What is measured and never the same twice, such as seconds, lies in the metadata of a
shard's file (`Run.measured`) and not in its rows, so that merged tables are the same byte for byte.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cfx_lib.bench.run_folder import claimed, code_version, locked, write_whole

SHARDS = "shards"
LASTING = (ValueError, TypeError, LookupError, FileNotFoundError, NotImplementedError)
"""Errors that a second attempt would meet again."""
_KEY = b"cfx_lib"
_ONE_AT_A_TIME = threading.Lock()  # models change their modes while they explain


@dataclass(frozen=True)
class Shard:
    """A part of a run. `name`: that of its file. `what`: all that decides it, seed included, as plain JSON values."""

    name: str
    what: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A shard that could not be made, and the error in a line."""

    shard: str
    error: str


Make = Callable[[Shard], tuple[pa.Table, Mapping[str, Any]]]
"""Shard -> its rows, and what was measured (plain JSON values). A function of a module, so that a cluster can send it."""


@dataclass(frozen=True)
class Run:
    """A folder that this process holds; made by `opened`. `digest`: sha256 of the run's identity."""

    folder: Path
    digest: str
    code: str
    threads: int

    def path(self, shard: Shard) -> Path:
        return self.folder / SHARDS / f"{shard.name}.parquet"

    def finished(self, shard: Shard) -> bool:
        """Whether the shard is there, whole and of this run; a damaged or foreign file counts as missing."""
        try:
            said = _said(_read(self.path(shard)))
        except (FileNotFoundError, ValueError):
            return False
        return said.get("run") == self.digest and said.get("shard") == _plain(shard.what)

    def make(
        self,
        shards: Sequence[Shard],
        make: Make,
        *,
        cluster: str | None = None,
        retries: int = 2,
        progress: bool = True,
    ) -> dict[str, Failure]:
        """Make the shards that are not there yet; those that failed, by name, after `retries` further attempts.

        cluster: None (in this process), "local:N", "slurm[:N]" or an address, see `cfx_lib.bench.cluster`. A shard is written
        as soon as it is made. Raises OSError when it cannot be written, for instance on a full disk: finished shards stay.
        """
        from tqdm.auto import tqdm

        _distinct(shards)
        todo = [shard for shard in shards if not self.finished(shard)]
        task = partial(attempt, make, run=self.digest, code=self.code, threads=self.threads)
        answers = _here(task, todo, retries) if cluster is None else _there(cluster, task, todo, retries)
        failures = {}
        bar = tqdm(total=len(shards), initial=len(shards) - len(todo), desc="shards", disable=not progress)
        with bar:
            for shard, answer in answers if todo else ():
                if isinstance(answer, Failure):
                    failures[shard.name] = answer
                    bar.write(f"failed: {shard.name}: {answer.error}", file=sys.stderr)
                else:
                    self.write(f"{SHARDS}/{shard.name}.parquet", answer)
                bar.update()
        return failures

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the folder in one step. Raises OSError that says what to do."""
        path = self.folder / name
        try:
            write_whole(path, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{name} could not be written ({error.strerror or error}). Finished shards are safe in {self.folder}: "
                "make room and start the same command again, it goes on from there",
            ) from error
        return path

    def table(self, shard: Shard) -> pa.Table:
        """The rows of a finished shard. Raises FileNotFoundError, or ValueError for a damaged file."""
        return _read(self.path(shard)).replace_schema_metadata(None)

    def measured(self, shard: Shard) -> dict[str, Any]:
        """What was measured while a finished shard was made."""
        return _said(_read(self.path(shard)))["measured"]

    def merged(self, shards: Sequence[Shard]) -> pa.Table:
        """The rows of all these shards in their order. Nothing in it depends on when, where or in which order they were made."""
        return pa.concat_tables([self.table(shard) for shard in shards])


@contextmanager
def opened(
    folder: str | Path, identity: Mapping[str, Any], *, sources: Sequence[str] = (), threads: int = 1
) -> Iterator[Run]:
    """Hold a run's folder: make it, or go on with the run of the same identity that it holds.

    identity: plain JSON values, all that decides the shards; the code of `sources` (see `code_version`) and `threads` are
    added to it. Raises ValueError for a folder of another run or version, one that holds something else, or one in use.
    """
    if threads < 1:
        raise ValueError(f"threads = {threads}; expected at least 1.")
    folder, code = Path(folder).expanduser(), code_version(*sources)
    about = _plain({**identity, "threads": threads, "code": code})
    with locked(folder):
        digest = claimed(folder, about)
        for left in folder.rglob(".*.part"):  # of a process that was killed while it wrote
            left.unlink()
        yield Run(folder, digest, code, threads)


# ------------------------------------------------------------------------------------------------- one shard


def attempt(make: Make, shard: Shard, *, run: str, code: str, threads: int) -> bytes | Failure:
    """Make one shard, wherever this is called: the bytes of its file, or why it cannot be made.

    Errors that may pass (`LASTING` names those that do not) are raised, so that the caller tries again. Results depend on the
    number of `threads`, since sums of floats do; it is set for as long as this takes.
    """
    if (own := code_version(*code.split(":")[0].split(","))) != code:
        return Failure(
            shard.name, f"the worker has another version of the library ({own[-12:]}, not {code[-12:]})"
        )
    with _ONE_AT_A_TIME, torch_threads(threads):
        try:
            table, measured = make(shard)
        except LASTING as error:
            return Failure(shard.name, described(error))
    said = {"run": run, "shard": _plain(shard.what), "measured": _plain(measured)}
    return packed(table, said)


def described(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def packed(table: pa.Table, said: Mapping[str, Any] | None = None) -> bytes:
    """A table as Parquet with checksums, the same bytes for the same rows; `said`: its metadata, plain JSON values."""
    stored = {_KEY: json.dumps(said, sort_keys=True, allow_nan=False).encode()} if said is not None else None
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(stored), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch on so many threads, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(task: Callable, todo: Sequence[Shard], retries: int) -> Iterator[tuple[Shard, bytes | Failure]]:
    """The shards' answers in this process, one after the other."""
    for shard in todo:
        answer: bytes | Failure = Failure(shard.name, "never tried")
        for _ in range(retries + 1):
            try:
                answer = task(shard)
                break
            except Exception as error:  # one shard must not take the others with it
                answer = Failure(shard.name, described(error))
        yield shard, answer


def _there(
    cluster: str, task: Callable, todo: Sequence[Shard], retries: int
) -> Iterator[tuple[Shard, bytes | Failure]]:
    from cfx_lib.bench import cluster as machines

    return machines.answers(cluster, task, todo, retries)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the shard was not made yet.")
    try:
        return pq.read_table(path, page_checksum_verification=True, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): start the run again, it makes this shard anew."
        ) from error


def _said(table: pa.Table) -> dict[str, Any]:
    try:
        return json.loads((table.schema.metadata or {})[_KEY])
    except (KeyError, ValueError) as error:
        raise ValueError(f"the file is no shard of a run ({error!r}).") from error


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, allow_nan=False))


def _distinct(shards: Sequence[Shard]) -> None:
    names = [shard.name for shard in shards]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two shards are called {twice[0]!r}: give every shard a name of its own.")
