"""Source listings are the real source."""

import functools
import inspect

import pytest

from cfx_lib.learn import mode, show
from cfx_lib.learn.exercise import Message
from cfx_lib.learn.show import drop_docstrings, source


def sample(x):
    """What it does.

    More.
    """
    note = """not a docstring"""

    class Inner:
        """Goes too."""

        value = 1

    return x, note, Inner


def test_the_listing_is_the_source_with_its_place():
    listing = source(mode)
    assert listing.code == inspect.getsource(mode).rstrip("\n")
    assert listing.place.startswith("cfx_lib/learn/mode.py, line ")


def test_docstrings_can_be_left_out_and_nothing_else_goes():
    code = source(sample, docstring=False).code
    assert "What it does" not in code and "Goes too" not in code and "More." not in code
    assert '"""not a docstring"""' in code and "value = 1" in code
    compile(code, "listing", "exec")


def test_a_function_that_is_only_a_docstring_stays_valid():
    code = 'def f():\n    """Only this."""'
    assert drop_docstrings(code) == code


def test_methods_properties_classes_and_decorated_functions():
    assert source(Message._repr_html_).code.startswith("def _repr_html_")
    assert source(Message).code.startswith("class Message")
    assert "stars" in source(__import__("cfx_lib.learn.checks", fromlist=["Check"]).Check.stars).code
    assert source(functools.partial(sample, 1)).code.startswith("def sample")


def test_a_part_of_the_lines():
    assert source(sample, docstring=False, lines=(1, 1)).code == "def sample(x):"


def test_html_is_highlighted_and_plain_text_is_plain(capsys):
    page = source(mode)._repr_html_()
    assert "<pre" in page and "<span" in page and "cfx_lib/learn/mode.py" in page
    show(mode)
    assert capsys.readouterr().out.startswith("# cfx_lib/learn/mode.py")


def test_what_has_no_source_is_refused():
    with pytest.raises(TypeError, match="written in Python"):
        show(len)
