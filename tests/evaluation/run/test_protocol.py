"""`--protocol reference`: the frames of the published scripts, what else it changes, and where it is marked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest

from clips import write_clip
from evaluation_sets import folder_set, make_config, noise, question, rows_of, run, write_frames, write_set
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import get_task, resolve_protocol
from videochat_online.evaluation.compare.finished_runs import default_label
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.run.contexts import make_context
from videochat_online.evaluation.run.plan import estimated_cost
from videochat_online.evaluation.tasks.ovbench import load_ovbench
from videochat_online.memory import MEMORIES, sizes_within


@pytest.fixture
def times_of(tiny_model, tmp_path):
    """Labels of the frames that each question is answered from."""

    def seen(path, times_s, *, clip=None, fps=4.0, sample_fps=None, setting="streaming", **values):
        row = {"video_id": "v", "fps": fps, "questions": [question(time_s) for time_s in times_s]}
        (video,) = load_ovbench([write_set(tmp_path / "one.json", [row | ({"clip": clip} if clip else {})])]).videos
        memory = "keep_all" if setting == "streaming" else None
        protocol = resolve_protocol(setting, memory=memory, fps=sample_fps, **values)
        views = []
        with VideoFrames(path, video, protocol) as video_frames:
            context = make_context(tiny_model, video_frames, protocol, video.questions)
            for asked in video.questions:
                context.advance_to(asked)
                views.append(context.prepare(asked, asked.question))
        return [[round(frame.time_s, 2) for frame in view.frames] for view in views]

    return seen


class TestStreaming:
    def test_the_last_question_sees_the_clip_to_its_end(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(12))
        asked = {"times_s": (1.0, 3.5), "clip": [1.0, 6.0], "fps": 1.0}
        assert times_of(folder, **asked) == [[1.0], [1.0, 2.0, 3.0]]
        assert times_of(folder, **asked, protocol="reference") == [[1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]

    def test_without_an_end_the_video_s_end_is_the_clip_s(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(5))
        assert times_of(folder, (0.0,), fps=1.0, protocol="reference") == [[0.0, 1.0, 2.0, 3.0, 4.0]]

    def test_a_question_after_the_last_frame_loses_that_frame(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(4))
        asked = {"times_s": (2.0, 8.0, 9.0), "fps": 1.0}
        whole = [0.0, 1.0, 2.0, 3.0]
        assert times_of(folder, **asked) == [whole[:3], whole, whole]
        assert times_of(folder, **asked, protocol="reference") == [whole[:3], whole[:3], whole]

    def test_times_are_compared_as_the_decoder_of_the_scripts_gives_them(self, times_of, tmp_path):
        assert float(np.float32(1.6)) > 1.6
        clip = write_clip(tmp_path / "clip.mp4", num_frames=30, fps=10)
        ends = times_of(clip, (1.6, 2.9), frame_times="end", protocol="causal")
        published = times_of(clip, (1.6, 2.9), protocol="reference")
        assert ends[0][-1] == 1.6
        assert published[0] == ends[0][:-1]
        assert float(np.float32(0.7)) < 0.7  # so that this frame ends before the clip begins
        assert times_of(clip, (2.9,), clip=[0.7, 2.5], protocol="reference")[0][0] == 0.8

    @pytest.mark.parametrize(
        ("sample_fps", "single", "multiturn"),
        [(1.0, [0.5, 1.5], [0.5, 1.47, 2.44]), (2.0, [0.5, 1.0, 1.5, 2.0], [0.5, 0.97, 1.43, 1.9, 2.37])],
    )
    def test_the_multi_turn_script_rounds_its_step_down(self, times_of, tmp_path, sample_fps, single, multiturn):
        clip = write_clip(tmp_path / "clip.mp4", num_frames=75, fps=Fraction(30000, 1001))
        asked = {"times_s": (2.2,), "clip": [0.5, 2.5], "sample_fps": sample_fps, "protocol": "reference"}
        assert times_of(clip, **asked) == [single]
        assert times_of(clip, **asked, step_rounding="down") == [multiturn]
        with pytest.raises(InputError, match="--step_rounding: expected one of nearest, down, found .up"):
            times_of(clip, **asked, step_rounding="up")

    def test_labels_of_folders_have_two_decimals(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(9))
        # Frame 1 starts at 0.3333 s, and is labelled 0.33 s.
        assert times_of(folder, (0.333, 9.0), fps=3.0)[0] == [0.0]
        assert times_of(folder, (0.333, 9.0), fps=3.0, protocol="reference")[0] == [0.0, 0.33]

    def test_times_on_folders_are_rounded_as_they_are(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(30))
        asked = {"times_s": (0.3,), "clip": [0.29, 0.29], "fps": 100.0}
        assert times_of(folder, **asked) == [[0.29]]
        assert times_of(folder, **asked, protocol="reference") == [[0.28]]


class TestWindow:
    def test_the_clip_is_not_looked_at(self, times_of, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(12))
        asked = {"times_s": (3.0, 8.0), "clip": [2.0, 6.0], "fps": 1.0, "setting": "sliding_window", "window_s": 4.0}
        assert times_of(folder, **asked) == [[2.0, 3.0], [2.0, 3.0, 4.0, 5.0, 6.0]]
        assert times_of(folder, **asked, protocol="reference") == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0]]

    def test_a_window_after_the_video_is_the_whole_video(self, times_of, tmp_path):
        clip = write_clip(tmp_path / "clip.mp4", num_frames=30, fps=10)
        asked = {"times_s": (1.6, 30.0), "setting": "sliding_window", "window_s": 4.0, "max_frames": 3}
        assert times_of(clip, **asked) == [[0.1, 0.6, 1.6], [2.9]]
        # Labels are ends, and a frame that starts at 1.6 s is too late.
        assert times_of(clip, **asked, protocol="reference") == [[0.1, 0.6, 1.6], [0.5, 1.5, 3.0]]


class TestProtocol:
    def test_what_it_changes(self):
        for setting in ("streaming", "sliding_window"):
            ours, published = (resolve_protocol(setting, protocol=name) for name in ("causal", "reference"))
            assert ours == resolve_protocol(setting)
            assert (ours.causal, ours.frame_times, ours.min_new_tokens) == (True, "start", 0)
            assert (published.causal, published.frame_times, published.min_new_tokens) == (False, "end", 1)
            assert (published.fps, published.suffix, published.max_new_tokens) == (
                ours.fps, ours.suffix, ours.max_new_tokens,
            )  # fmt: skip

    def test_values_that_the_scripts_do_not_have(self):
        with pytest.raises(InputError, match=r"unknown protocol 'paper': expected one of \['causal', 'reference'\]"):
            resolve_protocol("streaming", protocol="paper")
        with pytest.raises(InputError, match="--frame_times: expected end in the published scripts, found start"):
            resolve_protocol("streaming", protocol="reference", frame_times="start")

    def test_published_frames_are_those_of_the_task(self, tmp_path):
        def config(task, **more):
            values = {"task": task, "data_root": tmp_path, "protocol": {"protocol": "reference", **more}}
            return make_config(tmp_path / "set.json", tmp_path / "out", **values)

        for name in ("ovobench", "streamingbench"):
            task = get_task(name)
            assert config(task, of_task=task.settings).protocol.clips
            with pytest.raises(InputError, match=f"expected the frames that {name} publishes, got those of another"):
                config(task)
        task = replace(get_task("ovbench"), name="mine", settings={})
        with pytest.raises(InputError, match="--protocol reference: expected a task with published frames, got mine"):
            config(task)
        with pytest.raises(InputError, match="--protocol reference: expected a benchmark with published frames"):
            config(task, of_task=task.settings)

    @pytest.mark.parametrize(("clip", "cost"), [([0.0, 20.0], 20 * 8 + 4), (None, 5 * 8 + 4)])
    def test_shares_count_what_is_looked_ahead(self, tmp_path, clip, cost):
        row = {"video_id": "v", "questions": [question(5.0)]} | ({"clip": clip} if clip else {})
        (video,) = load_ovbench([write_set(tmp_path / "set.json", [row])]).videos
        assert estimated_cost(video, resolve_protocol("streaming", protocol="reference")) == cost
        assert estimated_cost(video, resolve_protocol("streaming")) == 5 * 8 + 4

    def test_an_interrupted_run_gives_the_same(self, tiny_model, tmp_path):
        annotations, values = folder_set(tmp_path, num_videos=1), {"protocol": "reference"}
        run(make_config(annotations, tmp_path / "whole", protocol=values), tiny_model)
        config = make_config(annotations, tmp_path / "broken", protocol=values)
        run(config, tiny_model)
        path = tmp_path / "broken" / "predictions.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        (tmp_path / "broken" / "videos.jsonl").write_bytes(b"")
        run(config, tiny_model)
        assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
        assert [row["frames_used"][-1]["time_s"] for row in rows_of(tmp_path / "whole")] == [1.0, 3.0, 5.75]


class TestMarks:
    @pytest.fixture
    def call(self, tiny_dir, tmp_path, capsys):
        annotations = folder_set(tmp_path, num_videos=2)
        files = ["--annotations", annotations, "--data-root", tmp_path / "media", "--model", tiny_dir()]

        def evaluate(name, *more):
            arguments = ["evaluate", *files, "--output", tmp_path / name, "--max_new_tokens", 4, *more]
            status = main([str(argument) for argument in arguments])
            return status, capsys.readouterr()

        return evaluate

    def test_every_output_says_so(self, call, tmp_path):
        for name, is_marked in (("causal", False), ("reference", True)):
            status, written = call(name, "--protocol", name)
            assert status == 0
            assert (", not causal\n" in written.out) == is_marked
            metrics = json.loads((tmp_path / name / "metrics.json").read_text())
            assert metrics["causal"] == metrics["protocol"]["causal"] == (not is_marked)
            report = (tmp_path / name / "report.md").read_text().splitlines()
            assert report[2].startswith("**Not causal:** `--protocol reference`") == is_marked
            settings = json.loads((tmp_path / name / "run.json").read_text())["settings"]
            assert settings["generation"]["min_new_tokens"] == int(is_marked)
            assert default_label(settings) == "pyramid 2/2/12" + (" (not causal)" if is_marked else "")

    def test_the_default_is_causal(self, call, tmp_path):
        call("default")
        call("causal", "--protocol", "causal")
        assert rows_of(tmp_path / "default") == rows_of(tmp_path / "causal")
        status, written = call("default", "--protocol", "reference")
        assert status == 2
        assert "protocol.causal was true, now false" in written.err

    def test_the_two_are_not_compared_unless_told(self, call, tmp_path, capsys):
        call("causal")
        call("reference", "--protocol", "reference")
        runs = [str(tmp_path / name) for name in ("causal", "reference")]
        assert main(["compare", *runs]) == 2
        assert "protocol.causal is false, not true" in capsys.readouterr().err
        assert main(["compare", *runs, "--across_protocols"]) == 0
        assert "pyramid 2/2/12 (not causal)" in capsys.readouterr().out


class TestEqualBudgets:
    TOKENS = {
        "pyramid": 832, "fifo": 832, "window": 768, "uniform": 768, "moviechat": 832, "moviechat_plus": 832,
        "star": 784, "token_merging": 832, "similarity_drop": 768, "event_merging": 832,
    }  # fmt: skip

    def test_every_memory_fits_the_pyramid_s_tokens(self):
        assert set(self.TOKENS) == set(MEMORIES.built_in) - {"keep_all"}
        for name, expected in self.TOKENS.items():
            memory = resolve_protocol("streaming", memory=name).make_memory((16, 16), (8, 4, 1))
            assert memory.max_tokens == expected, name

    @pytest.mark.parametrize(
        ("name", "given", "tokens", "resolved"),
        [
            ("moviechat", {"reading": "breakpoint"}, 832, {"short_frames": 18, "long_frames": 34}),
            ("moviechat_plus", {"reading": "breakpoint", "short_frames": 8}, 832, {"long_frames": 44}),
            ("moviechat", {"long_frames": 7}, 7 * 16, {"short_frames": 18}),
            ("event_merging", {"recent_frames": 2}, 832, {"event_frames": 5}),
            ("star", {"key_frames": 0}, 784, {"newest_frames": 1, "cluster_frames": 8}),
            ("token_merging", {"num_frames": 2}, 128, {}),
        ],
    )
    def test_what_is_given_stays_and_the_rest_is_shared_out(self, name, given, tokens, resolved):
        protocol = resolve_protocol("streaming", memory=name, memory_options=given)
        assert protocol.make_memory((16, 16), (8, 4, 1)).max_tokens == tokens
        assert dict(protocol.memory_options).items() >= (given | resolved).items()

    @pytest.mark.parametrize(
        ("name", "given", "left_out"),
        [
            ("star", {"newest_frames": 4}, "got newest_frames 4, which leaves no cluster_frames"),
            ("event_merging", {"recent_frames": 4}, "got recent_frames 4, which leaves no event_frames"),
            ("moviechat", {"reading": "breakpoint", "short_frames": 52}, "_frames 52, which leaves no long_frames"),
        ],
    )
    def test_what_is_given_leaves_room_for_the_rest(self, name, given, left_out):
        with pytest.raises(InputError, match=rf"'{name}': expected sizes within the budget of 3.25 .*{left_out}"):
            resolve_protocol("streaming", memory=name, memory_options=given)

    def test_published_proportions_where_there_is_room(self):
        assert sizes_within("star", 39.0, {}) == {"newest_frames": 1, "key_frames": 3, "cluster_frames": 142}
        assert sizes_within("moviechat", 39.0, {}) == {"short_frames": 18, "long_frames": 624}
        assert sizes_within("window", 39.0, {}) == {"num_frames": 39}

    def test_a_budget_below_one_frame_is_refused(self):
        # The 16 tokens of a frame on the smallest grid: a frame of MovieChat, and of no other.
        settings = {"streaming": {"memory_options": {"capacities": (0, 0, 1)}}}
        for name in sorted(set(self.TOKENS) - {"pyramid", "fifo"}):
            protocol = resolve_protocol("streaming", of_task=settings, memory=name)
            if name.startswith("moviechat"):
                assert protocol.make_memory((16, 16), (8, 4, 1)).max_tokens == 16
                continue
            with pytest.raises(InputError, match=rf"_frames of memory '{name}': expected .* at least"):
                protocol.make_memory((16, 16), (8, 4, 1))

    def test_sizes_stand_in_the_label(self):
        protocol = resolve_protocol("streaming", memory="moviechat_plus")
        settings = {"blind": False, "protocol": asdict(protocol)}
        assert default_label(settings) == "moviechat_plus 18/52"
