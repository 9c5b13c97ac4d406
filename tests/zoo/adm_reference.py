"""The UNet of Dhariwal and Nichol 2021 once more, as a plain function: what the conversion is checked against.

`forward` makes a weight up the first time that it needs it, so it also writes the state dict of any config.
"""

import math

import torch
import torch.nn.functional as F


def forward(weights, config, x, t, y=None):
    """Output (N,C or 2C,H,W) of an OpenAI UNet whose state dict is `weights` (filled where a name is missing)."""
    c = {"num_head_channels": -1, "use_new_attention_order": False, "num_classes": None, **config}
    generator = torch.Generator().manual_seed(0)

    def get(name, *shape, around=0.0):
        if name not in weights:
            weights[name] = around + 0.1 * torch.randn(shape, generator=generator)
        assert tuple(weights[name].shape) == shape, name
        return weights[name].to(x)

    def norm(h, name):
        n = h.shape[1]
        return F.group_norm(
            h, 32, get(f"{name}.weight", n, around=1.0), get(f"{name}.bias", n, around=0.0), 1e-5
        )

    def linear(h, name, out):
        return F.linear(h, get(f"{name}.weight", out, h.shape[1]), get(f"{name}.bias", out))

    def conv(h, name, out, size=3, stride=1):
        kernel = get(f"{name}.weight", out, h.shape[1], size, size)
        return F.conv2d(h, kernel, get(f"{name}.bias", out), stride, size // 2)

    def resample(h, way):
        if way == "down":
            return F.avg_pool2d(h, 2)
        return F.interpolate(h, scale_factor=2, mode="nearest") if way == "up" else h

    def residual(h, name, out, way=None):
        skip = resample(h, way)
        a = resample(F.silu(norm(h, f"{name}.in_layers.0")), way)
        a = conv(a, f"{name}.in_layers.2", out)
        e = linear(F.silu(emb), f"{name}.emb_layers.1", out * (2 if c["use_scale_shift_norm"] else 1))
        e = e[:, :, None, None]
        if c["use_scale_shift_norm"]:
            scale, shift = e.chunk(2, dim=1)
            a = norm(a, f"{name}.out_layers.0") * (1 + scale) + shift
        else:
            a = norm(a + e, f"{name}.out_layers.0")
        a = conv(F.silu(a), f"{name}.out_layers.3", out)
        return a + (conv(skip, f"{name}.skip_connection", out, size=1) if skip.shape[1] != out else skip)

    def attention(h, name):
        n, ch, height, width = h.shape
        heads = c["num_heads"] if c["num_head_channels"] == -1 else ch // c["num_head_channels"]
        a = norm(h, f"{name}.norm").reshape(n, ch, -1)
        qkv = F.conv1d(a, get(f"{name}.qkv.weight", 3 * ch, ch, 1), get(f"{name}.qkv.bias", 3 * ch))
        out = []
        for head in range(heads):
            d = ch // heads
            if c["use_new_attention_order"]:
                q, k, v = (qkv[:, part * ch + head * d : part * ch + (head + 1) * d] for part in range(3))
            else:
                q, k, v = (qkv[:, (3 * head + part) * d : (3 * head + part + 1) * d] for part in range(3))
            scores = torch.einsum("ndq,ndk->nqk", q, k) / math.sqrt(d)
            out.append(torch.einsum("nqk,ndk->ndq", scores.softmax(-1), v))
        a = torch.cat(out, dim=1)
        a = F.conv1d(a, get(f"{name}.proj_out.weight", ch, ch, 1), get(f"{name}.proj_out.bias", ch))
        return h + a.reshape(n, ch, height, width)

    width, levels = c["model_channels"], len(c["channel_mult"])
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2)).to(x)
    angles = t[:, None].to(x) * frequencies
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = linear(F.silu(linear(emb, "time_embed.0", 4 * width)), "time_embed.2", 4 * width)
    if c["num_classes"]:
        emb = emb + get("label_emb.weight", c["num_classes"], 4 * width)[y]

    h = conv(x, "input_blocks.0.0", width)
    stack, n = [h], 1
    for level, mult in enumerate(c["channel_mult"]):
        for _ in range(c["num_res_blocks"]):
            h = residual(h, f"input_blocks.{n}.0", mult * width)
            if 2**level in c["attention_resolutions"]:
                h = attention(h, f"input_blocks.{n}.1")
            stack.append(h)
            n += 1
        if level < levels - 1:
            if c["resblock_updown"]:
                h = residual(h, f"input_blocks.{n}.0", mult * width, "down")
            else:
                h = conv(h, f"input_blocks.{n}.0.op", mult * width, stride=2)
            stack.append(h)
            n += 1

    h = residual(h, "middle_block.0", h.shape[1])
    h = attention(h, "middle_block.1")
    h = residual(h, "middle_block.2", h.shape[1])

    n = 0
    for level, mult in reversed(list(enumerate(c["channel_mult"]))):
        for block in range(c["num_res_blocks"] + 1):
            h = residual(torch.cat([h, stack.pop()], dim=1), f"output_blocks.{n}.0", mult * width)
            place = 1
            if 2**level in c["attention_resolutions"]:
                h, place = attention(h, f"output_blocks.{n}.1"), 2
            if level and block == c["num_res_blocks"]:
                if c["resblock_updown"]:
                    h = residual(h, f"output_blocks.{n}.{place}", mult * width, "up")
                else:
                    h = conv(resample(h, "up"), f"output_blocks.{n}.{place}.conv", mult * width)
            n += 1
    return conv(F.silu(norm(h, "out.0")), "out.2", c["out_channels"])
