"""LDCE: the recorded consensus and runs of the reference, the equations, the null, several seeds, the errors."""

import math

import pytest
import torch
from models import fixture, submodel, tape
from torch import nn

from cfx_lib import LDCE
from cfx_lib.methods.cone import cone_projection
from cfx_lib.methods.guidance import unit
from cfx_lib.methods.ldce import consensus, consensus_angles, consensus_mask

pytestmark = pytest.mark.filterwarnings("ignore:images .* are already given their target class")

# ------------------------------------------------------------------------------------------ toys and fixtures


class Recorded(nn.Module):
    """The stub networks of the recorded runs as a latent diffusion model; conditions are looked up by class."""

    kind, factor, channels, image_channels, image_size = "class", 2, 3, 3, 16

    def __init__(self, tensors, betas):
        super().__init__()
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.tensors = tensors
        self.net = self.load(tensors, "noise_net", (8, 16), (16, 16), (16, 3))
        self.decoder = self.load(tensors, "decoder", (3, 12), (12, 3))

    @staticmethod
    def load(tensors, name, *sizes, stride=1):
        net = nn.ModuleDict(
            {f"conv{k}": nn.Conv2d(*s, 3, stride, 1) for k, s in enumerate(sizes, 1)}
        ).double()
        net.load_state_dict({k: v for k, v in submodel(tensors, name).items() if k.startswith("conv")})
        return net

    def encode(self, x):
        return self.tensors["z0"]

    def decode(self, z):
        h = nn.functional.silu(self.decoder["conv1"](z))
        return self.decoder["conv2"](nn.functional.interpolate(h, scale_factor=self.factor))

    def eps(self, z, t, cond):
        time = (t / 1000).to(z)[:, None, None, None].expand(-1, 1, *z.shape[2:])
        h = torch.cat([z, time, cond[:, :, None, None].expand(-1, -1, *z.shape[2:])], 1)
        h = nn.functional.silu(self.net["conv1"](h))
        return self.net["conv3"](nn.functional.silu(self.net["conv2"](h)))

    def condition(self, labels):
        assert torch.equal(labels, self.tensors["y"])
        return self.tensors["cond_target"]

    def unconditional(self, n):
        return self.tensors["cond_uncond"]


class Strided(nn.Module):
    num_classes = 5

    def __init__(self, tensors):
        super().__init__()
        self.net = Recorded.load(tensors, "classifier", (3, 10), (10, 10), stride=2)
        self.fc = nn.Linear(10, 5).double()
        self.fc.load_state_dict(submodel(tensors, "classifier.fc"))

    def forward(self, x):
        h = nn.functional.silu(self.net["conv1"](x.double()))
        return self.fc(nn.functional.silu(self.net["conv2"](h)).mean((2, 3)))


VARIANTS = {
    "consensus_on": {},
    "consensus_off": {"consensus": False},
    "consensus_projected": {"overwrite": "project"},
    "classifier_free_only": {"gamma": 0.0, "overwrite": "classifier-free", "lambda_d": 0.0},
    "consensus_on_paper": {"norm": "paper", "lambda_c": 0.3, "lambda_d": 0.075},
}
EXACT = dict(rtol=1e-6, atol=1e-7)


def recorded(variant, **settings):
    """The method set as a recorded run, and its tensors."""
    tensors, meta = fixture("ldce_trajectory")
    h = meta["hyperparameters"]
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, h["T"], dtype=torch.float64) ** 2
    settings = {
        "steps": h["ddim_steps"],
        "start": h["t_start"],
        "gamma": h["cone_angle_deg"],
        "eta": h["unconditional_guidance_scale"],
        "lambda_c": h["classifier_lambda"],
        "lambda_d": h["dist_lambda"],
        "norm": "released",
        "noise_offset": 1,
        "clip": True,
    } | (VARIANTS[variant] | settings)
    return LDCE(Recorded(tensors, betas), Strided(tensors), **settings), tensors


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_run_agrees_with_the_recorded_reference(variant):
    method, tensors = recorded(variant)
    noise, x = tape(tensors), (2 * tensors["init_image"] - 1).float()
    result = method.explain(x, tensors["y"], noise=noise, record=True, progress=False)
    assert noise.exhausted
    torch.testing.assert_close(result.steps[0].z, tensors[f"{variant}.step.z"][0], rtol=0, atol=1e-12)
    print(variant, (result.extra["latent"] - tensors[f"{variant}.final_latent"]).abs().max())
    torch.testing.assert_close(result.extra["latent"], tensors[f"{variant}.final_latent"], **EXACT)
