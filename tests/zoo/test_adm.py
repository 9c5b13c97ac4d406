"""OpenAI UNets in UNet2DModel: recorded outputs and gradients, and every layout against a plain reference."""

from pathlib import Path

import pytest
import torch
from adm_reference import forward
from diffusers import UNet2DModel
from models import fixture, tiny_unet

from cfx_lib.zoo.adm import infer_config, set_attention_heads, unet_from_openai

SMALL = {
    "image_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (2,),
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def recorded():
    return fixture("01_unet_weights")


def made(**changes):
    """A config, its random state dict and a run of the reference: (config, weights, (x, t, y), output)."""
    config = {**SMALL, **changes}
    weights, generator = {}, torch.Generator().manual_seed(1)
    x = torch.randn(2, config["in_channels"], 16, 16, generator=generator)
    t, y = torch.tensor([3, 700]), torch.tensor([1, 0])
    with torch.no_grad():
        output = forward(weights, config, x, t, y)
    return config, weights, (x, t, y if config.get("num_classes") else None), output


def test_recorded_output_and_input_gradient():
    tensors, meta = fixture("01_unet")
    tolerance, unet = meta["expected_tolerance"], tiny_unet()
    x = tensors["x"].requires_grad_()
    output = unet(x, tensors["timesteps"])
    (gradient,) = torch.autograd.grad((output * tensors["grad_weight"]).sum(), x)
    with torch.no_grad():
        ends = unet(x, tensors["timesteps_b"])
    torch.testing.assert_close(output, tensors["output"], **tolerance)
    torch.testing.assert_close(gradient, tensors["input_grad"], **tolerance)
    torch.testing.assert_close(ends, tensors["output_t0_t999"], **tolerance)
    # far inside the tolerance: only the order of summation differs
    assert (output - tensors["output"]).abs().max() < 3e-5
    assert (gradient - tensors["input_grad"]).abs().max() < 2e-4


def test_the_reference_agrees_with_the_recording(recorded):
    weights = {name.removeprefix("unet."): value.float() for name, value in recorded[0].items()}
    tensors, _ = fixture("01_unet")
    output = forward(weights, recorded[1]["config"], tensors["x"], tensors["timesteps"])
    torch.testing.assert_close(output, tensors["output"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_new_attention_order": True},
        {"use_new_attention_order": True, "num_head_channels": 16, "num_heads": None},
        {"num_head_channels": 16, "num_heads": 4},  # num_head_channels wins, as in the original
        {
            "num_heads": 4,
            "channel_mult": (1, 2, 3),
            "attention_resolutions": (2, 4),
        },  # heads of different width
        {"num_heads": 4, "channel_mult": (1, 2, 2), "attention_resolutions": (1, 4), "num_res_blocks": 2},
        {"resblock_updown": False},
        {"resblock_updown": False, "attention_resolutions": (1,), "num_res_blocks": 2},
        {"use_scale_shift_norm": False, "out_channels": 3},
        {"use_scale_shift_norm": False, "resblock_updown": False, "attention_resolutions": ()},
        {"num_classes": 5},
        {"in_channels": 1, "out_channels": 2, "channel_mult": (1,), "attention_resolutions": ()},
    ],
    ids=str,
)
def test_every_layout_agrees_with_the_reference(changes):
    config, weights, (x, t, y), expected = made(**changes)
    unet = unet_from_openai(weights, config)
    with torch.no_grad():
        output = unet(x, t, class_labels=y).sample
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    assert not unet.training


def test_the_order_of_the_attention_matters():
    config, weights, (x, t, _), expected = made()
    other = unet_from_openai(weights, {**config, "use_new_attention_order": True})
    with torch.no_grad():
        assert (other(x, t).sample - expected).abs().max() > 1e-3


def test_double_precision_agrees_to_rounding():
    config, weights, (x, t, _), _ = made()
    with torch.no_grad():
        expected = forward(weights, config, x.double(), t)
        output = unet_from_openai(weights, config).double()(x.double(), t).sample
    # diffusers computes the frequencies of the time embedding in float32: the gap that remains
    torch.testing.assert_close(output, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "heads", [{"num_heads": 4, "channel_mult": (1, 2, 3), "attention_resolutions": (2, 4)}, {}]
)
def test_survives_saving(tmp_path, heads):
    config, weights, (x, t, _), expected = made(**heads)
    unet_from_openai(weights, config).save_pretrained(tmp_path)
    unet = set_attention_heads(UNet2DModel.from_pretrained(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t).sample, expected, atol=1e-4, rtol=1e-4)


def test_infer_config_reads_what_the_weights_show(recorded):
    weights, meta = recorded
    inferred = infer_config(weights)
    for name in ("model_channels", "in_channels", "out_channels", "num_res_blocks", "use_scale_shift_norm"):
        assert inferred[name] == meta["config"][name]
    assert inferred["channel_mult"] == (1, 2) and inferred["attention_resolutions"] == (2,)
    assert inferred["resblock_updown"] is True and inferred["num_classes"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {
            "resblock_updown": False,
            "num_res_blocks": 2,
            "channel_mult": (1, 2, 3),
            "attention_resolutions": (1, 4),
        },
        {"num_res_blocks": 3, "num_classes": 4, "attention_resolutions": ()},
        {"use_scale_shift_norm": False, "out_channels": 3, "channel_mult": (1, 1, 2)},
    ],
    ids=str,
)
def test_infer_config_is_enough_with_the_heads(changes):
    config, weights, (x, t, y), expected = made(**changes)
    inferred = infer_config(weights)
    assert all(inferred[name] == config[name] for name in inferred if name in config)
    with torch.no_grad():
        output = unet_from_openai(weights, {"num_heads": 2})(x, t, class_labels=y).sample
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_the_scripts_words_are_understood(recorded):
    weights, _ = recorded
    words = {
        "image_size": 16,
        "num_channels": 32,
        "num_res_blocks": 1,
        "num_heads": 2,
        "learn_sigma": True,
        "attention_resolutions": "8",
        "channel_mult": "",
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_fp16": False,
    }
    tensors, _ = fixture("01_unet")
    with torch.no_grad():
        output = unet_from_openai(weights, words)(tensors["x"], tensors["timesteps"]).sample
    torch.testing.assert_close(output, tensors["output"], atol=1e-4, rtol=1e-4)


def test_weights_are_copied_and_prefixes_removed(recorded):
    weights, meta = recorded
    plain = {name.removeprefix("unet."): value.float() for name, value in weights.items()}
    unet = unet_from_openai({f"module.unet.{name}": value for name, value in plain.items()}, meta["config"])
    assert torch.equal(unet.conv_in.weight, plain["input_blocks.0.0.weight"])
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert plain["input_blocks.0.0.weight"].abs().sum() > 0


# --- errors ---------------------------------------------------------------------------------------------------


def without(weights, part):
    return {name: value for name, value in weights.items() if part not in name}


def test_missing_weights_are_named(recorded):
    weights, meta = recorded
    with pytest.raises(ValueError, match=r"1 missing \(middle_block\.1\.qkv\.bias\).*file is complete"):
        unet_from_openai(without(weights, "middle_block.1.qkv.bias"), meta["config"])


def test_unexpected_weights_are_named(recorded):
    weights, meta = recorded
    with pytest.raises(ValueError, match=r"1 unexpected \(input_blocks\.9\.0\.extra\)"):
        unet_from_openai({**weights, "unet.input_blocks.9.0.extra": torch.zeros(1)}, meta["config"])


def test_a_damaged_shape_is_named(recorded):
    weights, meta = recorded
    for name, shape in [("middle_block.1.qkv.weight", (12, 64, 1)), ("out.0.weight", (5,))]:
        damaged = {**weights, f"unet.{name}": torch.zeros(shape)}
        with pytest.raises(ValueError, match=rf"{name} has the shape .*does not fit .*damaged"):
            unet_from_openai(damaged, meta["config"])


def test_a_config_that_contradicts_the_weights(recorded):
    weights, meta = recorded
    with pytest.raises(ValueError, match=r"config says num_res_blocks = 2, the weights have 1"):
        unet_from_openai(weights, {**meta["config"], "num_res_blocks": 2})
    with pytest.raises(
        ValueError, match=r"config says attention_resolutions = \(1, 2\), the weights have \(2,\)"
    ):
        unet_from_openai(weights, {**meta["config"], "attention_resolutions": [1, 2]})
    with pytest.raises(ValueError, match=r"config says out_channels = 3, the weights have 6"):
        unet_from_openai(weights, {**meta["config"], "out_channels": 3})


def test_unknown_entries_and_missing_heads(recorded):
    weights, meta = recorded
    with pytest.raises(ValueError, match=r"unknown entries: nonsense\. Known are: .*num_heads"):
        unet_from_openai(weights, {**meta["config"], "nonsense": 1})
    with pytest.raises(ValueError, match=r"give num_heads or num_head_channels"):
        unet_from_openai(weights, {})
    with pytest.raises(ValueError, match=r"64 channels cannot be cut into heads with num_heads = 3"):
        unet_from_openai(weights, {"num_heads": 3})
    with pytest.raises(ValueError, match=r"attention_resolutions as a text holds image sizes"):
        unet_from_openai(weights, {"num_heads": 2, "attention_resolutions": "8"})


def test_what_is_not_an_openai_unet():
    with pytest.raises(ValueError, match=r"not an OpenAI guided-diffusion UNet: time_embed\.0\.weight"):
        unet_from_openai({"conv_in.weight": torch.zeros(1)}, {"num_heads": 2})
    with pytest.raises(ValueError, match=r"it has nothing"):
        infer_config({})


def test_what_unet2dmodel_cannot_express():
    config, weights, _, _ = made(channel_mult=(2, 2), attention_resolutions=())
    weights["input_blocks.0.0.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(ValueError, match=r"channel_mult starts with 2; UNet2DModel ties"):
        unet_from_openai(weights, {**config, "channel_mult": (2, 2)})
    config, weights, _, _ = made(resblock_updown=False)
    with pytest.raises(ValueError, match=r"conv_resample = False .* cannot be expressed"):
        unet_from_openai(weights, {**config, "conv_resample": False})


def test_a_saved_network_with_a_fixed_number_of_heads_is_loaded_right(tmp_path: Path) -> None:
    """The number of heads is only noted in the config: `zoo.load` must apply it, or attention is wrong without an error."""
    from diffusers import DDPMScheduler

    from cfx_lib import zoo
    from cfx_lib.zoo.adm import set_attention_heads

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    unet.register_to_config(adm_num_heads=2)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    with torch.no_grad():
        plain = unet(x, t).sample
        expected = set_attention_heads(unet)(x, t).sample
    assert (plain - expected).abs().max() > 1e-4, (
        "the two layouts of heads must differ for this test to say anything"
    )
    zoo.save_denoiser(unet, DDPMScheduler(num_train_timesteps=50), tmp_path / "net", half=False)
    with torch.no_grad():
        assert torch.allclose(zoo.load(str(tmp_path / "net"))(x, t), expected, atol=1e-5)
