"""The scripts of the benchmarks: what lmms-eval is called with, and its status."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

EVAL = Path(__file__).resolve().parents[2] / "shell" / "eval"
TASKS = {
    "mvbench": "mvbench",
    "videomme": "videomme",
    "mlvu": "mlvu_dev,mlvu_test",
    "longvideobench": "longvideobench_val_v",
    "egoschema": "egoschema,egoschema_subset",
    "moviechat": "moviechat_global,moviechat_breakpoint",
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a script with programs that write down how they were called and exit with status 3."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("lmms-eval", "torchrun"):
        body = f'printf "%s\\n" {name} "HF_HOME=$HF_HOME" "$@" >"{tmp_path}/called"\nexit 3\n'
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (programs / name).chmod(0o755)
    for name in ("GPUS", "HF_HOME", "OVBENCH_ANNOTATIONS", "OVBENCH_ROOT"):
        monkeypatch.delenv(name, raising=False)

    def run(script: str, *arguments: str, status: int = 3, **variables: str) -> list[str]:
        environment = os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "HOME": "home"} | variables
        done = subprocess.run(["bash", EVAL / script, *arguments], env=environment, cwd=tmp_path, capture_output=True)
        assert done.returncode == status, done.stderr
        return (tmp_path / "called").read_text().splitlines() if status == 3 else done.stderr.decode().splitlines()

    return run


@pytest.mark.parametrize("name", TASKS)
def test_a_benchmark(call, name):
    called = call(f"{name}.sh", "--model_args", "pretrained=two words,fps=2", "--output_path", "out")
    assert called == [
        *("lmms-eval", "HF_HOME=home/.cache/huggingface"),
        *("--model", "videochat_online", "--tasks", TASKS[name], "--verbosity", "DEBUG"),
        *("--model_args", "pretrained=two words,fps=2", "--output_path", "out"),
    ]


def test_several_gpus_and_another_cache(call):
    called = call("mvbench.sh", "--limit", "8", GPUS="8", HF_HOME="cache")
    assert called[:6] == ["torchrun", "HF_HOME=cache", "--standalone", "--nproc_per_node", "8", "-m"]
    assert called[6:] == [
        "lmms_eval",
        "--model",
        "videochat_online",
        "--tasks",
        "mvbench",
        "--verbosity",
        "DEBUG",
        *("--limit", "8"),
    ]


def test_ovbench_with_another_model(call):
    where = {"OVBENCH_ANNOTATIONS": "a.json:b.json", "OVBENCH_ROOT": "media"}
    called = call("ovbench_lmms_eval.sh", "qwen2_5_vl", "pretrained=Qwen/x,max_num_frames=32", "--limit", "8", **where)
    # lmms-eval takes the last --model.
    assert called[6:] == [
        *("--verbosity", "DEBUG", "--model", "qwen2_5_vl", "--model_args", "pretrained=Qwen/x,max_num_frames=32"),
        *("--include_path", f"{EVAL}/../../configs/lmms_eval", "--limit", "8"),
    ]
    assert called[4:6] == ["--tasks", "ovbench"]


@pytest.mark.parametrize("missing", ["MODEL", "ARGS", "OVBENCH_ANNOTATIONS", "OVBENCH_ROOT"])
def test_ovbench_says_what_it_needs(call, missing):
    where = {name: "x" for name in ("OVBENCH_ANNOTATIONS", "OVBENCH_ROOT") if name != missing}
    arguments = {"MODEL": [], "ARGS": ["dummy"]}.get(missing, ["dummy", "response=A"])
    (said,) = call("ovbench_lmms_eval.sh", *arguments, status=2, **where)
    assert said.startswith("usage: OVBENCH_ANNOTATIONS=FILE:FILE OVBENCH_ROOT=DIR bash ")
