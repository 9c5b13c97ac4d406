"""Latent diffusion models from disk, from the hub, or around a pipeline: safetensors unless told otherwise, no remote code."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cfx_lib.zoo.files import PICKLES, check_header, read_json
from cfx_lib.zoo.latent import PARTS, LatentDiffusion

__all__ = ["PIPELINES", "hub_patterns", "latent_diffusion", "load_latent"]

PIPELINES = {"StableDiffusionPipeline": "text", "DiTPipeline": "class"}
WEIGHTS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PICKLED = {"text_encoder": "pytorch_model"}  # transformers' pickles have another name


def latent_diffusion(
    source: Any,
    *,
    dtype: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    device: str | torch.device | None = None,
) -> LatentDiffusion:
    """A latent diffusion model from a pipeline of diffusers, a folder, a shipped name, or a hub name.

    A given pipeline keeps its weights, their dtype and its modes; `channels_last` changes their layout in memory, and
    `device` moves it. `dtype="bf16"` computes by autocast. A name is loaded as `zoo.load` does. Raises ValueError, and
    FileNotFoundError for one that is not there.
    """
    from cfx_lib.zoo import registry

    if dtype not in registry.DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {registry.DTYPES}.")
    if isinstance(source, (str, os.PathLike)):
        where = device or "cpu"
        model = registry.load(source, dtype=dtype, channels_last=channels_last, compile=compile, device=where)
        if not isinstance(model, LatentDiffusion):
            raise ValueError(
                f"{source} is a {type(model).__name__}; expected a StableDiffusionPipeline or DiTPipeline."
            )
        return model
    model = LatentDiffusion(source, bf16=dtype == "bf16", channels_last=channels_last, compile=compile)
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    return model if device is None else model.to(device)


def load_latent(
    folder: str | Path, name: str = "", *, allow_pickle: bool = False, **options: Any
) -> LatentDiffusion:
    """A latent diffusion model from a pipeline folder, weights in float32.

    A part that has only a pickle is read with `weights_only=True` where `allow_pickle` says so. `options`: bf16, channels_last, compile. Raises FileNotFoundError and ValueError as :func:`cfx_lib.zoo.load`.
    """
    import diffusers

    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    kind = PIPELINES[index["_class_name"]]
    missing = [p for p in PARTS[kind] if (index.get(p) or [None])[0] is None or not (folder / p).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}; expected {', '.join(PARTS[kind])}, each in model_index.json "
            "and with a folder. Download or save the pipeline again."
        )
    parts = [part for part in PARTS[kind] if part in WEIGHTS]
    variants = {_check_weights(folder / part, WEIGHTS[part], allow_pickle) for part in parts}
    extra = {"safety_checker": None, "requires_safety_checker": False} if kind == "text" else {}
    quiet = {
        "use_safetensors": None if "bin" in variants and len(variants) > 1 else "bin" not in variants,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        cls = getattr(diffusers, index["_class_name"])
        variant = "fp16" if "fp16" in variants else None
        pipeline = cls.from_pretrained(str(folder), variant=variant, **quiet, **extra)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder} could not be read as a {index['_class_name']}: {reason}") from error
    model = LatentDiffusion(pipeline, name or folder.name, **options).float().requires_grad_(False).eval()
    bad = [k for k, p in model.named_parameters() if p.is_meta or not torch.isfinite(p).all()]
    if bad:
        raise ValueError(
            f"{folder} holds missing, NaN or infinite weights: {', '.join(bad[:3])}. Download it again."
        )
    return model.to(memory_format=torch.channels_last) if options.get("channels_last") else model


def _check_weights(part: Path, stem: str, allow_pickle: bool = False) -> str:
    """Check the weight files of a part and return their variant, "", "fp16" or "bin". Raises ValueError, FileNotFoundError."""
    found = [p for p in sorted(part.glob("*.safetensors")) if p.name.startswith(stem)]
    plain = [p for p in found if not p.name.startswith(f"{stem}.fp16")]
    for path in plain or found:
        check_header(path)
    if not found:
        pickles = sorted(p.name for p in part.glob("*") if p.suffix in PICKLES)
        if pickles and allow_pickle:
            return "bin"
        if pickles:
            raise ValueError(
                f"{part} has only a legacy pickle ({pickles[0]}), which can run code when it is opened; expected "
                f"{stem}.safetensors. If you trust its source, pass allow_pickle=True (it is read with weights_only=True), or "
                "load the pipeline with diffusers, call save_pretrained(FOLDER), and give that folder."
            )
        raise FileNotFoundError(
            f"{part} holds no weights; expected {stem}.safetensors there. Download it again."
        )
    return "" if plain else "fp16"


def hub_patterns(kind: str, variant: str = "") -> list[str]:
    """The files of a pipeline to download from the hub: configurations, tokenizer, and one set of weights.

    `variant`: "" or ".fp16" for safetensors; ".bin" for pickles.
    """
    parts = [part for part in PARTS[kind] if part in WEIGHTS]
    if variant == ".bin":
        files = [f"{part}/{PICKLED.get(part, WEIGHTS[part])}.bin" for part in parts]
    else:
        stems = [f"{part}/{WEIGHTS[part]}{variant}" for part in parts]
        files = [name for stem in stems for name in (f"{stem}.safetensors", f"{stem}-*.safetensors")]
    return [
        "model_index.json",
        *(f"{part}/*.{end}" for part in PARTS[kind] for end in ("json", "txt")),
        *files,
    ]
