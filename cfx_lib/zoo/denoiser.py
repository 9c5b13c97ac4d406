"""Denoisers: a `diffusers.UNet2DModel` with its noise schedule, on disk in the format of `DDPMPipeline`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfx_lib.zoo.files import (
    find_weights,
    load_into,
    read_json,
    read_weights,
    write_json,
    write_weights,
)

__all__ = ["Denoiser", "betas_of", "load_denoiser", "save_denoiser"]

STEM = "diffusion_pytorch_model"


class Denoiser(nn.Module):
    """A trained noise predictor eps_theta(x_t, t) with its schedule (Ho et al. 2020, Algorithm 1).

    `forward(x, t)`: x (N,C,H,W) noisy images, t (N,) or scalar original timesteps in 0..T-1 -> float32
    (N,C,H,W), or (N,2C,H,W) where the variance is learned (`learned_range`). Gradients flow through.
    `prediction_type="v_prediction"`: the network's own output is the velocity of Salimans and Ho 2022 (appendix D),
    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0; `forward` gives eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x all the same.
    `bf16` computes in bfloat16 by autocast (inputs, outputs and weights stay float32).
    """

    def __init__(
        self,
        unet: nn.Module,
        betas: Tensor,
        name: str = "denoiser",
        *,
        prediction_type: str = "epsilon",
        bf16: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        _check_prediction(prediction_type, name)
        config = unet.config
        self.unet = unet.to(memory_format=torch.channels_last) if channels_last else unet
        self.register_buffer("betas", betas.double(), persistent=False)
        alpha_bar = (1 - self.betas).cumprod(0)
        self.register_buffer("_signal", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("_noise", (1 - alpha_bar).sqrt().float(), persistent=False)
        self.prediction_type = prediction_type
        self.channels = int(config.in_channels)
        self.learned_range = int(config.out_channels) == 2 * self.channels
        self.sample_size = _square(config.sample_size)
        self.name, self.bf16, self.channels_last = name, bf16, channels_last
        self._call = [torch.compile(unet) if compile else unet]  # in a list: not a second submodule

    def forward(self, x: Tensor, t: Tensor | int, class_labels: Tensor | None = None) -> Tensor:
        """x (N,C,H,W), t (N,) or scalar -> (N,C,H,W) or (N,2C,H,W) float32."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        t = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        extra = {} if class_labels is None else {"class_labels": class_labels}
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            out = self._call[0](x, t, **extra).sample
        out = out.float()
        if self.prediction_type == "v_prediction":
            v, rest = out[:, : self.channels], out[:, self.channels :]  # rest: the learned variance, if any
            eps = self._signal[t].view(-1, 1, 1, 1) * v + self._noise[t].view(-1, 1, 1, 1) * x
            out = torch.cat([eps, rest], dim=1) if self.learned_range else eps
        return out.contiguous()

    def __repr__(self) -> str:
        size = f"{self.channels}x{self.sample_size}x{self.sample_size}"
        weights = sum(p.numel() for p in self.unet.parameters()) / 1e6
        variance = ", learned variance" if self.learned_range else ""
        return f"Denoiser({self.name}: {size}, T={len(self.betas)}, {weights:.1f} M weights{variance})"


def _square(sample_size: int | list[int]) -> int:
    if isinstance(sample_size, int):
        return sample_size
    height, width = sample_size
    if height != width:
        raise ValueError(f"the denoiser makes {height}x{width} images; only square ones are supported.")
    return int(height)


# ---------------------------------------------------------------------------------------------------- schedules


def betas_of(config: dict[str, Any], source: str | Path = "the scheduler") -> Tensor:
    """The betas (T,) of a diffusers scheduler configuration, computed in float64.

    Raises ValueError for a schedule that is not known or has no betas, or a network that predicts neither the noise nor
    the velocity.
    """
    _check_prediction(config.get("prediction_type", "epsilon"), source)
    if config.get("sigma_max") is not None and "beta_start" not in config:
        raise ValueError(
            f"{source} describes a {config.get('_class_name', 'scheduler with sigma_max')}, which has no betas; expected "
            "a DDPM-like scheduler, such as diffusers.DDPMScheduler."
        )
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{source} says rescale_betas_zero_snr; expected a schedule that keeps alpha_bar above 0."
        )
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, Eq. 17

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        ratios = [alpha_bar((k + 1) / steps) / alpha_bar(k / steps) for k in range(steps)]
        return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)
    raise ValueError(
        f"{source} says beta_schedule={kind!r}; expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2', "
        "or give the numbers as trained_betas."
    )


def _check_prediction(kind: str, source: str | Path) -> None:
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{source} says prediction_type={kind!r}; expected 'epsilon' or 'v_prediction'. This network predicts "
            "something else: convert its output to epsilon and pass your own callable to Diffusion."
        )


# ---------------------------------------------------------------------------------------------------- disk


def load_denoiser(
    folder: str | Path, name: str = "", *, allow_pickle: bool = False, **options: Any
) -> Denoiser:
    """A denoiser from a `DDPMPipeline` folder (unet/, scheduler/), or one with the UNet's files at its root.

    `options`: bf16, channels_last, compile. Raises FileNotFoundError and ValueError as :func:`cfx_lib.zoo.load`.
    """
    folder = Path(folder)
    where = folder / "unet" if (folder / "unet").is_dir() else folder
    config = read_json(where / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(
            f"{where / 'config.json'} describes a {config['_class_name']}; expected a UNet2DModel "
            "(an unconditional pixel-space denoiser)."
        )
    schedule = next(
        (p for p in (folder / "scheduler", folder, where) if (p / "scheduler_config.json").is_file()),
        folder / "scheduler",
    )
    schedule_config = read_json(schedule / "scheduler_config.json")
    betas = betas_of(schedule_config, schedule / "scheduler_config.json")
    path = find_weights(where, STEM, allow_pickle)
    weights = read_weights(path, allow_pickle)
    unet = _build_unet(config, where / "config.json")
    unet._fix_state_dict_keys_on_load(weights)  # old checkpoints name the attention's matrices differently
    load_into(unet, weights, path)
    unet.eval().requires_grad_(False)
    prediction_type = schedule_config.get("prediction_type", "epsilon")
    return Denoiser(unet, betas, name or folder.name, prediction_type=prediction_type, **options)


def _build_unet(config: dict[str, Any], source: Path) -> nn.Module:
    from diffusers import UNet2DModel
    from diffusers.utils import logging

    from cfx_lib.zoo.adm import set_attention_heads

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # old configurations carry keys that are ignored; that is no news to a learner
    try:
        return set_attention_heads(UNet2DModel.from_config(config), config.get("adm_num_heads"))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{source} is not a configuration of a UNet2DModel: {error}.") from error
    finally:
        logging.set_verbosity(level)


def save_denoiser(unet: nn.Module, scheduler: Any, folder: str | Path, half: bool = True) -> Path:
    """Save a `UNet2DModel` and its scheduler as a `DDPMPipeline` folder; the live model is not touched.

    `half`: matrices as float16. Each file is written whole and the index last, so an interrupted save never leaves a
    half-written file. Raises ValueError for NaN weights. `diffusers.DDPMPipeline.from_pretrained` reads the folder.
    """
    import diffusers

    folder = Path(folder)
    unet = getattr(unet, "_orig_mod", getattr(unet, "module", unet))  # compiled, or wrapped for training
    write_weights(folder / "unet" / f"{STEM}.safetensors", unet.state_dict(), half)
    for part, value in (("unet", unet), ("scheduler", scheduler)):
        file = "config.json" if part == "unet" else "scheduler_config.json"
        config = {k: v for k, v in value.config.items() if k not in ("_name_or_path", "_use_default_values")}
        write_json(folder / part / file, {"_class_name": type(value).__name__, **config})
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", type(unet).__name__],
    }
    write_json(folder / "model_index.json", index)
    return folder
