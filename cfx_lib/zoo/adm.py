"""OpenAI guided-diffusion ("ADM") checkpoints as `diffusers.UNet2DModel`.

Dhariwal and Nichol 2021, section 3 and appendix; the UNet of DiME, ACE and DVCE. `UNet2DModel` can express it
exactly: the blocks are the same and only their names and the layout of the attention's weights differ. What
it cannot express (a first `channel_mult` other than 1, resampling without convolutions) raises a ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

__all__ = ["infer_config", "set_attention_heads", "unet_from_openai"]

PREFIXES = ("unet.", "module.", "model.", "diffusion_model.")

DEFAULTS: dict[str, Any] = {
    "image_size": None,
    "dropout": 0.0,
    "num_heads": None,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
    "resblock_updown": False,
    "conv_resample": True,
}

IGNORED = {"use_fp16", "use_checkpoint", "dims"}
"""Arguments of the original class that do not change what the network computes."""


def unet_from_openai(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> UNet2DModel:
    """A `UNet2DModel` with the weights of an OpenAI UNet (Dhariwal and Nichol 2021), eval mode, float32.

    `state_dict`: the original names, with or without a prefix such as "unet."; any float dtype. `config`: the
    arguments of the original class (`model_channels`, `num_res_blocks`, `attention_resolutions` as
    downsampling factors, `channel_mult`, `num_heads` or `num_head_channels`, `use_scale_shift_norm`,
    `resblock_updown`, `use_new_attention_order`, ...). The heads cannot be seen in the weights and must be
    given where there is attention (the middle block always has it); everything else may be left out, and is
    checked against the weights where given. The script's forms `num_channels`, `learn_sigma`,
    `attention_resolutions="16,8"` (image sizes) are understood too.

    The network takes (x (N,C,H,W) in [-1,1], original timesteps (N,)) and returns `.sample` (N,C or 2C,H,W).
    Raises ValueError for missing, unexpected or misshapen weights and for a config that contradicts them.
    """
    weights = _without_prefix(state_dict)
    config = _complete(config, infer_config(weights))
    heads = _heads_of_levels(config)
    with torch.device("meta"):
        unet = UNet2DModel(**_diffusers_config(config, heads))
    renamed = _rename(weights, unet, config)
    unet.load_state_dict(renamed, assign=True)
    if config["num_head_channels"] == -1 and len(set(_head_widths(config, heads))) > 1:
        # UNet2DModel has one WIDTH of a head for all levels, the original may have one NUMBER of heads
        unet.register_to_config(adm_num_heads=config["num_heads"])
        set_attention_heads(unet)
    return unet.eval()


def set_attention_heads(unet: UNet2DModel, num_heads: int | None = None) -> UNet2DModel:
    """Give every attention layer `num_heads` heads, by default what `unet_from_openai` noted in the config.

    A checkpoint with one NUMBER of heads for levels of different width cannot be written in `UNet2DModel`'s
    config, which knows one WIDTH of a head. `unet_from_openai` then notes `adm_num_heads` in the config,
    which is saved with it; call this after `from_pretrained`. Without that note nothing is done. Returns
    `unet`.
    """
    num_heads = num_heads or getattr(unet.config, "adm_num_heads", None)
    if num_heads:
        for module in unet.modules():
            if isinstance(module, Attention):
                width = module.inner_dim // num_heads
                module.heads, module.scale = num_heads, width**-0.5
    return unet


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read from the names and shapes of an OpenAI UNet's weights all of its config that can be seen there.

    Returns `model_channels in_channels out_channels channel_mult num_res_blocks attention_resolutions
    use_scale_shift_norm resblock_updown num_classes`; not the heads, their order and the image size. Raises
    ValueError when this is not an OpenAI UNet.
    """
    weights = _without_prefix(state_dict)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    needed = [
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "middle_block.0.in_layers.0.weight",
        "out.2.weight",
    ]
    needed += ["output_blocks.0.0.out_layers.3.weight", "output_blocks.0.0.emb_layers.1.weight"]
    missing = [name for name in needed if name not in shapes]
    if missing:
        some = ", ".join(list(shapes)[:3]) or "nothing"
        raise ValueError(
            f"this is not an OpenAI guided-diffusion UNet: {', '.join(missing)} missing "
            f"(it has {some}, ...). "
            "Give the state dict of the UNet itself; classifiers and diffusers models have other names."
        )
    model_channels = shapes["time_embed.0.weight"][1]
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
    # the last output block of every level but the first ends with a way up: a residual block or a convolution
    ups = [k for k in range(blocks) if _ways_up(shapes, k)]
    levels = len(ups) + 1
    if blocks % levels:
        raise ValueError(f"{blocks} output blocks do not fill {levels} levels; output_blocks.* are missing.")
    per_level = blocks // levels
    firsts = [per_level * (levels - 1 - level) for level in range(levels)]  # first output block of a level
    widths = []
    for k in firsts:
        name = f"output_blocks.{k}.0.out_layers.3.weight"
        if name not in shapes:
            raise ValueError(f"the state dict lacks {name}; the file is incomplete.")
        widths.append(shapes[name][0])
    embedded, width = shapes["output_blocks.0.0.emb_layers.1.weight"][0], widths[-1]
    if any(width % model_channels for width in widths):
        mult = tuple(width / model_channels for width in widths)
    else:
        mult = tuple(width // model_channels for width in widths)
    config = {
        "model_channels": model_channels,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "channel_mult": mult,
        "num_res_blocks": per_level - 1,
        "attention_resolutions": tuple(
            2**level for level, k in enumerate(firsts) if f"output_blocks.{k}.1.qkv.weight" in shapes
        ),
        "use_scale_shift_norm": embedded == 2 * width,
        "num_classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
    }
    if ups:  # with a single level there is no way up or down, hence nothing to see
        config["resblock_updown"] = any("in_layers.0" in way for k in ups for way in _ways_up(shapes, k))
    return config


def _ways_up(shapes: Mapping[str, Any], k: int) -> list[str]:
    """The names of the way up in output block k: its second residual block, or its convolution."""
    pattern = re.compile(rf"output_blocks\.{k}\.[12]\.(conv\.weight|in_layers\.0\.weight)")
    return [name for name in shapes if pattern.fullmatch(name)]


def _without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = list(state_dict)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state_dict.items()})
    return dict(state_dict)


def _complete(config: Mapping[str, Any], inferred: dict[str, Any]) -> dict[str, Any]:
    """The whole config: what is given, checked against what the weights show, and defaults."""
    given = {name: value for name, value in config.items() if name not in IGNORED}
    if "num_channels" in given:
        given["model_channels"] = given.pop("num_channels")
    if "learn_sigma" in given:
        given["out_channels"] = inferred["in_channels"] * (2 if given.pop("learn_sigma") else 1)
    if given.get("channel_mult") == "":
        del given["channel_mult"]
    for name in ("channel_mult", "attention_resolutions"):
        if isinstance(given.get(name), str):
            words = [word for word in given[name].split(",") if word.strip()]
            given[name] = [int(word) if word.strip().isdigit() else float(word) for word in words]
            if name == "attention_resolutions":
                if not given.get("image_size"):
                    raise ValueError(
                        "attention_resolutions as a text holds image sizes: give image_size too."
                    )
                given[name] = [given["image_size"] // size for size in given[name]]
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    if given.get("attention_resolutions") is not None:
        reached = {2**level for level in range(len(inferred["channel_mult"]))}
        given["attention_resolutions"] = tuple(sorted(set(given["attention_resolutions"]) & reached))
    unknown = sorted(given.keys() - inferred.keys() - DEFAULTS.keys())
    if unknown:
        known = ", ".join(sorted(inferred.keys() | DEFAULTS.keys()))
        raise ValueError(f"the config has unknown entries: {', '.join(unknown)}. Known are: {known}.")
    for name, seen in inferred.items():
        if name in given and given[name] != seen:
            raise ValueError(
                f"the config says {name} = {given[name]!r}, the weights have {seen!r}. "
                "Give the config that belongs to the checkpoint, or leave this entry out."
            )
    return {**DEFAULTS, **inferred, **given}


def _widths(config: Mapping[str, Any]) -> list[int]:
    return [int(config["model_channels"] * mult) for mult in config["channel_mult"]]


def _attention_widths(config: Mapping[str, Any]) -> list[int]:
    """Channels wherever there is attention: the levels that have it and the middle block."""
    widths = _widths(config)
    return [w for n, w in enumerate(widths) if 2**n in config["attention_resolutions"]] + [widths[-1]]


def _heads_of_levels(config: Mapping[str, Any]) -> list[int]:
    """Number of heads of each of `_attention_widths`."""
    if config["num_heads_upsample"] not in (-1, None, config["num_heads"]):
        raise ValueError("num_heads_upsample other than num_heads cannot be expressed by UNet2DModel.")
    widths, width_of_head = _attention_widths(config), config["num_head_channels"]
    if width_of_head not in (-1, None):
        heads = [width // width_of_head for width in widths]
    elif config["num_heads"]:
        heads = [config["num_heads"]] * len(widths)
    else:
        raise ValueError(
            "the number of attention heads cannot be seen in the weights: "
            "give num_heads or num_head_channels."
        )
    for width, number in zip(widths, heads):
        if number < 1 or width % number or (width_of_head not in (-1, None) and width % width_of_head):
            raise ValueError(
                f"{width} channels cannot be cut into heads with num_heads = {config['num_heads']}, "
                f"num_head_channels = {width_of_head}. Give the values that the checkpoint was trained with."
            )
    return heads


def _head_widths(config: Mapping[str, Any], heads: list[int]) -> list[int]:
    return [width // number for width, number in zip(_attention_widths(config), heads)]


def _diffusers_config(config: Mapping[str, Any], heads: list[int]) -> dict[str, Any]:
    """The arguments of `UNet2DModel` for the config of an OpenAI UNet."""
    widths = _widths(config)
    if widths[0] != config["model_channels"]:
        raise ValueError(
            f"channel_mult starts with {config['channel_mult'][0]}; UNet2DModel ties the width of "
            "its time embedding to its first level, so only checkpoints that start with 1 can be converted."
        )
    if not config["conv_resample"] and not config["resblock_updown"] and len(widths) > 1:
        raise ValueError("conv_resample = False (resampling without convolutions) cannot be expressed.")
    attention = [2**level in config["attention_resolutions"] for level in range(len(widths))]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    if not config["resblock_updown"]:
        plain = ("DownBlock2D", "UpBlock2D")
    resample = "resnet" if config["resblock_updown"] else "conv"
    return {
        "sample_size": config["image_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(widths),
        "layers_per_block": config["num_res_blocks"],
        "down_block_types": tuple("AttnDownBlock2D" if on else plain[0] for on in attention),
        "up_block_types": tuple("AttnUpBlock2D" if on else plain[1] for on in reversed(attention)),
        "downsample_type": resample,
        "upsample_type": resample,
        "dropout": config["dropout"],
        "attention_head_dim": gcd(*_head_widths(config, heads)),
        "resnet_time_scale_shift": "scale_shift" if config["use_scale_shift_norm"] else "default",
        "num_class_embeds": config["num_classes"],
        # time embedding: (cos, sin), frequencies 10000^(-k/half)
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        # without this UNet2DModel leaves out the norm of the middle attention with "scale_shift"
        "attn_norm_num_groups": 32,
    }


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
}


def _theirs(module: str, config: Mapping[str, Any]) -> str:
    """The original name of a module of `UNet2DModel`.

    For example `down_blocks.1.resnets.0.norm1` is `input_blocks.3.0.in_layers.0`.
    """
    for ours, theirs in FIXED.items():
        if module == ours or module.startswith(ours + "."):
            return _inside(theirs, module[len(ours) + 1 :])
    side, level, kind, n, *rest = module.split(".")
    level, n, blocks = int(level), int(n), config["num_res_blocks"]
    attends = 2 ** (level if side == "down_blocks" else len(config["channel_mult"]) - 1 - level)
    if side == "down_blocks":
        index = 1 + level * (blocks + 1) + (blocks if kind == "downsamplers" else n)
        place = 1 if kind == "attentions" else 0
        block = f"input_blocks.{index}.{place}"
    else:
        index = level * (blocks + 1) + (blocks if kind == "upsamplers" else n)
        place = {"resnets": 0, "attentions": 1}.get(
            kind, 2 if attends in config["attention_resolutions"] else 1
        )
        block = f"output_blocks.{index}.{place}"
    if rest == ["conv"]:
        return block + (".op" if side == "down_blocks" else ".conv")
    return _inside(block, ".".join(rest))


def _inside(block: str, part: str) -> str:
    """The original name of a part of a residual or attention block."""
    if part in RESNET:
        return f"{block}.{RESNET[part]}"
    names = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
    return f"{block}.{names[part]}" if part else block


def _rename(weights: Mapping[str, Tensor], unet: UNet2DModel, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under `unet`'s names; ValueError for missing, unexpected or misshapen ones."""
    expected = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    source = {}
    for name in expected:
        module, _, kind = name.rpartition(".")
        source[name] = f"{_theirs(module, config)}.{kind}"
    missing = sorted(set(source.values()) - weights.keys())
    unexpected = sorted(weights.keys() - set(source.values()))
    if missing or unexpected:
        raise ValueError(
            "the weights do not belong to this config: "
            + "; ".join(
                f"{len(names)} {word} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
                for word, names in (("missing", missing), ("unexpected", unexpected))
                if names
            )
            + ". Check num_res_blocks, attention_resolutions, resblock_updown, and that the file is complete."
        )
    renamed = {}
    for name, shape in expected.items():
        value = weights[source[name]].detach().float()
        given, part = tuple(value.shape), name.rsplit(".", 2)[1]
        if value.ndim == 3:  # a 1x1 Conv1d, which is a linear layer
            value = value[..., 0]
        joint = part in ("to_q", "to_k", "to_v")
        if tuple(value.shape) != ((3 * shape[0], *shape[1:]) if joint else shape):
            raise ValueError(
                f"{source[name]} has the shape {given}, which does not fit {name} {shape}. "
                "The config does not belong to this checkpoint, or the file is damaged."
            )
        renamed[name] = (_rows_of(value, "qkv".index(part[-1]), config) if joint else value).clone()
    return renamed


def _rows_of(qkv: Tensor, which: int, config: Mapping[str, Any]) -> Tensor:
    """Rows of the query, key or value (`which` 0, 1, 2) in the joint projection `qkv` (3C, ...).

    New order: all queries, all keys, all values. Legacy order: head by head, and within a head q, k, v.
    Either way a head's rows come out next to each other, which is how `Attention` cuts them.
    """
    channels = qkv.shape[0] // 3
    if config["use_new_attention_order"]:
        return qkv[which * channels : (which + 1) * channels]
    width = config["num_head_channels"]
    heads = config["num_heads"] if width in (-1, None) else channels // width
    return qkv.reshape(heads, 3, channels // heads, *qkv.shape[1:])[:, which].reshape(
        channels, *qkv.shape[1:]
    )
