"""The documents: what they say to type runs, the README's tree is true, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from clips import write_clip
from option_tables import with_tables
from videochat_online.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FIRST = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "your_videos.md"]  # others use what they make
DOCUMENTS = FIRST + sorted(set((ROOT / "docs").rglob("*.md")) - set(FIRST))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `excuse` is the reason why tests do not run it, `file` where a reader writes it."""

    document: str
    line: int
    language: str
    text: str
    excuse: str | None
    file: str | None

    def commands(self) -> list[list[str]]:
        """Words of each command, continued lines joined and comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(path: Path) -> list[Block]:
    """Fenced blocks; an excuse, or the name of a file, is an HTML comment on the line above the fence."""
    blocks, lines = [], path.read_text("utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            excuse = re.fullmatch(r"<!-- not run by tests: (\S.*) -->", lines[start - 1])
            file = re.fullmatch(r"<!-- file: (\S+) -->", lines[start - 1])
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found = (excuse and excuse[1], file and file[1])
            blocks.append(Block(name_of(path), start + 1, lines[start][3:], text, *found))
            start = None
    assert start is None, f"{name_of(path)}:{start}: a block that does not end"
    return blocks


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
RUN = [block for block in BLOCKS if (block.language in ("bash", "python") or block.file) and block.excuse is None]


@pytest.fixture(scope="module")
def quickstarted(tiny_dir, tmp_path_factory) -> Path:
    """What the quickstart leaves, made without it. One folder for all documents: a reader has one, too."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "tiny_model").symlink_to(tiny_dir("phi3"), target_is_directory=True)
    write_clip(folder / "outputs" / "world.mp4", num_frames=62, fps=2)
    return folder


@pytest.fixture
def one_thread():
    """Models this small gain nothing from threads, which wait for each other on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.document}:{block.line}")
def test_what_documents_say_runs(block, quickstarted, monkeypatch, capsys):
    monkeypatch.chdir(quickstarted)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the working folder joins it where a part is looked for
    if block.file is not None:
        Path(block.file).parent.mkdir(exist_ok=True)
        Path(block.file).write_text(block.text)
        return
    if block.language == "python":
        exec(compile(block.text, block.document, "exec"), {"__name__": "__main__"})
    for program, *arguments in block.commands() if block.language == "bash" else ():
        assert program == "videochat-online", f"{program} is not run by tests: say why above its block"
        assert main(arguments) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip(), "a reader wants to see something happen"


def test_each_document_runs_something():
    assert {block.document for block in RUN} == {name_of(path) for path in DOCUMENTS} - {
        "CONTRIBUTING.md",
        "docs/golden.md",
        "docs/performance.md",
    }
    assert [block.language for block in RUN if block.document == "README.md"] == ["python", "bash"]
    assert {block.language for block in BLOCKS} <= {"bash", "python", "text", "bibtex"}
    assert all("```" not in block.text for block in BLOCKS)


def documented_tree() -> dict[str, str]:
    """Path -> comment of every line of the tree in docs/architecture.md; folders end in a slash."""
    text = next(b.text for b in BLOCKS if b.document == "docs/architecture.md" and "pyproject.toml" in b.text)
    tree: dict[str, str] = {}
    folders: list[str] = []
    for line in text.splitlines():
        name, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 4
        path = "".join(folders[:depth]) + name
        assert path not in tree, f"{path} stands twice in the tree"
        tree[path] = comment.strip()
        folders[depth:] = [name]
    return tree


def existing_entries(folder: Path) -> set[str]:
    """Files and non-empty folders directly in a folder, but for hidden and git-ignored ones."""
    lines = [line for line in (ROOT / ".gitignore").read_text("utf-8").split() if line[0] != "#"]
    ignored = [line.strip("/") for line in lines if folder == ROOT or not line.startswith("/")]
    found = set()
    for path in folder.iterdir():
        if path.name.startswith(".") or any(fnmatch(path.name, pattern) for pattern in ignored):
            continue
        if path.is_file():
            found.add(path.name)
        elif any(p.is_file() and "__pycache__" not in p.parts for p in path.rglob("*")):
            found.add(path.name + "/")
    return found


def test_tables_of_options_are_those_of_the_code():
    text = (ROOT / "docs/memories.md").read_text("utf-8")
    assert "`--memory.OPTION`" in text
    assert with_tables(text) == text, "run: python scripts/tools/option_tables.py docs/memories.md"


def test_the_tree_is_true():
    tree = documented_tree()
    assert [path for path in tree if not (ROOT / path).exists()] == []
    opened = {path for path in tree if any(other != path and other.startswith(path) for other in tree)} | {""}
    for folder in sorted(opened):
        listed = {path.removeprefix(folder) for path in tree if path.startswith(folder) and path != folder}
        children = {re.sub("(?<=/).*", "", path) for path in listed if not path.startswith(".")}
        assert children == existing_entries(ROOT / folder), f"tree, {folder or 'top level'}"
    bare = [path for path, comment in tree.items() if not comment and path not in opened]
    assert bare == [], "every file has a comment"


def test_links_lead_somewhere():
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            if re.match(r"(https?|mailto):", target):
                continue
            file, _, anchor = target.partition("#")
            goal = path if not file else path.parent / file
            if not goal.exists() or (anchor and anchor not in anchors_of(goal)):
                broken.append(f"{name_of(path)}: {target}")
    assert broken == []


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_needed_python_is_said_alike():
    said = re.search(r"Python (3\.\d+) or newer", (ROOT / "README.md").read_text("utf-8"))
    declared = re.search(
        r'^requires-python = ">=(3\.\d+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )
    assert said is not None
    assert declared is not None
    assert said[1] == declared[1]
