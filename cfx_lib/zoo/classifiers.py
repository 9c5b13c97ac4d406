"""Classifiers: images (N,C,H,W) in [-1,1] -> logits, on disk in the format of `timm`.

The folder holds `model.safetensors` and `config.json` as `timm` writes them for the hub. A key "cfx" in the
configuration marks a network of this repository. Its "kind" is "attributes" for an :class:`AttributeClassifier` (one
output an attribute, then one a regressed quantity), "classes" for a :class:`ClassClassifier` (one logit a class).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.zoo.files import find_weights, load_into, read_json, read_weights, write_json, write_weights

__all__ = [
    "AttributeClassifier",
    "BinaryClassifier",
    "ClassClassifier",
    "FeatureNet",
    "WrappedClassifier",
    "load_classifier",
    "save_classes",
    "save_classifier",
    "wrap",
]

CHUNK = 256  # images at a time where no gradient is kept
SAVED_BY = {"attributes": "save_classifier", "classes": "save_classes"}  # kinds of "cfx" on disk


class _Runner(nn.Module):
    """Calls a network that was trained on normalised [0,1] images with images in [-1,1]."""

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        mean: Sequence[float],
        std: Sequence[float],
        bf16: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(model, nn.Module) and channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model if isinstance(model, nn.Module) else None
        self._call = [torch.compile(model) if compile else model]  # in a list: not a second submodule
        self.bf16, self.channels_last = bf16, channels_last
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """[-1,1] -> the network's own normalisation and memory format."""
        x = ((x + 1) / 2 - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def autocast(self, x: Tensor):
        return torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def forward(self, x: Tensor) -> Any:
        with self.autocast(x):
            return self._call[0](self.prepare(x))


@torch.no_grad()
def _in_chunks(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([f(part) for part in x.split(CHUNK)])


class AttributeClassifier(nn.Module):
    """One network with a binary output for every attribute, then one output for every regressed quantity.

    `forward(x)`: (N,C,H,W) in [-1,1] -> float32 (N, attributes + regression); an attribute is present where its
    logit is positive. `model` takes images normalised as `((x + 1) / 2 - mean) / std`.
    """

    def __init__(
        self,
        model: nn.Module,
        attributes: Sequence[str],
        regression: Sequence[str] = (),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        name: str = "classifier",
        **options: Any,
    ) -> None:
        super().__init__()
        self.runner = _Runner(model, mean, std, **options)
        self.attributes, self.regression, self.name = tuple(attributes), tuple(regression), name

    @property
    def model(self) -> nn.Module:
        """The bare network, as `timm` made it."""
        return self.runner.model

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> (N, attributes + regression) float32."""
        out = self.runner(x).float()
        expected = len(self.attributes) + len(self.regression)
        if out.shape[1:] != (expected,):
            raise ValueError(
                f"{self.name} gave outputs {tuple(out.shape)}; expected (N, {expected}), one for each of "
                f"{[*self.attributes, *self.regression]}."
            )
        return out

    def for_attribute(self, attribute: str) -> BinaryClassifier:
        """The two-class classifier of one attribute. Raises ValueError for an attribute that it does not have."""
        if attribute not in self.attributes:
            near = difflib.get_close_matches(attribute, self.attributes, 3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"{self.name} has no attribute {attribute!r}; it has {', '.join(self.attributes)}.{hint}"
            )
        return BinaryClassifier(self, attribute)

    def attributes_of(self, x: Tensor) -> Tensor:
        """Which attributes each image shows: (N,C,H,W) -> bool (N, attributes), no gradient."""
        return _in_chunks(self, x)[:, : len(self.attributes)] > 0

    def regress(self, x: Tensor) -> dict[str, Tensor]:
        """The regressed quantities: (N,C,H,W) -> {name: (N,) float32}, no gradient."""
        out = _in_chunks(self, x)[:, len(self.attributes) :]
        return {name: out[:, k] for k, name in enumerate(self.regression)}

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of all stages, finest first: [(N,C_k,H_k,W_k), ...] float32."""
        return self.perceptual(stages=None)(x)

    def perceptual(self, stages: Sequence[int] | None = (0, 1)) -> FeatureNet:
        """A feature network for perceptual distances (in the place of VGG19 up to relu3_4; DiME, Eq. 3.8).

        The default takes the first two stages: they see strokes and textures. Later stages encode the class itself,
        so holding them still would forbid the change that is asked for.
        """
        return FeatureNet(self.runner, stages, f"{self.name} features")

    def __repr__(self) -> str:
        regression = f"; regresses {', '.join(self.regression)}" if self.regression else ""
        return f"AttributeClassifier({self.name}: {', '.join(self.attributes)}{regression})"


class BinaryClassifier(nn.Module):
    """One attribute as a two-class problem: logits (N,2) = (-l/2, +l/2), so that softmax gives sigmoid(l)."""

    num_classes = 2

    def __init__(self, classifier: AttributeClassifier, attribute: str) -> None:
        super().__init__()
        self.classifier, self.attribute, self.training = classifier, attribute, classifier.training
        self.index = classifier.attributes.index(attribute)
        self.names = (f"not {attribute}", attribute)
        self.name = f"{classifier.name}:{attribute}"

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> logits (N,2) float32."""
        half = self.classifier(x)[:, self.index] / 2
        return torch.stack([-half, half], 1)

    def predict(self, x: Tensor) -> Tensor:
        """The class of each image: (N,) long, no gradient."""
        return _in_chunks(self, x).argmax(1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of the network's stages (see :meth:`AttributeClassifier.features`)."""
        return self.classifier.features(x)

    def perceptual(self, stages: Sequence[int] | None = (0, 1)) -> FeatureNet:
        """The network's feature network (see :meth:`AttributeClassifier.perceptual`)."""
        return self.classifier.perceptual(stages)

    def __repr__(self) -> str:
        return f"BinaryClassifier({self.name})"


class FeatureNet(nn.Module):
    """Intermediate feature maps of a `timm` network: (N,C,H,W) in [-1,1] -> [(N,C_k,H_k,W_k), ...] float32.

    `name` says whose features they are and is printed with every value that is computed from them.
    """

    def __init__(self, runner: _Runner, stages: Sequence[int] | None, name: str) -> None:
        super().__init__()
        if not hasattr(runner.model, "forward_intermediates"):
            raise ValueError(
                f"{type(runner.model).__name__} gives no intermediate features (timm's forward_intermediates). "
                "Pass another feature network: any callable x -> list of feature maps."
            )
        self.runner, self.name, self.training = runner, name, runner.training
        self.stages = None if stages is None else list(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (N,C,H,W) in [-1,1] -> the chosen stages' feature maps, finest first."""
        with self.runner.autocast(x):
            maps = self.runner.model.forward_intermediates(
                self.runner.prepare(x), indices=self.stages, intermediates_only=True, stop_early=True
            )
        return [m.float() for m in maps]

    def __repr__(self) -> str:
        return f"FeatureNet({self.name}, stages {self.stages or 'all'})"


class WrappedClassifier(nn.Module):
    """Any classifier as a K-class classifier: logits (N,K) float32, `.predict(x)`, `.num_classes`, `.names`."""

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        num_classes: int,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        names: Sequence[str] | None = None,
        name: str | None = None,
        size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"num_classes is {num_classes}; expected at least 2 (a single logit is wrapped with num_classes=2)."
            )
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"{len(names)} names for {num_classes} classes; expected one name for each class."
            )
        self.runner = _Runner(model, mean, std, **options)
        self.num_classes, self.size = num_classes, size
        self.names = tuple(names) if names is not None else tuple(f"class {k}" for k in range(num_classes))
        self.name = name or type(model).__name__

    def forward(self, x: Tensor) -> Tensor:
        """x (N,C,H,W) in [-1,1] -> logits (N,K) float32."""
        if self.size is not None and x.shape[-1] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        out = self.runner(x)
        out = getattr(out, "logits", out)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{self.name} returned a {type(out).__name__}; expected a tensor of logits (N, {self.num_classes})."
            )
        out = out.float()
        if self.num_classes == 2 and out.shape in {(len(x),), (len(x), 1)}:  # a single logit l
            half = out.reshape(-1) / 2
            out = torch.stack([-half, half], 1)
        if out.shape != (len(x), self.num_classes):
            raise ValueError(
                f"{self.name} returned logits {tuple(out.shape)}; expected {(len(x), self.num_classes)}. "
                "Give zoo.wrap the number of classes that the model really has."
            )
        return out

    def predict(self, x: Tensor) -> Tensor:
        """The class of each image: (N,) long, no gradient."""
        return _in_chunks(self, x).argmax(1)

    def __repr__(self) -> str:
        return f"WrappedClassifier({self.name}, {self.num_classes} classes)"


class ClassClassifier(WrappedClassifier):
    """A `timm` network with one logit for each of K exclusive classes, and its features.

    `forward(x)`: (N,C,H,W) in [-1,1] -> float32 (N,K); `classes` are their names. `model` takes images normalised as
    `((x + 1) / 2 - mean) / std`. Raises ValueError for fewer than two classes.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        name: str = "classifier",
        **options: Any,
    ) -> None:
        super().__init__(model, len(classes), mean, std, classes, name, **options)

    @property
    def model(self) -> nn.Module:
        """The bare network, as `timm` made it."""
        return self.runner.model

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of all stages, finest first: [(N,C_k,H_k,W_k), ...] float32."""
        return self.perceptual(stages=None)(x)

    def perceptual(self, stages: Sequence[int] | None = (0, 1)) -> FeatureNet:
        """A feature network for perceptual distances (see :meth:`AttributeClassifier.perceptual`)."""
        return FeatureNet(self.runner, stages, f"{self.name} features")

    def __repr__(self) -> str:
        return f"ClassClassifier({self.name}: {', '.join(self.names)})"


def wrap(
    model: Callable[[Tensor], Any],
    num_classes: int,
    *,
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    names: Sequence[str] | None = None,
) -> WrappedClassifier:
    """Make any torch classifier fit the library: (N,C,H,W) in [-1,1] -> logits (N, num_classes) with `.predict`.

    `mean`, `std`: the normalisation of [0,1] images that the model was trained with; the default passes [-1,1] on
    unchanged. A single logit ((N,) or (N,1)) is taken as sigmoid's and becomes two classes. Raises ValueError for
    fewer than two classes and, when called, for logits of another shape.
    """
    return WrappedClassifier(model, num_classes, mean, std, names)


# ---------------------------------------------------------------------------------------------------- disk


def load_classifier(
    folder: str | Path, name: str = "", *, allow_pickle: bool = False, **options: Any
) -> AttributeClassifier | WrappedClassifier:
    """A classifier from a folder: the "kind" of "cfx" in its config.json, else the K classes of a `timm` model.

    `options`: bf16, channels_last, compile. Raises FileNotFoundError and ValueError as :func:`cfx_lib.zoo.load`.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path)
    if "architecture" not in config:
        raise ValueError(
            f'{path} names no "architecture"; expected a timm model\'s configuration. '
            "Load other models yourself and pass them to zoo.wrap(model, num_classes)."
        )
    weights_path = find_weights(folder, "model", allow_pickle)
    weights = read_weights(weights_path, allow_pickle)
    name = name or folder.name
    cfx = config.get("cfx")
    if cfx is None:
        return _load_timm(folder, config, weights_path, name, options)
    kind = cfx.get("kind", "attributes")
    if kind not in SAVED_BY:
        raise ValueError(
            f'{path}: "cfx" says kind {kind!r}; expected one of {", ".join(map(repr, SAVED_BY))}.'
        )
    for key in (kind, "mean", "std"):
        if key not in cfx:
            raise ValueError(f'{path}: "cfx" lacks {key!r}; write it with {SAVED_BY[kind]}.')
    outputs = len(cfx[kind]) + len(cfx.get("regression", []))
    if config.get("num_classes") != outputs:
        what = "classes" if kind == "classes" else "attributes and regressed quantities"
        raise ValueError(
            f"{path} says num_classes={config.get('num_classes')} but names {outputs} {what}; expected as many. "
            "Use the configuration that the weights were trained with."
        )
    model = _create(config["architecture"], outputs, config.get("model_args", {}), path)
    if hasattr(model, "check_weights"):  # a HiT says which variant the weights are
        model.check_weights(weights, weights_path)
    load_into(model, weights, weights_path)
    model.eval().requires_grad_(False)
    if kind == "classes":
        return ClassClassifier(model, cfx["classes"], cfx["mean"], cfx["std"], name, **options)
    regression = cfx.get("regression", [])
    return AttributeClassifier(model, cfx["attributes"], regression, cfx["mean"], cfx["std"], name, **options)


def _create(
    architecture: str, num_classes: int, model_args: Mapping[str, Any], source: str | Path
) -> nn.Module:
    import timm

    import cfx_lib.hit_models  # noqa: F401  its names are then timm's

    try:
        return timm.create_model(architecture, num_classes=num_classes, **model_args)
    except (RuntimeError, TypeError, ValueError) as error:
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f" Similar names: {', '.join(near)}." if near and architecture not in near else ""
        raise ValueError(
            f"{source}: timm cannot make {architecture!r} with {dict(model_args)}: {error}.{hint}"
        ) from error


def _load_timm(
    folder: Path, config: Mapping[str, Any], weights: Path, name: str, options: Mapping[str, Any]
) -> WrappedClassifier:
    """A model as timm publishes it on the hub, through timm's own loading code."""
    import timm

    import cfx_lib.hit_models  # noqa: F401  its names are then timm's

    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{weights} does not fit the architecture {config['architecture']!r} in its config.json: "
            f"{str(error)[:300]}. Use the configuration that the weights were trained with."
        ) from error
    model.eval().requires_grad_(False)
    known = model.pretrained_cfg
    size = known["input_size"][-1] if known.get("fixed_input_size") else None
    names = config.get("label_names")
    names = names if names and len(names) == model.num_classes else imagenet_names(model.num_classes)
    return WrappedClassifier(
        model, model.num_classes, known["mean"], known["std"], names, name, size, **options
    )


def imagenet_names(num_classes: int) -> list[str] | None:
    """The names of ImageNet's 1000 classes in their order, as `timm` has them; None for another number of classes."""
    if num_classes != 1000:
        return None
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_descriptions()


def save_classifier(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    model_args: Mapping[str, Any] | None,
    attributes: Sequence[str],
    regression: Sequence[str] = (),
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    half: bool = True,
) -> Path:
    """Save a bare `timm` network as a folder that :func:`load_classifier` reads; the live model is not touched.

    The network is the one of `timm.create_model(architecture, num_classes=len(attributes) + len(regression),
    **model_args)`, takes `((x + 1) / 2 - mean) / std` for x in [-1,1], and has one logit an attribute, then one
    output a regressed quantity. `half`: matrices as float16. Each file is written whole, the configuration last.
    Raises ValueError, before anything is written, when the network is not the one described or holds NaN.
    """
    outputs = len(attributes) + len(regression)
    cfx = {
        "kind": "attributes",
        "attributes": list(attributes),
        "regression": list(regression),
        "mean": list(mean),
        "std": list(std),
    }
    return _save(model, Path(folder), architecture, dict(model_args or {}), outputs, cfx, half)


def save_classes(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    model_args: Mapping[str, Any] | None,
    classes: Sequence[str],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    half: bool = True,
) -> Path:
    """As :func:`save_classifier`, for a network with one logit for each of K exclusive classes.

    The network is the one of `timm.create_model(architecture, num_classes=len(classes), **model_args)`; `mean` and `std`
    have one number a channel. :func:`load_classifier` gives a :class:`ClassClassifier`. Raises ValueError, before
    anything is written, for fewer than two or repeated classes, another network than the one described, or NaN.
    """
    if len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"the classes are {list(classes)}; expected at least two different names.")
    cfx = {"kind": "classes", "classes": list(classes), "mean": list(mean), "std": list(std)}
    return _save(model, Path(folder), architecture, dict(model_args or {}), len(classes), cfx, half)


def _save(
    model: nn.Module,
    folder: Path,
    architecture: str,
    model_args: dict[str, Any],
    outputs: int,
    cfx: dict[str, Any],
    half: bool,
) -> Path:
    model = getattr(model, "_orig_mod", getattr(model, "module", model))  # compiled, or wrapped for training
    weights = model.state_dict()
    load_into(
        _create(architecture, outputs, model_args, SAVED_BY[cfx["kind"]]), weights, "the model to be saved"
    )
    write_weights(folder / "model.safetensors", weights, half)
    config = {
        "architecture": architecture,
        "num_classes": outputs,
        "model_args": model_args,
        "cfx": cfx,
    }
    write_json(folder / "config.json", config)
    return folder
