"""Videos whose clock begins late: evaluation and doctor say so, and `zero_start` counts from the first frame."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from clips import write_clip
from evaluation_sets import make_config, question, rows_of, run, write_set
from video_files import read_numbers, write_video
from videochat_online.cli.main import main
from videochat_online.evaluation import EvalQuestion, EvalVideo, get_task, resolve_protocol
from videochat_online.evaluation.check.benchmark_check import inspect_benchmark
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.video import open_video

TIMES_S = (0.5, 1.5, 3.0)


def make_video(name, time_s):
    """A question about a whole video."""
    facts = {"question": "?", "options": ("a", "b"), "answer_index": 0, "answer_type": "", "sub_answer_type": ""}
    asked = EvalQuestion(id="0", time_s=time_s, **facts)
    return EvalVideo(name=name, id=name, clip_s=(0.0, 100.0), fps=None, dataset=None, questions=(asked,))


@pytest.fixture
def late_set(tmp_path):
    """A clip of 4 s whose clock begins at 100 s, with questions that count from its first frame."""
    (tmp_path / "media").mkdir()
    write_clip(tmp_path / "media" / "late.mkv", start_s=100.0)
    write_clip(tmp_path / "media" / "on_time.mkv")
    asked = [question(time_s, text=f"What is at {time_s}?") for time_s in TIMES_S]
    rows = [{"video_id": name, "questions": asked} for name in ("late", "on_time")]
    return write_set(tmp_path / "set.json", rows)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_milliseconds_of_a_matroska_file_are_its_frames_times(tmp_path, backend):
    """29.97 frames a second, with times rounded to milliseconds: at each of them the frame that starts then is seen."""
    if backend == "decord":
        pytest.importorskip("decord")
    path = write_video(tmp_path / "rounded.mkv", range(45), rate=Fraction(30000, 1001))
    times_s = [(number * 1001 + 15) // 30 / 1000 for number in range(45)]
    assert any(time_s != number * 1001 / 30000 for number, time_s in enumerate(times_s))
    protocols = [
        resolve_protocol("streaming", fps=30.0),
        resolve_protocol("sliding_window", fps=30.0, max_frames=64),
    ]
    for number in (1, 2, 23, 43, 44):  # rounded down, up and not at all
        for before_s, last in ((0.0, number), (0.0005, number - 1)):
            asked_s = times_s[number] - before_s
            video = make_video(path.name, asked_s)
            for protocol in protocols:
                with VideoFrames(path, video, protocol, backend=backend) as video_frames:
                    is_window = protocol.memory is None
                    seen = video_frames.window_indices(asked_s) if is_window else video_frames.streaming_indices()
                    assert seen[-1:] == [last], (number, asked_s, protocol.memory)
    with open_video(path, backend=backend) as source:
        assert read_numbers(source.read(times_s=times_s)) == list(range(45))


@pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
class TestEvaluation:
    def test_a_late_clock_is_listed(self, tiny_model, late_set, tmp_path, setting):
        config = make_config(late_set, tmp_path / "run", setting=setting)
        outcome = run(config, tiny_model)
        (row,) = outcome.metrics["damaged_videos"]
        assert row["video"] == "late"
        assert "3 of 3 questions come before its first frame at 100.00 s" in row["problem"]
        assert outcome.metrics["num_without_frames"] == len(TIMES_S)

    def test_zero_start_sees_what_an_early_clock_shows(self, tiny_model, late_set, tmp_path, setting):
        config = make_config(late_set, tmp_path / "run", setting=setting, protocol={"zero_start": True})
        outcome = run(config, tiny_model)
        assert outcome.metrics["damaged_videos"] == []
        assert outcome.metrics["protocol"]["zero_start"] is True
        rows = {row["id"]: row for row in rows_of(tmp_path / "run")}
        late, on_time = ([row for row in rows.values() if row["video"] == name] for name in ("late", "on_time"))
        assert len(late) == len(TIMES_S)
        for one, other in zip(late, on_time, strict=True):
            assert [f["index"] for f in one["frames_used"]] == [f["index"] for f in other["frames_used"]]
            assert [f["time_s"] for f in one["frames_used"]] == pytest.approx(
                [f["time_s"] for f in other["frames_used"]], abs=0.002
            )
            assert one["text"] == other["text"]


def test_questions_after_the_end_are_listed(tiny_model, late_set, tmp_path):
    rows = [{"video_id": "on_time", "questions": [question(2.0), question(4.9), question(9.0)]}]
    config = make_config(write_set(late_set.parent / "after.json", rows), tmp_path / "run")
    (row,) = run(config, tiny_model).metrics["damaged_videos"]
    assert row == {"video": "on_time", "problem": "1 of 3 questions come after its end at 4.00 s"}


class TestDoctor:
    def test_early_questions_and_what_zero_start_makes_of_them(self, late_set, capsys):
        arguments = ["doctor", "--annotations", str(late_set), "--data_root", str(late_set.parent / "media")]
        assert main([*arguments, "--json"]) == 2
        late, on_time = json.loads(capsys.readouterr().out)["videos"]
        assert [problem["kind"] for problem in late["problems"]] == ["early_question"] * 3
        assert "at 0.5 s: begins at 100.00 s" in late["problems"][0]["reason"]
        assert on_time["problems"] == []
        assert main([*arguments, "--zero_start"]) == 0

    def test_a_question_after_the_end_counts_from_the_first_frame_too(self, tmp_path):
        write_clip(tmp_path / "late.mkv", start_s=100.0)
        annotations = write_set(tmp_path / "set.json", [{"video_id": "late", "questions": [question(50.0)]}])
        kinds = []
        for zero_start in (False, True):
            found = inspect_benchmark(get_task("ovbench"), [annotations], tmp_path, zero_start=zero_start)
            kinds += [finding.kind for finding in found.videos[0].findings]
        assert kinds == ["early_question", "late_question"]

    def test_a_question_before_the_clip_is_no_matter_of_the_clock(self, tmp_path):
        write_clip(tmp_path / "late.mkv", start_s=100.0)
        rows = [{"video_id": "late", "questions": [question(50.0), question(102.0)], "clip": [100.0, 104.0]}]
        annotations = write_set(tmp_path / "set.json", rows)
        (video,) = inspect_benchmark(get_task("ovbench"), [annotations], tmp_path).videos
        assert [finding.kind for finding in video.findings] == ["outside_clip"]

    def test_what_was_mended_is_a_note(self, tmp_path):
        part = write_clip(tmp_path / "part.ts").read_bytes()
        (tmp_path / "joined.ts").write_bytes(part * 2)
        (tmp_path / "part.ts").unlink()
        annotations = write_set(tmp_path / "set.json", [{"video_id": "joined", "questions": [question(3.0)]}])
        (video,) = inspect_benchmark(get_task("ovbench"), [annotations], tmp_path).videos
        assert [(finding.kind, finding.is_note) for finding in video.findings] == [("mended", True)]
        assert "the clock jumps" in video.findings[0].reason
        assert video.facts.num_frames == 80
