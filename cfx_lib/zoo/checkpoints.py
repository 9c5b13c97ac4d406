"""Published checkpoints that are a single file of another project's making, as this library's models.

Pickles are read with `torch.load(weights_only=True)`, which refuses everything but tensors and plain values.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cfx_lib.diffusion import linear_betas
from cfx_lib.zoo.classifiers import WrappedClassifier, _create, imagenet_names
from cfx_lib.zoo.denoiser import Denoiser
from cfx_lib.zoo.features import Embedding, Encoder
from cfx_lib.zoo.files import load_into, read_state_dict

__all__ = [
    "classifier_from_file",
    "embedding_from_file",
    "facenet_from_file",
    "lpips_from_file",
    "openai_denoiser",
    "simsiam_from_file",
]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NORMALISERS = ("normalizer.", "normalize.")
COUNTS = ".num_batches_tracked"  # of a batch norm, which does not use it once it is trained
HEADS = ("fc.", "classifier.", "logits.", "head.")


def openai_denoiser(
    path: str | Path, config: Mapping[str, Any], *, steps: int = 1000, name: str = "", **options: Any
) -> Denoiser:
    """A denoiser of OpenAI's guided-diffusion (Dhariwal and Nichol 2021) from its .pt file, with linear betas.

    `config`: the flags that the checkpoint was trained with, see :func:`cfx_lib.zoo.adm.unet_from_openai`. `options`: bf16,
    channels_last, compile. Raises FileNotFoundError, and ValueError for another file or flags that do not fit.
    """
    from cfx_lib.zoo.adm import unet_from_openai

    try:
        unet = unet_from_openai(read_state_dict(path), config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    unet.requires_grad_(False)
    return Denoiser(unet, linear_betas(steps), name or Path(path).stem, **options)


def classifier_from_file(
    path: str | Path,
    architecture: str | nn.Module,
    num_classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
    name: str = "",
    **options: Any,
) -> WrappedClassifier:
    """A classifier from a state dict, such as a robust one: (N,C,H,W) in [-1,1] -> logits (N, num_classes).

    `architecture`: a name of `timm`, or the network itself. Names in the file may have a prefix ("module.", "module.model.",
    "module.attacker.model.", ...). `mean`, `std`: of [0,1] images; None: those that the file itself has ("normalizer."), else
    ImageNet's. `names`: of the classes; None: ImageNet's for 1000. `size`: images are resized to it; None: they are not.
    `options`: bf16, channels_last, compile. Raises FileNotFoundError, and ValueError for weights of another network.
    """
    weights = read_state_dict(path)
    model = (
        architecture
        if isinstance(architecture, nn.Module)
        else _create(architecture, num_classes, {}, "classifier_from_file")
    )
    load_into(model, under_prefix(weights, model, path), path)
    own_mean, own_std = (_normaliser(weights, part) for part in ("mean", "std"))
    mean, std = mean or own_mean or IMAGENET["mean"], std or own_std or IMAGENET["std"]
    names = imagenet_names(num_classes) if names is None else names
    model.eval().requires_grad_(False)
    return WrappedClassifier(
        model, num_classes, mean, std, names, name or Path(path).stem, size, **options
    ).eval()


def embedding_from_file(
    path: str | Path,
    network: nn.Module,
    dim: int,
    *,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    without: Sequence[str] = HEADS,
    name: str = "",
    **options: Any,
) -> Embedding:
    """An embedding (N,C,H,W) in [-1,1] -> (N, dim) from a state dict read into your own network, such as a face network.

    `network` takes images normalised as ((x + 1) / 2 - mean) / std; the default leaves [-1,1] unchanged, as facenet-pytorch
    nearly does. Names in the file may have a prefix; tensors that begin with one of `without` and that the network does not
    have are left out. Raises FileNotFoundError, and ValueError for weights of another network.
    """
    weights = read_state_dict(path)
    load_into(network, under_prefix(weights, network, path, without), path)
    network.eval().requires_grad_(False)
    return Embedding(network, dim, mean, std, name or Path(path).stem, **options).eval()


def facenet_from_file(path: str | Path, *, name: str = "", **options: Any) -> Embedding:
    """The face network of facenet-pytorch (Inception-ResNet v1, trained on VGGFace2 or CASIA-Webface) as an embedding.

    (N,3,H,W) in [-1,1] -> identities (N,512) of length 1, for `metrics.fs` and `metrics.fva`; the head of identities is left
    out. Faces should fill the image, as :class:`cfx_lib.zoo.facenet.InceptionResnetV1` says. The papers' FVA and FS look through
    another network, a ResNet-50. Raises FileNotFoundError, and ValueError for weights of another network.
    """
    import torch

    from cfx_lib.zoo.facenet import STD, InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        network = InceptionResnetV1()
    options = {"std": (STD,) * 3, "without": ("logits.",), "name": name or "VGGFace2"} | options
    return embedding_from_file(path, network, 512, **options)


def simsiam_from_file(
    path: str | Path, architecture: str = "resnet50", *, name: str = "", **options: Any
) -> Embedding:
    """The encoder of a SimSiam checkpoint (Chen and He 2021), backbone and projection MLP, as an embedding.

    The file has "module.encoder." before every name, and the MLP in the place of the network's last layer; the predictor is
    left out. The bias of the MLP's last linear layer is folded into the mean of the batch norm behind it. `architecture`: a
    name of `timm`. Raises FileNotFoundError, and ValueError for another file.
    """
    weights = read_state_dict(path)
    network = _create(architecture, 0, {}, "simsiam_from_file")
    found = under_prefix(weights, network, path, ("fc.",), keep=True)
    head = {key.removeprefix("fc."): value for key, value in found.items() if key.startswith("fc.")}
    sizes = [len(head[key]) for key in sorted(head) if key.endswith(".weight") and head[key].ndim == 2]
    if not sizes:
        raise ValueError(
            f"{path} has no projection MLP (encoder.fc.0.weight, ...); expected SimSiam's encoder."
        )
    load_into(network, {k: v for k, v in found.items() if not k.startswith("fc.")}, path)
    encoder = Encoder(network, sizes)
    load_into(encoder.projection, _folded(head), path)
    encoder.eval().requires_grad_(False)
    return Embedding(encoder, encoder.dim, **IMAGENET, name=name or "SimSiam", **options).eval()


def lpips_from_file(path: str | Path, net: str = "alex") -> nn.Module:
    """The trunk of LPIPS from torchvision's file, with the linear weights of the package `lpips`: for `metrics.lpips`.

    `net`: "alex" (alexnet), "vgg" (vgg16) or "squeeze" (squeezenet1_1). (N,3,H,W) in [-1,1] -> feature maps, `.weights`. Raises
    FileNotFoundError, and ValueError for another network's file.
    """
    import torch
    from lpips import LPIPS

    from cfx_lib.metrics.closeness import _PackageTrunk

    if net not in _PackageTrunk.SMALLEST:
        raise ValueError(f"net = {net!r}; expected one of {', '.join(_PackageTrunk.SMALLEST)}.")
    weights = read_state_dict(path)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the package asks torchvision in an outdated way
        model = LPIPS(net=net, verbose=False, pnet_rand=True)
    own = {key: f"features.{key.partition('.')[2]}" for key in model.net.state_dict()}  # slice1.0.weight
    load_into(model.net, {key: weights[theirs] for key, theirs in own.items() if theirs in weights}, path)
    return _PackageTrunk(model).requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------------- inside


def under_prefix(
    weights: Mapping[str, Tensor],
    network: nn.Module,
    source: str | Path,
    without: Sequence[str] = (),
    keep: bool = False,
) -> dict[str, Tensor]:
    """The weights under the prefix that most of the network's own names have in the file, the prefix taken off.

    Names that begin with one of `without` and are not the network's are left out (`keep`: they stay). ValueError if no prefix
    fits any name.
    """
    own = network.state_dict()
    candidates = {key[: -len(name)] for name in list(own)[:3] for key in weights if key.endswith(name)}
    fits = {prefix: sum(prefix + name in weights for name in own) for prefix in candidates}
    prefix = min(fits, key=lambda p: (-fits[p], len(p)), default=None)
    if prefix is None or not fits[prefix]:
        raise ValueError(
            f"{source} holds none of the network's weights (it has {', '.join(list(weights)[:3]) or 'nothing'}, ...; the network "
            f"{', '.join(list(own)[:3])}, ...). Give the network that the file was made with."
        )
    nested = [
        p for p in candidates if p != prefix and p.startswith(prefix) and 2 * fits[p] > len(own)
    ]  # copies
    drop = tuple(n.removeprefix(prefix) for n in nested) + NORMALISERS + (() if keep else tuple(without))
    found = {key: value for key, value in own.items() if key.endswith(COUNTS)}  # old files lack them
    found |= {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if key in own or not (drop and key.startswith(drop))}


def _normaliser(weights: Mapping[str, Tensor], part: str) -> list[float] | None:
    """`mean` or `std` of the normalisation layer that some robust checkpoints bring along."""
    for key, value in weights.items():
        if any(key.endswith(f"{layer}{end}") for layer in NORMALISERS for end in (part, f"new_{part}")):
            return value.flatten().tolist()
    return None


def _folded(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SimSiam's MLP without the bias of its last linear layer: BN(Wx + b) with mean m is BN(Wx) with mean m - b."""
    layers = sorted({int(key.split(".")[0]) for key in head})
    linear, norm = f"{layers[-2]}.bias", f"{layers[-1]}.running_mean"
    folded = {key: value for key, value in head.items() if key != linear}
    if linear in head:
        folded[norm] = head[norm] - head[linear]
    return folded
