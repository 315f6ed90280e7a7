"""A core installation: no training, no plots, no page; what needs them says in one line which extra brings them."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clips import write_clip
from requirements import installed, required
from videochat_online.errors import InputError
from videochat_online.extras import EXTRAS, require

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """A folder of links to what a core installation has, in place of the environment's own packages."""
    folder = tmp_path_factory.mktemp("core")
    for name in installed(required()):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def run(core, tiny_dir, tmp_path_factory):
    """Run several command lines in one process that has the core alone: status, stdout and stderr of each."""
    program = """
import contextlib, io, json, sys
from videochat_online.cli.main import main
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = exit.code
    results.append([status, out.getvalue(), err.getvalue()])
print("RESULTS" + json.dumps(results))
"""

    def call(*commands):
        environment = {**os.environ, "PYTHONPATH": f"{core}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-S", "-c", program, json.dumps(commands)],
            env=environment, cwd=tmp_path_factory.mktemp("work"), capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("RESULTS")[2])

    return call


def test_the_core_does_not_bring_what_extras_bring():
    # httpx brings anyio.
    assert {canonicalize_name(name) for name in EXTRAS} & set(installed(required())) == {"anyio"}


def test_each_extra_brings_what_it_is_named_for():
    for package, extra in EXTRAS.items():
        brought = {canonicalize_name(Requirement(text).name) for text in required(extra)}
        assert canonicalize_name(package) in brought


def test_a_core_installation_watches_and_names_the_extra_of_all_else(run, tiny_dir, tmp_path):
    video = tmp_path / "clip.mp4"
    write_clip(video)
    model = str(tiny_dir())
    registry = str(ROOT / "anno_data/finetune_online.json")
    config = str(ROOT / "configs/train/tiny_stage1.yaml")
    expected = {
        ("chat", "--model", model, "--video", str(video), "--ask", "1:What?", "--max_new_tokens", "2"): None,
        ("convert", model, str(tmp_path / "converted"), "--format", "hf"): None,
        ("doctor", "--model", model): None,
        ("train", "--config", config): "training: expected peft, which is not installed",
        ("doctor", "--registry", registry): "training: expected peft, which is not installed",
        ("demo", "--model", model): "the demo: expected gradio, which is not installed",
        ("chat", "--model", model, "--adapter", str(tmp_path), "--video", str(video), "--ask", "1:a"): "adapters: ex",
    }
    for (arguments, says), (status, out, err) in zip(expected.items(), run(*expected), strict=True):
        if says is None:
            assert status == 0, (arguments, out, err)
        else:
            assert (status, err.count("\n")) == (2, 1), (arguments, err)
            assert err.startswith(f"error: {says}")
            assert "pip install 'videochat-online[" in err


def test_a_folder_of_a_package_s_name_is_no_package(tmp_path, monkeypatch):
    """Such as `wandb`, which wandb writes into the folder that it is used in."""
    (tmp_path / "lamps_of_others").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "lamps_of_others", "train")
    with pytest.raises(InputError, match=r"light: expected lamps_of_others, which is not installed: pip .*\[train\]'"):
        require("light", "lamps_of_others")
    (tmp_path / "lamps_of_others" / "__init__.py").touch()
    importlib.invalidate_caches()
    require("light", "lamps_of_others")


def test_a_wheel_holds_what_runs_are_started_from(tmp_path):
    """As a user builds it, with all files that git knows of these folders, and `configs` finds them there."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name.partition("project/")[2] for name in zipfile.ZipFile(wheel).namelist() if "/project/" in name}
    assert held == {name for name in tracked.split("\0") if name.startswith(("shell/", "configs/", "anno_data/"))}
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    copied = tmp_path / "copied"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "videochat_online.cli.main", "configs", str(copied)]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
    assert {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()} == held
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)  # the same files again
    (copied / "configs/train/stage1.yaml").write_text("mine: 1\n")
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2
    assert "stage1.yaml: expected no such file, or the same one, found another" in again.stderr
    assert (copied / "configs/train/stage1.yaml").read_text() == "mine: 1\n"
