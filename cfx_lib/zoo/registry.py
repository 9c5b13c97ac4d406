"""Names to models. A name is a shipped model, a folder on disk, or a model id on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfx_lib.zoo.checksums import data_dir, listed, verify
from cfx_lib.zoo.files import PICKLES, read_json
from cfx_lib.zoo.manifest import published
from cfx_lib.zoo.network import hub_problem, offline

__all__ = ["fetch", "kind_of", "load", "names"]

DTYPES = ("fp32", "bf16")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMM_NAME = re.compile(r"[a-z][\w]*(\.[\w]+)?")
FEATURES = ("embedding", "trunk", "autoencoders")  # kinds of "cfx" that zoo/features.py reads
LATENT = ("StableDiffusionPipeline", "DiTPipeline")  # what zoo/latent_files.py reads
DENOISER_STEM, CLASSIFIER_STEM = "diffusion_pytorch_model", "model"
HUB_CONFIGS = ["model_index.json", "config.json", "scheduler_config.json", "unet/*.json", "scheduler/*.json"]
HUB_STEMS = [f"unet/{DENOISER_STEM}", DENOISER_STEM, CLASSIFIER_STEM]


def names() -> list[str]:
    """The shipped models that are on disk, as `zoo.load` takes them."""
    root = data_dir() / "weights"
    folders = {p.parent for file in ("model_index.json", "config.json") for p in root.glob(f"*/*/{file}")}
    return sorted(folder.relative_to(root).as_posix() for folder in folders)


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str = "fp32",
    channels_last: bool = False,
    device: str = "cpu",
    compile: bool = False,
    allow_pickle: bool = False,
) -> Any:
    """A trained model by name: `Denoiser`, `LatentDiffusion`, `AttributeClassifier`, `ClassClassifier`, `WrappedClassifier`
    (K classes), or what a metric looks through: `Embedding`, `PerceptualTrunk`, `AutoencoderSet`.

    `name`: a shipped model ("personas/ddpm", see :func:`names`), a folder, a published checkpoint by its short name
    ("sd-1.4", see :func:`cfx_lib.zoo.published`), a pretrained classifier of timm ("resnet50.a1_in1k"), or a hub id
    ("google/ddpm-celebahq-256"); the last three come from the cache where they are in it, when offline from nowhere else.
    Models take images (N,C,H,W) in [-1,1] and come in eval mode with frozen parameters. `dtype="bf16"` computes in bfloat16
    by autocast; inputs and outputs stay float32. `compile` uses torch.compile. Weights are read from safetensors; a legacy
    pickle needs `allow_pickle=True`, unless the manifest says that there is nothing else, and is read with
    `weights_only=True`. Shipped files are checked against data/SHA256SUMS, published ones where their sum is known.

    Raises FileNotFoundError for a model that is not there (nearest names are offered), ValueError for one that is
    damaged, altered, of another format, or does not fit its configuration.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {DTYPES}.")
    options = {"bf16": dtype == "bf16", "channels_last": channels_last, "compile": compile}
    if os.fspath(name) in published() and not Path(name).exists():
        from cfx_lib.zoo.readers import load_published

        return load_published(published()[os.fspath(name)], **options).eval().to(device)
    folder, shown = find(name, allow_pickle)
    return load_folder(folder, shown, allow_pickle, **options).eval().to(device)


def load_folder(folder: Path, shown: str, allow_pickle: bool = False, **options: Any) -> Any:
    """What a folder holds, see :func:`load`; `shown`: the model's name. `options`: bf16, channels_last, compile."""
    kind = kind_of(folder)
    if kind == "denoiser":
        from cfx_lib.zoo.denoiser import load_denoiser as load_kind
    elif kind == "latent":
        from cfx_lib.zoo.latent_files import load_latent as load_kind
    elif kind == "features":
        from cfx_lib.zoo.features import load_features as load_kind
    else:
        from cfx_lib.zoo.classifiers import load_classifier as load_kind
    return load_kind(folder, shown, allow_pickle=allow_pickle, **options)


# ---------------------------------------------------------------------------------------------------- finding


def find(name: str | os.PathLike[str], allow_pickle: bool = False) -> tuple[Path, str]:
    """The folder of a model and the name to show for it; a shipped one's files are checked on the way."""
    given, text = Path(name).expanduser(), os.fspath(name)
    shipped = sorted({"/".join(path.split("/")[1:3]) for path in _listed() if path.startswith("weights/")})
    if text in names() or text in shipped:
        return _shipped(text), text
    if given.is_dir():
        return given, given.resolve().name
    if given.is_file():
        raise ValueError(_single_file(given))
    if pretrained := _of_timm(text):
        return fetch(pretrained, allow_pickle), text
    hubs = {entry.where for entry in published().values() if "://" not in entry.where}
    known = set() if text in hubs else {*names(), *shipped, *published(), *hubs}
    near = difflib.get_close_matches(text, sorted(known), 3, cutoff=0.5) or _near_timm(text)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    world = text.split("/")[0]
    own = any(
        other.split("/")[0] == world for other in {*names(), *shipped, "personas/", "fashion/", "avatars/"}
    )
    looks_like_path = text.startswith(("/", "./", "../", "~", "data/")) or text.count("/") != 1
    if own or looks_like_path or not HUB_ID.fullmatch(text):
        raise FileNotFoundError(
            f"there is no model {text!r}: expected a shipped name ({', '.join(names()) or 'none is on disk'}), "
            f"a published one ({', '.join(published())}), a pretrained classifier of timm, an existing folder, or a hub id "
            f"such as 'google/ddpm-celebahq-256'.{hint}"
        )
    return fetch(text, allow_pickle, hint), text


def _of_timm(text: str) -> str | None:
    """The hub id of a pretrained classifier of timm, by its name there ("resnet50.tv_in1k", or "resnet50" for the default)."""
    if not TIMM_NAME.fullmatch(text):
        return None
    import timm

    if not timm.is_model_pretrained(text):
        return None
    found = timm.get_pretrained_cfg(text)
    return found.hf_hub_id if found is not None else None


def _near_timm(text: str) -> list[str]:
    """Names of pretrained classifiers of timm like this one; none for what cannot be one, so that timm is not imported."""
    if not TIMM_NAME.fullmatch(text) or not re.search(r"[._\d]", text):
        return []
    import timm

    return difflib.get_close_matches(text, timm.list_pretrained(), 3, cutoff=0.7)


def _listed() -> dict[str, str]:
    try:
        return listed()
    except FileNotFoundError:
        return {}


def _shipped(name: str) -> Path:
    """Check every file of a shipped model that loading reads."""
    data = data_dir()
    folder = data / "weights" / name
    wanted = {p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".txt", *PICKLES)}
    wanted |= {
        data / p
        for p in _listed()
        if p.startswith(f"weights/{name}/") and p.endswith((".json", ".safetensors", ".txt"))
    }
    for path in sorted(p for p in wanted if not p.name.startswith(".")):
        verify(path)
    return folder


def _single_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path} is a single pickle file without a configuration; expected a folder. Say what it is: "
            "zoo.openai_denoiser(path, config) for OpenAI's format (it uses unet_from_openai), zoo.classifier_from_file, "
            "zoo.embedding_from_file, or zoo.simsiam_from_file."
        )
    return f"{path} is a file; expected the folder that holds the model's configuration and weights."


def kind_of(folder: Path) -> str:
    """What a folder holds: "denoiser", "latent", "classifier" or "features". Raises ValueError for anything else."""
    index = folder / "model_index.json"
    if index.is_file():
        pipeline = read_json(index).get("_class_name")
        if pipeline in ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline") or (folder / "config.json").is_file():
            return "denoiser"
        if pipeline in LATENT:
            return "latent"
        raise ValueError(
            f"{folder} holds a {pipeline}; zoo.load takes a DDPMPipeline or DDIMPipeline (an unconditional pixel-space "
            "denoiser), a StableDiffusionPipeline or DiTPipeline, or a timm classifier. Load it with diffusers and pass "
            "its parts on."
        )
    if (folder / "unet" / "config.json").is_file():
        return "denoiser"
    if not (folder / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{folder} is not a model folder (it holds {inside}); expected model_index.json (a diffusers pipeline), "
            "or config.json with weights (a UNet2DModel or a timm classifier)."
        )
    config = read_json(folder / "config.json")
    if config.get("_class_name") == "UNet2DModel":
        return "denoiser"
    if (config.get("cfx") or {}).get("kind") in FEATURES:
        return "features"
    if "architecture" in config:
        return "classifier"
    found = config.get("_class_name") or ", ".join(config.get("architectures") or []) or "an unknown model"
    raise ValueError(
        f'{folder / "config.json"} describes {found}; expected a UNet2DModel or a timm classifier ("architecture"). '
        "Load other classifiers yourself and pass them to zoo.wrap(model, num_classes)."
    )


# ---------------------------------------------------------------------------------------------------- the hub


def fetch(hub_id: str, allow_pickle: bool = False, hint: str = "", revision: str | None = None) -> Path:
    """The local folder of a hub model: configurations first, then only the weights that are needed.

    `revision`: the commit, None for the newest. Works offline from the hub's cache. Raises FileNotFoundError when the model is
    neither there nor reachable, or gated.
    """
    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        try:
            only = {"revision": revision, "local_files_only": offline()}
            return Path(snapshot_download(hub_id, allow_patterns=patterns, **only))
        except Exception as error:  # the hub client raises many kinds: HTTP, connection, validation, cache
            raise FileNotFoundError(hub_problem(hub_id, error, revision, hint)) from error

    folder = download(HUB_CONFIGS)
    if kind_of(folder) == "latent":  # other formats are refused before gigabytes are downloaded
        return _fetch_latent(folder, download, allow_pickle)
    suffixes = [".safetensors", ".fp16.safetensors"] + ([".bin"] if allow_pickle else [])
    for suffix in suffixes:
        if not _weights_in(folder):
            stems = [*HUB_STEMS, "pytorch_model"] if suffix == ".bin" else HUB_STEMS
            folder = download([*HUB_CONFIGS, *(stem + suffix for stem in stems)])
    if not _weights_in(folder) and not allow_pickle:
        raise FileNotFoundError(
            f"{hub_id!r} has no safetensors weights; it may have a legacy pickle. Pass allow_pickle=True if you trust "
            "its source (it is then read with weights_only=True)."
        )
    return folder


def _fetch_latent(folder: Path, download: Callable[[list[str]], Path], allow_pickle: bool) -> Path:
    """The parts of a pipeline in safetensors, of half precision where there are no others; pickles only where allowed."""
    from cfx_lib.zoo.latent_files import PIPELINES, hub_patterns

    kind = PIPELINES[read_json(folder / "model_index.json")["_class_name"]]
    for variant in ("", ".fp16"):
        folder = download(hub_patterns(kind, variant))
        if any(folder.glob("*/*.safetensors")):
            return folder
    if allow_pickle and any(download(hub_patterns(kind, ".bin")).glob("*/*.bin")):
        return folder
    raise FileNotFoundError(
        f"{folder} has no safetensors weights. If you trust the pickles of its source, pass allow_pickle=True (they are read with "
        "weights_only=True), or load the pipeline with diffusers, call save_pretrained(FOLDER), and give that folder."
    )


def _weights_in(folder: Path) -> bool:
    return any(p.suffix in (".safetensors", *PICKLES) for p in folder.rglob("*"))
