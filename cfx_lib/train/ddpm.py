"""Unconditional denoising diffusion models (DDPM, Ho et al. 2020) on personas, on Fashion-MNIST or on any images."""

from __future__ import annotations

from collections.abc import Callable

import torch
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
    """Linear betas, velocity prediction: read back by ``zoo.load`` and by ``diffusers.DDPMPipeline`` alike."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=T,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=True,
        variance_type="fixed_small",
        prediction_type="v_prediction",
    )


def image_batches(images, to_tensor: Callable[..., Tensor] = to_tensor) -> BatchFn:  # noqa: ANN001
    """Draw (images,) batches in [-1, 1] with replacement.

    `images`: uint8 (N, H, W, 3), or whatever `to_tensor` takes rows of; it gives (n, C, H, W) float32 in [-1, 1].
    """

    def draw(generator: torch.Generator, size: int) -> tuple[Tensor, ...]:
        rows = torch.randint(len(images), (size,), generator=generator)
        return (to_tensor(images[rows.numpy()]).contiguous(memory_format=torch.channels_last),)

    return draw


def velocity_loss(alpha_bar: Tensor) -> LossFn:
    """Mean square of v - v_theta(x_t, t), t uniform, with the velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    Source: Salimans and Ho 2022, "Progressive distillation for fast sampling of diffusion models", appendix D. Since
    eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t, this is the simple loss of DDPM (Ho et al. 2020, Eq. 14) with each
    timestep weighted by 1 / alpha_bar. The weight matters: an error of eps is amplified by sqrt((1 - alpha_bar) / alpha_bar)
    in x0_hat, up to 157 times here, so that a short training on Eq. 14 ends in tinted samples; an error of v never is.
    Timesteps are stratified over the batch, which leaves the expectation as it is and lowers the variance.
    """

    def loss(model: nn.Module, generator: torch.Generator, x: Tensor) -> Tensor:
        n = len(x)
        u = (torch.rand(n, generator=generator) + torch.arange(n)) / n
        t = (u * len(alpha_bar)).long().clamp(max=len(alpha_bar) - 1)  # float32 may round the sum up to n
        noise = torch.randn(x.shape, generator=generator).to(x)
        a = alpha_bar[t].view(-1, 1, 1, 1).to(x)
        x_t = a.sqrt() * x + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        out = model(x_t.contiguous(memory_format=torch.channels_last), t.to(x.device)).sample
        return (out.float() - v).square().mean()

    return loss
