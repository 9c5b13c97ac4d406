"""A small latent diffusion model of avatars: an autoencoder, a text-to-image UNet and a class-conditional transformer.

Each is stored as plain diffusers and transformers modules, fp16 safetensors, in the folders of `StableDiffusionPipeline`
and `DiTPipeline`. Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models"; Peebles and
Xie 2023, "Scalable diffusion models with transformers".
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from cfx_lib.train.loop import BatchFn, LossFn
from cfx_lib.worlds import avatars, personas

# ------------------------------------------------------------------------------------------------ autoencoder

VAE = {  # 64x64x3 -> 16x16x4; narrow at full resolution, where the time goes
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 80),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "force_upcast": False,
}


class Codec(nn.Module):
    """An `AutoencoderKL` for training: images and noise -> reconstructions, and the posterior's mean and log variance."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL(**(VAE | config))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(z).sample, mean, log_variance


def images(uint8) -> BatchFn:  # noqa: ANN001
    """Draw (images, posterior noise) batches: (N, 3, 64, 64) in [-1, 1] and standard normal (N, 4, 16, 16)."""
    channels, factor = VAE["latent_channels"], 2 ** (len(VAE["block_out_channels"]) - 1)

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(uint8), (size,), generator=generator)
        x = personas.to_tensor(uint8[rows.numpy()])
        side = x.shape[-1] // factor
        return x, torch.randn(size, channels, side, side, generator=generator)

    return draw


def codec_loss(square: float = 4.0, edges: float = 0.5, kl: float = 1e-6) -> LossFn:
    """L1 + square * MSE + edges * L1 of the differences of neighbouring pixels + kl * KL(posterior || N(0, 1)).

    The reconstruction terms are means over pixels, the KL is a sum over an image's latents. The L1 keeps flat colours clean,
    the square is the PSNR's, the differences keep lines a pixel wide (mouths, wrinkles).
    """

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor, noise: Tensor) -> Tensor:
        out, mean, log_variance = model(x, noise)
        error = out.float() - x
        steps = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
        return error.abs().mean() + square * error.square().mean() + edges * steps + kl * divergence

    return loss


@torch.no_grad()
def standardise(vae: nn.Module, x: Tensor) -> None:
    """Fold each latent channel's mean and standard deviation over images `x` into the two 1x1 convolutions, in place.

    The autoencoder's function stays the same; its latents then have mean 0 and deviation 1 in every channel, so that the
    noise of the last timestep hides them all alike. `scaling_factor` becomes 1 / the deviation over all channels.
    """
    mean, log_variance = encode(vae, x)
    m = mean.mean((0, 2, 3))
    s = (mean.var((0, 2, 3), correction=0) + log_variance.exp().mean((0, 2, 3))).sqrt()
    channels, quant, post = len(m), vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= s.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - m) / s
    quant.bias[channels:] -= 2 * s.log()
    post.bias += (post.weight[:, :, 0, 0] * m).sum(1)
    post.weight *= s.view(1, -1, 1, 1)
    mean, log_variance = encode(vae, x)
    scale = 1 / float((mean.var(correction=0) + log_variance.exp().mean()).sqrt())
    vae.register_to_config(scaling_factor=round(scale, 6))


@torch.no_grad()
def encode(vae: nn.Module, x: Tensor, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the posterior, unscaled, of images in [-1, 1]; each (N, 4, 16, 16)."""
    parts = [vae.encode(part).latent_dist for part in x.split(batch)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.logvar for p in parts])


def store_half(module: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers module as fp16 safetensors; the live module is not touched."""
    copy.deepcopy(module).half().save_pretrained(folder, safe_serialization=True)


def store_codec(model: Codec, folder: Path, rows: int = 4000) -> None:
    """Standardise the latents over the first `rows` training avatars and save the autoencoder."""
    vae = copy.deepcopy(model.vae).float().eval()
    standardise(vae, personas.to_tensor(avatars.load_uint8("train", rows)[0]))
    store_half(vae, folder)


def codec_folder() -> Path:
    """Where training keeps the autoencoder of avatars between its stages."""
    return personas.cache_dir().parent / "avatars" / "autoencoder"


def load_codec(folder: Path | None = None) -> nn.Module:
    """The trained autoencoder as fp32, frozen: from the cache, else the shipped one. Raises FileNotFoundError."""
    from diffusers import AutoencoderKL

    from cfx_lib.zoo.checksums import data_dir

    places = (
        [codec_folder(), data_dir() / "weights" / "avatars" / "sd" / "vae"] if folder is None else [folder]
    )
    for place in places:
        if (place / "config.json").exists():
            return (
                AutoencoderKL.from_pretrained(place, torch_dtype=torch.float32).eval().requires_grad_(False)
            )
    raise FileNotFoundError(
        f"no autoencoder of avatars in {' or '.join(map(str, places))}. "
        "Train it first: python -m cfx_lib.train avatars/autoencoder"
    )
