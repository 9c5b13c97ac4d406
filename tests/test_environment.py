"""The environment: the lock is complete and honest, and everything that installs something points at it."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
TARGETS = (
    "help venv lab run test lint unit nbval papermill notebooks check-notebooks weights bench clean".split()
)


def pinned() -> dict[str, str]:
    """name -> version of the lock's lines that hold on this system."""
    here = [r for r in map(Requirement, LOCK_LINES) if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in here}


def installed() -> dict[str, str]:
    return {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}


def required(extras: tuple[str, ...] = ("lab", "cluster", "dev")) -> set[str]:
    """Every distribution that the package with its extras needs here, directly or not."""
    lines = PROJECT["dependencies"] + [r for e in extras for r in PROJECT["optional-dependencies"][e]]
    todo, seen = [Requirement(line) for line in lines], {}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        new = {"", *requirement.extras} - seen.get(name, set())
        seen.setdefault(name, set()).update(new)
        for child in map(Requirement, metadata.requires(name) or [] if new else []):
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in new):
                todo.append(child)
    return set(seen)


def make(*args: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *args], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60)


def test_lock_pins_exact_versions_and_nothing_else():
    form = re.compile(r'[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; sys_platform == "(linux|darwin)")?')
    for line in LOCK_LINES:
        assert form.fullmatch(line), f"not an exact pin: {line!r}"
    names = [canonicalize_name(Requirement(line).name) for line in LOCK_LINES]
    assert len(names) == len(set(names)), "a package is pinned twice"


def test_accelerator_packages_are_asked_for_on_linux_only():
    for line in LOCK_LINES:
        if re.match(r"(nvidia|cuda|triton)\b", line):
            assert 'sys_platform == "linux"' in line, line


def test_everything_required_is_pinned_and_installed_in_that_version():
    lock, here = pinned(), installed()
    missing = sorted(required() - set(lock))
    assert not missing, f"not in requirements.lock: {missing}"
    differs = {name: (here.get(name), lock[name]) for name in required() if here.get(name) != lock[name]}
    assert not differs, f"installed and locked versions differ: {differs}"


def test_own_environment_holds_exactly_the_lock():
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        return  # somebody else's environment may hold more
    here = installed()
    for tool in ("pip", "cfx-lib"):
        here.pop(tool)
    assert here == pinned()


def test_lock_holds_nothing_that_nobody_needs():
    assert set(pinned()) <= required() | {"appnope"}


def test_lock_satisfies_the_package_metadata():
    lock = pinned()
    lines = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    for requirement in map(Requirement, lines):
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_library_imports_only_what_it_declares():
    """Outside `learn/`, modules import at their top the core dependencies only: no matplotlib, no widgets."""
    owners = metadata.packages_distributions()
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for path in sorted((ROOT / "cfx_lib").rglob("*.py")):
        if "learn" in path.relative_to(ROOT / "cfx_lib").parts:
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - {"cfx_lib", *sys.stdlib_module_names}:
                owned = {canonicalize_name(owner) for owner in owners.get(top, [top])}
                assert owned & core, f"{path.relative_to(ROOT)} imports {top}: not a core dependency"


def test_conda_environment_points_at_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python=")]
    assert f"{python.removeprefix('python=')}.0" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target):
    dry = make("-n", target, "NAME=personas/ddpm")
    assert dry.returncode == 0, dry.stderr


def test_make_test_runs_every_check():
    commands = make("-n", "test").stdout
    for part in (
        "ruff check",
        "ruff format --check",
        "learn.build --check",
        "pytest",
        "--nbval-lax",
        "papermill",
    ):
        assert part in commands, f"make test does not run {part}"


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text and "\nmake test\n" in text
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_unsuitable_python_is_refused_before_anything_is_removed(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    kept = tmp_path / "venv"
    kept.mkdir()
    for python, said in ((old, "Python 3.9.2"), (tmp_path / "nowhere", "not found")):
        refused = make("venv", f"PYTHON={python}", f"VENV={kept}")
        assert refused.returncode != 0 and kept.is_dir()
        assert "needs Python 3.11.5 or newer" in refused.stderr and said in refused.stderr


def test_built_environment_is_not_built_again():
    if Path(sys.prefix).resolve() == (ROOT / ".venv").resolve():
        assert make("-q", "venv").returncode == 0


def test_weights_needs_a_name(tmp_path):
    asked = make("weights", "-o", "venv", f"VENV={tmp_path}")
    assert asked.returncode != 0 and "NAME=personas/ddpm" in asked.stderr


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"


def test_shipped_configurations_name_no_folder_of_a_machine():
    for path in (ROOT / "data" / "weights").rglob("*.json"):
        assert not re.search(r'"(/|[A-Za-z]:\\\\)[\w.]', path.read_text("utf-8")), path
