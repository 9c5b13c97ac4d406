"""The `@exercise` decorator: it checks the learner's function, teaches, and never stops the notebook."""

from __future__ import annotations

import functools
import html
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfx_lib.learn import checks
from cfx_lib.learn.checks import Check, Wrong, describe

OPEN, WRONG, PASSED = "open", "wrong", "passed"
_STATUS: dict[str, str] = {}
_COLOURS = {PASSED: "#009E73", WRONG: "#D55E00", OPEN: "#0072B2", "note": "#56B4E9"}
_SIGNS = {PASSED: "✔", WRONG: "✘", OPEN: "✎", "note": "☞"}


class Message:
    """A short coloured box in a notebook, plain text elsewhere."""

    def __init__(self, kind: str, title: str, text: str = "", code: str = "") -> None:
        self.kind, self.title, self.text, self.code = kind, title, text, code

    def __repr__(self) -> str:
        parts = [f"{_SIGNS[self.kind]} {self.title}", self.text, self.code]
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        colour = _COLOURS[self.kind]
        body = f"<div>{_inline_code(self.text)}</div>" if self.text else ""
        if self.code:
            from cfx_lib.learn.show import highlight

            body += highlight(self.code)
        return (
            f'<div style="border-left:5px solid {colour};background:{colour}1a;padding:.55em .9em;'
            'margin:.3em 0;border-radius:0 4px 4px 0;max-width:60em;line-height:1.45">'
            f'<b><span style="color:{colour}">{_SIGNS[self.kind]}</span> '
            f"{_inline_code(self.title)}</b>{body}</div>"
        )


class _NotAttempted(BaseException):
    """The learner's function returned `...`; derived from BaseException so that no check swallows it."""


class _Raised(BaseException):
    """The learner's function itself raised `error`."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def exercise(key: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Check the decorated function as the answer to exercise `key` and return a function that works.

    Not attempted (it returns `...`): says so. Wrong, or raising: shows a message that teaches. In both
    cases the library's own function is returned, so that the notebook goes on. Right: the learner's function
    is returned. Raises `KeyError` for a key that no notebook registers.
    """
    registered = checks.get(key)

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        kind, text = judge(registered, fn)
        _STATUS[key] = kind
        _display(_message(registered, kind, text))
        return fn if kind == PASSED else registered.reference

    return decorate


def hint(key: str) -> None:
    """Show the hint of an exercise: `hint("01.1")`."""
    _display(Message("note", f"Hint for exercise {key}", checks.get(key).hint))


def solution(key: str) -> None:
    """Show a solution: `solution("01.1")` (from the notebook's source, else the library's own code)."""
    from cfx_lib.learn import build

    registered = checks.get(key)
    for path in sorted((Path(__file__).parents[2] / "notebooks" / "source").glob(f"{key[:2]}_*.py")):
        code = build.solutions(path.read_text("utf-8")).get(key)
        if code:
            return _display(Message("note", f"A solution of exercise {key}", code=code))
    return _display(
        Message("note", f"How the library does {key}", code=inspect.getsource(registered.reference))
    )


def progress(notebook: str | None = None) -> None:
    """Show which exercises are passed, wrong or open: of the notebook `"01"`, or of all that were run."""
    wanted = checks.keys(notebook) if notebook else sorted(_STATUS)
    states = {key: _STATUS.get(key, OPEN) for key in wanted}
    passed = sum(state == PASSED for state in states.values())
    listed = "   ".join(
        f"{_SIGNS[state]} {key} {checks.get(key).stars} {state}" for key, state in states.items()
    )
    kind = PASSED if states and passed == len(states) else OPEN
    _display(Message(kind, f"{passed} of {len(states)} exercises passed", listed))


def judge(registered: Check, fn: Callable[..., Any]) -> tuple[str, str]:
    """Run a check on `fn`: `("passed" | "wrong" | "open", message)`. Keeps the global random state."""
    import torch

    if not inspect.isroutine(fn):
        return WRONG, f"the answer should be a function; got {describe(fn)}."
    watched = _Watched(fn, registered)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            registered.run(watched)
    except _NotAttempted:
        return OPEN, ""
    except Wrong as wrong:
        return WRONG, str(wrong)
    except _Raised as raised:
        return WRONG, _explain_error(fn, raised.error, watched)
    except Exception as error:  # the check could not use what was returned
        return WRONG, _explain_result(error, watched)
    return PASSED, ""


class _Watched:
    """Calls the learner's function, remembers the call, tells `...` from exceptions, guards the inputs."""

    def __init__(self, fn: Callable[..., Any], registered: Check) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.registered, self.call = fn, registered, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = [] if self.registered.inplace else [(a, a.detach().clone()) for a in _tensors(args, kwargs)]
        self.call = (args, kwargs, None)
        try:
            value = self.fn(*args, **kwargs)
        except Wrong:
            raise
        except Exception as error:
            raise _Raised(error) from error
        if value is Ellipsis:
            raise _NotAttempted
        self.call = (args, kwargs, value)
        if any(not a.detach().equal(b) for a, b in before if not b.isnan().any()):
            raise Wrong(
                "your function changes a tensor that it was given. Make a new one instead: write "
                "`y = x + 1`, not `x += 1` or `x.add_(1)`; the caller still needs its tensor."
            )
        return value


def _tensors(args: tuple, kwargs: dict) -> list[Any]:
    import torch

    return [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.numel() < 1_000_000]


def _explain_error(fn: Callable, error: Exception, watched: _Watched) -> str:
    """What to say when the learner's function raised: the error, its line, the shapes it was given."""
    code = getattr(fn, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    frames = [f for f in frames if code and f.lineno and f.lineno >= code.co_firstlineno]
    where = f" at `{frames[-1].line}`" if frames and frames[-1].line else ""
    args, kwargs, _ = watched.call
    names = list(inspect.signature(fn).parameters) if code else [f"argument {k}" for k in range(len(args))]
    given = [(n, a) for n, a in (*zip(names, args, strict=False), *kwargs.items()) if hasattr(a, "shape")]
    shapes = ", ".join(f"{n} {tuple(a.shape)}" for n, a in given)
    said = f": {str(error).splitlines()[0]}" if str(error).strip() else ""
    text = f"your function raised {type(error).__name__}{where}{said}".rstrip(".")
    return text + (f". Check the shapes: it was given {shapes}." if shapes else ".")


def _explain_result(error: Exception, watched: _Watched) -> str:
    """What to say when the check could not use the value returned: what came back, what was expected."""
    if watched.call is None:
        return f"your function could not be called as the task says ({error})."
    args, kwargs, value = watched.call
    text = f"your function returned {describe(value)}"
    try:
        text += f"; expected {describe(watched.registered.reference(*args, **kwargs))}"
    except Exception:
        text += f", which could not be used ({type(error).__name__}: {error})"
    return text + ". Check the shapes and what the task asks you to return."


def _message(registered: Check, kind: str, text: str) -> Message:
    name = f"Exercise {registered.key} {registered.stars}"
    if kind == PASSED:
        return Message(kind, f"{name}: passed", "From here on the notebook uses your function.")
    if kind == OPEN:
        help_ = f'Replace the `...` (about {registered.minutes} min; `hint("{registered.key}")` helps). '
        return Message(
            kind, f"{name}: not attempted yet", help_ + "Until then the library's version is used."
        )
    text = text[:1].upper() + text[1:]
    tail = f' `hint("{registered.key}")` says more. The notebook goes on with the library\'s version.'
    return Message(kind, f"{name}: not right yet", text + tail)


def _inline_code(text: str) -> str:
    """Escape for HTML; text between backticks becomes code."""
    pieces = html.escape(text, quote=False).split("`")
    if len(pieces) % 2 == 0:
        return "`".join(pieces)
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


def _display(message: Message) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return print(message)
    return display(message) if get_ipython() else print(message)
