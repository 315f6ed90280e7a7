"""What a question is shown where its benchmark's scripts cut a clip for it, and where it has a start of its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmark_sets import benchmark_config, ovo_choice, ovo_set, streaming_choice, streaming_proactive, streaming_row
from clips import write_clip
from evaluation_sets import noise, rows_of, run, write_frames, write_set
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import compare_runs, get_task, make_plan, resolve_protocol
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.protocol import context_of
from videochat_online.evaluation.run.contexts import make_context
from videochat_online.text.questions import OVBENCH_SYSTEM_MESSAGE

FPS = 10.0


@pytest.fixture(params=["file", "folder"])
def path(request, tmp_path):
    """Eight seconds of ten frames each."""
    if request.param == "folder":
        return write_frames(tmp_path / "frames", noise(80))
    return write_clip(tmp_path / "clip.mp4", num_frames=80, fps=10)


def protocol_of(task, setting="sliding_window", **values):
    values = {"max_frames": 100} | values if setting == "sliding_window" else {"memory": "keep_all"} | values
    return resolve_protocol(setting, of_task=get_task(task).settings, fps=FPS, **values)


def windows(path, tmp_path, task, row, **values):
    """Starts of the frames that each question, or poll, is shown, by its time."""
    (video,) = get_task(task).load([write_set(tmp_path / "rows.json", [row])]).videos
    with VideoFrames(path, replace(video, fps=FPS), protocol_of(task, **values)) as video_frames:
        return {
            asked.time_s: [index / FPS for index in video_frames.window_indices(asked.time_s, asked.starts_s)]
            for asked, _ in video.moments
        }


class TestStarts:
    ROW = streaming_row("clip_proactive.mp4", streaming_proactive("00:02", "00:04"))

    @pytest.mark.parametrize("window", [{"window_s": 60.0}, {"window_s": math.inf}, {}, {"window_s": 1.5}])
    @pytest.mark.parametrize("protocol", ["causal", "reference"])
    def test_no_window_shows_what_was_before(self, path, tmp_path, window, protocol):
        shown = windows(path, tmp_path, "streamingbench", self.ROW, protocol=protocol, **window)
        assert list(shown) == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
        for time_s, starts_s in shown.items():
            last_s = time_s if protocol == "causal" and time_s < 8 else time_s - 0.1
            assert min(starts_s) >= 2.0
            assert starts_s[-1] == last_s
            if window != {"window_s": 1.5}:
                assert starts_s[0] == 2.0
        assert min(windows(path, tmp_path, "streamingbench", self.ROW, own_starts=False)[3.0]) == 0.0

    def test_what_is_left_out_takes_no_place(self, path, tmp_path):
        shown = windows(path, tmp_path, "streamingbench", self.ROW, max_frames=3)
        assert shown[3.0] == [2.0, 2.5, 3.0]

    def test_a_question_whose_start_comes_after_the_last_frame_sees_none(self, path, tmp_path):
        row = streaming_row("clip_proactive.mp4", streaming_proactive("00:09", "00:10"))
        assert set(map(tuple, windows(path, tmp_path, "streamingbench", row).values())) == {()}

    def test_a_memory_is_of_the_whole_stream(self, tmp_path):
        config = benchmark_config("streamingbench", tmp_path, tmp_path / "out")
        make_plan(config)
        reference = {"protocol": {"protocol": "reference"}}
        config = benchmark_config("streamingbench", tmp_path, tmp_path / "out", **reference)
        with pytest.raises(InputError, match="expected --setting sliding_window, since 2 questions .* got streaming, "):
            make_plan(config)
        reference = {"protocol": {"protocol": "reference"}, "setting": "sliding_window"}
        make_plan(benchmark_config("streamingbench", tmp_path, tmp_path / "out", **reference))


class TestClips:
    @pytest.mark.parametrize(("time_s", "ours", "theirs"), [(2.5, 2.5, 2.9), (3, 3.0, 2.9), (3.01, 3.0, 3.9)])
    def test_ovobench_ends_at_the_ceiling(self, path, tmp_path, tiny_model, time_s, ours, theirs):
        row = ovo_choice(1, "EPM", time_s, video=path.name)
        for protocol, last_s in (("causal", ours), ("reference", theirs)):
            shown = windows(path, tmp_path, "ovobench", row, protocol=protocol)[time_s]
            assert shown == [index / FPS for index in range(round(last_s * FPS) + 1)]
            resolved = protocol_of("ovobench", "streaming", protocol=protocol)
            assert resolved.causal == (protocol == "causal")
            (video,) = get_task("ovobench").load([tmp_path / "rows.json"]).videos
            with VideoFrames(path, replace(video, fps=FPS), resolved) as video_frames:
                context = make_context(tiny_model, video_frames, resolved, video.questions)
                context.advance_to(video.questions[0])
                view = context.prepare(video.questions[0], "?")
                assert round(view.frames[-1].time_s, 2) == last_s
                assert video_frames.num_decoded == context.num_encoded == len(shown)
            ours_is_said = OVBENCH_SYSTEM_MESSAGE[:40] in view.prompt.layout.text
            assert ours_is_said == (protocol == "causal")

    @pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
    def test_no_kind_of_question_has_a_system_message_of_ours(self, tmp_path, tiny_model, setting):
        (video, _) = get_task("ovobench").load([ovo_set(tmp_path)]).videos
        protocol = protocol_of("ovobench", setting, protocol="reference")
        with VideoFrames(tmp_path / "media" / video.id, video, protocol) as video_frames:
            context = make_context(tiny_model, video_frames, protocol, video.questions)
            for asked in video.questions:
                context.advance_to(asked)
                assert "Carefully watch" not in context.prepare(asked, "?").prompt.layout.text
        assert {asked.kind for asked in video.questions} == {"choice", "count", "yes_no"}

    def test_streamingbench_begins_with_its_first_frame(self, path, tmp_path):
        row = streaming_row("clip_real.mp4", streaming_choice("00:04"))
        shown = windows(path, tmp_path, "streamingbench", row, window_s=2.0)[4.0]
        assert (shown[0], shown[-1]) == (1.9 if path.suffix else 2.0, 4.0)
        shown = windows(path, tmp_path, "streamingbench", row, window_s=2.0, protocol="reference")[4.0]
        assert (shown[0], shown[-1], len(shown)) == (2.0, 3.9, 20)
        assert protocol_of("streamingbench", protocol="reference").causal

    def test_values(self):
        clips = protocol_of("ovobench", protocol="reference")
        assert (clips.frame_times, clips.min_new_tokens, clips.until_s(2.0), clips.until_s(2.1)) == ("start", 0, 2, 3)
        with pytest.raises(InputError, match="--frame_times: expected start in a benchmark's clips, found end"):
            protocol_of("ovobench", protocol="reference", frame_times="end")


class TestContexts:
    @pytest.mark.parametrize(
        ("task", "window", "name"),
        [
            ("streamingbench", {}, "60s"), ("streamingbench", {"window_s": math.inf}, "all"),
            ("streamingbench", {"window_s": 3.0}, None), ("ovobench", {}, "all"), ("ovbench", {}, None),
        ],
    )  # fmt: skip
    def test_names(self, task, window, name):
        assert context_of(protocol_of(task, **window), get_task(task).settings) == name


class TestRuns:
    @pytest.mark.parametrize("task", ["ovobench", "streamingbench"])
    def test_reference_runs_resume_and_stay_apart(self, tiny_model, tmp_path, task):
        def config(name):
            values = {"protocol": {"protocol": name}, "setting": "sliding_window", "answer_by": "likelihood"}
            made = benchmark_config(task, tmp_path, tmp_path / name, **values)
            return replace(made, annotations=made.annotations[-1:])

        for name in ("causal", "reference"):
            metrics = run(config(name), tiny_model).metrics
            assert metrics["causal"] == (task == "streamingbench" or name == "causal")
            assert metrics["context"] == {"ovobench": "all", "streamingbench": "60s"}[task]
        whole = rows_of(tmp_path / "reference")
        path = tmp_path / "reference" / "predictions.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        run(config("reference"), tiny_model)
        assert rows_of(tmp_path / "reference") == whole
        report = (tmp_path / "reference" / "report.md").read_text()
        assert ("up to the end of the second that it falls into" in report) == (task == "ovobench")
        folders = [tmp_path / name for name in ("causal", "reference")]
        with pytest.raises(InputError, match="protocol.clips is true, not false"):
            compare_runs(folders)
        assert "protocol.clips" in {
            found.name for _, found in compare_runs(folders, across_protocols=True).protocol_differences
        }

    def test_the_command_says_no_without_a_model(self, tmp_path, capsys):
        made = benchmark_config("streamingbench", tmp_path, tmp_path / "out")
        files = ["evaluate", "--task", "streamingbench", "--dry_run", "--annotations", *map(str, made.annotations)]
        assert main([*files, "--protocol", "reference"]) == 2
        assert "2 questions are shown clips that begin at their own start, got streaming" in capsys.readouterr().err
        assert main([*files, "--protocol", "reference", "--setting", "sliding_window", "--window_s", "60"]) == 0
