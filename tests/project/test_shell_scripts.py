"""The shell scripts: their rules, and that they install once, go on, pass arguments on and keep exit statuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.sh", "scripts/**/*.sh", "shell/**/*.sh")
SCRIPTS = [ROOT / ".ci" / "run", *sorted(path for place in PLACES for path in ROOT.glob(place))]
MAX_LINES = 25


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shell_scripts_keep_the_rules(script):
    text = script.read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert lines[0] == "set -euo pipefail"
    assert len(lines) <= MAX_LINES
    absolute = [line for line in lines if re.search(r"(^|[\s\"'=:(<>])/(?!dev/null)\w", line)]
    assert absolute == []
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


class Ran(NamedTuple):
    """How a script ended, the programs that it called, and what it said."""

    status: int
    calls: list[str]
    output: str
    errors: str


@pytest.fixture
def fake_environment(tmp_path, monkeypatch):
    """A virtual environment whose programs only write down how they were called; `fail(word)` makes one exit 3."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").touch()
    log, failing = tmp_path / "log", tmp_path / "failing"
    log.touch()
    failing.write_text("nothing at all")
    for name in ("python", "videochat-online"):
        body = (
            f'echo "{name} $* offline=${{HF_HUB_OFFLINE:-}}" >>"{log}"\n[[ "$*" != *$(cat "{failing}")* ]] || exit 3\n'
            f'[[ "$*" != *find_spec*gradio* ]] || echo "{tmp_path}/gradio"\n'
            f'[[ "$*" != *quickstart.py* ]] || echo $PPID >"{tmp_path}/parent"\n'
        )
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", str(programs.parent))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def run(script: str | Path, *arguments: str, fail: str = "nothing at all") -> Ran:
        log.write_text("")
        failing.write_text(fail)
        done = subprocess.run(["bash", ROOT / script, *arguments], cwd=tmp_path, capture_output=True, text=True)
        return Ran(done.returncode, log.read_text().splitlines(), done.stdout, done.stderr)

    return run


def test_the_test_script_installs_once_and_goes_through_every_check(fake_environment):
    status, calls, *_ = fake_environment(".ci/run", "-k", "two words")
    assert status == 0
    assert [call for call in calls if "pip install" in call][0].count("-e .[dev] -c constraints.txt") == 1
    parts = [
        "ruff check",
        "ruff format --check",
        "mypy",
        "loadfile --no-loadscope-reorder -m not slow -m slow or not slow -k two words offline=1",  # the last -m counts
        "cluster.py offline=1",
    ]
    assert all(any(part in call for call in calls) for part in parts)
    assert not any("pip install" in call for call in fake_environment("scripts/test.sh").calls)


@pytest.mark.parametrize("failing", ["ruff check", "mypy", "pytest"])
def test_the_test_script_keeps_a_failure_and_goes_on(fake_environment, failing):
    status, calls, *_ = fake_environment("scripts/test.sh", fail=failing)
    assert status == 3
    assert any("pytest" in call for call in calls)


def test_no_check_runs_when_the_installation_fails(fake_environment):
    status, calls, *_ = fake_environment("scripts/test.sh", fail="pip install")
    assert status == 3
    assert not any("pytest" in call for call in calls)
    assert any("pip install" in call for call in fake_environment("scripts/test.sh").calls)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The quickstart in a checkout of its own, since it writes to `outputs`; and the clip that comes with Gradio."""
    folder = tmp_path / "checkout"
    (folder / "scripts" / "tools").mkdir(parents=True)
    for name in ("quickstart.sh", "setup.sh", "tools/setup_lmms_eval.sh"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    for name in ("pyproject.toml", "constraints.txt", "constraints-lmms-eval.txt"):
        (folder / name).write_text(name)
    clips = tmp_path / "gradio" / "media_assets" / "videos"
    clips.mkdir(parents=True)
    (clips / "world.mp4").write_text("a clip")
    return folder


def test_the_quickstart_passes_arguments_on_and_keeps_the_status(fake_environment, checkout):
    script = checkout / "scripts" / "quickstart.sh"
    status, calls, *_ = fake_environment(script, "--seed", "3", "--output", "two  blanks")
    assert status == 0
    assert any("pip install" in call and "-e .[all] -c constraints.txt" in call for call in calls)
    assert calls[-1] == "python scripts/quickstart/run_quickstart.py --seed 3 --output two  blanks offline="
    assert fake_environment(script, fail="quickstart.py").status == 3
    assert fake_environment(script, fail="videochat_online.testing").status == 3


def test_the_environment_of_lmms_eval_is_installed_from_its_own_file(fake_environment, checkout):
    script = checkout / "scripts" / "tools" / "setup_lmms_eval.sh"
    arguments = [str(checkout.parent / "venv")]
    file = "-c constraints-lmms-eval.txt"
    ours, theirs = (call for call in fake_environment(script, *arguments).calls if "pip install" in call)
    assert f"-e .[lmms-eval] {file} " in ours
    assert f"--no-deps {file} lmms-eval " in theirs
    # What has less stays as it is, and installs nothing by the other file; a pin that moves is noticed.
    assert not any("pip install" in call for call in fake_environment(checkout / "scripts" / "quickstart.sh").calls)
    assert not any("-e .[" in call for call in fake_environment(script, *arguments).calls)
    (checkout / "constraints-lmms-eval.txt").write_text("filelock==3.32.7\n")
    assert any("-e .[" in call for call in fake_environment(script, *arguments).calls)


def test_no_shell_stands_between_a_signal_and_the_quickstart(fake_environment, checkout, tmp_path):
    fake_environment(checkout / "scripts" / "quickstart.sh")
    assert (tmp_path / "parent").read_text() == f"{os.getpid()}\n"


def test_the_quickstart_leaves_what_the_documents_use(fake_environment, checkout):
    script, outputs = checkout / "scripts" / "quickstart.sh", checkout / "outputs"
    assert "python -m videochat_online.testing outputs/tiny_model offline=" in fake_environment(script).calls
    assert (outputs / "world.mp4").read_text() == "a clip"
    (outputs / "tiny_model").mkdir()
    (outputs / "tiny_model" / "tokenizer.json").write_text("{}")
    (outputs / "world.mp4").write_text("another clip")
    assert not any("videochat_online.testing" in call for call in fake_environment(script).calls)
    assert (outputs / "world.mp4").read_text() == "another clip"


def test_the_quickstart_goes_on_without_the_clip(fake_environment, checkout, tmp_path):
    (tmp_path / "gradio" / "media_assets" / "videos" / "world.mp4").unlink()
    for failing in ("nothing at all", "find_spec"):
        status, calls, _, errors = fake_environment(checkout / "scripts" / "quickstart.sh", fail=failing)
        assert status == 0
        assert calls[-1] == "python scripts/quickstart/run_quickstart.py offline="
        assert "warning: no world.mp4 in this version of Gradio" in errors
        assert list((checkout / "outputs").glob("world*")) == []


def test_the_quickstart_does_nothing_when_the_installation_fails(fake_environment, checkout):
    status, calls, *_ = fake_environment(checkout / "scripts" / "quickstart.sh", fail="pip install")
    assert status == 3
    assert not any("quickstart.py" in call for call in calls)
