"""The environments: every import is declared, every requirement is pinned, and the pins are still to be had."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from difflib import ndiff
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements import PROJECT, installed, required

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "videochat_online"
EXTRAS = {extra: required(extra) for extra in PROJECT["optional-dependencies"]}
BASE, DEV = required(), required("dev")
OPTIONAL = [line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines]
FILES = ("constraints.txt", "constraints-lmms-eval.txt")
LOADERS = {"import_module", "_import", "find_spec", "importorskip"}
# The last two are files that tests write.
OURS = {PACKAGE.name, "my_tasks", "terse_words"} | {
    path.stem for name in ("scripts", "tests") for path in (ROOT / name).rglob("*")
}


def imports(source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, first part of the name, and whether it is loaded at import, of what is imported from elsewhere."""
    tree = ast.parse(source)
    found: list[tuple[ast.AST, str, bool]] = []
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:  # statements alone
        node, at_import = todo.pop()
        if isinstance(node, ast.Import):
            found += [(node, alias.name, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node, node.module or "", at_import))
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        at_import = at_import and not (is_for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += [(child, at_import) for child in getattr(node, block, ())]
    for node in ast.walk(tree) if any(f"{name}(" in source for name in LOADERS) else ():
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in LOADERS:
            constants = [value.value for value in node.args[:1] if isinstance(value, ast.Constant)]
            found += [(node, name, False) for name in constants]  # made to be asked whether it is there
    for node, name, at_import in found:
        if (top := name.partition(".")[0]) not in {*sys.stdlib_module_names, *OURS, "tomllib"}:
            yield node.lineno, top, at_import


def modules(requirements: Iterable[str]) -> set[str]:
    """What can be imported of them: the distribution's name, and where it is installed whatever it brings."""
    found = set()
    for requirement in map(Requirement, requirements):
        found.add(canonicalize_name(requirement.name).replace("-", "_"))
        try:
            files = distribution(requirement.name).files or []
        except PackageNotFoundError:
            continue
        found |= {file.parts[0].partition(".")[0] for file in files if file.suffix in (".py", ".pyi", ".so")}
    return found


def undeclared(relative: str, source: str, declared: dict[str, set[str]]) -> list[str]:
    """What a file imports without a requirement: the package at import only what is always there."""
    # These run where an extra is installed.
    owners = {
        "tests/": "dev", "scripts/": "all", "scripts/tools/check_lmms_eval.py": "lmms-eval",
        f"{PACKAGE.name}/integrations/": "lmms-eval", f"{PACKAGE.name}/train/": "train",
        f"{PACKAGE.name}/demo/": "demo", f"{PACKAGE.name}/serving/api/": "demo",
    }  # fmt: skip
    extras = [declared[extra] for beginning, extra in owners.items() if relative.startswith(beginning)]
    allowed = declared["base"].union(*extras)
    return [
        f"{relative}:{line}: {name}"
        for line, name, at_import in imports(source)
        if name not in allowed and (at_import or name not in declared["optional"])
    ]


@pytest.fixture(scope="module")
def declared() -> dict[str, set[str]]:
    beside = [line for line in (ROOT / FILES[1]).read_text("utf-8").splitlines() if line.startswith("lmms-eval==")]
    groups = {**EXTRAS, "base": BASE, "lmms-eval": EXTRAS["lmms-eval"] + beside, "optional": OPTIONAL}
    return {name: modules(lines) for name, lines in groups.items()}


def test_every_import_is_declared(declared):
    paths = sorted(path for name in (PACKAGE.name, "scripts", "tests") for path in (ROOT / name).rglob("*.py"))
    assert len(paths) > 200
    assert [p for f in paths for p in undeclared(f.relative_to(ROOT).as_posix(), f.read_text("utf-8"), declared)] == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("videochat_online/x.py", "import h11"),
        ("videochat_online/x.py", "def f():\n    from jinja2.sandbox import x"),
        ("videochat_online/x.py", "import torchao"),
        ("videochat_online/x.py", "import pytest"),
        ("videochat_online/x.py", "import gradio"),
        ("videochat_online/model/x.py", "from peft import LoraConfig"),
        ("videochat_online/x.py", "import datasets"),
        ("videochat_online/integrations/x.py", "import sklearn"),
        ("videochat_online/x.py", "importlib.import_module('torchvision.io')"),
        ("scripts/x.py", "import hypothesis"),
        ("tests/x.py", "import click"),
    ],
)
def test_the_walk_over_imports_catches(declared, relative, source):
    assert len(undeclared(relative, source, declared)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("videochat_online/x.py", "import os, PIL.Image, yaml\nfrom upath import UPath\nfrom . import torchvision"),
        ("videochat_online/x.py", "def f():\n    from torchao import x"),
        ("videochat_online/x.py", "if TYPE_CHECKING:\n    import gradio"),
        ("videochat_online/integrations/x.py", "import lmms_eval.api, datasets"),
        ("videochat_online/train/x.py", "import peft, accelerate"),
        ("videochat_online/demo/x.py", "import gradio, fastapi"),
        ("scripts/x.py", "import matplotlib"),
        ("tests/x.py", "import pytest\nimport haystacks\npytest.importorskip('flash_attn')"),
    ],
)
def test_the_walk_over_imports_lets_pass(declared, relative, source):
    assert undeclared(relative, source, declared) == []


def pins(text: str) -> dict[str, Requirement]:
    """The pin that counts here of each distribution."""
    lines = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in lines if pin.marker is None or pin.marker.evaluate()}


def unpinned(requirements: Iterable[str], text: str) -> list[str]:
    known = pins(text)
    return sorted(
        f"{name} {version}: {known.get(name, 'no pin')}"
        for name, version in installed(requirements).items()
        if name not in known or not known[name].specifier.contains(version, prereleases=True)
    )


def test_all_that_is_installed_is_pinned():
    text = (ROOT / FILES[0]).read_text("utf-8")
    assert len(installed([*BASE, *DEV])) > 100
    assert unpinned([*BASE, *DEV], text) == []
    # Packages that only others need, and a version that is not the pinned one.
    changed = re.sub(r"^(h11|filelock)==.*\n", "", text, flags=re.MULTILINE).replace("einops==", "einops==9")
    assert [line.split()[0] for line in unpinned(BASE, changed)] == ["einops", "filelock", "h11"]


def test_the_pins_are_what_a_resolution_of_today_gives(tmp_path):
    """For every Python and platform, from metadata alone: nothing is installed, torch is not downloaded."""
    pytest.importorskip("uv", reason="uv is not installed: the extra `dev` has it")
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "UV_HTTP_RETRIES": "1",
    }
    command = ["bash", str(ROOT / "scripts" / "freeze.sh"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if re.search(r"Failed to fetch|the network was disabled|valid authentication credentials", done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    for name in FILES:
        found, kept = ((folder / name).read_text("utf-8").splitlines() for folder in (tmp_path, ROOT))
        assert [line for line in ndiff(kept, found) if line[0] != " "] == []
