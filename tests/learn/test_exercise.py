"""The exercise decorator: what it says, what it returns, and that it never stops a notebook."""

import sys

import pytest
import torch

from cfx_lib.learn import checks, exercise, hint, progress, solution
from cfx_lib.learn import exercise as exercise_function
from cfx_lib.learn.checks import Wrong, check, close, shaped
from cfx_lib.learn.exercise import OPEN, PASSED, WRONG, Message, judge

KEY = "99.1"


def mean_image(x, weight):
    return (x * weight.view(-1, 1, 1, 1)).sum(0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(checks, "_CHECKS", dict(checks._CHECKS))
    monkeypatch.setattr(sys.modules["cfx_lib.learn.exercise"], "_STATUS", {})

    @check(KEY, dots=2, minutes=4, hint="weights need `view`", reference=mean_image)
    def _(answer):
        x, weight = torch.randn(3, 2, 4, 4), torch.tensor([0.2, 0.3, 0.5])
        got = answer(x, weight)
        shaped(got, (2, 4, 4), "the mean image")
        close(got, mean_image(x, weight), "the weights are not used: a plain mean is not a weighted one")

    return checks.get(KEY)


def test_a_right_answer_is_kept(capsys):
    def answer(x, weight):
        return torch.einsum("nchw,n->chw", x, weight)

    assert exercise(KEY)(answer) is answer
    assert "Exercise 99.1 ●●○: passed" in capsys.readouterr().out


def test_not_attempted_is_said_kindly_and_the_library_goes_on(capsys):
    @exercise(KEY)
    def answer(x, weight):
        return ...

    assert answer is mean_image
    said = capsys.readouterr().out
    assert "not attempted yet" in said and "4 min" in said and 'hint("99.1")' in said


def test_a_wrong_answer_is_taught_and_the_library_goes_on(capsys):
    assert exercise(KEY)(lambda x, weight: x.mean(0)) is mean_image
    said = capsys.readouterr().out
    assert "not right yet" in said and "The weights are not used" in said


def test_an_answer_that_raises_is_explained_without_a_traceback(capsys):
    def answer(x, weight):
        return (x * weight).sum(0)

    assert exercise(KEY)(answer) is mean_image
    said = capsys.readouterr().out
    assert "raised RuntimeError" in said and "(x * weight).sum(0)" in said
    assert "x (3, 2, 4, 4)" in said and "weight (3,)" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x, weight: None, "None (is a `return` missing?)"),
        (lambda x, weight: (x, weight), "a tuple of 2 items"),
        (lambda x, weight: x, "has shape (3, 2, 4, 4), expected (2, 4, 4)"),
        (lambda x, weight: x.sum(0) / 0, "NaN or infinity"),
        (lambda x: x, "raised TypeError"),
        (lambda x, weight: undefined_name, "raised NameError"),  # noqa: F821
        (lambda x, weight: x.mul_(0).sum(0), "changes a tensor that it was given"),
        (torch.add, "raised RuntimeError"),
        (3, "should be a function"),
    ],
)
def test_every_kind_of_broken_answer_gets_a_message(registered, answer, said):
    kind, text = judge(registered, answer)
    assert kind == WRONG
    assert said in text


def test_a_check_that_cannot_use_the_value_says_what_was_expected():
    @check("99.2", dots=1, minutes=1, hint="", reference=lambda x: (x, x))
    def _(answer):
        a, b = answer(torch.zeros(2, 3))
        if a.shape != b.shape:
            raise Wrong("the two differ")

    kind, text = judge(checks.get("99.2"), lambda x: 1)
    assert kind == WRONG
    assert "returned 1 (int)" in text and "expected a tuple of 2 items (a tensor of shape (2, 3)" in text


def test_in_place_changes_are_allowed_where_the_check_says_so():
    @check("99.3", dots=1, minutes=1, hint="", reference=lambda x: x.add_(1), inplace=True)
    def _(answer):
        close(answer(torch.zeros(2)), torch.ones(2), "no")

    assert judge(checks.get("99.3"), lambda x: x.add_(1))[0] == PASSED


def test_the_random_state_of_the_notebook_is_left_alone(registered):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    judge(registered, mean_image)
    assert torch.equal(before, torch.get_rng_state())


def test_interrupts_pass_through(registered):
    def answer(x, weight):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(registered, answer)


def test_an_unknown_exercise_is_an_error_that_names_the_known_ones():
    with pytest.raises(KeyError, match="no exercise '98.1': known are .*99.1"):
        exercise("98.1")


@pytest.mark.parametrize(("key", "dots"), [("1.1", 1), ("01", 1), ("01.1", 4)])
def test_a_badly_registered_check_is_refused(key, dots):
    with pytest.raises(ValueError, match="key|dots"):
        check(key, dots=dots, minutes=1, hint="", reference=mean_image)


def test_hint_solution_and_progress(capsys):
    hint(KEY)
    assert "weights need `view`" in capsys.readouterr().out
    solution(KEY)
    assert "weight.view(-1, 1, 1, 1)" in capsys.readouterr().out
    exercise(KEY)(mean_image)
    capsys.readouterr()
    progress("99")
    assert "1 of 1 exercises passed" in capsys.readouterr().out


def test_progress_counts_what_was_not_run(capsys):
    progress("99")
    assert "0 of 1 exercises passed" in capsys.readouterr().out


def test_messages_escape_html_and_mark_code():
    page = Message(WRONG, "x < y", "use `a < b` & go")._repr_html_()
    assert "x &lt; y" in page and "<code>a &lt; b</code> &amp; go" in page
    assert "<pre" in Message(OPEN, "t", code="def f(): pass")._repr_html_()
    assert "lonely ` tick" in Message(OPEN, "a lonely ` tick")._repr_html_()


def test_the_package_exports_the_decorator_itself():
    assert callable(exercise_function)
