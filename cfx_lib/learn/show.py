"""Show the library's own code in a notebook, so that a listing can never differ from what runs; and sentences."""

from __future__ import annotations

import ast
import html
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Listing:
    """Source code with its place in the repository: highlighted in a notebook, plain text elsewhere."""

    def __init__(self, code: str, place: str) -> None:
        self.code, self.place = code, place

    def __repr__(self) -> str:
        return f"# {self.place}\n{self.code}"

    def _repr_html_(self) -> str:
        head = f'<div style="font-size:.85em;opacity:.7;margin-bottom:-.4em">{html.escape(self.place)}</div>'
        return head + highlight(self.code)


def show(
    fn: Callable[..., Any] | type | property, *, docstring: bool = True, lines: tuple[int, int] | None = None
) -> None:
    """Display the source of a function, method or class of the library as it really is.

    `docstring=False` leaves docstrings out; `lines=(first, last)` keeps a part (1-based, counted after
    docstrings are dropped). Raises `TypeError` for something without Python source, such as a built-in
    function.
    """
    listing = source(fn, docstring=docstring, lines=lines)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return print(listing)
    return display(listing) if get_ipython() else print(listing)


def say(text: str) -> None:
    """Show a sentence whose numbers were computed just now: Markdown in a notebook, plain text elsewhere."""
    try:
        from IPython import get_ipython
        from IPython.display import Markdown, display
    except ImportError:
        return print(text)
    return display(Markdown(text)) if get_ipython() else print(text)


def source(fn: Any, *, docstring: bool = True, lines: tuple[int, int] | None = None) -> Listing:
    """The listing that `show` displays."""
    target = fn.fget if isinstance(fn, property) else inspect.unwrap(getattr(fn, "func", fn))
    try:
        found, first = inspect.getsourcelines(target)
        path = Path(inspect.getsourcefile(target) or "")
    except (TypeError, OSError) as error:
        raise TypeError(f"show() needs a function or class written in Python; got {fn!r}") from error
    code = textwrap.dedent("".join(found)).rstrip("\n")
    if not docstring:
        code = drop_docstrings(code)
    if lines is not None:
        kept = code.splitlines()[lines[0] - 1 : lines[1]]
        code = textwrap.dedent("\n".join(kept))
    root = Path(__file__).resolve().parents[2]
    shown = path.resolve()
    place = shown.relative_to(root).as_posix() if shown.is_relative_to(root) else path.name
    return Listing(code, f"{place}, line {first}")


def drop_docstrings(code: str) -> str:
    """Remove the docstrings of a function or class and of what is defined inside it, and nothing else."""
    kept: list[str | None] = list(code.splitlines())
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or len(node.body) < 2:
            continue
        first = node.body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                kept[number] = None
            after = first.end_lineno or first.lineno
            if after < len(kept) and kept[after] is not None and not kept[after].strip():
                kept[after] = None
    return "\n".join(line for line in kept if line is not None)


def highlight(code: str) -> str:
    """Python code as HTML with inline colours (readable in light and dark themes, kept by nbconvert)."""
    style = (
        "background:#f7f7f7;color:#222;padding:.7em 1em;border-radius:4px;overflow-x:auto;"
        "line-height:1.4;font-size:.9em;max-width:75em"
    )
    try:
        from pygments import highlight as colour
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:
        body = html.escape(code)
    else:
        body = colour(code, PythonLexer(), HtmlFormatter(noclasses=True, style="friendly", nowrap=True))
    return f'<pre style="{style}">{body}</pre>'
