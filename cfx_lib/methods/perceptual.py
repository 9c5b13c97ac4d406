"""The networks whose features the perceptual term L_perc of Eq. 3.8 (thesis) compares."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .gradients import Network, features_of

__all__ = ["Features", "VGG19Features", "choose_network", "name_of"]


def name_of(network: Any) -> str:
    """The name under which a network is reported in `result.extra["perceptual"]`."""
    if network is None:
        return "none"
    return str(getattr(network, "name", None) or getattr(network, "__name__", type(network).__name__))


class Features(nn.Module):
    """Features of any model with `features(x) -> list of maps`, as a network with a name (in-domain features)."""

    def __init__(self, model: Any, name: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.name = name or f"features of {name_of(model)}"

    def forward(self, x: Tensor) -> list[Tensor]:
        return features_of(self.model.features, x)


class VGG19Features(nn.Module):
    """VGG19 up to relu3_4, the perceptual network of DiME: images (N,3,H,W) in [-1,1] -> (N,256,H/4,W/4).

    The input is clamped to [-1,1], brought to [0,1] and normalised with the mean and deviation of ImageNet.
    """

    name = "VGG19 relu3_4 (ImageNet)"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in (64, 64, None, 128, 128, None, 256, 256, 256, 256):  # torchvision's numbering 0..17
            if width is None:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)

    @classmethod
    def normalise(cls, x: Tensor) -> Tensor:
        """Images in [-1,1] (clamped to it) as the network takes them."""
        mean, std = (x.new_tensor(values)[:, None, None] for values in (cls.mean, cls.std))
        return ((x.clamp(-1, 1) + 1) / 2 - mean) / std

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.normalise(x))

    @classmethod
    def from_file(cls, path: str | Path, *, allow_pickle: bool = False) -> VGG19Features:
        """Load the weights of torchvision's `vgg19` (whole, or its `features` only) from a local file.

        A `.safetensors` file, or, with `allow_pickle=True`, a `.pth` file (read with `weights_only=True`).
        Raises FileNotFoundError, or ValueError for another format or other weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no VGG19 weights at {path}; expected torchvision's vgg19 as .safetensors."
            )
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        elif allow_pickle:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ValueError(
                f"{path.name} is not a .safetensors file. Convert it, or pass allow_pickle=True for a pickle "
                "from a source that you trust (it is read with weights_only=True)."
            )
        network = cls()
        wanted = network.state_dict()
        found = {key if key.startswith("features.") else f"features.{key}": v for key, v in weights.items()}
        wrong = [key for key, v in wanted.items() if key not in found or found[key].shape != v.shape]
        if wrong:
            raise ValueError(
                f"{path.name} is not a VGG19: {wrong[0]} (of {len(wrong)}) is missing or misshapen."
            )
        network.load_state_dict({key: found[key] for key in wanted})
        return network.eval()


@lru_cache(maxsize=1)
def _vgg19(path: str) -> VGG19Features:
    """The network that CFX_VGG19 names, read once; raises as `VGG19Features.from_file`."""
    if Path(path).is_file() and Path(path).suffix != ".safetensors":
        raise ValueError(
            f"CFX_VGG19 names {path}; expected a .safetensors file. If you trust the source of this one, convert it "
            "with safetensors.torch.save_file(torch.load(path, weights_only=True), 'vgg19.safetensors'), or unset "
            "CFX_VGG19 and pass perceptual=VGG19Features.from_file(path, allow_pickle=True)."
        )
    return VGG19Features.from_file(path)


def choose_network(
    perceptual: Any, classifier: Any, channels: int, device: torch.device | str = "cpu"
) -> Network | None:
    """The network of the perceptual term: `perceptual` itself, or a choice where it is None; False: no network.

    The choice: VGG19, on `device`, where the environment variable CFX_VGG19 names its .safetensors file; else
    features of the classifier (`classifier.perceptual()` or `classifier.features(x)`), which belong to the domain of
    the images. Where there is nothing to choose a UserWarning says that the term is left out.
    """
    if perceptual is not None:
        return None if perceptual is False else perceptual
    path = os.environ.get("CFX_VGG19")
    if path and channels == 3:
        with torch.inference_mode(False):  # the weights are kept, and used with autograd
            return _vgg19(path).to(device)
    if callable(getattr(classifier, "perceptual", None)):
        return classifier.perceptual()
    if callable(getattr(classifier, "features", None)):
        return Features(classifier)
    warnings.warn(
        "no network for the perceptual term: it is left out. Pass perceptual=NETWORK (any feature network), "
        "or perceptual=False or lambda_p=0 to do without it knowingly.",
        stacklevel=3,
    )
    return None
