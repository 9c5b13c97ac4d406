"""SVCE: the recorded linear oracle, its properties, Frank-Wolfe, the search over radii, the counts, the errors."""

import math

import pytest
import torch
from models import fixture
from torch import nn
from toys import Brightness, Broken, Small, bright, images

from cfx_lib import SVCE
from cfx_lib.methods.frank_wolfe import Best, checkpoints, linear_oracle
from cfx_lib.types import NoiseTape

pytestmark = pytest.mark.filterwarnings("ignore:images .* are already given their target class")

# ------------------------------------------------------------------------------------------------ linear oracle


@pytest.mark.parametrize("number", range(5))
def test_the_linear_oracle_agrees_with_the_reference_and_the_optimum(number):
    t, meta = fixture("svce_linear_oracle")
    case = meta["cases"][number]
    x, w = t[f"case{number}.x"], t[f"case{number}.w"]
    delta = linear_oracle(w, x, case["eps"], case["p"])
    for name in ("delta_reference", "delta_optimal"):
        torch.testing.assert_close(delta, t[f"case{number}.{name}"], rtol=1e-7, atol=1e-9)
    reached = (w * delta).flatten(1).sum(1)
    torch.testing.assert_close(reached, t[f"case{number}.objective_optimal"], rtol=1e-9, atol=0)
    norm = torch.linalg.vector_norm(delta.flatten(1), ord=case["p"], dim=1)
    torch.testing.assert_close(norm, t[f"case{number}.norm_reference"], rtol=1e-9, atol=0)
    single = linear_oracle(w.float(), x.float(), case["eps"], case["p"])
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, delta.float(), rtol=1e-4, atol=1e-6)


def problem(seed=0, n=6, shape=(3, 5, 5)):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    x = torch.rand(n, *shape, generator=g, dtype=torch.float64)
    return w, (1.4 * x - 0.2).clamp(0, 1)  # some pixels lie at the walls


@pytest.mark.parametrize("p", [1.1, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("eps", [0.05, 1.0, 3.0, 100.0])
def test_the_oracle_stays_in_ball_and_box_and_beats_random_points(p, eps):
    w, x = problem()
    delta = linear_oracle(w, x, eps, p)
    norm = torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
    assert (norm <= eps * (1 + 1e-9)).all()
    assert (x + delta >= -1e-12).all() and (x + delta <= 1 + 1e-12).all()
    corner = torch.where(w > 0, 1 - x, -x)
    whole = torch.linalg.vector_norm(corner.flatten(1), ord=p, dim=1) <= eps
    assert torch.equal(delta[whole], corner[whole])
    torch.testing.assert_close(norm[~whole], torch.full_like(norm[~whole], eps))
    best, g = (w * delta).flatten(1).sum(1), torch.Generator().manual_seed(1)
    for spread in (0.01, 0.3, 3.0):
        for start in (delta, torch.zeros_like(delta)):
            other = start + spread * torch.randn(delta.shape, generator=g, dtype=torch.float64)
            other = (x + other).clamp(0, 1) - x
            length = torch.linalg.vector_norm(other.flatten(1), ord=p, dim=1)
            other = other * (eps / length).clamp(max=1)[:, None, None, None]
            assert ((w * other).flatten(1).sum(1) <= best + 1e-9).all()


def test_the_oracle_depends_on_the_direction_alone_and_leaves_zeros_alone():
    w, x = problem()
    w[:, :, 0] = 0
    w[5] = 0
    delta = linear_oracle(w, x, 1.0)
    assert (delta[:, :, 0] == 0).all() and (delta[5] == 0).all() and torch.isfinite(delta).all()
    for size in (1e-12, 1e12):
        torch.testing.assert_close(linear_oracle(size * w, x, 1.0), delta)
    centred = linear_oracle(w, 2 * x - 1, 2.0, low=-1.0, high=1.0)
    torch.testing.assert_close(centred, 2 * delta)


@pytest.mark.parametrize("arguments", [{"p": 1.0}, {"eps": 0.0}, {"x": torch.zeros(2, 4)}])
def test_an_oracle_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="expected p > 1, eps > 0 and equal shapes"):
        linear_oracle(**{"w": torch.ones(2, 3), "x": torch.zeros(2, 3), "eps": 1.0} | arguments)


# -------------------------------------------------------------------------------------------------- Frank-Wolfe


class Linear(nn.Module):
    """Two classes with the margin <w, x>, whose gradient points along w everywhere."""

    num_classes = 2

    def __init__(self, slope=1.0):
        super().__init__()
        self.w = nn.Parameter(slope * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        logit = (x * self.w).sum((1, 2, 3))
        return torch.stack([-logit / 2, logit / 2], 1)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("radius", [0.3, 2.0, 1000.0])
def test_a_linear_classifier_is_taken_to_the_extreme_point(radius, random_start):
    classifier, x = Linear(0.01), images()
    method = SVCE(classifier, radius, iterations=10, confidence=1.0, random_start=random_start)
    result = method.explain(x, bright(), progress=False)
    delta = linear_oracle(classifier.w.detach().expand(3, -1, -1, -1), (x + 1) / 2, radius)
    torch.testing.assert_close(result.x_cf, (x + 2 * delta).clamp(-1, 1), rtol=0, atol=1e-5)
    norm = torch.linalg.vector_norm(delta.flatten(1), ord=1.5, dim=1)
    torch.testing.assert_close(result.extra["norm"], norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.logits_after, classifier(result.x_cf).detach())


def test_the_first_step_goes_all_the_way_to_the_extreme_point():
    classifier, x, target = Small(0), images(), torch.tensor([0, 1, 2])
    steps = SVCE(classifier, 2.0, iterations=2).explain(x, target, record=True, progress=False).steps
    assert len(steps) == 2
    torch.testing.assert_close(steps[0].z, x)
    leaf = x.clone().requires_grad_()
    log_p = classifier(leaf).log_softmax(1).gather(1, target[:, None]).sum()
    torch.testing.assert_close(steps[0].class_grad, -torch.autograd.grad(log_p, leaf)[0])
    extreme = x + 2 * linear_oracle(-steps[0].class_grad, (x + 1) / 2, 2.0)  # gamma_0 = 2 / (2 + 0)
    torch.testing.assert_close(steps[1].z, extreme, rtol=0, atol=1e-6)


class Wavy(nn.Module):
    """Three classes that alternate along a random direction, so that a long step may make things worse."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.fc = nn.Linear(192, 3)

    def forward(self, x):
        return 3 * torch.sin(12 * self.fc(x.flatten(1)))


def test_the_whole_attack_is_the_algorithm():
    classifier, x, target, n, smallest = Wavy(), images(), torch.tensor([0, 1, 2]), 40, []
    method = SVCE(classifier, 2.0, iterations=n, confidence=1.0)
    steps = method.explain(x, target, record=True, progress=False).steps
    for row in range(3):  # image by image, in plain Python
        u = (x[row : row + 1] + 1) / 2
        u_k, m, M, seen, reduced, marked, mark = u, None, 2.0, [], True, -math.inf, 0
        for k in range(n):
            torch.testing.assert_close(steps[k].z[row : row + 1], 2 * u_k - 1, rtol=0, atol=1e-4)
            leaf = (2 * u_k - 1).requires_grad_()
            value = classifier(leaf).log_softmax(1)[0, target[row]]
            (g,) = torch.autograd.grad(value, leaf)
            seen.append((value.item(), u_k, g))
            if k in set(checkpoints(n)):
                values = [entry[0] for entry in seen]
                rises = sum(b > a for a, b in zip(values[mark:], values[mark + 1 :]))
                top = max(seen, key=lambda entry: entry[0])
                reduced = rises < 0.75 * (k - mark) or (not reduced and top[0] <= marked)
                marked, mark = top[0], k
                if reduced:
                    M, u_k, g = 0.75 * M, top[1], top[2]
            m = g if m is None else 0.9 * m + 0.1 * g
            with torch.no_grad():
                u_k = u_k + M / (2 + math.sqrt(k)) * (u + linear_oracle(m, u, 2.0) - u_k)
        smallest.append(M)
    assert min(smallest) < 1.2  # the steps were shortened more than once


def test_checkpoints_come_closer():
    assert list(checkpoints(75)) == [16, 30, 42, 52, 60, 66, 70, 74]
    assert list(checkpoints(1)) == [1] and max(checkpoints(40)) <= 40


def test_an_image_is_stuck_after_few_rises_or_when_its_best_is_old():
    best = Best(torch.zeros(2, 1, 1, 1))

    def see(*rows):
        for values in rows:
            u = torch.tensor(values)[:, None, None, None]
            best.see(u, 10 * u, torch.tensor(values))

    see([0.0, 0.0], [1.0, -1.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0])  # 4 rises of 4, and 1 of 4
    assert best.judge(4).tolist() == [False, True]
    assert best.value.tolist() == [4.0, 3.0] and best.gradient.flatten().tolist() == [40.0, 30.0]
    see([1.0, 0.0], [2.0, 0.5], [3.0, 0.6], [3.5, 0.7])  # both rise, but neither gets beyond its best
    assert best.judge(4).tolist() == [True, False]  # the second one was stuck at the last mark already


# ------------------------------------------------------------------------------------------ radii, noise, counts


def test_the_smallest_radius_that_is_enough_is_taken_and_else_the_most_confident():
    x = images(4)
    x[3] = 0.5  # bright already
    method = SVCE(Brightness(8.0), (1.0, 4.0, 8.0), iterations=6)
    with pytest.warns(UserWarning, match=r"images \[3\] are already"):
        result = method.explain(x, bright(4), progress=False)
    alone = [
        SVCE(Brightness(8.0), radius, iterations=6, confidence=1.0).explain(x[:3], bright(), progress=False)
        for radius in (1.0, 4.0, 8.0)
    ]
    for row in range(3):
        reached = [r.extra["confidence"][row].item() for r in alone]
        chosen = next((k for k, c in enumerate(reached) if c > 0.9), reached.index(max(reached)))
        assert result.extra["radius"][row] == (1.0, 4.0, 8.0)[chosen]
        torch.testing.assert_close(result.x_cf[row], alone[chosen].x_cf[row])
    assert result.extra["radius"][3] == 1.0 and (result.extra["radius"][:3] > 1.0).all()
    assert result.extra["already"].tolist() == [False] * 3 + [True]
    assert (result.extra["norm"] <= result.extra["radius"] * (1 + 1e-5)).all()


def test_calls_are_counted_for_the_images_that_a_radius_was_tried_on():
    x = images(4)
    x[3] = 0.5
    method = SVCE(Brightness(8.0), (1.0, 1.5), iterations=6)
    with pytest.warns(UserWarning):
        result = method.explain(x, bright(4), record=True, progress=False)
    assert result.cost.denoiser_calls == 0
    assert result.cost.classifier_calls == 4 + 4 * (6 + 2) + 3 * (6 + 2)
    assert [step.rows.tolist() for step in result.steps if step.i == 0] == [[0, 1, 2, 3], [0, 1, 2]]
    assert [step.attempt for step in result.steps] == [0] * 6 + [1] * 6


def test_the_noise_is_one_draw_a_radius_and_only_with_a_random_start():
    x, g = images(), torch.Generator().manual_seed(0)
    noise = NoiseTape([torch.randn(x.shape, generator=g) for _ in range(2)])
    method = SVCE(Small(0), (0.5, 1.0), iterations=3, confidence=1.0, random_start=True)
    result = method.explain(x, torch.tensor([0, 1, 2]), noise=noise, record=True, progress=False)
    assert noise.exhausted
    u = (x + 1) / 2
    for attempt, radius in enumerate((0.5, 1.0)):
        start = u + linear_oracle(noise._draws[attempt], u, radius)
        torch.testing.assert_close((result.steps[3 * attempt].z + 1) / 2, start)
    plain = SVCE(Small(0), 0.5, iterations=3)
    plain.explain(x, torch.tensor([0, 1, 2]), noise=NoiseTape([]), progress=False)


def test_an_image_does_not_depend_on_its_batch():
    x, target = images(4), torch.tensor([0, 1, 2, 0])
    method = SVCE(Small(0), (0.5, 2.0, 4.0), iterations=12, confidence=0.6, random_start=True)
    together = method.explain(x, target, seed=5, progress=False)
    assert len(set(together.extra["radius"].tolist())) > 1
    for k in range(4):
        alone = method.explain(x[k : k + 1], target[k : k + 1], seed=5, progress=False)
        torch.testing.assert_close(alone.x_cf[0], together.x_cf[k], rtol=0, atol=1e-5)
    other = method.explain(x, target, seed=6, progress=False)
    assert not torch.equal(other.x_cf, together.x_cf)


def test_gradients_that_are_nan_or_zero_are_left_out_and_counted():
    x, target = images(), torch.tensor([0, 1, 2])
    method = SVCE(Broken(Small(0), torch.tensor([0, 1, 2])), 2.0, iterations=8, confidence=1.0)
    result = method.explain(x, target, progress=False)
    assert result.extra["degenerate"].tolist() == [0, 9, 9]
    torch.testing.assert_close(result.x_cf[1:], x[1:])
    fine = SVCE(Small(0), 2.0, iterations=8, confidence=1.0).explain(x, target, progress=False)
    torch.testing.assert_close(result.x_cf[0], fine.x_cf[0])


# ------------------------------------------------------------------------------------------------ settings, care


def test_presets_hold_the_numbers_of_the_papers():
    paper = SVCE.preset("paper/imagenet", None)
    assert (paper.radii, paper.p, paper.confidence) == ((50, 75, 100, 150), 1.5, 0.9)
    assert (paper.iterations, paper.random_start) == (75, False)
    released = SVCE.preset("released/imagenet", None)
    assert (released.radii, released.iterations, released.random_start) == ((150,), 75, True)
    for name, values, times in (("fast", 3 * 64**2, 1), ("fast/fashion", 32**2, 2.78)):
        scale = times * (values / (3 * 224**2)) ** (2 / 3)
        expected = [scale * radius for radius in paper.radii]
        assert SVCE.preset(name, None).radii == pytest.approx(expected, rel=0.03)
    with pytest.raises(ValueError, match="unknown preset 'paper' of SVCE"):
        SVCE.preset("paper", None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"radii": ()}, r"radii = \(\); expected one or more"),
        ({"radii": (5.0, -1.0)}, r"radii = \(5.0, -1.0\)"),
        ({"p": 1.0}, "p = 1.0; expected a finite number above 1"),
        ({"iterations": 0}, "iterations = 0"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"confidence": 1.5}, "confidence = 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SVCE(None, **settings)


def test_the_classifier_is_restored_and_the_input_unchanged():
    classifier, x = Small(0).train(), images()
    before = x.clone()
    with torch.inference_mode():
        SVCE(classifier, 1.0, iterations=2).explain(images(), bright(), progress=False)
    result = SVCE(classifier, 1.0, iterations=2).explain(x, bright(), seed=1, progress=False)
    assert classifier.training and classifier.fc.weight.requires_grad and classifier.fc.weight.grad is None
    assert torch.equal(x, before) and not result.x_cf.requires_grad
