"""Unconditional denoising diffusion models (DDPM, Ho et al. 2020) on personas or on any folder of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfx_lib.train.loop import BatchFn, LossFn
from cfx_lib.worlds.personas import to_tensor

T = 1000

# 64x64: attention at 8x8 only. Narrow at full resolution, where the time goes.
PERSONAS_UNET = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 80, 160),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
    "norm_num_groups": 8,
}


def make_unet(**config: object) -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(**(config or PERSONAS_UNET)).to(memory_format=torch.channels_last)


def make_scheduler():  # noqa: ANN201
    """Linear betas, epsilon prediction: read back by ``zoo.load`` and by ``diffusers.DDPMPipeline`` alike."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=T,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=True,
        variance_type="fixed_small",
    )


def image_batches(images) -> BatchFn:  # noqa: ANN001  (uint8 array (N, H, W, 3), or a sequence that gives one)
    """Draw (images,) batches in [-1, 1] with replacement."""

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        return (to_tensor(images[rows.numpy()]).contiguous(memory_format=torch.channels_last),)

    return draw


def noise_loss(alpha_bar: Tensor, coarse: float = 10.0) -> LossFn:
    """The simple loss of DDPM (Ho et al. 2020, Eq. 14): mean square of eps - eps_theta(x_t, t), t uniform.

    To it comes ``coarse`` times the mean square of the same error averaged over 8x8 pixels: an error of the mean colour is
    amplified by sqrt((1 - alpha_bar) / alpha_bar) in x0_hat, and a short training leaves samples tinted without this term.
    Both are squares of the same error, so the best eps_theta, the conditional mean, is the same as without it.
    Timesteps are stratified over the batch, which leaves the expectation as it is and lowers the variance.
    """

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor) -> Tensor:
        n = len(x)
        u = (torch.rand(n, generator=generator) + torch.arange(n)) / n
        t = (u * len(alpha_bar)).long()
        noise = torch.randn(x.shape, generator=generator).to(x)
        a = alpha_bar[t].view(-1, 1, 1, 1).to(x)
        x_t = a.sqrt() * x + (1 - a).sqrt() * noise
        out = model(x_t.contiguous(memory_format=torch.channels_last), t.to(x.device)).sample
        error = out.float() - noise
        return error.square().mean() + coarse * F.avg_pool2d(error, 8).square().mean()

    return loss
