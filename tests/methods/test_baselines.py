"""PGD in pixel space: Eq. 3.22 in closed form, the ball, the mask, the counts, the errors."""

import pytest
import torch
from torch import nn

from cfx_lib import PGD
from cfx_lib.methods.gradients import class_gradient


class Linear(nn.Module):
    """Two classes with the margin <w, x> + b, whose gradient is w everywhere."""

    num_classes = 2

    def __init__(self, size=6):
        super().__init__()
        w = torch.randn(3, size, size, generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w)

    def forward(self, x):
        logit = (x * self.w).sum((1, 2, 3))
        return torch.stack([-logit / 2, logit / 2], 1)


def images(n=4, size=6):
    return (torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)) / 2).clamp(-1, 1)


def attack(target=1, **settings):
    classifier = Linear()
    x = images()
    target = torch.full((4,), target)
    return PGD(classifier, **settings).explain(x, target, record=True, progress=False), classifier, x


@pytest.mark.parametrize("eps", [2, 4, 8])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("loss", ["log_prob", "logit"])
def test_a_linear_classifier_is_attacked_to_the_corner_of_the_ball(eps, target, loss):
    result, classifier, x = attack(target, eps=eps, loss=loss)
    direction = (2 * target - 1) * classifier.w.detach().sign()
    expected = (x + eps * 2 / 255 * direction).clamp(-1, 1)
    torch.testing.assert_close(result.x_cf, expected, rtol=0, atol=1e-6)
    margin = result.logits_after[:, 1] - result.logits_after[:, 0]
    torch.testing.assert_close(margin, (expected * classifier.w.detach()).sum((1, 2, 3)), rtol=0, atol=1e-4)
    assert torch.equal(result.flipped, (margin > 0) == bool(target))


def test_each_step_is_equation_3_22():
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))
    x, target = images(), torch.tensor([0, 1, 2, 0])
    mask = (torch.arange(6) < 3).float().expand(1, 1, 6, 6)
    method = PGD(classifier, eps=4, step_size=1.5, iterations=5, mask=mask)
    result = method.explain(x, target, record=True, progress=False)
    x_i = x
    for i in range(5):
        torch.testing.assert_close(result.steps[i].z, x_i)
        gradient, _ = class_gradient(classifier, x_i, target)
        x_i = x_i - mask * 1.5 * 2 / 255 * gradient.sign()
        x_i = torch.minimum(torch.maximum(x_i, x - 8 / 255), x + 8 / 255).clamp(-1, 1)
    torch.testing.assert_close(result.x_cf, x_i)


def test_nothing_changes_outside_the_mask_or_beyond_the_ball():
    mask = torch.zeros(4, 1, 6, 6)
    mask[:, :, :2] = 1
    result, _, x = attack(mask=mask, eps=8)
    assert torch.equal(result.x_cf[:, :, 2:], x[:, :, 2:])
    change = (result.x_cf - x).abs()
    assert change[:, :, :2].amax() > 0 and change.amax() <= 16 / 255 + 1e-6
    assert result.x_cf.abs().amax() <= 1


def test_calls_steps_and_the_interface():
    result, _, x = attack(iterations=7)
    assert result.cost.denoiser_calls == 0 and result.cost.classifier_calls == 4 * (1 + 7 + 1)
    assert len(result.steps) == 7 and torch.equal(result.steps[0].x_t, x)
    probability = torch.stack([step.probability for step in result.steps])
    assert (probability[1:] >= probability[:-1]).all()
    assert torch.equal(result.x_cf, attack(iterations=7)[0].x_cf)


def test_an_image_does_not_depend_on_its_batch():
    result, classifier, x = attack()
    for k in range(4):
        alone = PGD(classifier).explain(x[k : k + 1], torch.ones(1, dtype=torch.long), progress=False)
        torch.testing.assert_close(alone.x_cf[0], result.x_cf[k])


def test_the_classifier_is_restored_also_after_an_exception():
    classifier = Linear().train()
    PGD(classifier).explain(images(), torch.ones(4, dtype=torch.long), progress=False)
    assert classifier.training and classifier.w.requires_grad and classifier.w.grad is None
    with pytest.raises(ValueError, match="the classifier has classes 0 to 1"):
        PGD(classifier).explain(images(), torch.full((4,), 2), progress=False)
    assert classifier.training and classifier.w.requires_grad


def test_presets_and_settings():
    assert [PGD.preset(f"paper/eps{eps}", None).eps for eps in (2, 4, 8)] == [2, 4, 8]
    assert PGD.preset("paper/eps2", None, iterations=3).iterations == 3 and PGD(None).iterations == 50
    with pytest.raises(ValueError, match="unknown preset 'eps2' of PGD; expected one of: paper/eps2"):
        PGD.preset("eps2", None)
    with pytest.raises(ValueError, match="in 1/255 of the range"):
        PGD(None, eps=0)
    with pytest.raises(ValueError, match="iterations = 0"):
        PGD(None, iterations=0)
    with pytest.raises(ValueError, match="loss = 'l2'"):
        PGD(None, loss="l2")


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask has shape"):
        attack(mask=torch.ones(1, 1, 5, 6))
