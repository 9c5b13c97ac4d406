"""sha256 of everything that the repository ships, and where that is.

`data/SHA256SUMS` has the format of `sha256sum`, with paths relative to `data/` (check it by hand with
`cd data && sha256sum -c SHA256SUMS`). Every shipped file is checked against it when it is first read in a process.
After a deliberate change: `python -m cfx_lib.zoo checksums`.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache, lru_cache
from pathlib import Path

__all__ = ["data_dir", "listed", "sha256", "update", "verify"]

FILE = "SHA256SUMS"
FOLDERS = ("weights", "personas", "fashion")
"""What is listed: the parts of data/ that code reads as models or images. Results and licences are plain text."""
REFRESH = "If you changed it on purpose, run `python -m cfx_lib.zoo checksums`; else `git checkout -- data`."


def data_dir() -> Path:
    """The folder of the shipped data: $CFX_DATA, else `data/` of the checkout. Raises FileNotFoundError."""
    given = os.environ.get("CFX_DATA")
    folder = Path(given).expanduser() if given else Path(__file__).resolve().parents[2] / "data"
    if not folder.is_dir():
        origin = (
            "the environment variable CFX_DATA says so" if given else "no checkout of the repository there"
        )
        raise FileNotFoundError(
            f"the data folder {folder} does not exist ({origin}). Install from a clone with `pip install -e .`, "
            "or set CFX_DATA to the `data` folder of a clone."
        )
    return folder


def sha256(path: str | Path) -> str:
    """The sha256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(data: Path | None = None) -> dict[str, str]:
    """The sums in SHA256SUMS: path relative to data/ -> sha256. Raises FileNotFoundError, ValueError."""
    path = (data or data_dir()) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so shipped files cannot be checked. {REFRESH}")
    return dict(_parse(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=8)
def _parse(path: Path, mtime: int) -> tuple[tuple[str, str], ...]:
    sums = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not `<sha256>  <path>`. {REFRESH}")
        sums.append((name, digest))
    return tuple(sums)


def verify(path: str | Path) -> Path:
    """Check one shipped file against SHA256SUMS and return its path; a second call on the same file is free.

    Raises FileNotFoundError when the file is missing, ValueError when it differs or is not listed.
    """
    path, data = Path(path).absolute(), data_dir().absolute()
    name = path.relative_to(data).as_posix()
    if not path.is_file():
        raise FileNotFoundError(
            f"the shipped file {path} is missing. Restore it with `git checkout -- data/{name}`."
        )
    expected = listed(data).get(name)
    if expected is None:
        raise ValueError(f"{path} is not listed in {data / FILE}, so it cannot be checked. {REFRESH}")
    stat = path.stat()
    found = _digest(path, stat.st_size, stat.st_mtime_ns)
    if found != expected:
        raise ValueError(
            f"{path} was altered or damaged ({stat.st_size} bytes): sha256 {found[:16]}…, expected {expected[:16]}…. "
            f"{REFRESH}"
        )
    return path


@cache
def _digest(path: Path, size: int, mtime: int) -> str:
    return sha256(path)


def update(data: Path | None = None) -> tuple[Path, int]:
    """Rewrite SHA256SUMS from the files on disk (hidden and partial ones left out): its path and length."""
    from cfx_lib.zoo.files import write_text

    data = data or data_dir()
    paths = (p for folder in FOLDERS for p in (data / folder).rglob("*") if p.is_file())
    names = sorted(p.relative_to(data).as_posix() for p in paths)
    names = [n for n in names if not any(part.startswith(".") for part in n.split("/"))]
    write_text(data / FILE, "".join(f"{sha256(data / name)}  {name}\n" for name in names))
    return data / FILE, len(names)
