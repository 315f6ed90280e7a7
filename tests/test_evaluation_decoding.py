"""Videos that hang or crash their decoder end neither an evaluation nor the process that waits for them."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest

from clips import write_clip
from evaluation_sets import folder_set, make_config, question, rows_of, run, write_set
from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation import resolve_protocol
from videochat_online.evaluation.decoding import FootageWorker
from videochat_online.evaluation.frames import Footage
from videochat_online.evaluation.records import EvalQuestion, EvalVideo
from videochat_online.video import FrameTransform

TRANSFORM = FrameTransform(size=32)


def video(name="clip.mp4", end_s=4.0):
    asked = EvalQuestion(
        id="a", time_s=3.5, question="?", options=("x", "y"), answer_index=0, answer_type="P", sub_answer_type="P-1"
    )
    return EvalVideo(name=name, id=name, clip_s=(0.0, end_s), fps=None, dataset=None, questions=(asked,))


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4")


@pytest.fixture
def worker():
    with FootageWorker(timeout_s=20) as started:
        yield started


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
def test_frames_are_those_of_this_process(clip, worker, setting):
    protocol = resolve_protocol(setting, fps=5.0)
    with Footage(clip, video(), protocol) as here, worker.open(clip, video(), protocol, TRANSFORM) as there:
        indices = here.streaming_indices() if setting == "streaming" else here.window_indices(3.5)
        assert indices == (there.streaming_indices() if setting == "streaming" else there.window_indices(3.5))
        ours, theirs = list(here.read(indices)), list(there.read(indices))
        assert [[(f.index, f.time_s) for f in group] for group in ours] == [
            [(f.index, f.time_s) for f in group] for group in theirs
        ]
        for mine, other in zip(sum(ours, []), sum(theirs, []), strict=True):
            assert np.array_equal(TRANSFORM.squares(mine.pixels_HWC[None])[0], other.pixels_HWC)
        assert (here.num_decoded, here.problem) == (there.num_decoded, there.problem)
        assert there.waited_s > 0


def test_errors_come_across(tmp_path, clip, worker):
    protocol = resolve_protocol("streaming")
    with pytest.raises(VideoError, match="none.mp4: expected a video file or a folder of frames, found no such file"):
        worker.open(tmp_path / "none.mp4", video(), protocol, TRANSFORM)
    with pytest.raises(InputError, match="backend: expected one of auto"):
        worker.open(clip, video(), protocol, TRANSFORM, backend="vhs")
    with worker.open(clip, video(), protocol, TRANSFORM) as footage:
        assert footage.streaming_indices()[0] == 0


def test_a_decoder_that_hangs_is_killed(tmp_path, clip, monkeypatch):
    whole = Footage.read

    def read(self, indices):
        for group in whole(self, indices):
            yield group
            if self.source.info.source.endswith("hangs.mp4"):
                time.sleep(600)

    monkeypatch.setattr(Footage, "read", read)
    hanging = write_clip(tmp_path / "hangs.mp4")
    protocol = resolve_protocol("streaming")
    with FootageWorker(timeout_s=2) as worker:
        with worker.open(hanging, video(), protocol, TRANSFORM) as footage:
            process = worker._process.pid
            groups = footage.read(footage.streaming_indices())
            assert len(next(groups)) == 8
            with pytest.raises(VideoError, match="hangs.mp4: gave no frame for 2 s; its decoder was killed"):
                next(groups)
        assert is_gone(process)
        with worker.open(clip, video(), protocol, TRANSFORM) as footage:
            assert sum(map(len, footage.read(footage.streaming_indices()))) > 8
        process = worker._process.pid
    assert is_gone(process)


def test_frames_that_nobody_wants_hold_nothing_up(clip, worker):
    protocol = resolve_protocol("streaming")
    for _ in range(3):
        with worker.open(clip, video(), protocol, TRANSFORM) as footage:
            indices = footage.streaming_indices()
            next(footage.read(indices))
    with worker.open(clip, video(), protocol, TRANSFORM) as footage:
        assert sum(map(len, footage.read(indices))) == len(indices)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its decoder was ended by SIGKILL"),
        (lambda: os._exit(3), "its decoder ended with status 3"),
        (lambda: time.sleep(600), "gave no frame for 2 s; its decoder was killed"),
    ],
)
def test_an_evaluation_goes_on_after_a_decoder_that_does_not(tmp_path, tiny_model, monkeypatch, fault, said):
    """Of three videos the second one ends its decoder: it is reported, the others have all their answers."""
    annotations = folder_set(tmp_path)
    opened = Footage.__init__

    def init(self, path, *arguments, **options):
        if path.name == "video1":
            fault()
        opened(self, path, *arguments, **options)

    undisturbed = make_config(annotations, tmp_path / "undisturbed", max_bad_fraction=0.5)
    run(undisturbed, tiny_model)
    monkeypatch.setattr(Footage, "__init__", init)
    config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.5, decode_timeout_s=2)
    outcome = run(config, tiny_model)
    (problem,) = outcome.bad_videos
    assert problem == f"video1: {tmp_path}/media/video1: {said}"
    assert (outcome.num_answered, outcome.metrics["num_bad_videos"]) == (6, 1)
    expected = [row for row in rows_of(tmp_path / "undisturbed") if row["video"] != "video1"]
    assert rows_of(tmp_path / "out") == expected


def test_a_fault_of_the_program_is_no_bad_video(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(Footage, "streaming_indices", lambda self: 1 / 0)
    with pytest.raises(RuntimeError, match="video0: the decoding process failed:(.|\n)*ZeroDivisionError"):
        run(make_config(folder_set(tmp_path), tmp_path / "out"), tiny_model)


@pytest.mark.parametrize("answer_by", ["generation", "likelihood"])
def test_numbers_that_are_not_finite_are_no_answer(tmp_path, tiny_model, monkeypatch, answer_by):
    """Of one video: reported, wrong, and not repeated when the run goes on; of all: the run ends."""
    annotations = write_set(
        tmp_path / "set.json",
        [
            {"video_id": f"video{n}", "fps": 4.0, "clip": [0.0, 6.0], "questions": [question(2.0, text=f"Number {n}?")]}
            for n in range(3)
        ],
    )
    folder_set(tmp_path / "other")
    head = tiny_model.network.language_model.lm_head
    broken: list[bool] = []
    hook = head.register_forward_hook(lambda module, inputs, output: output * float("nan") if broken.pop(0) else None)
    try:
        broken[:] = [True] + [False] * 100
        outcome = run(
            make_config(annotations, tmp_path / "out", tmp_path / "other" / "media", answer_by=answer_by), tiny_model
        )
        rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
        assert [row.get("error_kind") for row in rows] == ["NonFiniteError", None, None]
        assert (rows[0]["correct"], rows[0]["predicted_index"]) == (False, None)
        assert "logits that are NaN or infinite" in rows[0]["error"]
        assert outcome.metrics["num_not_finite"] == 1
        assert "1 for which the model gave no finite number" in (tmp_path / "out" / "report.md").read_text()
        broken[:] = [True] * 100
        many = folder_set(tmp_path / "many")
        with pytest.raises(InputError, match="5 questions in a row were not answered: the model gives logits"):
            run(make_config(many, tmp_path / "none", answer_by=answer_by), tiny_model)
    finally:
        hook.remove()
