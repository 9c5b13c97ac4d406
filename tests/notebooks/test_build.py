"""The notebook build: from one source two notebooks, byte-stable, and a check that names what is out of step."""

import ast
import json

import jupytext
import nbformat
import pytest

from cfx_lib.learn import build

SOURCE = '''# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A title: ünïcode, $\\\\bar\\\\alpha_t$
#
# - a list
# - of two

# %% tags=["parameters"]
MODE = ""

# %%
%matplotlib inline
import torch

# %% tags=["exercise"]
@exercise("07.1")
def double(x):
    """Twice `x`."""
    y = x
    # SOLUTION
    # any way will do
    z = y + y

    return z
    # END SOLUTION


# %%
double(2)

# %%
double(2)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "07_topic.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_the_learner_gets_a_gap_and_the_solutions_are_whole(folder):
    build.write(folder)
    learner, solved = cells(folder / "07_topic.ipynb"), cells(folder / "solutions" / "07_topic.ipynb")
    exercise = '@exercise("07.1")\ndef double(x):\n    """Twice `x`."""\n    y = x\n'
    assert learner[3].source == exercise + "    return ...  # your code here"
    assert solved[3].source == exercise + "    # any way will do\n    z = y + y\n\n    return z"
    assert [a.source == b.source for a, b in zip(learner, solved, strict=True)] == [True] * 3 + [False] + [
        True
    ] * 2
    assert "SOLUTION" not in (folder / "07_topic.ipynb").read_text("utf-8")


def test_the_notebooks_are_valid_and_keep_their_tags(folder):
    for path in build.write(folder):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert [c.metadata.get("tags", []) for c in book.cells] == [
            [],
            ["parameters"],
            [],
            ["exercise"],
            [],
            [],
        ]
        assert all(not c.outputs and c.execution_count is None for c in book.cells if c.cell_type == "code")
        assert len({c.id for c in book.cells}) == len(book.cells)
        assert book.metadata.kernelspec.name == "python3"


def test_other_cells_are_what_jupytext_reads(folder):
    build.write(folder)
    expected = [c.source for c in jupytext.reads(SOURCE, fmt="py:percent").cells]
    found = [c.source for c in cells(folder / "07_topic.ipynb")]
    assert [f for k, f in enumerate(found) if k != 3] == [e for k, e in enumerate(expected) if k != 3]
    assert found[2].startswith("%matplotlib inline")


def test_the_bytes_are_stable_and_unchanged_files_are_not_touched(folder):
    assert len(build.write(folder)) == 2
    first = {path: path.read_bytes() for path in folder.rglob("*.ipynb")}
    assert build.write(folder) == []
    (folder / "source" / "07_topic.py").write_bytes(SOURCE.replace("\n", "\r\n").encode())
    assert build.write(folder) == []
    assert first == {path: path.read_bytes() for path in folder.rglob("*.ipynb")}


def test_a_new_cell_leaves_the_ids_of_the_others(folder):
    build.write(folder)
    before = [c.id for c in cells(folder / "07_topic.ipynb")]
    changed = SOURCE.replace("# %%\n%mat", "# %%\nnew = 1\n\n# %%\n%mat")
    (folder / "source" / "07_topic.py").write_text(changed, encoding="utf-8")
    build.write(folder)
    after = [c.id for c in cells(folder / "07_topic.ipynb")]
    assert len(after) == len(before) + 1 and [i for i in after if i in before] == before


def test_check_names_what_is_out_of_step(folder, capsys):
    run = ["--check", "--folder", str(folder)]
    assert build.main(run) == 1
    said = capsys.readouterr().out
    assert "07_topic.ipynb is missing" in said and "make notebooks" in said
    assert build.main(["--folder", str(folder)]) == 0
    assert build.main(run) == 0
    capsys.readouterr()

    path = folder / "solutions" / "07_topic.ipynb"
    book = json.loads(path.read_text("utf-8"))
    book["cells"][4]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["4"]}]
    path.write_text(json.dumps(book))
    assert build.main(run) == 1
    said = capsys.readouterr().out
    assert (
        "solutions/07_topic.ipynb is out of step with source/07_topic.py (cell 5 has stored outputs)" in said
    )
    assert said.count("out of step") == 1

    path.write_text("{}")
    (folder / "08_gone.ipynb").write_text("{}")
    assert build.main(run) == 1
    said = capsys.readouterr().out
    assert "it is no notebook" in said and "08_gone.ipynb has no source" in said


def test_check_sees_an_edited_source(folder, capsys):
    build.write(folder)
    (folder / "source" / "07_topic.py").write_text(
        SOURCE.replace("import torch", "import numpy"), encoding="utf-8"
    )
    assert build.main(["--check", "--folder", str(folder)]) == 1
    assert "07_topic.ipynb is out of step with source/07_topic.py (cell 3 differs)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (' tags=["exercise"]', "", "07_topic.py, cell 4: an exercise without its tag"),
        ("    # END SOLUTION\n", "", "07_topic.py, cell 4: exercise 07.1 needs one '# SOLUTION'"),
        ('@exercise("07.1")\n', "", "exactly one line @exercise"),
        ("07.1", "06.1", "exercise 06.1 is in a file whose number is 07"),
        ("    z = y + y\n", "    z = y + y\n" * 15, "longer than 15 lines"),
        (
            "# %%\ndouble(2)\n",
            SOURCE[SOURCE.index('# %% tags=["exercise"]') : SOURCE.index("# %%\ndouble")],
            "2 times",
        ),
    ],
)
def test_a_broken_source_is_refused_and_nothing_is_written(folder, capsys, old, new, said):
    (folder / "source" / "07_topic.py").write_text(SOURCE.replace(old, new, 1), encoding="utf-8")
    assert build.main(["--folder", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert not list(folder.rglob("*.ipynb"))


def test_a_source_that_is_not_utf8_is_named(folder, capsys):
    (folder / "source" / "07_topic.py").write_bytes(b"# %%\nx = '\xff'\n")
    assert build.main(["--folder", str(folder)]) == 2
    assert "07_topic.py is not UTF-8" in capsys.readouterr().err


def test_a_source_that_jupytext_refuses_is_named(folder, capsys):
    broken = SOURCE.replace("#     display_name: Python 3\n", "")
    (folder / "source" / "07_topic.py").write_text(broken, encoding="utf-8")
    assert build.main(["--folder", str(folder)]) == 2
    assert "07_topic.py cannot be read as py:percent" in capsys.readouterr().err


def test_a_folder_without_sources_is_refused(tmp_path, capsys):
    assert build.main(["--folder", str(tmp_path)]) == 2
    assert "no folder 'source'" in capsys.readouterr().err


def test_solutions_are_found_without_the_decorator():
    found = build.solutions(SOURCE)
    assert (
        list(found) == ["07.1"]
        and found["07.1"].startswith("def double(x):")
        and "SOLUTION" not in found["07.1"]
    )
    assert build.solution_lines(SOURCE) == ["    z = y + y", "    return z"]


@pytest.mark.parametrize(
    "path",
    sorted((build.Path(build.__file__).parents[2] / "notebooks" / "source").glob("*.py")),
    ids=lambda p: p.stem,
)
def test_what_the_exercise_boxes_offer_is_there(path):
    """Every open exercise tells the learner to call `hint` and `solution`."""
    imported = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "cfx_lib.learn"
        for alias in node.names
    }
    assert {"exercise", "hint", "solution", "progress"} <= imported


def test_the_notebooks_of_this_repository_are_in_step():
    folder = build.Path(build.__file__).parents[2] / "notebooks"
    assert build.differences(folder) == []
