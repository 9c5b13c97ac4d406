"""Files from the network: resumed where they broke off, checked, and never fetched when offline.

What lies on the Hugging Face hub is fetched by `huggingface_hub`, which resumes too; `download` is for plain addresses.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["cache_dir", "check_sha256", "download", "hub_problem", "offline"]

CHUNK = 1 << 20
YES = {"1", "on", "true", "yes"}
VARIABLES = ("CFX_OFFLINE", "HF_HUB_OFFLINE")
CUT = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError)


def offline() -> bool:
    """Whether the network must not be touched: CFX_OFFLINE or HF_HUB_OFFLINE is set to 1, on, true or yes."""
    return any(os.environ.get(name, "").lower() in YES for name in VARIABLES)


def cache_dir() -> Path:
    """Where downloaded files are kept: $CFX_CACHE, else the user's cache folder; below it "checkpoints"."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("CFX_CACHE") or user_cache_dir("cfx_lib")) / "checkpoints"


def download(
    url: str,
    sha256: str | None = None,
    *,
    name: str | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """The file at an address, in `folder` (None: :func:`cache_dir`) as `name` (None: the last part of the address).

    A file that is there already is used. A broken download is resumed by an HTTP range request, also by a later call; the
    file gets its name only when it is whole. `sha256`: of the file, or the first digits of it; None: not checked. After
    `attempts` failures in a row (seconds between them: `pause`, doubled each time) it gives up.

    Raises FileNotFoundError when offline, gated or not there; ValueError for other content than `sha256` says; ConnectionError
    when the connection keeps breaking; OSError when the disk is too small.
    """
    path = Path(folder or cache_dir()) / (name or url.rstrip("/").rpartition("/")[2])
    if not path.is_file():
        if offline():
            raise FileNotFoundError(_offline(url, path))
        path.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(path.with_name(f".{path.name}.lock")):  # a second process waits, then finds the file
            if not path.is_file():
                _fetch(url, sha256, path, progress, attempts, pause, timeout)
    return check_sha256(path, sha256, url)


def check_sha256(path: Path, sha256: str | None, url: str = "") -> Path:
    """The path itself, if its content has that sum. Raises ValueError."""
    if sha256 and not (found := _sum(path)).startswith(sha256.lower()):
        again = f" and download it again from {url}" if url else ""
        raise ValueError(
            f"{path} is damaged or another file ({path.stat().st_size} bytes): sha256 {found[:16]}…, expected "
            f"{sha256[:16]}…. Delete it{again}."
        )
    return path


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offline(url: str, path: Path) -> str:
    return (
        f"{path.name} is not in the cache, and nothing is downloaded: {_said()}. On a machine with a network download {url} "
        f"and save it as {path}, or unset the variable."
    )


def _said() -> str:
    return (
        f"{' and '.join(v for v in VARIABLES if os.environ.get(v, '').lower() in YES) or VARIABLES[1]} is set"
    )


# ---------------------------------------------------------------------------------------------------- plain addresses


def _fetch(
    url: str, sha256: str | None, path: Path, progress: bool, attempts: int, pause: float, timeout: float
) -> None:
    """Download to a partial file, again and again from where it broke off, then check it and give it its name."""
    partial, failures = path.with_name(f".{path.name}.partial"), 0
    while True:
        before = _size(partial)
        try:
            if _receive(url, partial, progress, timeout):
                break
            problem: Any = "the connection was cut"
        except urllib.error.HTTPError as error:
            problem = _http_problem(url, error, partial)
        except CUT as error:
            problem = getattr(error, "reason", None) or error
        failures = 1 if _size(partial) > before else failures + 1
        if failures >= attempts:
            raise ConnectionError(
                f"{url} could not be downloaded ({problem}); {_size(partial)} bytes are kept. Check the network and call "
                "again: the download goes on from there."
            )
        time.sleep(0 if _size(partial) > before else pause * 2 ** (failures - 1))
    try:
        check_sha256(partial, sha256)
    except ValueError as error:
        found = str(error).partition("): ")[2].partition(". Delete")[0]
        _forget(partial)
        raise ValueError(
            f"what was downloaded from {url} is damaged or another file: {found}. Nothing was kept; try again."
        ) from error
    os.replace(partial, path)
    _forget(partial)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag(partial: Path) -> Path:
    """Beside the partial file: which version of the file it is the beginning of, as the server names it."""
    return partial.with_name(partial.name + ".tag")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag(partial).unlink(missing_ok=True)


def _http_problem(url: str, error: urllib.error.HTTPError, partial: Path) -> str:
    """What to try again; FileNotFoundError for an answer that will not change."""
    if error.code in (401, 403):
        raise FileNotFoundError(
            f"{url} is gated: the server answered {error.code} {error.reason}. Accept its licence or log in on its page, "
            "download it by hand, and give the file."
        ) from error
    if error.code == 416:  # the partial file is as long as the file, or longer: it is of another version
        _forget(partial)
    elif 400 <= error.code < 500 and error.code not in (408, 429):
        raise FileNotFoundError(
            f"{url} is not there: the server answered {error.code} {error.reason}. Check the address."
        ) from error
    return f"the server answered {error.code} {error.reason}"


def _receive(url: str, partial: Path, progress: bool, timeout: float) -> bool:
    """One request, from where the partial file ends; True when the file is whole."""
    from tqdm.auto import tqdm

    have, tag = _size(partial), _tag(partial)
    headers = {"User-Agent": "cfx_lib", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file():
            headers["If-Range"] = tag.read_text("utf-8")
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        _check_space(partial, total, have if resumed else 0)
        etag = answer.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            tag.write_text(etag, "utf-8")
        else:
            tag.unlink(missing_ok=True)
        bar = {"total": total, "initial": have if resumed else 0, "unit": "B", "unit_scale": True}
        with open(partial, "ab" if resumed else "wb") as file:
            with tqdm(desc=partial.name[1:-8], disable=not progress, file=sys.stderr, **bar) as shown:
                while block := answer.read(CHUNK):
                    file.write(block)
                    shown.update(len(block))
    return total is None or _size(partial) == total


def _check_space(partial: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - have > free:
        raise OSError(
            f"{partial.parent} has {free / 1e9:.1f} GB left; {(total - have) / 1e9:.1f} GB are needed. Make room, or set "
            "CFX_CACHE to a folder on another disk."
        )


# ---------------------------------------------------------------------------------------------------- the hub


def hub_problem(
    hub_id: str, error: Exception, revision: str | None = None, hint: str = "", file: str | None = None
) -> str:
    """What the hub client's exception means for the user, in a sentence or two. `file`: the one that was asked for."""
    from huggingface_hub import constants, errors

    page, pinned = f"https://huggingface.co/{hub_id}", f" --revision {revision}" if revision else ""
    one = f" {file}" if file else ""
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub_id!r} is gated: accept its licence on {page}, then log in with `hf auth login`, or set HF_TOKEN to a "
            "token of your account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub_id!r} is on the hub, but not its commit {revision}. Look at {page}/commits/main."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{hub_id!r} is not a shipped model, not a folder, and not on the hub, or private. Check the name, or log in "
            f"with `hf auth login`.{hint}"
        )
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    told = f"{type(error).__name__}: {reason}"
    todo = "Check the name and the network, or give a local folder."
    if offline() or constants.HF_HUB_OFFLINE:
        told = f"no network is used, since {_said()}"
        todo = (
            f"On a machine with a network run `hf download {hub_id}{one}{pinned}` and copy its cache ($HF_HOME/hub), unset the "
            "variable, or give a local folder."
        )
    return (
        f"{one.strip() + ' of ' if file else ''}{hub_id!r} is not a shipped model, not a folder, not in the hub's cache, and could "
        f"not be downloaded ({told}). {todo}{hint}"
    )
