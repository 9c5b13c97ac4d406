"""Blended Diffusion: its loss and loop written a second time, the search over weights, masks, counts, errors."""

import pytest
import torch
from torch import nn
from toys import Brightness, Broken, GaussianDenoiser, Small, Untouched, bright, images

from cfx_lib import BlendedDiffusion
from cfx_lib.diffusion import Diffusion
from cfx_lib.methods.augment import Augment
from cfx_lib.methods.blended import WEIGHTS
from cfx_lib.methods.guidance import lpips_distance
from cfx_lib.methods.search import first_confident
from cfx_lib.types import Noise, NoiseTape

pytestmark = pytest.mark.filterwarnings("ignore:images .* are already given their target class")


class Network(nn.Module):
    """A feature network with two maps."""

    name = "two maps"

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, x):
        first = torch.tanh(self.first(x))
        return [first, self.second(first)]


def toy(classifier=None, **settings):
    settings = {"steps": 20, "start": 6, "weights": ((5.0, 2.0),), "perceptual": Network()} | settings
    return BlendedDiffusion(GaussianDenoiser(), classifier or Small(0), **settings)


def targets():
    return torch.tensor([0, 1, 2])


# ---------------------------------------------------------------------------------- the algorithm, independently


def textbook(method, x, target, noise, weights):
    """Algorithm 2 of Avrahami et al. with the classifier's log-probability, as a loop over one loss."""
    (C_c, C_d), mask = weights, torch.ones_like(x) if method.mask is None else method.mask.expand_as(x)
    diffusion = Diffusion(method.denoiser, method.denoiser.betas, method.steps, method.denoiser.learned_range)
    x_t = diffusion.q_sample(x, method.start - 1, noise.draw(x))
    for i in reversed(range(method.start)):
        leaf = x_t.detach().requires_grad_()
        p = diffusion.p_mean_variance(leaf, i, clip=False)
        fac = (1 - diffusion.alpha_bar[i].item()) ** 0.5
        image = p.x0_hat * fac + leaf * (1 - fac) if method.seen == "blend" else p.x0_hat
        loss = -C_c * method.classifier(image).log_softmax(1).gather(1, target[:, None]).sum()
        loss = loss + C_d * lpips_distance(method.perceptual(image), method.perceptual(x)).sum()
        loss = loss + method.l2_ratio * C_d * ((image - x) ** 2).mean((1, 2, 3)).sum()
        excess = torch.relu(p.x0_hat - 1) + torch.relu(-1 - p.x0_hat)
        loss = loss + method.lambda_range * (excess**2).mean((1, 2, 3)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            x_0, x_t = p.x0_hat, p.mean - p.variance * gradient
            x_t = x_t + (i > 0) * (0.5 * p.log_variance).exp() * noise.draw(x)
            if method.mask is not None:
                x_t = mask * x_t + (1 - mask) * (diffusion.q_sample(x, i - 1, noise.draw(x)) if i else x)
    x_cf = (x_0 if method.output == "x0_hat" else x_t).clamp(-1, 1)
    return x_cf * mask + x * (1 - mask)


def left(size=8):
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seen": "x0_hat"},
        {"output": "sample"},
        {"mask": left()},
        {"l2_ratio": 0.0, "lambda_range": 900.0},
    ],
)
def test_the_loop_is_the_algorithm(settings):
    method, x = toy(**settings), 1.5 * images()
    x = x.clamp(-1, 1)
    result = method.explain(x, targets(), seed=3, progress=False)
    expected = textbook(method, x, targets(), Noise(3).bind(x), (5.0, 2.0))
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-5)


def test_nothing_changes_outside_the_mask():
    x = images()
    result = toy(mask=left()).explain(x, targets(), record=True, progress=False)
    assert torch.equal(result.x_cf[..., 4:], x[..., 4:]) and not torch.equal(result.x_cf[..., :4], x[..., :4])
    diffusion, noise = Diffusion(None, GaussianDenoiser().betas, 20), Noise(0).bind(x)
    for _ in range(2):
        noise.draw(x)
    expected = diffusion.q_sample(x, 4, noise.draw(x))  # the state after the first step
    torch.testing.assert_close(result.steps[1].z[..., 4:], expected[..., 4:])


def test_the_gradients_keep_their_own_length():
    x = images()
    first = [
        toy(weights=((C_c, C_d),)).explain(x, targets(), record=True, progress=False).steps[0]
        for C_c, C_d in ((5.0, 1.0), (10.0, 1.0), (5.0, 3.0))
    ]
    torch.testing.assert_close(first[1].class_grad, 2 * first[0].class_grad)
    torch.testing.assert_close(first[2].class_grad, first[0].class_grad)
    assert (first[2].dist_grad.norm() > 2 * first[0].dist_grad.norm()) and first[0].attempt == 0


# ----------------------------------------------------------------------------------------------------- the search


def test_the_search_takes_the_first_that_is_enough_and_else_the_most_confident():
    # three images, three settings: the classifier reads its confidence from the image itself
    table = torch.tensor([[0.3, 0.95, 0.99], [0.8, 0.5, 0.7], [0.91, 0.0, 0.0]])
    tried = []

    def attempt(k, rows):
        tried.append(rows.tolist())
        return table[rows, k].logit()[:, None, None, None].expand(-1, 1, 2, 2).clamp(-9, 9)

    def classifier(x):
        return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3))], 1)

    x = torch.zeros(3, 1, 2, 2)
    found = first_confident(attempt, 3, x, bright(), classifier, 0.9)
    assert tried == [[0, 1, 2], [0, 1], [1]] and found.chosen.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.confidence, torch.tensor([0.95, 0.8, 0.91]))
    torch.testing.assert_close(found.logits, classifier(found.x_cf))


def test_each_pair_of_weights_starts_from_the_same_state_and_only_for_images_that_need_it():
    x = images(4)
    x[2] = 0.9
    weights = ((0.0, 0.0), (20.0, 0.0), (400.0, 0.0))
    method = toy(Brightness(), weights=weights, confidence=0.7, lambda_range=0.0)
    with pytest.warns(UserWarning, match=r"images \[2\] are already"):
        result = method.explain(x, bright(4), record=True, progress=False)
    first = {step.attempt: step for step in result.steps if step.i == 5}
    for step in first.values():
        assert torch.equal(step.z, first[0].z[step.rows])
    assert 2 not in first[1].rows and len(first) == 3
    assert result.cost.denoiser_calls == 6 * sum(len(step.rows) for step in first.values())
    calls = 4 + sum(7 * len(step.rows) for step in first.values())
    assert result.cost.classifier_calls == calls
    chosen = result.extra["weights"]
    assert chosen.shape == (4, 2) and chosen[2].tolist() == [0, 0] and (chosen[:, 0] > 0).any()
    assert torch.equal(result.extra["confidence"], result.logits_after.softmax(1)[:, 1])


def test_draws_are_taken_in_the_documented_order():
    x, g = images(), torch.Generator().manual_seed(0)
    step = [(3, 1, 14), x.shape, x.shape]  # the views' numbers, the state, x outside the mask
    shapes = [x.shape] + 2 * (3 * step + step[:2])
    noise = NoiseTape([torch.randn(shape, generator=g) for shape in shapes])
    method = toy(start=4, augment=Augment(2), mask=left(), weights=WEIGHTS[:2], confidence=1.0)
    method.explain(x, targets(), noise=noise, progress=False)
    assert noise.exhausted


def test_calls_are_counted():
    result = toy(augment=Augment(3), weights=((5.0, 1.0), (6.0, 1.0)), confidence=1.0).explain(
        images(), targets(), progress=False
    )
    assert result.cost.denoiser_calls == 3 * 2 * 6
    assert result.cost.classifier_calls == 3 * (1 + 2 * (6 * 3 + 1))


def test_the_explanation_of_an_image_does_not_depend_on_its_batch():
    x, target = images(4), torch.tensor([0, 1, 2, 0])
    weights = ((0.0, 0.0), (100.0, 0.0), (300.0, 0.0))
    method = toy(weights=weights, confidence=0.5, augment=Augment(2), lambda_range=0.0)
    together = method.explain(x, target, seed=5, progress=False)
    assert len(set(together.extra["weights"][:, 0].tolist())) > 1
    for k in range(4):
        alone = method.explain(x[k : k + 1], target[k : k + 1], seed=5, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-4)


def test_gradients_that_are_nan_or_zero_are_left_out_and_counted():
    x, kind = images(), torch.tensor([0, 1, 2])
    result = toy(Broken(Small(0), kind)).explain(x, targets(), progress=False)
    assert result.extra["degenerate"]["target"].tolist() == [0, 6, 6]
    assert result.extra["degenerate"]["distance"].tolist() == [0, 0, 0]
    fine, plain = (toy(weights=((C_c, 2.0),)).explain(x, targets(), progress=False) for C_c in (5.0, 0.0))
    torch.testing.assert_close(result.x_cf[0], fine.x_cf[0])
    torch.testing.assert_close(result.x_cf[1:], plain.x_cf[1:])


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_papers():
    paper = BlendedDiffusion.preset("paper/imagenet", None, None)
    assert len(paper.weights) == 6 and paper.weights == tuple(sorted(paper.weights))
    assert (paper.l2_ratio, paper.confidence, paper.mask) == (10, 0.9, None)
    released = BlendedDiffusion.preset("released/imagenet", None, None)
    assert released.weights == ((25, 1000),) and (25, 1000) in paper.weights
    assert (released.steps, released.start, released.lambda_range) == (100, 75, 50)
    for name in ("fast", "fast/fashion"):
        method = BlendedDiffusion.preset(name, None, None)
        assert (
            len(method.weights) == 6
            and method.weights == tuple(sorted(method.weights))
            and method.steps == 50
        )
    with pytest.raises(
        ValueError, match="unknown preset 'fastest' of BlendedDiffusion; expected one of: paper"
    ):
        BlendedDiffusion.preset("fastest", None, None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weights": ()}, r"weights = \(\); expected one or more pairs"),
        ({"weights": ((1.0, -1.0),)}, "weights = "),
        ({"weights": ((1.0, 2.0, 3.0),)}, "weights = "),
        ({"lambda_range": -1.0}, "lambda_range = -1.0"),
        ({"confidence": 2.0}, "confidence = 2.0"),
        ({"seen": "x_t"}, "seen = 'x_t'; expected one of: 'blend', 'x0_hat'"),
        ({"output": "mean"}, "output = 'mean'"),
        ({"start": 21}, "start = 21 with steps = 20"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy(**settings)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask": torch.ones(2, 1, 8, 8)}, "mask has shape"),
        ({"augment": Augment(2, blur=11)}, "a kernel of 11x11, x has images of 8x8 pixels"),
        ({"target": bright() + 2}, "target has the class 3; the classifier has classes 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_denoiser_is_called(change, message):
    given = {"x": images(), "target": bright()} | change
    x, target = given.pop("x"), given.pop("target")
    settings = {"denoiser": Untouched(), "classifier": Small(0), "perceptual": False, "steps": 20, "start": 6}
    with pytest.raises(ValueError, match=message):
        BlendedDiffusion(**settings | given).explain(x, target, progress=False)


def test_the_network_is_reported_and_its_absence_too():
    assert toy().explain(images(), targets(), progress=False).extra["perceptual"] == "two maps"
    assert toy(perceptual=False).explain(images(), targets(), progress=False).extra["perceptual"] == "none"
    with pytest.warns(UserWarning, match="no network for the perceptual term"):
        toy(perceptual=None).explain(images(), targets(), progress=False)


def test_models_are_restored_also_after_an_exception():
    method, x = toy(Small(0).train()), images()
    method.explain(x, targets(), progress=False)
    with pytest.raises(IndexError, match="noise tape is used up"):
        method.explain(x, targets(), noise=NoiseTape([x]), progress=False)
    for model in (method.classifier, method.perceptual):
        assert all(module.training for module in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
