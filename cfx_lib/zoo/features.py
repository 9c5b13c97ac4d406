"""Networks that metrics look through: embeddings, a perceptual trunk, autoencoders of classes.

On disk they are a `timm` network (`model.safetensors`, `config.json`) with what `timm` has no place for in a file beside
it, or a folder of `diffusers` autoencoders. The key "cfx" of config.json has the "kind": "embedding", "trunk" or
"autoencoders".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.zoo.classifiers import _create, _Runner
from cfx_lib.zoo.files import find_weights, load_into, read_json, read_weights, write_json, write_weights

__all__ = [
    "AutoencoderSet",
    "Embedding",
    "Encoder",
    "PerceptualTrunk",
    "load_features",
    "save_autoencoders",
    "save_embedding",
    "save_trunk",
]

STEM, AUTOENCODER_STEM = "model", "diffusion_pytorch_model"
PROJECTION, WEIGHTS = "projection.safetensors", "lpips.safetensors"
NEEDED = {  # kind -> the keys of "cfx", and the function that writes them
    "embedding": (("projection", "mean", "std"), "save_embedding"),
    "trunk": (("outputs", "channels", "mean", "std"), "save_trunk"),
    "autoencoders": (("patch", "classes"), "save_autoencoders"),
}
GLOBAL = "global"  # the autoencoder of all classes


# ---------------------------------------------------------------------------------------------------- embeddings


class Encoder(nn.Module):
    """A `timm` network and the projection MLP behind it: linear, batch norm, ReLU, ..., linear, batch norm without scale.

    `projection`: the sizes of its layers, () for none (SimSiam, Chen and He 2021, sec. 3: "projection MLP").
    """

    def __init__(self, network: nn.Module, projection: Sequence[int] = ()) -> None:
        super().__init__()
        self.network = network
        width = network.num_classes or network.num_features
        layers: list[nn.Module] = []
        for k, size in enumerate(projection):
            last = k == len(projection) - 1
            layers += [nn.Linear(width, size, bias=False), nn.BatchNorm1d(size, affine=not last)]
            layers += [] if last else [nn.ReLU(inplace=True)]
            width = size
        self.projection, self.dim = nn.Sequential(*layers), width

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.network(x))


class Embedding(nn.Module):
    """Images as vectors whose cosine says how much they have in common.

    `forward(x)`: (N,C,H,W) in [-1,1] -> (N,D) float32, not normalised: compare by cosine. `.dim` is D. `model` takes
    images normalised as `((x + 1) / 2 - mean) / std`.
    """

    def __init__(
        self,
        model: nn.Module,
        dim: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        name: str = "embedding",
        **options: Any,
    ) -> None:
        super().__init__()
        self.runner = _Runner(model, mean, std, **options)
        self.dim, self.name = dim, name

    @property
    def model(self) -> nn.Module:
        """The :class:`Encoder`."""
        return self.runner.model

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> (N,D) float32. ValueError where the network gives something else."""
        out = self.runner(x).float()
        if out.shape != (len(x), self.dim):
            raise ValueError(
                f"{self.name} gave {tuple(out.shape)}; expected {(len(x), self.dim)}, a vector an image."
            )
        return out

    def __repr__(self) -> str:
        return f"Embedding({self.name}: {self.dim} dimensions)"


# ---------------------------------------------------------------------------------------------------- the trunk


class PerceptualTrunk(nn.Module):
    """The feature maps under LPIPS, its linear weights, and the pooled features under FID.

    `forward(x)`: (N,C,H,W) in [-1,1] -> [(N,C_k,H_k,W_k), ...] float32, finest first. `.weights`: a tensor (C_k,) >= 0
    for each map, which multiplies the squared differences of the maps normalised over their channels (Zhang et al. 2018,
    Eq. 1, where these are the squares of w_l, as in the package `lpips`). `.embed(x)`: (N,D), `.dim` is D.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        name: str = "trunk",
        outputs: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        channels = [info["num_chs"] for info in model.feature_info]
        given = [tuple(w.shape) for w in weights]
        if given != [(c,) for c in channels]:
            raise ValueError(
                f"weights of shapes {given}; expected one vector for each of the maps, with {channels} channels."
            )
        for k, w in enumerate(weights):
            if not torch.isfinite(w).all() or (w < 0).any():
                raise ValueError(
                    f"the weights of map {k} are negative or not finite; expected w >= 0 (a distance)."
                )
        self.runner = _Runner(model, mean, std, **options)
        for k, w in enumerate(weights):
            self.register_buffer(f"w{k}", w.detach().clone().float(), persistent=False)
        self.dim, self.name, self.outputs = model.num_features, name, tuple(outputs)
        self.channels = tuple(channels)

    @property
    def model(self) -> nn.Module:
        """The bare network, as `timm` made it."""
        return self.runner.model

    @property
    def weights(self) -> list[Tensor]:
        """The linear weights of LPIPS, (C_k,) float32 >= 0 for each map."""
        return [getattr(self, f"w{k}") for k in range(len(self.channels))]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (N,C,H,W) in [-1,1] -> the feature maps of all stages, finest first."""
        with self.runner.autocast(x):
            maps = self.model.forward_intermediates(self.runner.prepare(x), intermediates_only=True)
        return [m.float() for m in maps]

    def embed(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> the last map, pooled: (N,D) float32."""
        with self.runner.autocast(x):
            features = self.model.forward_features(self.runner.prepare(x))
            return self.model.forward_head(features, pre_logits=True).float()

    def logits(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> what the network was trained to answer, one number for each of `.outputs`."""
        return self.runner(x).float()

    def __repr__(self) -> str:
        return f"PerceptualTrunk({self.name}: maps of {self.channels} channels, {self.dim} pooled features)"


# ---------------------------------------------------------------------------------------------------- autoencoders


class AutoencoderSet(nn.Module):
    """An autoencoder for each class of each attribute, and a global one (IM1, IM2; thesis, Eq. 2.7 and 2.8).

    `.classes`: {attribute: number of classes}. Each autoencoder is a `diffusers.AutoencoderTiny` that sees patches of
    `patch` x `patch` pixels as channels: flat drawings need no convolution at full resolution.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        classes: Mapping[str, int],
        patch: int = 4,
        name: str = "autoencoders",
        *,
        bf16: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        wanted = members(classes)
        if set(models) != set(wanted):
            raise ValueError(
                f"autoencoders {sorted(models)}; expected {wanted}, one a class and a global one."
            )
        self.models = nn.ModuleDict(dict(models))
        if channels_last:
            self.models.to(memory_format=torch.channels_last)
        self.classes, self.patch, self.name = dict(classes), patch, name
        self.bf16, self.channels_last = bf16, channels_last
        self._call = [
            {k: torch.compile(m) if compile else m for k, m in self.models.items()}
        ]  # in a list: not second submodules

    def forward(self, x: Tensor, attribute: str | None = None, cls: Tensor | None = None) -> Tensor:
        """As :meth:`reconstruct`."""
        if attribute is None:
            if cls is not None:
                raise ValueError("cls given without an attribute; name the attribute whose classes they are.")
            return self._through(GLOBAL, x)
        if attribute not in self.classes:
            near = difflib.get_close_matches(attribute, self.classes, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.name} has no attribute {attribute!r}; it has {', '.join(self.classes)}.{hint}"
            )
        n = self.classes[attribute]
        if cls is None or cls.shape != (len(x),) or (len(x) and not (0 <= cls.min() and cls.max() < n)):
            given = "none" if cls is None else f"{tuple(cls.shape)} {cls.tolist()[:5]}"
            raise ValueError(
                f"classes of {attribute}: {given} given; expected ({len(x)},) from 0 to {n - 1}, one an image."
            )
        out = torch.empty_like(x, dtype=torch.float32)
        for k in cls.unique().tolist():
            rows = cls == k
            out[rows] = self._through(f"{attribute}-{k}", x[rows])
        return out

    def reconstruct(self, x: Tensor, attribute: str | None = None, cls: Tensor | None = None) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> its reconstruction, float32, by the autoencoder of class `cls` (N,) of the attribute.

        Without an attribute: by the global autoencoder. Raises ValueError for an attribute or a class that it does not have.
        """
        return self(x, attribute, cls)

    def _through(self, member: str, x: Tensor) -> Tensor:
        if not len(x):
            return x.float()
        if x.shape[-1] % self.patch or x.shape[-2] % self.patch:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} given; expected sides that are multiples of {self.patch}."
            )
        z = nn.functional.pixel_unshuffle(x, self.patch)
        z = z.contiguous(memory_format=torch.channels_last) if self.channels_last else z
        model = self._call[0][member]
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            z = model.decode(model.encode(z).latents).sample
        return nn.functional.pixel_shuffle(z.float(), self.patch).contiguous()

    def __repr__(self) -> str:
        classes = ", ".join(f"{a} ({n} classes)" for a, n in self.classes.items())
        return f"AutoencoderSet({self.name}: {classes}, and a global one)"


def members(classes: Mapping[str, int]) -> list[str]:
    """The names of a set's autoencoders: "smile-0", "smile-1", ..., "global"."""
    return [f"{a}-{k}" for a, n in classes.items() for k in range(n)] + [GLOBAL]


# ---------------------------------------------------------------------------------------------------- loading


def load_features(
    folder: str | Path, name: str = "", *, allow_pickle: bool = False, **options: Any
) -> Embedding | PerceptualTrunk | AutoencoderSet:
    """What the "kind" of "cfx" in a folder's config.json says. `options`: bf16, channels_last, compile.

    Raises FileNotFoundError and ValueError as :func:`cfx_lib.zoo.load`.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path)
    cfx = config.get("cfx") or {}
    kind = cfx.get("kind")
    if kind not in NEEDED:
        raise ValueError(f'{path}: "cfx" says kind {kind!r}; expected one of {", ".join(map(repr, NEEDED))}.')
    keys, saver = NEEDED[kind]
    for key in keys:
        if key not in cfx:
            raise ValueError(f'{path}: "cfx" lacks {key!r}; write it with {saver}.')
    load = {"embedding": _load_embedding, "trunk": _load_trunk, "autoencoders": _load_autoencoders}[kind]
    return load(folder, config, cfx, name or folder.name, allow_pickle, options)


def _load_network(folder: Path, config: Mapping[str, Any], outputs: int, allow_pickle: bool) -> nn.Module:
    path = folder / "config.json"
    for key in ("architecture", "num_classes"):
        if key not in config:
            raise ValueError(f"{path} names no {key!r}; expected a timm model's configuration.")
    if outputs != config["num_classes"]:
        raise ValueError(
            f"{path} says num_classes={config['num_classes']} but names {outputs} outputs; expected as many. "
            "Use the configuration that the weights were trained with."
        )
    source = find_weights(folder, STEM, allow_pickle)
    weights = read_weights(source, allow_pickle)
    model = _create(config["architecture"], outputs, config.get("model_args", {}), path)
    load_into(model, weights, source)
    return model.eval().requires_grad_(False)


def _load_embedding(
    folder: Path, config: Mapping, cfx: Mapping, name: str, allow_pickle: bool, options: Mapping
) -> Embedding:
    encoder = Encoder(
        _load_network(folder, config, config.get("num_classes", 0), allow_pickle), cfx["projection"]
    )
    if cfx["projection"]:
        load_into(encoder.projection, read_weights(folder / PROJECTION), folder / PROJECTION)
    encoder.eval().requires_grad_(False)
    return Embedding(encoder, encoder.dim, cfx["mean"], cfx["std"], name, **options)


def _load_trunk(
    folder: Path, config: Mapping, cfx: Mapping, name: str, allow_pickle: bool, options: Mapping
) -> PerceptualTrunk:
    model = _load_network(folder, config, len(cfx["outputs"]), allow_pickle)
    stored = read_weights(folder / WEIGHTS)
    wanted = [f"w{k}" for k in range(len(cfx["channels"]))]
    if sorted(stored) != sorted(wanted):
        raise ValueError(
            f"{folder / WEIGHTS} holds {sorted(stored)}; expected {wanted}, a vector for each map."
        )
    try:
        return PerceptualTrunk(
            model, [stored[w] for w in wanted], cfx["mean"], cfx["std"], name, cfx["outputs"], **options
        )
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit the network: {error}") from error


def _load_autoencoders(
    folder: Path, config: Mapping, cfx: Mapping, name: str, allow_pickle: bool, options: Mapping
) -> AutoencoderSet:
    models = {}
    for member in members(cfx["classes"]):
        path = find_weights(folder / member, AUTOENCODER_STEM, allow_pickle)
        weights = read_weights(path, allow_pickle)
        model = make_autoencoder(read_json(folder / member / "config.json"), folder / member / "config.json")
        load_into(model, weights, path)
        models[member] = model.eval().requires_grad_(False)
    return AutoencoderSet(models, cfx["classes"], cfx["patch"], name, **options)


def make_autoencoder(config: Mapping[str, Any], source: str | Path = "the configuration") -> nn.Module:
    """A `diffusers.AutoencoderTiny` with random weights. Raises ValueError for a configuration of something else."""
    from diffusers import AutoencoderTiny

    kind = config.get("_class_name", "AutoencoderTiny")
    try:
        if kind != "AutoencoderTiny":
            raise ValueError(f"it describes a {kind}")
        return AutoencoderTiny(**_given(config))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{source} is not a configuration of an AutoencoderTiny: {error}.") from error


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a configuration; diffusers adds "block_out_channels", which is none."""
    return {k: v for k, v in config.items() if not k.startswith("_") and k != "block_out_channels"}


# ---------------------------------------------------------------------------------------------------- saving


def save_embedding(
    encoder: Encoder,
    folder: str | Path,
    architecture: str,
    model_args: Mapping[str, Any] | None,
    outputs: int = 0,
    projection: Sequence[int] = (),
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    half: bool = True,
) -> Path:
    """Save an :class:`Encoder` as a folder that :func:`load_features` reads; the live model is not touched.

    Its network is `timm.create_model(architecture, num_classes=outputs, **model_args)` (0: pooled features). `half`:
    matrices as float16. Raises ValueError, before anything is written, for another network than the one described; for NaN.
    """
    folder, args = Path(folder), dict(model_args or {})
    described = Encoder(_create(architecture, outputs, args, "save_embedding"), projection)
    load_into(described, encoder.state_dict(), "the model to be saved")
    cfx = {"kind": "embedding", "projection": list(projection), "mean": list(mean), "std": list(std)}
    if projection:
        write_weights(folder / PROJECTION, encoder.projection.state_dict(), half)
    return _save_network(encoder.network, folder, architecture, args, outputs, cfx, half)


def save_trunk(
    trunk: PerceptualTrunk,
    folder: str | Path,
    architecture: str,
    model_args: Mapping[str, Any] | None,
    half: bool = True,
) -> Path:
    """As :func:`save_embedding`, for a :class:`PerceptualTrunk`, whose network has one output for each of `trunk.outputs`."""
    folder, args, outputs = Path(folder), dict(model_args or {}), len(trunk.outputs)
    load_into(
        _create(architecture, outputs, args, "save_trunk"), trunk.model.state_dict(), "the model to be saved"
    )
    mean, std = (getattr(trunk.runner, k).flatten().tolist() for k in ("mean", "std"))
    cfx = {"kind": "trunk", "outputs": list(trunk.outputs), "channels": list(trunk.channels)}
    cfx |= {"mean": [round(m, 6) for m in mean], "std": [round(s, 6) for s in std]}
    write_weights(folder / WEIGHTS, {f"w{k}": w for k, w in enumerate(trunk.weights)})
    return _save_network(trunk.model, folder, architecture, args, outputs, cfx, half)


def _save_network(
    model: nn.Module, folder: Path, architecture: str, args: dict, outputs: int, cfx: dict, half: bool
) -> Path:
    write_weights(folder / f"{STEM}.safetensors", model.state_dict(), half)
    write_json(
        folder / "config.json",
        {"architecture": architecture, "num_classes": outputs, "model_args": args, "cfx": cfx},
    )
    return folder


def save_autoencoders(autoencoders: AutoencoderSet, folder: str | Path, half: bool = True) -> Path:
    """Save an :class:`AutoencoderSet`: a `diffusers` folder for each member, then the index config.json.

    `diffusers.AutoencoderTiny.from_pretrained(folder / "smile-0")` reads a member. Raises ValueError for NaN weights.
    """
    folder = Path(folder)
    for member, model in autoencoders.models.items():
        write_weights(folder / member / f"{AUTOENCODER_STEM}.safetensors", model.state_dict(), half)
        config = {"_class_name": type(model).__name__, **_given(model.config)}
        write_json(folder / member / "config.json", config)
    cfx = {"kind": "autoencoders", "patch": autoencoders.patch, "classes": autoencoders.classes}
    write_json(folder / "config.json", {"_class_name": "AutoencoderSet", "cfx": cfx})
    return folder
