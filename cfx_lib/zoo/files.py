"""Reading and writing weight files: whole, in a safe format, and with errors that say what is wrong.

Nothing here knows about models. Weights are safetensors; a legacy pickle is read only on request, and then with
`torch.load(weights_only=True)`, which refuses everything but tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "check_header",
    "find_weights",
    "load_into",
    "read_json",
    "read_state_dict",
    "read_weights",
    "write_json",
    "write_text",
    "write_weights",
]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NESTED = (
    "state_dict",
    "model",
    "model_state_dict",
)  # where training scripts put the weights in their checkpoints
HALF_MAX = 65504.0  # the largest float16

# What a file with the wrong name often is: its first bytes -> (what it is, what to do).
IMPOSTORS = {
    b"version https://git-lfs": (
        "a Git LFS pointer, not the weights themselves",
        "Run `git lfs pull` in the folder that it was cloned into.",
    ),
    b"<": ("a web page or XML text", "The download answered with an error page: download the file again."),
    b"{": ("JSON text", "Check which file was copied here; the weights are the large binary file."),
    b"PK\x03\x04": (
        "a pickle written by torch.save (a zip archive)",
        "Rename it to .bin and pass allow_pickle=True, or convert it with safetensors.torch.save_file.",
    ),
    b"\x80": (
        "a pickle",
        "Rename it to .bin and pass allow_pickle=True, or convert it with safetensors.torch.save_file.",
    ),
    b"\x1f\x8b": ("a gzip archive", "Unpack it first."),
}


# ---------------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError naming the line that is not JSON."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the model's configuration there. Restore or copy it."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text; expected JSON. Restore the file.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}). Restore the file."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; expected an object {{...}}.")
    return value


def find_weights(folder: Path, stem: str, allow_pickle: bool = False) -> Path:
    """The weights file `stem`.safetensors (or its fp16 variant) in a folder; a pickle only where allowed.

    Raises FileNotFoundError when there is none, ValueError when there is only a pickle and none is allowed.
    """
    for suffix in (".safetensors", ".fp16.safetensors"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    pickles = sorted(p for p in folder.glob("*") if p.suffix in PICKLES and p.is_file())
    if pickles and allow_pickle:
        preferred = [p for p in pickles if p.stem in (stem, "pytorch_model")]
        return (preferred or pickles)[0]
    if pickles:
        raise ValueError(_pickle_refused(pickles[0]))
    raise FileNotFoundError(
        f"{folder} holds no weights; expected {stem}.safetensors there. Download or train the model again."
    )


def _pickle_refused(path: Path) -> str:
    return (
        f"{path} is a legacy pickle, which can run code when it is opened; expected safetensors. "
        "Convert it, or pass allow_pickle=True if you trust its source (it is then read with weights_only=True)."
    )


def read_weights(path: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """All tensors of a weights file on the CPU, by name.

    Raises FileNotFoundError when it is missing; ValueError when it is cut short, altered in its header, something
    else than weights (a Git LFS pointer, a web page, ...), holds NaN, or is a pickle and none is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a safetensors file there.")
    if path.suffix in PICKLES:
        weights = _read_pickle(path, allow_pickle)
    else:
        check_header(path)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. Download or train it again.") from error
    return _finite(weights, path)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """All tensors of another project's checkpoint, whatever its suffix: safetensors, or a pickle, read with weights_only=True.

    The weights may lie under "state_dict", "model" or "model_state_dict". Raises FileNotFoundError, ValueError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a checkpoint there. Download it first.")
    if path.suffix == ".safetensors":
        return read_weights(path)
    return _finite(_read_pickle(path, True), path)


def _finite(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"{path}: {name} holds NaN or infinite values; expected finite weights. Train it again."
            )
    return weights


def _check_impostor(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(32)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes); expected weights. Download or train it again.")
    for magic, (what, todo) in IMPOSTORS.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {what}; expected safetensors. {todo}")


def check_header(path: Path) -> None:
    """Check that a safetensors file is whole, without reading its data. Raises ValueError.

    8 bytes of header length, a JSON header with each tensor's offsets, then the data.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if (
            file.read(1) != b"{" or length > 1 << 40
        ):  # a header is a JSON object; text read as its length is huge
            _check_impostor(path)
            raise ValueError(f"{path} is not a safetensors file (no header found). Check which file it is.")
        if size < 8 + length:
            raise ValueError(
                f"{path} is damaged: it ends inside its header ({size} bytes of at least {8 + length}). "
                "Download or train it again."
            )
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} is damaged: its header is unreadable. Download or train it again."
            ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = (
            f"{expected - size} bytes are missing" if size < expected else f"{size - expected} bytes too many"
        )
        raise ValueError(
            f"{path} is damaged: it has {size} bytes, its header says {expected} ({what}). "
            "Download or train it again."
        )


def _read_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise ValueError(_pickle_refused(path))
    import pickle

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read with weights_only=True: it is damaged or holds more than tensors "
            f"({str(error).splitlines()[0][:120]}). Convert it to safetensors where it comes from."
        ) from error
    while isinstance(value, Mapping) and (inner := [k for k in NESTED if isinstance(value.get(k), Mapping)]):
        value = value[inner[0]]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ValueError(
            f"{path} holds a {type(value).__name__} that is not a state dict; expected names -> tensors. "
            "Save model.state_dict()."
        )
    return dict(value)


def load_into(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy weights into a model in its own precision, all or nothing.

    Raises ValueError naming the missing and unexpected tensors and the differing shapes.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in weights]
    unexpected = [k for k in weights if k not in own]
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    problems = []
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{len(keys)} tensors {what} ({', '.join(keys[:3])}{more})")
    if problems:
        raise ValueError(
            f"{source} does not fit the architecture in its configuration: {'; '.join(problems)}. "
            "Use the configuration that the weights were trained with."
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})


# ---------------------------------------------------------------------------------------------------- writing


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: a reader, or a run after a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole (see :func:`write_text`)."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_weights(path: Path, weights: Mapping[str, Tensor], half: bool = True) -> None:
    """Write tensors as safetensors, whole.

    `half`: matrices and kernels are stored as float16 (half the size); vectors (biases, norms, running statistics)
    keep float32, since they are few and their small values matter. Raises ValueError for NaN or an overflow.
    """
    from safetensors.torch import save_file

    stored = {}
    for name, value in weights.items():
        value = value.detach().to("cpu", copy=True).contiguous()
        if value.is_floating_point():
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values; nothing was written to {path}.")
            value = value.float()
            if half and value.ndim >= 2:
                if value.abs().max() > HALF_MAX:
                    raise ValueError(f"{name} exceeds float16 (65504); save with half=False.")
                value = value.half()
        stored[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(stored, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # save_file makes it readable for its owner only
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
