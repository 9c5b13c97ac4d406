"""What FID looks through: the published Inception where its weights lie on disk, else the in-domain stand-in.

Nothing is ever downloaded. To use the published network, save torch-fidelity's weights file in torch.hub's cache, or
anywhere and name it in the environment variable CFX_INCEPTION.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from cfx_lib.metrics._inputs import run
from cfx_lib.metrics.backbones import choose

VARIABLE = "CFX_INCEPTION"
WEIGHTS = (
    "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's file, a conversion of the published one
)


def feature_network(features: Callable | None, x: Tensor) -> Callable:
    """The network given, else the published Inception if it is on disk, else the stand-in for images like x (N,C,H,W)."""
    if features is None and (path := inception_weights()) is not None:
        return load_inception(path)
    return choose(features, "realism", x)


def embed(network: Callable, x: Tensor, batch_size: int = 128) -> Tensor:
    """Features (N,D) float64 on the CPU of images (N,C,H,W) in [-1,1], N >= 1, by `network.embed`, else by `network`.

    Raises ValueError for features of another shape, NaN or infinite.
    """
    found = run(getattr(network, "embed", network), x, batch_size)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"features {shape} given by the network, ({len(x)}, D) expected: pool over the positions."
        )
    if not torch.isfinite(found).all():
        raise ValueError("NaN or infinite features given by the network: check its weights and its input.")
    return found.double()


def inception_weights() -> Path | None:
    """The file of torch-fidelity's Inception weights: what CFX_INCEPTION names, else torch.hub's cache, else None.

    Raises FileNotFoundError if the variable is set and names no file.
    """
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise FileNotFoundError(
                f"{VARIABLE}={named!r} is set, a file of Inception weights expected: "
                f"save torch-fidelity's {WEIGHTS} there, or unset {VARIABLE} to use the shipped network."
            )
        return Path(named)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    return cached if cached.is_file() else None


class Inception(nn.Module):
    """Pooled features (N,2048) of the Inception network that FID is defined by (Heusel et al., 2017).

    Images (N,C,H,W) in [-1,1], C = 1 (repeated) or 3, become bytes and are resized to 299x299 in the way of
    TensorFlow 1, as published. path: torch-fidelity's weights file, read without running any code in it.
    Raises ValueError for another file and for images of another number of channels.
    """

    name, dim = "inception-v3", 2048

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            safe = io.BytesIO()  # torch-fidelity unpickles whatever it is given: give it what was read safely
            torch.save(torch.load(path, map_location="cpu", weights_only=True), safe)
            safe.seek(0)
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], safe)
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path} given, torch-fidelity's Inception weights expected: {reason}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"{x.shape[1]} channels given, 1 or 3 expected: pass a network for such images.")
        pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.network(pixels.expand(-1, 3, -1, -1))[0]


@lru_cache(maxsize=1)
def load_inception(path: Path) -> Inception:
    """The network of that file, kept for the next call."""
    with torch.inference_mode(False):
        return Inception(path).eval()
