"""A memory from one file outside the tree, wherever a built-in one can be named; and a new built-in one."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

import compare_memories
from evaluation_sets import folder_set
from lmms_eval_stub import import_with_stub
from option_tables import table
from processes import run_program
from synthetic_sets import TINY_SINGLE
from train_cases import write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.data import load_registries
from videochat_online.demo.server import DemoServer, ServerOptions
from videochat_online.demo.tabs import DemoOptions, form_options
from videochat_online.errors import InputError
from videochat_online.evaluation.compare.finished_runs import default_label
from videochat_online.memory import MEMORIES, make_memory
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import StreamingSession
from videochat_online.synthetic import synthesize

EVERY_KTH = '''
"""Every k-th frame at full size, the last so many of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from videochat_online.parts import option
from videochat_online.types import FrameTokens


class EveryKth:
    @dataclass(frozen=True, kw_only=True)
    class Options:
        every: Annotated[int, Ge(1)] = option(2, "of so many frames one is kept")
        kept_frames: Annotated[int, Ge(1)] = option(1, "frames kept")
        policy: Literal["last", "first"] = option("last", "which frames stay")

    def __init__(self, options, *, full_grid, device=None):
        self.options, self.full_grid, self.frames = options, full_grid, []

    @property
    def max_tokens(self):
        return self.options.kept_frames * self.full_grid[0] * self.full_grid[1]

    def write(self, frame):
        if frame.index % self.options.every == 0:
            self.frames = [*self.frames, frame][-self.options.kept_frames :]

    def read(self):
        return tuple(self.frames)

    def reset(self):
        self.frames = []

    def state_dict(self):
        return {str(frame.index): frame.tokens_CHW for frame in self.frames}

    def load_state_dict(self, state):
        self.frames = [FrameTokens(tokens, int(index), float(index), int(index)) for index, tokens in state.items()]
'''
NAME = "every_kth:EveryKth"
FLAGS = ("--memory", NAME, "--memory.every", "3", "--memory.kept_frames", "2")
OPTIONS = {"every": 3, "kept_frames": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with the file in it."""
    (tmp_path / "every_kth.py").write_text(EVERY_KTH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    yield tmp_path
    sys.modules.pop("every_kth", None)


def evaluate_in_its_folder() -> int:
    os.chdir(os.environ["FOLDER"])
    return main()


def evaluation(folder, model, *more) -> list[str]:
    files = ["--annotations", folder / "set.json", "--data_root", folder / "media", "--output", folder / "out"]
    return list(map(str, ["evaluate", "--model", model, "--max_new_tokens", "2", *files, *more]))


def test_chat(folder, tiny_dir, capsys):
    folder_set(folder, num_videos=1)
    video = ["--video", "media/video0", "--source_fps", "4", "--fps", "4", "--ask", "5:What?"]
    assert main(["chat", "--model", str(tiny_dir()), "--json", "--max_new_tokens", "2", *video, *FLAGS]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [frame["index"] for frame in row["frames_used"]] == [15, 18]
    with pytest.raises(SystemExit, match="0"):
        main(["chat", *FLAGS, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--memory.every VALUE of so many frames one is kept; a whole number of at least 1 (default: 2)" in said
    assert main(["chat", "--model", "x", "--every", "3", "--memory", NAME]) == 2
    assert capsys.readouterr().err == "error: --every: expected --memory.every in its place\n"


def test_evaluate_in_several_processes(folder, tiny_dir):
    folder_set(folder, num_videos=2)
    command = ["videochat-online", *evaluation(folder, tiny_dir(), *FLAGS)]
    done = run_program(evaluate_in_its_folder, command, count=2, **os.environ, FOLDER=str(folder))
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "out" / "run.json").read_text())
    protocol = run["settings"]["protocol"]
    # No option of the preset's pyramid, of which one has the name of an own one.
    assert (protocol["memory"], protocol["memory_options"]) == (NAME, OPTIONS)
    rows = [json.loads(line) for path in folder.glob("out/**/predictions*.jsonl") for line in path.open()]
    assert len(rows) >= 6, "not all questions of two videos"
    assert all(frame["index"] % 3 == 0 for row in rows for frame in row["frames_used"])
    assert default_label(run["settings"]) == f"{NAME} 2"


def test_a_label_follows_no_import_path_of_a_run_file(folder):
    protocol = {"causal": True, "strategy": "direct", "kv_memory": False, "memory": NAME}
    settings = {"blind": False, "protocol": protocol | {"memory_options": {"kept_frames": 5, "every": 2}}}
    assert default_label(settings) == f"{NAME} 5"
    assert "every_kth" not in sys.modules


def test_compare_memories(folder, tiny_dir):
    data = synthesize(folder / "data", seed=0, preset=TINY_SINGLE).output
    files = ["--annotations", str(data / "annotations/ovbench_test.json"), "--data_root", str(data / "videos/test")]
    more = ["--memories", "pyramid", NAME, "--budgets", "1/1/4", "--cost_frames", "20", "--max_videos", "1"]
    given = ["--model", str(tiny_dir()), *files, "--output", str(folder / "compared"), *more]
    assert compare_memories.main(given) == 0
    (table,) = json.loads((folder / "compared" / "compare.json").read_text())["tables"]
    found = {run["label"]: run.get("max_tokens") for run in table["runs"]}
    assert found == {"pyramid": 24, NAME: 16, "keep_all": None, "blind": None}


def test_a_training_registry(folder):
    rows = [{"video": "clip.mp4", "QA": [{"q": "What?", "a": "Noise."}]}]
    path = write_registry(folder / "registry", write_media(folder / "media"), a=rows)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({"a": entries["a"] | {"memory": {"name": NAME, **OPTIONS}}}))
    (entry,) = load_registries(str(path))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    frames, ratios = entry.memory.kept_frames(pixels, range(10), (4, 4), (1,))
    assert ([frame.index for frame in frames], ratios) == ([6, 9], [1, 1])
    path.write_text(json.dumps({"a": entries["a"] | {"memory": {"name": NAME, "every": 0}}}))
    with pytest.raises(InputError, match="'a': memory: every: expected a whole number of at least 1"):
        load_registries(str(path))


def components(client):
    return {each["props"].get("elem_id"): each["props"] for each in client.get("config").json()["components"]}


def test_the_operator_s_memory_on_the_page_and_in_the_api(tiny_model):
    watching = StreamOptions(memory=NAME, memory_options={"every": 3})
    with (
        DemoServer(tiny_model, DemoOptions(defaults=watching), ServerOptions(port=0)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        fields = components(client)
        assert NAME in [name for name, _ in fields["memory"]["choices"]]
        own = {name: field["value"] for name, field in fields.items() if (name or "").startswith(f"{NAME}.")}
        assert own == {f"{NAME}.every": "3", f"{NAME}.kept_frames": "", f"{NAME}.policy": ""}
        assert client.get("v1/health").json()["memories"][NAME] == ["every", "kept_frames", "policy"]
        made = client.post("v1/streams", json={"memory": NAME, "memory_options": OPTIONS}).json()
        assert made["options"]["memory_options"] == OPTIONS
        told = client.get(f"v1/streams/{made['id']}").json()
        assert told["status"]["max_tokens"] == 32
        wrong = client.post("v1/streams", json={"memory": NAME, "memory_options": {"every": 0}})
        assert "memory_options.every: expected a whole number of at least 1" in wrong.text
        rare = client.post("v1/streams", json={"memory": NAME, "memory_options": {"every": 1000}})
        assert rare.status_code == 201, "an option that is no number of frames counts as one"
        large = client.post("v1/streams", json={"memory": NAME, "memory_options": {"kept_frames": 257}})
        assert "memory_options: expected at most 256 frames, got 257" in large.text


def test_a_session_is_saved_whatever_the_tensors_share(folder, tiny_model, frames):
    """Views of one tensor, and not contiguous ones, which safetensors does not write."""
    (folder / "sharing.py").write_text(
        EVERY_KTH
        + """
class Sharing(EveryKth):
    def state_dict(self):
        tokens = torch.stack([frame.tokens_CHW for frame in self.frames] or [torch.zeros(1, 1)])
        return {"all": tokens, "turned": tokens.mT, **{str(f.index): t for f, t in zip(self.frames, tokens)}}

    def load_state_dict(self, state):
        super().load_state_dict({key: value for key, value in state.items() if key.isdigit()})

class Wrong(EveryKth):
    def state_dict(self):
        return {"count": len(self.frames)}
"""
    )
    made = make_memory("sharing:Sharing", full_grid=tiny_model.frames.grid, kept_frames=3)
    session = StreamingSession(tiny_model, memory=made)
    session.push(frames(6), range(6))
    session.save(folder / "session.safetensors")
    other = StreamingSession(tiny_model, memory=make_memory("sharing:Sharing", full_grid=tiny_model.frames.grid))
    other.restore(folder / "session.safetensors")
    assert [frame.index for frame in other.remembered()] == [0, 2, 4]
    assert all(map(torch.equal, *([f.tokens_CHW for f in s.memory.read()] for s in (session, other))))
    wrong = StreamingSession(tiny_model, memory=make_memory("sharing:Wrong", full_grid=tiny_model.frames.grid))
    with pytest.raises(InputError, match="expected tensors alone in a memory's state, found 0 at count"):
        wrong.save(folder / "wrong.safetensors")


def test_no_client_can_name_an_import_path(tiny_model, folder):
    with (
        DemoServer(tiny_model, DemoOptions(), ServerOptions(port=0)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        refused = client.post("v1/streams", json={"memory": NAME})
        assert (refused.status_code, "memory: expected one of pyramid" in refused.text) == (422, True)
    chosen = {"fps": 1, "memory": NAME, "max_new_tokens": 9, "temperature": 0, "top_p": 1, "seed": 0}
    with pytest.raises(InputError, match=f"memory: expected one of pyramid, .*, found '{NAME}'"):
        form_options(StreamOptions(), {**chosen, "system_message": ""})
    assert "every_kth" not in sys.modules, "a client has had it imported"


class TestBuiltIn:
    """One file and one line: everything else comes of them."""

    @pytest.fixture(autouse=True)
    def _line(self, monkeypatch, tmp_path):
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(MEMORIES.built_in, "every_kth", NAME)

    def test_flag(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["chat", "--memory", "every_kth", "--help"])
        said = capsys.readouterr().out
        assert "--memory.every VALUE" in said
        assert "window, " in said
        assert "every_kth, or package.module:Name" in " ".join(said.split())

    def test_page_and_json(self, tiny_model):
        with (
            DemoServer(tiny_model, DemoOptions(), ServerOptions(port=0)) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            field = components(client)["every_kth.every"]
            assert (field["placeholder"], field["info"], field["visible"]) == (
                "2",
                "of so many frames one is kept",
                False,
            )
            assert client.get("v1/health").json()["memories"]["every_kth"] == ["every", "kept_frames", "policy"]
            made = client.post("v1/streams", json={"memory": "every_kth", "memory_options": {"every": 5}})
            assert made.json()["options"]["memory_options"] == {"every": 5}

    def test_argument_of_lmms_eval(self, monkeypatch, tiny_dir):
        try:
            adapter = import_with_stub(monkeypatch)
            lm = adapter.VideoChatOnline(str(tiny_dir()), device="cpu", memory="every_kth", **{"memory.every": "4"})
        finally:
            sys.modules.pop("videochat_online.integrations.lmms_eval", None)
        assert lm.answerer.protocol.memory_options == {"every": 4}

    def test_row_of_the_documents_and_tests_of_the_contract(self):
        assert "| `every_kth` | `every` | `2` | a whole number of at least 1 | of so many" in table(MEMORIES)
        contract = runpy.run_path(str(Path(__file__).parents[1] / "memory" / "test_contract.py"))
        assert contract["OPTIONS"]["every_kth"] == {}
        assert set(contract["OPTIONS"]) >= set(MEMORIES.built_in)
