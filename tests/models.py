"""The recorded fixtures and their tiny networks, as callables that the library takes."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from cfx_lib.types import NoiseTape
from cfx_lib.zoo.adm import unet_from_openai

FIXTURES = Path(__file__).parent / "fixtures"


@cache
def _fixture(name):
    return load_file(FIXTURES / f"{name}.safetensors"), json.loads((FIXTURES / f"{name}.json").read_text())


def fixture(name):
    """(tensors, meta) of a recorded fixture; the tensors are fresh copies."""
    tensors, meta = _fixture(name)
    return {key: value.clone() for key, value in tensors.items()}, meta


def tape(tensors, prefix="noise."):
    """The recorded draws `noise.000`, `noise.001`, ... of a fixture as a NoiseTape."""
    names = sorted((k for k in tensors if k.startswith(prefix)), key=lambda k: int(k.removeprefix(prefix)))
    return NoiseTape([tensors[name] for name in names])


class Denoiser(nn.Module):
    """A UNet2DModel as the callable (x, t) -> Tensor that `Diffusion` takes, like `zoo.Denoiser`."""

    def __init__(self, unet, betas=None):
        super().__init__()
        self.unet, self.betas = unet, betas
        self.name, self.learned_range = "tiny", unet.config.out_channels == 2 * unet.config.in_channels
        self.sample_size, self.channels = unet.config.sample_size, unet.config.in_channels

    def forward(self, x, t):
        return self.unet(x, t).sample


def tiny_unet(betas=None):
    """The UNet of the numbered fixtures (16x16, 3 channels, learned variance): (x, t) -> (N,6,16,16)."""
    weights, meta = fixture("01_unet_weights")
    return Denoiser(unet_from_openai(weights, meta["config"]), betas)


def submodel(tensors, prefix):
    """The tensors below `prefix.`, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def tiny_network(tensors, prefix="classifier"):
    """The classifier network of a fixture: (N,3,16,16) -> (N,K), K = 1 for a binary one (a single logit)."""
    weights = submodel(tensors, prefix)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, len(weights["4.bias"])),
    )
    net.load_state_dict(weights)
    return net.eval()


class TwoClasses(nn.Module):
    """A single-logit network as a two-class classifier: logits (-l/2, +l/2), whose margin is l."""

    num_classes = 2

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logit = self.net(x).reshape(-1, 1)
        return torch.cat([-logit / 2, logit / 2], dim=1)

    def predict(self, x):
        with torch.no_grad():
            return self(x).argmax(1)


def tiny_classifier(tensors, prefix="classifier"):
    """The classifier of a fixture with logits (N,K), K >= 2."""
    net = tiny_network(tensors, prefix)
    return TwoClasses(net) if net[-1].out_features == 1 else net


def tiny_perceptual(tensors, prefix="perceptual"):
    """The feature network of a fixture: (N,3,16,16) -> (N,8,8,8)."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Softplus()
    )
    net.load_state_dict(submodel(tensors, prefix))
    net.name = "tiny perceptual"
    return net.eval()
