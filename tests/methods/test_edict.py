"""EDICT: the recorded runs of the reference, exact round trips in both precisions, any number of steps; DDIM's drift."""

import pytest
import torch
from models import fixture, submodel
from torch import nn

from cfx_lib.methods.edict import Ddim, edict_levels
from cfx_lib.methods.time import Edict, guided

EXACT = dict(rtol=1e-6, atol=1e-7)


class Network:
    """The recorded stub network; the guided noise as EDICT and TIME ask for it."""

    def __init__(self, dtype=torch.float64):
        self.tensors, self.meta = fixture("edict")
        sizes = ((13, 16), (16, 16), (16, 4))
        net = nn.ModuleDict(
            {f"conv{k}": nn.Conv2d(*s, 3, padding=1) for k, s in enumerate(sizes, 1)}
        ).double()
        net.load_state_dict(submodel(self.tensors, "noise_net"))
        self.net, self.dtype = net.requires_grad_(False).to(dtype), dtype

    def __getitem__(self, name):
        return (
            self.tensors[name].to(self.dtype)
            if self.tensors[name].is_floating_point()
            else self.tensors[name]
        )

    def noise(self, z, t, condition):
        time = torch.full_like(z[:, :1], t / 1000)
        h = torch.cat([z, time, condition[:, :, None, None].expand(-1, -1, *z.shape[2:])], 1)
        h = nn.functional.silu(self.net["conv1"](h))
        return self.net["conv3"](nn.functional.silu(self.net["conv2"](h)))

    def guided(self, positive, negative, w):
        """EDICT's guidance scale is 1 + w."""
        pos, neg = self[positive], self[negative]
        return lambda z, t: guided(self.noise(z, t, pos), self.noise(z, t, neg), w)

    def levels(self, steps=20, **options):
        return edict_levels(self.tensors["alphas_cumprod"], steps, **options)


@pytest.fixture(scope="module")
def network():
    return Network()


def stacked(pairs):
    return torch.stack([torch.stack(pair) for pair in pairs])


@pytest.mark.parametrize("name", ["leapfrog", "plain"])
def test_every_pair_agrees_with_the_recorded_reference(network, name):
    sampler, levels = Edict(p=0.93, leapfrog=name == "leapfrog"), network.levels()
    eps, x, start = network.guided("cond", "uncond", 2.0), network["x"], network[f"{name}.noise_start"]
    assert [level.t for level in reversed(levels)] == network["timesteps_edict"].tolist()
    inverted = sampler.invert(x, x, eps, levels)
    torch.testing.assert_close(stacked(inverted), network[f"{name}.invert.pair"], **EXACT)
    generated = sampler.denoise(*inverted[-1], eps, levels)
    torch.testing.assert_close(stacked(generated), network[f"{name}.generate.pair"], **EXACT)
    generated = sampler.denoise(start, start, eps, levels)
    torch.testing.assert_close(stacked(generated), network[f"{name}.generate_from_noise.pair"], **EXACT)


@pytest.mark.parametrize("name, away", [("time_negative", ("prompt_target", "prompt_source")), ("time_uncond", ("uncond",) * 2)])  # fmt: skip
def test_times_inversion_and_counterfactual_agree_with_the_recorded_reference(network, name, away):
    sampler, levels = Edict(leapfrog=False), network.levels()
    source, target = (
        network.guided("prompt_source", away[0], 2.0),
        network.guided("prompt_target", away[1], 2.0),
    )
    inverted = sampler.invert(network["x"], network["x"], source, levels)
    torch.testing.assert_close(stacked(inverted), network[f"{name}.invert.pair"], **EXACT)
    restored = sampler.denoise(*inverted[-1], source, levels)[-1][0]
    torch.testing.assert_close(restored, network[f"{name}.reconstruction"], **EXACT)
    changed = [inverted[-1], *sampler.denoise(*inverted[-1], target, levels)]
    torch.testing.assert_close(changed[-1][0], network[f"{name}.counterfactual"], **EXACT)
    if name == "time_negative":
        expected = network[f"{name}.counterfactual.pair_before_step"]
        torch.testing.assert_close(stacked(changed[:-1]), expected, **EXACT)


def gap(dtype, leapfrog, steps, start=None, w=2.0):
    """The largest error of inverting and denoising again, and the other way round."""
    network, sampler = Network(dtype), Edict(leapfrog=leapfrog)
    levels, eps, x = (
        network.levels(steps, start=start),
        network.guided("prompt_source", "prompt_target", w),
        network["x"],
    )
    pair = sampler.denoise(*sampler.invert(x, x, eps, levels)[-1], eps, levels)[-1]
    there = max((stream - x).abs().max().item() for stream in pair)
    noise = network["plain.noise_start"]
    pair = sampler.invert(*sampler.denoise(noise, noise, eps, levels)[-1], eps, levels)[-1]
    return there, max((stream - noise).abs().max().item() for stream in pair)


@pytest.mark.parametrize("leapfrog", [True, False])
@pytest.mark.parametrize("steps, start", [(20, None), (7, None), (1, None), (50, 35), (50, 25), (33, 32)])
def test_round_trips_are_exact_for_any_number_of_steps(leapfrog, steps, start):
    there, _ = gap(torch.float64, leapfrog, steps, start)
    assert there <= 1e-12
    there, _ = gap(torch.float32, leapfrog, steps, start)
    assert there <= 1e-5


@pytest.mark.parametrize("leapfrog", [True, False])
def test_noise_is_found_again_too(leapfrog):
    assert gap(torch.float64, leapfrog, 20)[1] <= 1e-12


def test_float64_states_keep_the_inversion_of_a_float32_network_exact():
    network, sampler = Network(torch.float32), Edict(leapfrog=False)
    single, x = network.guided("prompt_source", "prompt_target", 4.0), network["x"].double()
    levels = network.levels(50, start=35)

    def eps(z, t):
        return single(z.float(), t).double()

    restored = sampler.denoise(*sampler.invert(x, x, eps, levels)[-1], eps, levels)[-1][0]
    assert (restored - x).abs().max() < 1e-6


@pytest.mark.parametrize(
    "sampler, start", [(Ddim(), lambda x: (x,)), (Edict(leapfrog=False), lambda x: (x, x))]
)
def test_what_is_not_exact_drifts(network, sampler, start):
    """DDIM's inversion; and EDICT where the inverse sampler is one level off, as the released code was."""
    shift = int(isinstance(sampler, Edict))
    levels, up = network.levels(50, start=35), network.levels(50, start=35, shift=shift)
    eps, x = network.guided("prompt_source", "prompt_target", 1.0), network["x"]
    restored = sampler.denoise(*sampler.invert(*start(x), eps, up)[-1], eps, levels)[-1][0]
    assert (restored - x).square().mean().sqrt() > 1e-3
    assert all(high.alpha_bar < low.alpha_bar for low, high in zip(levels[1:], up[1:])) == bool(shift)


def test_one_step_is_the_thesiss_equation(network):
    (level,) = network.levels(20)[7:8]
    x, y, p = network["x"], network["plain.noise_start"], 0.9
    eps = network.guided("cond", "uncond", 1.5)
    a = (level.below / level.alpha_bar) ** 0.5
    b = (1 - level.below) ** 0.5 - (level.below * (1 - level.alpha_bar) / level.alpha_bar) ** 0.5
    x_inter = a * x + b * eps(y, level.t)
    y_inter = a * y + b * eps(x_inter, level.t)
    x_next = p * x_inter + (1 - p) * y_inter
    y_next = p * y_inter + (1 - p) * x_next
    made = Edict(p, leapfrog=False).denoise_step(x, y, eps, level)
    torch.testing.assert_close(torch.stack(made), torch.stack([x_next, y_next]), rtol=0, atol=1e-14)
    back = Edict(p, leapfrog=False).invert_step(x_next, y_next, eps, level)
    torch.testing.assert_close(torch.stack(back), torch.stack([x, y]), rtol=0, atol=1e-13)


def test_leapfrog_swaps_the_roles_of_the_streams_in_every_other_step(network):
    level, eps = network.levels(20)[7], network.guided("cond", "uncond", 1.5)
    x, y = network["x"], network["plain.noise_start"]
    even, odd = Edict(p=1.0).denoise_step(x, y, eps, level, 0), Edict(p=1.0).denoise_step(y, x, eps, level, 1)
    assert torch.equal(even[0], odd[1]) and torch.equal(even[1], odd[0])
    assert not torch.equal(even[0], Edict(p=1.0).denoise_step(x, y, eps, level, 1)[0])


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, float("nan")])
def test_a_mixing_coefficient_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match="expected the mixing coefficient 0 < p <= 1"):
        Edict(p=p)


@pytest.mark.parametrize(
    "steps, start, message",
    [(0, None, "expected 1 to 1000 steps"), (1001, None, "trained with 1000"), (20, 21, "tau = 21 with steps = 20"), (20, 0, "tau = 0")],
)  # fmt: skip
def test_levels_that_the_chain_does_not_have_are_refused(network, steps, start, message):
    with pytest.raises(ValueError, match=message):
        network.levels(steps, start=start)
