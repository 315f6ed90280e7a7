"""The package as a whole: layers, sizes, nothing printed, nothing left over, one version."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from pathlib import Path

import pytest

import videochat_online
from videochat_online.cli.main import main
from videochat_online.runs.provenance import git_revision, versions

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "videochat_online"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Imports point down; beside each other only in the lowest row.
LAYERS = (
    {"types", "constants", "errors", "isolation", "runs", "extras", "parts", "documents"},
    {"memory", "video", "text"},
    {"model"},
    {"data", "streaming", "synthetic", "testing"},
    {"train", "evaluation", "serving"},
    {"demo", "client"},
    {"cli", "integrations"},
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FORBIDDEN_PAIRS = {("train", "streaming")}
# Only training and evaluation know about ranks; the lower layers know tensors, not transformers.
RANKED = ("deepspeed", "accelerate", "torch.distributed")
PARTS_WITH_RANKS = {"train", "evaluation"}
PARTS_WITHOUT_TRANSFORMERS = LAYERS[0] | {"memory", "video"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names that a module of `package` imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module or "").split(".")) if node.module else above
            yield from (".".join((*base, alias.name)) for alias in node.names)


def layer_violations(relative: str, source: str) -> list[str]:
    """What a file of the package (path below it) imports and must not."""
    part = Path(relative).parts[0].removesuffix(".py")
    if part == "__init__":
        return []  # the facade: names only, loaded on first use
    found = []
    if part not in LEVELS:
        return [f"{relative}: {part!r} has no layer"]
    for module in imported_modules(source, (PACKAGE.name, *Path(relative).parts[:-1])):
        top, _, rest = module.partition(".")
        if top != PACKAGE.name:
            ranked = any(f"{module}.".startswith(f"{name}.") for name in RANKED)
            if (ranked and part not in PARTS_WITH_RANKS) or (
                top == "transformers" and part in PARTS_WITHOUT_TRANSFORMERS
            ):
                found.append(f"{relative}: {part} must not know {module}")
            continue
        other = rest.partition(".")[0]
        if other in (part, "__version__"):
            continue
        if other not in LEVELS:
            found.append(f"{relative}: imports {module}, not from a layer")
        elif (part, other) in FORBIDDEN_PAIRS or LEVELS[other] > LEVELS[part]:
            found.append(f"{relative}: {part} must not import {module}")
        elif LEVELS[other] == LEVELS[part] != 0:
            found.append(f"{relative}: {part} must not import its neighbour {module}")
    return found


def test_imports_point_down_the_layers():
    assert len(SOURCES) > 30
    violations = [v for p in SOURCES for v in layer_violations(p.relative_to(PACKAGE).as_posix(), p.read_text("utf-8"))]
    assert violations == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("memory/x.py", "from videochat_online.model import y"),
        ("memory/x.py", "from ..model import y"),
        ("memory/x.py", "from .. import model"),
        ("memory/__init__.py", "from ..model.loading import y"),
        ("memory/deep/x.py", "from ...streaming import y"),
        ("memory/x.py", "import videochat_online.text.prompt"),
        ("video/x.py", "from ..memory import y"),
        ("types.py", "from .memory import y"),
        ("model/x.py", "def f():\n    from videochat_online.cli import main"),
        ("model/x.py", "from videochat_online import load_model"),
        ("model/x.py", "import videochat_online"),
        ("train/x.py", "from ..streaming.session import y"),
        ("novelty/x.py", ""),
        ("memory/x.py", "import transformers"),
        ("streaming/x.py", "from torch.distributed import barrier"),
        ("streaming/x.py", "from torch import distributed"),
    ],
)
def test_the_walk_catches(relative, source):
    assert len(layer_violations(relative, source)) == 1


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("memory/x.py", "from ..errors import y\nfrom .base import z\nimport torch"),
        ("memory/__init__.py", "from .base import z\nfrom . import pyramid"),
        ("types.py", "from .constants import y"),
        ("model/x.py", "from videochat_online.memory import y\nimport transformers"),
        ("cli/x.py", "from videochat_online import __version__\nfrom videochat_online.streaming import y"),
        ("train/x.py", "import torch.distributed\nfrom ..data import y"),
    ],
)
def test_the_walk_lets_pass(relative, source):
    assert layer_violations(relative, source) == []


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, videochat_online; print(*({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_files_and_functions_are_short():
    long = []
    for path in SOURCES:
        text = path.read_text("utf-8")
        if (count := len(text.splitlines())) > MAX_FILE_LINES:
            long.append(f"{name_of(path)}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    long.append(f"{name_of(path)}:{node.lineno} {node.name}: {count} lines")
    assert long == []


def is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Nothing but `...`, `pass` or a bare NotImplementedError (a docstring alone may say why nothing is done)."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return len(body) == 1 and ast.unparse(body[0]) in (
        "...",
        "pass",
        "raise NotImplementedError",
        "raise NotImplementedError()",
    )


def leftovers(source: str, may_print: bool) -> Iterator[str]:
    tree = ast.parse(source)
    protocols = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and "Protocol" in map(ast.unparse, c.bases)]
    declared = {id(method) for protocol in protocols for method in protocol.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit") and not may_print:
            yield f"{node.lineno}: {ast.unparse(node.func)}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and id(node) not in declared and is_stub(node):
            yield f"{node.lineno}: {node.name} is a stub"
    for number, line in enumerate(source.splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield f"{number}: {line.strip()}"


def test_nothing_prints_and_nothing_is_a_stub():
    found = []
    for path in SOURCES:
        may_print = path.is_relative_to(PACKAGE / "cli")
        found += [f"{name_of(path)}:{problem}" for problem in leftovers(path.read_text("utf-8"), may_print)]
    assert found == []


def test_leftovers_are_found():
    source = "def f():\n    '''Later.'''\n    pass\nclass P(Protocol):\n    def g(self): ...\nprint(1)\n# TODO: more\n"
    assert sorted(leftovers(source, may_print=False)) == ["1: f is a stub", "6: print", "7: # TODO: more"]
    assert len(list(leftovers(source, may_print=True))) == 2


def test_the_console_script_is_installed():
    (script,) = entry_points(group="console_scripts", name="videochat-online")
    assert script.load() is main
    assert os.access(Path(sys.executable).with_name("videochat-online"), os.X_OK)


def test_versions_agree():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert declared is not None
    assert declared[1] == videochat_online.__version__


def test_the_revision_of_a_checkout_says_whether_files_are_changed(tmp_path):
    assert git_revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"], ["tag", "-am", "a", "v1"]):
        subprocess.run([*git, *command], check=True)
    revision = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision(tmp_path) == revision
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{revision}+"
    # A package that somebody has installed inside the repository, deeper or beside the files, is no part of it.
    for folder in (tmp_path / "venv" / "site-packages" / "package", tmp_path / "package"):
        folder.mkdir(parents=True)
        (folder / "utils.py").write_text("")
        assert git_revision(folder) is None
    subprocess.run([*git, "add", "."], check=True)
    assert git_revision(tmp_path / "package") == f"{revision}+"
    assert git_revision(folder.parent / "venv" / "site-packages" / "package") is None


def test_a_package_that_is_not_installed_has_no_version():
    found = versions(("torch", "no-such-package"))
    assert found["torch"] == version("torch")
    assert found["no-such-package"] is None


def test_scripts_import_what_the_package_has():
    """Names that are imported from modules of the package alone: what a script needs besides may not be installed."""
    missing = []
    for path in sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "shell").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name):
                continue
            if node.module.endswith("lmms_eval"):  # a module for lmms-eval, which the tests stand in for
                continue
            module = import_module(node.module)
            for alias in node.names:
                is_module = hasattr(module, "__path__") and find_spec(f"{node.module}.{alias.name}") is not None
                if not (hasattr(module, alias.name) or is_module):
                    missing.append(f"{name_of(path)}: {node.module}.{alias.name}")
    assert missing == []
