"""The folder of a long run: what it holds and of which version, held by one process at a time, written in whole files."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

FORMAT = "cfx_lib.run/1"
LOCK, MANIFEST = "run.lock", "run.json"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: it is there whole or, after an error, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@lru_cache(maxsize=8)
def code_version(*sources: str) -> str:
    """The files and folders of `cfx_lib` (relative paths; none: all of it) and a hash of their code: "paths:sha256"."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for name in sources or ("",) for p in _python_files(root / name)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{','.join(sources)}:{digest.hexdigest()}"


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))


def claimed(folder: Path, about: Mapping[str, Any]) -> str:
    """Check that the folder is this run's, or make it so; the digest of the identity. Raises ValueError."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = folder / MANIFEST
    if not path.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.name != LOCK and not p.name.endswith(".part"))
        if others:
            raise ValueError(
                f"{folder} holds {', '.join(others[:3])} and no {MANIFEST}: it is not the folder of a run. Choose another."
            )
        content = {"format": FORMAT, "run": about}
        write_whole(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        return digest
    try:
        stored = json.loads(path.read_text("utf-8"))
        kind, before = stored["format"], dict(stored["run"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}). Choose another folder, or delete this one."
        ) from error
    if kind != FORMAT:
        raise ValueError(f"{path} has the format {kind!r}, expected {FORMAT!r}. Choose another folder.")
    if before != about:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differences(before, about))}. Choose another folder, or delete this "
            "one to start over."
        )
    return digest


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two identities, a phrase each."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        inner = (differences(before.get(k), now.get(k), f"{where}.{k}" if where else k) for k in keys)
        return [text for texts in inner for text in texts]
    if before == now:
        return []
    if where == "code":
        return ["it was made by another version of the code"]
    shown = ["nothing" if v is None else json.dumps(v)[:40] for v in (before, now)]
    return [f"{where} was {shown[0]}, is now {shown[1]}"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` alone. The system lets go of the lock when the process dies, so that the next one takes over.

    Raises ValueError when another process holds it (or, by the word of the file, one on another host).
    """
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        owner, here = _owner(file), socket.gethostname()
        elsewhere = owner.get("host", here) != here
        if not free or elsewhere:
            advice = (
                f"If that one has ended, delete {LOCK}."
                if elsewhere
                else "Wait for it, or choose another folder."
            )
            raise ValueError(
                f"{folder} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')} "
                f"since {owner.get('since', '?')}. {advice}"
            )
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": here, "since": since}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.loads(file.read() or "{}"))
    except (ValueError, TypeError):
        return {}
