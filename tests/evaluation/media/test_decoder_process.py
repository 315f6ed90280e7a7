"""Videos that hang or crash their decoder end neither an evaluation nor the process that waits for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from clips import write_clip
from evaluation_sets import folder_set, make_config, question, rows_of, run, write_set
from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation import EvaluationFolder, Shard, evaluate, make_plan, resolve_protocol
from videochat_online.evaluation.benchmark import EvalQuestion, EvalVideo
from videochat_online.evaluation.media.decoder_process import DecoderProcess
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.video import FrameTransform, open_video

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
    with DecoderProcess(timeout_s=20) as started:
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
    with VideoFrames(clip, video(), protocol) as here, worker.open(clip, video(), protocol, TRANSFORM) as there:
        indices = here.streaming_indices() if setting == "streaming" else here.window_indices(3.5)
        assert indices == (there.streaming_indices() if setting == "streaming" else there.window_indices(3.5))
        ours, theirs = list(here.read(indices)), list(there.read(indices))
        assert [[(f.index, f.time_s) for f in group] for group in ours] == [
            [(f.index, f.time_s) for f in group] for group in theirs
        ]
        for mine, other in zip(sum(ours, []), sum(theirs, []), strict=True):
            assert np.array_equal(TRANSFORM.resized(mine.pixels_HWC[None])[0], other.pixels_HWC)
        assert (here.num_decoded, here.finish()) == (there.num_decoded, there.finish())
        assert there.waited_s > 0


def test_errors_come_across(tmp_path, clip, worker):
    protocol = resolve_protocol("streaming")
    with pytest.raises(VideoError, match="none.mp4: expected a video file or a folder of frames, found no such file"):
        worker.open(tmp_path / "none.mp4", video(), protocol, TRANSFORM)
    with pytest.raises(InputError, match="backend: expected one of auto"):
        worker.open(clip, video(), protocol, TRANSFORM, backend="vhs")
    with worker.open(clip, video(), protocol, TRANSFORM) as video_frames:
        assert video_frames.streaming_indices()[0] == 0


def test_a_decoder_that_hangs_is_killed(tmp_path, clip, monkeypatch):
    whole = VideoFrames.read

    def read(self, indices):
        for group in whole(self, indices):
            yield group
            if self.source.info.source.endswith("hangs.mp4"):
                time.sleep(600)

    monkeypatch.setattr(VideoFrames, "read", read)
    hanging = write_clip(tmp_path / "hangs.mp4")
    protocol = resolve_protocol("streaming")
    with DecoderProcess(timeout_s=2) as worker:
        with worker.open(hanging, video(), protocol, TRANSFORM) as video_frames:
            process = worker.process.pid
            groups = video_frames.read(video_frames.streaming_indices())
            assert len(next(groups)) == 8
            with pytest.raises(VideoError, match="hangs.mp4: gave no frame for 2 s; its decoder was killed"):
                next(groups)
        assert is_gone(process)
        with worker.open(clip, video(), protocol, TRANSFORM) as video_frames:
            assert sum(map(len, video_frames.read(video_frames.streaming_indices()))) > 8
        process = worker.process.pid
    assert is_gone(process)


def test_frames_that_nobody_wants_hold_nothing_up(clip, worker):
    protocol = resolve_protocol("streaming")
    for _ in range(3):
        with worker.open(clip, video(), protocol, TRANSFORM) as video_frames:
            indices = video_frames.streaming_indices()
            next(video_frames.read(indices))
    with worker.open(clip, video(), protocol, TRANSFORM) as video_frames:
        assert sum(map(len, video_frames.read(indices))) == len(indices)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its decoder ended with signal 9 (SIGKILL)"),
        (lambda: os._exit(3), "its decoder ended with exit status 3"),
        (lambda: time.sleep(600), "gave no frame for 2 s; its decoder was killed"),
    ],
)
def test_an_evaluation_goes_on_after_a_decoder_that_does_not(tmp_path, tiny_model, monkeypatch, fault, said):
    """Of three videos the second one ends its decoder: it is reported, the others have all their answers."""
    annotations = folder_set(tmp_path)
    opened = VideoFrames.__init__

    def init(self, path, *arguments, **options):
        if path.name == "video1":
            fault()
        opened(self, path, *arguments, **options)

    undisturbed = make_config(annotations, tmp_path / "undisturbed", max_bad_fraction=0.5)
    run(undisturbed, tiny_model)
    monkeypatch.setattr(VideoFrames, "__init__", init)
    config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.5, decode_timeout_s=2)
    outcome = run(config, tiny_model)
    (problem,) = outcome.bad_videos
    assert problem == f"video1: {tmp_path}/media/video1: {said}"
    assert (outcome.num_answered, outcome.metrics["num_bad_videos"]) == (6, 1)
    expected = [row for row in rows_of(tmp_path / "undisturbed") if row["video"] != "video1"]
    assert rows_of(tmp_path / "out") == expected


def test_a_fault_while_decoding_costs_one_video(tmp_path, tiny_model, monkeypatch, caplog):
    """Odd files bring decoders to errors of any kind; the log has the whole of it."""
    indices = VideoFrames.streaming_indices
    odd = "video1"
    monkeypatch.setattr(
        VideoFrames, "streaming_indices", lambda self: 1 / 0 if self.video.name == odd else indices(self)
    )
    outcome = run(make_config(folder_set(tmp_path), tmp_path / "out", max_bad_fraction=0.5), tiny_model)
    assert outcome.bad_videos == (
        f"video1: {tmp_path}/media/video1: decoding failed: ZeroDivisionError: division by zero",
    )
    assert outcome.num_answered == 6
    assert "Traceback" in caplog.text


def test_a_video_of_an_unknown_codec_is_no_video(tmp_path, clip):
    odd = tmp_path / "odd.mp4"
    odd.write_bytes(clip.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(VideoError, match="odd.mp4: expected a video of a codec that FFmpeg knows"):
        open_video(odd)


def test_answers_of_a_model_that_breaks_are_not_kept(tmp_path, tiny_model):
    """The run ends, and the questions of its end are asked again once the weights are whole."""
    annotations = folder_set(tmp_path)
    config = make_config(annotations, tmp_path / "out")
    head = tiny_model.network.language_model.lm_head
    calls = []

    def spoil(module, inputs, output):
        calls.append(None)
        return output * float("nan") if len(calls) > 8 else None

    hook = head.register_forward_hook(spoil)
    try:
        with pytest.raises(InputError, match="5 questions in a row were not answered"):
            run(config, tiny_model)
    finally:
        hook.remove()
    kept = rows_of(tmp_path / "out")
    assert 0 < len(kept) < 9
    assert not any("error" in row for row in kept)
    outcome = run(config, tiny_model)
    assert (outcome.num_answered, outcome.metrics["num_not_finite"]) == (9, 0)


def test_videos_that_are_missing_end_a_shard_before_its_model_is_loaded(tmp_path, tiny_model):
    annotations = folder_set(tmp_path, num_videos=6)
    for number in (0, 1, 2):
        shutil.rmtree(tmp_path / "media" / f"video{number}")
    for index in range(6):
        config = make_config(annotations, tmp_path / "out", shard=Shard(index, 6))
        folder = EvaluationFolder(config.output, config.settings(), {}, config.shard)
        with pytest.raises(InputError, match="3 of 6 videos cannot be used"):
            evaluate(config, make_plan(config), folder, lambda: pytest.fail("the model was loaded"))


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


def test_other_weights_at_the_same_place_are_another_run(tmp_path, tiny_dir, tiny_model):
    place = shutil.copytree(tiny_dir(), tmp_path / "model")
    config = make_config(folder_set(tmp_path), tmp_path / "out", model=str(place))
    run(config, tiny_model)
    assert run(config, tiny_model).num_answered == 9
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match="weights was "):
        run(make_config(tmp_path / "set.json", tmp_path / "out", model=str(place)), tiny_model)
