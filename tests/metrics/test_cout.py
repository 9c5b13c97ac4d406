"""COUT against the recorded curves, a plain loop and edits whose score is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_classifier, tiny_network
from torch import nn
from toys import Brightness, Small, images

from cfx_lib.metrics.transition import change_mask, cout, transition_curves

quick = settings(deadline=None, max_examples=12, derandomize=True)


def pair(seed, n=4, size=6):
    x = torch.rand(2, n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x[0], x[1]


def plain(x, x_cf, source, target, classifier, steps):
    """COUT of one image by the words of the paper: sort, insert, ask, add up trapezoids of true width."""
    mask = (x - x_cf).double().abs().sum(0).flatten().numpy()
    order = np.argsort(-mask, kind="stable")
    batch, chances, widths = max(1, len(order) // steps), [], [0.0]
    for k in [*range(0, len(order), batch), len(order)]:
        mixed = x.flatten(1).clone()
        mixed[:, order[:k]] = x_cf.flatten(1)[:, order[:k]]
        with torch.no_grad():
            chances.append(classifier(mixed.view_as(x)[None]).double().softmax(1)[0].numpy())
        widths.append(k / len(order))
    gap = np.array(chances)[:, target] - np.array(chances)[:, source]
    return ((gap[1:] + gap[:-1]) / 2 * np.diff(widths[1:])).sum()


@pytest.mark.parametrize(("name", "steps"), [("default_step", 50), ("other_step", 32)])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_recorded_curves_and_areas(fixture, name, steps, kind):
    tensors, meta = fixture("11_metrics_cout")
    x, x_cf, recorded = tensors["x"], tensors["cf"], f"{name}.{kind}."
    if kind == "binary":
        classifier = tiny_classifier(tensors)
        target, source = 1 - classifier.predict(x), None
    else:
        classifier = tiny_network(tensors, "classifier_mc")
        source = torch.full((4,), meta["hyperparameters"]["multiclass_label_c"])
        target = torch.full((4,), meta["hyperparameters"]["multiclass_target_c_prime"])
    curves = transition_curves(x, x_cf, target, classifier, source, steps)
    torch.testing.assert_close(curves.source.float(), tensors[recorded + "c_curve"], atol=1e-5, rtol=0)
    torch.testing.assert_close(curves.target.float(), tensors[recorded + "c_prime_curve"], atol=1e-5, rtol=0)
    torch.testing.assert_close(curves.fraction, tensors[recorded + "index"].clamp(max=1))
    # The released number gives every step the same width, also a shorter last one.
    width = meta["hyperparameters"][name] / 256
    released = torch.trapezoid(curves.target - curves.source, dx=width)
    torch.testing.assert_close(released, tensors[recorded + "cout_per_image"], atol=1e-5, rtol=0)
    assert released.mean().item() == pytest.approx(tensors[recorded + "cout_mean"].item(), abs=1e-5)
    value = cout(x, x_cf, target, classifier, source, steps)
    assert value.mean == pytest.approx(curves.scores.mean().item(), abs=1e-12)
    exact = 256 % meta["hyperparameters"][name] == 0
    assert (abs(value.mean - released.mean().item()) < 1e-12) == exact


def test_the_recorded_mask(fixture):
    tensors, _ = fixture("11_metrics_cout")
    mask = change_mask(tensors["x"], tensors["cf"])
    torch.testing.assert_close(mask.float()[:, None], tensors["mask_abs"], atol=1e-6, rtol=0)


@quick
@given(st.integers(0, 10**6), st.integers(1, 60), st.permutations(range(4)), st.integers(1, 9))
def test_equations_15_and_16(seed, steps, order, batch_size):
    x, x_cf = pair(seed)
    x_cf[:, :, :3] = x[:, :, :3]  # a part is pasted back
    classifier = Small(seed)
    target, source = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
    value = cout(x, x_cf, target, classifier, source, steps)
    expected = [plain(x[i], x_cf[i], int(source[i]), int(target[i]), classifier, steps) for i in range(4)]
    assert value.scores == pytest.approx(expected, abs=1e-6)
    assert -1 <= value.low <= value.mean <= value.high <= 1
    o = list(order)
    other = cout(x[o], x_cf[o], target[o], classifier, source[o], steps, batch_size=batch_size)
    assert other.scores == pytest.approx(value.scores[o], abs=1e-6)
    assert (other.mean, other.low, other.high) == pytest.approx((value.mean, value.low, value.high), abs=1e-6)
    swapped = cout(x, x_cf, source, classifier, target, steps)
    assert swapped.mean == pytest.approx(-value.mean, abs=1e-9)


class OnePixel(nn.Module):
    """Class 1 if the first pixel is bright, for certain; counts the images that it is asked about."""

    num_classes, name = 2, "one pixel"

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        return torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0]], 1) * 1e3


def test_edits_whose_score_is_known():
    x, target = -torch.ones(2, 3, 10, 10), torch.tensor([1, 1])
    first = x.clone()
    first[:, :, 0, 0] = 1.0
    first[:, :, 9, 9] = 0.9  # the decisive pixel changes most: it is inserted first
    late = x.clone()
    late[:, :, 0, 0], late[:, :, 9, 9] = 0.8, 1.0
    classifier = OnePixel()
    value = cout(x, first, target, classifier, steps=100)
    assert value.mean == pytest.approx(0.99) and value.backbone == "one pixel"  # a first step in between
    assert cout(x, late, target, classifier, steps=100).mean == pytest.approx(0.97)
    assert cout(x, late, target, classifier, steps=1).mean == pytest.approx(0.0)
    assert cout(x, torch.zeros_like(x) - 0.5, target, classifier).mean == -1.0


def test_an_image_that_does_not_change_scores_the_difference_of_its_probabilities():
    x = images(3)
    classifier = Brightness()
    target = torch.ones(3, dtype=torch.long)
    chances = classifier(x).detach().double().softmax(1)
    value = cout(x, x, target, classifier, torch.zeros(3, dtype=torch.long))
    assert value.scores == pytest.approx((chances[:, 1] - chances[:, 0]).numpy(), abs=1e-6)
    curves = transition_curves(x, x, target, classifier)
    assert curves.asked == 3 and (curves.target == curves.target[:, :1]).all()
    assert (change_mask(x, x) == 0).all()
    already = cout(x, x, chances.argmax(1), classifier)
    assert (already.scores == 0).all()  # source and target are the same class


def test_unchanged_pixels_are_not_asked_about_and_ties_are_in_reading_order():
    x = -torch.ones(1, 3, 8, 8)
    x_cf = x.clone()
    x_cf[:, :, 2, :4] = 0.0  # four equal changes
    classifier = OnePixel()
    curves = transition_curves(x, x_cf, torch.tensor([1]), classifier, steps=64)
    assert curves.asked == classifier.asked == 5 and curves.target.shape == (1, 65)
    seen = []

    def watch(z):
        seen.extend(z)
        return classifier(z)

    transition_curves(x, x_cf, torch.tensor([1]), watch, steps=64)
    inserted = [(z[0] > -1).nonzero().tolist() for z in seen]
    assert inserted == [[[2, c] for c in range(k)] for k in range(5)]


def test_a_tolerance_asks_less_and_says_nearly_the_same():
    x, x_cf = images(4, size=16), images(4, size=16, seed=1) + 0.3
    classifier, target = Brightness(100.0), torch.ones(4, dtype=torch.long)
    exact = transition_curves(x, x_cf.clamp(-1, 1), target, classifier)
    close = transition_curves(x, x_cf.clamp(-1, 1), target, classifier, tolerance=0.01)
    assert exact.asked == 4 * 53 and close.asked < 0.7 * exact.asked
    assert (close.target - exact.target).abs().max() < 0.02
    assert (close.scores - exact.scores).abs().max() < 0.01
    assert not torch.equal(close.target, exact.target)


def test_results_and_tensors_are_the_same(make_result):
    result, classifier = make_result(n=6), Small(num_classes=2).train()
    value = cout(result, classifier=classifier)
    assert value == cout(result.x, result.x_cf, result.target, classifier) and value.n == 6
    assert classifier.training and all(p.requires_grad for p in classifier.parameters())
    assert cout([result, make_result(n=2, seed=1)], classifier=classifier).n == 8
    source = torch.ones(6, dtype=torch.long)
    some = cout(result, classifier=classifier, source=source, where="flipped")
    all_ = cout(result, classifier=classifier, source=source)
    kept = result.flipped.numpy()
    assert (
        some.scores[kept] == pytest.approx(all_.scores[kept], abs=1e-6) and np.isnan(some.scores[~kept]).all()
    )


def test_nothing_selected_is_undefined(make_result):
    never = Brightness()
    never.forward = None  # must not be asked
    assert str(cout(make_result(flipped=[0] * 6), classifier=never, where="flipped")) == "undefined (n=0)"
    assert str(cout(make_result(x=torch.zeros(0, 3, 8, 8)), classifier=never)) == "undefined (n=0)"
    empty = transition_curves(make_result(x=torch.zeros(0, 3, 8, 8)), classifier=never)
    assert empty.target.shape[0] == 0 and empty.asked == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, t: cout(x, x, t), "no classifier"),
        (lambda x, t: cout(x, x, None, Brightness()), "no target"),
        (lambda x, t: cout(x, x[:2], t, Brightness()), "same images"),
        (lambda x, t: cout(x, x, t[:2], Brightness()), r"\(2,\) given, \(3,\) expected"),
        (lambda x, t: cout(x, x, t + 1, Brightness()), "0 to 1 expected"),
        (lambda x, t: cout(x, x, t + 2, Small().conv), "the classifier returned"),
        (lambda x, t: cout(x, x, t + 3, lambda z: Small()(z)), "0 to 2 expected"),
        (lambda x, t: cout(x, x, t, Brightness(), t + 5), "source"),
        (lambda x, t: cout(x, x, t, lambda z: z.mean((1, 2, 3))), "single logit"),
        (lambda x, t: cout(x, x, t, Brightness(), steps=0), "steps=0"),
        (lambda x, t: cout(x, x, t, Brightness(), tolerance=-1), "tolerance=-1"),
        (lambda x, t: cout(x * 100, x, t, Brightness()), "rescale"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(images(3), torch.ones(3, dtype=torch.long))


def test_a_result_with_another_target_is_refused(make_result):
    result = make_result()
    with pytest.raises(ValueError, match="pass the result alone"):
        cout(result, target=result.target, classifier=Brightness())
    with pytest.raises(ValueError, match="mixed shapes"):
        cout([result, make_result(size=4)], classifier=Brightness())
