"""Every exercise of every notebook: its check accepts the reference and the solution, and teaches on wrong answers."""

import ast
import contextlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from cfx_lib.learn import build, checks
from cfx_lib.learn.exercise import OPEN, PASSED, WRONG, judge

ROOT = Path(__file__).parents[2]
SOURCES = {path.name[:2]: path for path in sorted((ROOT / "notebooks" / "source").glob("[0-9][0-9]_*.py"))}
CELLS = {number: build.read(path.read_text("utf-8")) for number, path in SOURCES.items()}
EXERCISES = [cell.key for cells in CELLS.values() for cell in cells if cell.key]
SECTIONS = {
    "01": ("idea", "fail", "exercises", "references"),  # basics: no paper of its own to hold against
    None: (
        "idea",
        "algorithm",
        "trajectory",
        "paper against measured",
        "released code",
        "fail",
        "exercises",
        "references",
    ),
}


def wrong_answers(number):
    path = Path(__file__).parent / "wrong_answers" / f"nb{number}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_answers_nb{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


def functions(number, transform):
    """The exercise functions of a notebook, defined after its imports and its plain top-level functions."""
    space, found = {"__name__": f"notebook_{number}"}, {}
    for cell in CELLS[number]:
        if cell.kind != "code":
            continue
        if cell.key:
            code = build._KEY.sub("", transform(cell.text)).strip("\n")
            exec(compile(code, f"exercise {cell.key}", "exec"), space)
            found[cell.key] = space[ast.parse(code).body[-1].name]
            continue
        lines = "\n".join(
            "" if line.lstrip().startswith(("%", "!")) else line for line in cell.text.split("\n")
        )
        for node in ast.parse(lines).body:
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef)):
                with contextlib.suppress(NameError):  # a default value that is a variable of the notebook
                    exec(compile(ast.Module([node], []), SOURCES[number].name, "exec"), space)
    return found


@pytest.fixture(scope="module")
def solved():
    return {key: fn for number in CELLS for key, fn in functions(number, build.solved).items()}


@pytest.fixture(scope="module")
def opened():
    return {key: fn for number in CELLS for key, fn in functions(number, build.opened).items()}


def test_the_first_notebooks_are_there():
    assert {"01", "02", "03", "04"} <= set(SOURCES)


@pytest.mark.parametrize("key", EXERCISES)
def test_the_reference_passes(key):
    assert judge(checks.get(key), checks.get(key).reference) == (PASSED, "")


@pytest.mark.parametrize("key", EXERCISES)
def test_the_solution_passes(key, solved):
    assert judge(checks.get(key), solved[key]) == (PASSED, "")


@pytest.mark.parametrize("key", EXERCISES)
def test_the_open_exercise_counts_as_not_attempted(key, opened):
    assert judge(checks.get(key), opened[key]) == (OPEN, "")


@pytest.mark.parametrize("key", EXERCISES)
def test_wrong_answers_are_taught(key):
    stored = wrong_answers(key[:2]).get(key, [])
    assert len(stored) >= 3, f"{key} has {len(stored)} stored wrong answers, at least 3 are expected"
    for k, (answer, expected) in enumerate(stored):
        kind, text = judge(checks.get(key), answer)
        assert kind == WRONG, f"{key}: wrong answer {k} is judged {kind}"
        assert expected.lower() in text.lower(), f"{key}: wrong answer {k} gets the message {text!r}"


@pytest.mark.parametrize("key", EXERCISES)
def test_wrong_answers_are_told_apart(key):
    said = {judge(checks.get(key), answer)[1] for answer, _ in wrong_answers(key[:2]).get(key, [])}
    assert len(said) >= 2, f"{key}: all wrong answers get the same message"


@pytest.mark.parametrize("key", EXERCISES)
def test_the_reference_takes_the_parameters_of_the_exercise(key, solved):
    names = [list(inspect.signature(fn).parameters) for fn in (solved[key], checks.get(key).reference)]
    assert names[0] == names[1], (
        f"{key}: the notebook goes on with the reference, so both must be called alike"
    )


@pytest.mark.parametrize("key", EXERCISES)
def test_the_task_is_stated_with_dots_minutes_and_a_hint(key, solved):
    registered = checks.get(key)
    assert inspect.getdoc(solved[key]) and registered.hint
    head = f"### Exercise {key} {registered.stars} ({registered.minutes} min)"
    cells = [cell.text for cell in CELLS[key[:2]] if cell.kind == "markdown" and head in cell.text]
    assert cells, f"no heading {head!r}"
    assert "<details>" in cells[0], f"{key} has no hint under its heading"


@pytest.mark.parametrize("number", CELLS)
def test_each_notebook_keeps_the_contract(number):
    cells = CELLS[number]
    here = [cell.key for cell in cells if cell.key]
    assert len(here) >= 4
    assert here == checks.keys(number), "the exercises and their checks differ, or are not in order"
    assert set(wrong_answers(number)) == set(here)
    assert all(1 <= len(build.solution_lines(cell.text)) <= 15 for cell in cells if cell.key)
    assert sum("parameters" in cell.tags for cell in cells) == 1
    assert cells[0].kind == "markdown" and cells[0].text.startswith("# ")


@pytest.mark.parametrize("number", CELLS)
def test_the_sections_come_in_the_order_of_the_contract(number):
    text = "\n".join(cell.text for cell in CELLS[number] if cell.kind == "markdown")
    heads = [head.lower() for head in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    opening = CELLS[number][0].text.lower()
    assert all(word in opening for word in ("learn", "need", "seconds")), (
        "say what is learned, needed, how long"
    )
    assert text.count("Eq.") + text.count("\\tag{") >= 3, "equations are numbered and cited"
    place = -1
    for section in SECTIONS.get(number, SECTIONS[None]):
        later = [k for k, head in enumerate(heads) if k > place and section in head]
        assert later, f"no section on {section!r} after {heads[: place + 1][-1:]}: the headings are {heads}"
        place = later[0]


@pytest.mark.parametrize("number", CELLS)
def test_the_course_shows_the_librarys_code_and_a_widget(number):
    code = "\n".join(cell.text for cell in CELLS[number] if cell.kind == "code")
    assert "show(" in code
    assert number == "01" or "widgets." in code
