"""The one-page report: complete, self-contained, and not to be had without tests and limits."""

import re
from dataclasses import replace

import pytest
import torch

from cfx_lib import PGD, metrics, zoo
from cfx_lib.page import write_page

VALUE = metrics.rate(torch.tensor([True, True, False]))
TEST = {"hypothesis": "a <b>frown</b>", "test": "rendered", "effect": VALUE, "verdict": "holds"}


@pytest.fixture(scope="module")
def explained():
    weight = torch.linspace(-1, 1, 3 * 64).view(-1, 1)
    clf = zoo.wrap(lambda x: x.flatten(1) @ weight, 2, names=("young", "old"))
    method = PGD(clf, iterations=2)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return method, method.explain(x, 1 - clf.predict(x), progress=False)


def page(path, explained, **changes):
    method, result = explained
    words = {
        "title": "What & why", "classifier": "mine", "data": "four images", "method": method, "names": ("young", "old"),
        "figures": {"right": VALUE}, "reading": "it frowns", "tests": [TEST], "limits": ["one training <only>"],
    }  # fmt: skip
    return write_page(path, result, **words | changes)


def test_the_page_says_all_and_needs_no_other_file(tmp_path, explained):
    path = page(tmp_path / "new" / "report.html", explained, images=(0, 2), seeds=[explained[1].x_cf[:2]])
    text = path.read_text("utf-8")
    for said in (
        "What &amp; why",
        "mine",
        "four images",
        "PGD",
        "iterations 2",
        "it frowns",
        "one training &lt;only&gt;",
    ):
        assert said in text
    assert str(VALUE) in text and "a &lt;b&gt;frown&lt;/b&gt;" in text and "holds" in text and "torch" in text
    assert text.count('src="data:image/png;base64,') == 2 * 4  # input, counterfactual, change, one more seed
    assert not re.search(r'(src|href)="(?!data:)', text) and "seed 1" in text and "2 seeds" in text
    assert not list(tmp_path.rglob("*.part"))


def test_the_control_column_is_there_only_when_it_was_measured(tmp_path, explained):
    assert "<th>control</th>" not in page(tmp_path / "a.html", explained).read_text("utf-8")
    with_control = page(tmp_path / "b.html", explained, tests=[TEST | {"control": VALUE}])
    assert "<th>control</th>" in with_control.read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tests": []}, "a report without tests says more than is known"),
        ({"figures": {}}, "without figures"),
        ({"limits": []}, "without limits"),
        ({"images": ()}, "without images"),
        ({"figures": {"right": 0.9}}, "the figure 'right' is 0.9; expected a metrics.Value"),
        ({"tests": [{"hypothesis": "a frown"}]}, "a test without test, effect, verdict"),
        ({"images": (4,)}, "expected rows of the result, 0 to 3"),
        ({"names": ("young",)}, "1 names for targets up to 1"),
        ({"seeds": [torch.zeros(2, 3, 8, 8)]}, "another seed have another shape"),
    ],
)
def test_what_a_reader_must_be_told_cannot_be_left_out(tmp_path, explained, changes, said):
    with pytest.raises(ValueError, match=said):
        page(tmp_path / "report.html", explained, **changes)
    assert not list(tmp_path.iterdir())


def test_a_black_box_has_no_probabilities(tmp_path, explained):
    method, result = explained
    text = page(
        tmp_path / "r.html", (method, replace(result, logits_before=None, logits_after=None))
    ).read_text("utf-8")
    assert "· P " not in text
