"""The evaluation of a set: causal, encoded once, the right frames, and what becomes of bad videos."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
import torch

from clips import write_clip
from evaluation_sets import Shard, folder_set, make_config, noise, question, rows_of, run, write_frames, write_set
from video_files import packet_spans, write_video
from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation import make_plan, resolve_protocol
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.run.answering import LETTER_PREFIX, letter_ids
from videochat_online.evaluation.run.contexts import make_context
from videochat_online.evaluation.tasks.ovbench import load_ovbench
from videochat_online.model import VideoChatModel, load_model
from videochat_online.streaming.generate import first_logits
from videochat_online.text import layout_prompt
from videochat_online.types import Turn
from videochat_online.video import frame_step, open_video, sliding_window_indices, sliding_window_indices_at_times

MEMORIES = {
    "pyramid": {"capacities": (1, 1, 3)},
    "fifo": {"capacities": (1, 1, 3)},
    "window": {"num_frames": 2},
    "uniform": {"num_frames": 3},
    "keep_all": {},
    "moviechat": {"short_frames": 3, "long_frames": 4},
    "moviechat_plus": {"short_frames": 3, "long_frames": 4},
    "star": {"key_frames": 1, "cluster_frames": 2},
    "token_merging": {"num_frames": 3},
    "similarity_drop": {"num_frames": 3},
    "event_merging": {"event_frames": 3},
}


def view_of(model, path, video, protocol, name=-1):
    """Frames and logits of one of a video's questions (the last), after all before it were asked."""
    with VideoFrames(path, video, protocol) as video_frames:
        context = make_context(model, video_frames, protocol, video.questions)
        views = []
        for asked in video.questions:
            context.advance_to(asked)
            views.append(context.prepare(asked, f"{asked.question}\nAnswer:"))
        return views[name], first_logits(model.language_model, views[name].prompt.tokens, 4)


def video_of(tmp_path, *times_s, fps=4.0, clip=None):
    row = {"video_id": "v", "fps": fps, "questions": [question(time_s) for time_s in times_s]}
    path = write_set(tmp_path / "one.json", [row | ({"clip": clip} if clip else {})])
    return load_ovbench([path]).videos[0]


def protocol_of(setting, memory=None):
    options = None if memory is None else MEMORIES[memory]
    return resolve_protocol(setting, memory=memory, memory_options=options)


class CountingModel(VideoChatModel):
    """Notes how many frames go through the vision tower."""

    def encode(self, pixels_THWC):
        COUNTED.append(len(pixels_THWC))
        return super().encode(pixels_THWC)


COUNTED: list[int] = []


@pytest.fixture
def counting_model(tiny_model):
    COUNTED.clear()
    return CountingModel(**{field.name: getattr(tiny_model, field.name) for field in fields(VideoChatModel)})


SETTINGS = [("streaming", memory) for memory in MEMORIES] + [("sliding_window", None)]


class TestCausality:
    @pytest.mark.parametrize(("setting", "memory"), SETTINGS)
    def test_frames_after_the_question_change_nothing(self, tiny_model, tmp_path, setting, memory):
        short = write_frames(tmp_path / "short", noise(17))
        longer = write_frames(tmp_path / "long", noise(17) + noise(15, seed=9))
        video, protocol = video_of(tmp_path, 1.3, 4.0), protocol_of(setting, memory)
        (view, logits), (other, other_logits) = (view_of(tiny_model, p, video, protocol) for p in (short, longer))
        assert view.frames == other.frames
        assert view.frames[-1].time_s == 4.0
        assert torch.equal(logits, other_logits)

    @pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
    def test_nor_in_a_video_file(self, tiny_model, tmp_path, setting):
        # Lossless, or the encoder would change earlier frames for the sake of later ones.
        paths = [write_clip(tmp_path / f"{n}.mkv", num_frames=n, codec="ffv1") for n in (31, 55)]
        video, protocol = video_of(tmp_path, 3.0), protocol_of(setting)
        (view, logits), (other, other_logits) = (view_of(tiny_model, path, video, protocol) for path in paths)
        assert view.frames == other.frames
        assert view.frames[-1].time_s == 3.0
        assert torch.equal(logits, other_logits)

    @pytest.mark.parametrize(("setting", "memory"), SETTINGS)
    def test_later_questions_change_nothing(self, tiny_model, tmp_path, setting, memory):
        path, protocol = write_frames(tmp_path / "frames", noise(32)), protocol_of(setting, memory)
        alone = view_of(tiny_model, path, video_of(tmp_path, 3.1), protocol)
        first = view_of(tiny_model, path, video_of(tmp_path, 3.1, 7.9), protocol, name=0)
        assert alone[0].frames == first[0].frames
        assert torch.equal(alone[1], first[1])

    def test_no_frame_after_its_question_is_ever_pushed(self, tiny_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=1, times_s=(0.0, 0.9, 1.0, 2.3, 5.75))
        for setting in ("streaming", "sliding_window"):
            run(make_config(annotations, tmp_path / setting, setting=setting), tiny_model)
            rows = rows_of(tmp_path / setting)
            assert len(rows) == 5
            last_s = [row["frames_used"][-1]["time_s"] for row in rows]
            assert last_s == [0.0, 0.75, 1.0, 2.25, 5.75]


class TestTwins:
    @pytest.mark.parametrize("memory", ["pyramid", "fifo", "window", "uniform"])
    def test_evicted_content_leaves_no_trace(self, tiny_model, tmp_path, memory):
        frames, video, protocol = noise(32), video_of(tmp_path, 7.0), protocol_of("streaming", memory)
        view, logits = view_of(tiny_model, write_frames(tmp_path / "one", frames), video, protocol)
        kept = {frame.index for frame in view.frames}
        evicted = [index for index in range(29) if index not in kept]
        assert len(evicted) > 10
        for index in evicted[::3]:
            # A little, so that the pyramid still finds the same pairs similar.
            frames[index][10, 10] ^= 1
        twin, twin_logits = view_of(tiny_model, write_frames(tmp_path / "twin", frames), video, protocol)
        assert twin.frames == view.frames
        assert torch.equal(logits, twin_logits)
        frames[max(kept)][5:25] ^= 255
        _, other_logits = view_of(tiny_model, write_frames(tmp_path / "other", frames), video, protocol)
        assert not torch.equal(logits, other_logits)

    def test_the_question_before_leaves_no_trace(self, tiny_model, tmp_path):
        path, protocol = write_frames(tmp_path / "frames", noise(32)), protocol_of("streaming")
        both, alone = video_of(tmp_path, 3.0, 3.0), video_of(tmp_path, 3.0)
        (view, logits), (other, other_logits) = (view_of(tiny_model, path, video, protocol) for video in (both, alone))
        assert view.prompt.layout == other.prompt.layout
        assert torch.equal(logits, other_logits)


class TestFrames:
    def test_each_frame_is_encoded_once(self, counting_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=1, num_frames=24, times_s=(1.0, 1.0, 3.0, 5.75))
        run(make_config(annotations, tmp_path / "stream"), counting_model)
        assert sum(COUNTED) == 24
        COUNTED.clear()
        run(make_config(annotations, tmp_path / "window", setting="sliding_window"), counting_model)
        # Every second frame back from 4, 12 and 23: the even ones up to 12, the odd ones up to 23.
        assert sum(COUNTED) == 7 + 12
        (row,) = rows_of(tmp_path / "window", "videos.jsonl")
        assert row["num_decoded"] == row["num_encoded"] == 19

    def test_streaming_takes_every_nth_frame_of_the_clip(self, tiny_model, tmp_path):
        clip = write_clip(tmp_path / "clip.mp4", num_frames=60, fps=10)
        video = video_of(tmp_path, 2.0, 9.0, clip=[1.05, 5.0])
        protocol = resolve_protocol("streaming", fps=5.0, memory="keep_all")
        view, _ = view_of(tiny_model, clip, video, protocol)
        # Frame 10 is shown at 1.05 s; nothing after the clip's end.
        assert [frame.time_s for frame in view.frames] == pytest.approx([1.0 + 0.2 * i for i in range(21)])
        assert [frame.index for frame in view.frames] == list(range(21))
        assert [frame.num_tokens for frame in view.frames][:9] == [16, 1, 1, 1, 4, 1, 1, 1, 16]
        first, _ = view_of(tiny_model, clip, video, protocol, name=0)
        assert first.frames[-1].time_s == pytest.approx(2.0)

    def test_a_slow_folder_gives_all_it_has(self, tiny_model, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(9))
        view, _ = view_of(tiny_model, folder, video_of(tmp_path, 6.0, fps=1.0), protocol_of("streaming", "keep_all"))
        assert [frame.time_s for frame in view.frames] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    @pytest.mark.parametrize("frame_times", ["start", "end"])
    def test_frames_may_be_labelled_with_their_ends(self, tiny_model, tmp_path, frame_times):
        clip = write_clip(tmp_path / "clip.mp4", num_frames=40, fps=10)
        protocol = resolve_protocol("streaming", fps=2.0, memory="keep_all", frame_times=frame_times)
        view, _ = view_of(tiny_model, clip, video_of(tmp_path, 1.6), protocol)
        expected = [0.0, 0.5, 1.0, 1.5] if frame_times == "start" else [0.1, 0.6, 1.1, 1.6]
        assert [frame.time_s for frame in view.frames] == pytest.approx(expected)

    def test_an_end_may_be_later_than_a_window_s_question(self, tiny_model, tmp_path):
        """Only the label changes: the frame on view at 1.63 s began at 1.6 s and ends at 1.7 s."""
        clip = write_clip(tmp_path / "clip.mp4", num_frames=40, fps=10)
        labels = {}
        for frame_times in ("start", "end"):
            protocol = resolve_protocol("sliding_window", frame_times=frame_times)
            view, _ = view_of(tiny_model, clip, video_of(tmp_path, 1.63), protocol)
            labels[frame_times] = [frame.time_s for frame in view.frames]
        assert labels["start"] == pytest.approx([0.1, 0.6, 1.1, 1.6])
        assert labels["end"] == pytest.approx([0.2, 0.7, 1.2, 1.7])

    def test_windows_agree_with_the_sampling_rules(self, tiny_model, tmp_path):
        clip = write_clip(tmp_path / "clip.mp4", num_frames=120, fps=10)
        folder = write_frames(tmp_path / "frames", noise(60))
        with open_video(clip) as source:
            starts_s = source.frame_times_s()
        ends_s = (*starts_s[1:], starts_s[-1] + 0.1)
        protocol = resolve_protocol("sliding_window", window_s=3.0, max_frames=5)
        video = video_of(tmp_path, 0.0, 2.55, 5.0, 9.99, 30.0)
        for place, asked in enumerate(video.questions):
            options = {"window_s": min(3.0, asked.time_s), "max_num_frames": 5}
            indices = sliding_window_indices_at_times(starts_s, ends_s, 10.0, 2.0, asked.time_s, **options)
            view, _ = view_of(tiny_model, clip, video, protocol, name=place)
            assert [frame.time_s for frame in view.frames] == [starts_s[index] for index in indices]
            indices = sliding_window_indices(60, 4.0, 2.0, asked.time_s, **options)
            view, _ = view_of(tiny_model, folder, video, protocol, name=place)
            assert [frame.time_s for frame in view.frames] == [index / 4.0 for index in indices]
            assert [frame.index for frame in view.frames] == list(range(len(indices)))
            assert [frame.num_tokens for frame in view.frames] == [16, 1, 1, 1, 4][: len(indices)]

    def test_the_published_window_by_hand(self, tiny_model, tmp_path):
        folder = write_frames(tmp_path / "frames", noise(200))
        view, _ = view_of(tiny_model, folder, video_of(tmp_path, 45.1), protocol_of("sliding_window"))
        # 4 fps, every second frame, back from frame 180 to 180 - 128: 65 frames, thinned out to 64.
        assert len(view.frames) == 64
        assert (view.frames[0].time_s, view.frames[-1].time_s) == (13.0, 45.0)
        assert frame_step(4.0, 2.0) == 2
        text = view.prompt.layout.text
        assert "Frame1 at 13.0s: " in text
        assert "Frame64 at 45.0s: " in text
        assert "Frame65" not in text


class TestAnswers:
    def test_a_row_says_all(self, tiny_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=1)
        outcome = run(make_config(annotations, tmp_path / "out"), tiny_model)
        row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[1])
        assert (row["video"], row["time_s"], row["answer_index"]) == ("video0", 3.0, 1)
        assert row["num_visual_tokens"] == sum(frame["num_tokens"] for frame in row["frames_used"]) > 0
        assert row["correct"] == (row["predicted_index"] == 1)
        assert 0 < row["first_token_s"] <= row["answer_s"]
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics == outcome.metrics
        assert metrics["cost"]["num_frames_encoded"] == 23
        assert metrics["num_answered"] == metrics["num_questions"] == 3
        report = (tmp_path / "out" / "report.md").read_text()
        assert '| memory_options | {"capacities": [2, 2, 12], "policy": "reference"} |' in report
        assert "peak memory" in report

    def test_blind_needs_no_videos_and_shows_no_frames(self, counting_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=2)
        config = make_config(annotations, tmp_path / "out", tmp_path / "absent", blind=True)
        outcome = run(config, counting_model)
        assert COUNTED == []
        assert outcome.num_answered == 6
        assert all(row["frames_used"] == [] and row["num_visual_tokens"] == 0 for row in rows_of(tmp_path / "out"))

    def test_blind_sees_the_question(self, tiny_model, tmp_path):
        video = video_of(tmp_path, 1.0)
        context = make_context(tiny_model, None, protocol_of("streaming"), video.questions)
        text = context.prepare(video.questions[0], "What is it?").prompt.layout.text
        assert "What is it?" in text
        assert "Frame" not in text
        assert text.startswith("<|system|>\nCarefully watch the video")

    @pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
    def test_likelihood(self, tiny_model, tmp_path, setting):
        annotations = folder_set(tmp_path, num_videos=1)
        config = make_config(annotations, tmp_path / "out", setting=setting, answer_by="likelihood")
        run(config, tiny_model)
        for row in rows_of(tmp_path / "out"):
            scores = row["option_probabilities"]
            assert sum(scores) == pytest.approx(1.0, abs=1e-5)
            assert row["predicted_index"] == scores.index(max(scores))
            assert row["text"] == f"({'AB'[row['predicted_index']]})"

    @pytest.mark.parametrize("llm", ["phi3", "qwen2"])
    def test_likelihood_is_that_of_the_letters(self, tiny_dir, tmp_path, llm):
        model = load_model(tiny_dir(llm), device="cpu")
        video = video_of(tmp_path, 1.0)
        context = make_context(model, None, protocol_of("streaming"), video.questions)
        dropped, ids = letter_ids(model, 4)
        bare = context.prepare(video.questions[0], "Which?", LETTER_PREFIX).prompt.layout.input_ids
        for letter, token in zip("ABCD", ids, strict=True):
            spelled = context.prepare(video.questions[0], "Which?", LETTER_PREFIX + letter).prompt.layout.input_ids
            assert spelled == (*bare[: len(bare) - dropped], token)

    @pytest.mark.parametrize(
        ("llm", "template", "setting"),
        [
            ("phi3", None, "streaming"),
            ("phi3", None, "sliding_window"),
            ("qwen2", None, "streaming"),
            ("phi3", "internvl_zh", "streaming"),
        ],
    )
    def test_text_likelihood_is_that_of_the_whole_reply(self, tiny_dir, tmp_path, llm, template, setting):
        """Restated: the labels of a training dialogue without options, all of it at once. Options may be empty."""
        model = load_model(tiny_dir(llm), device="cpu", template=template)
        fields = question(1.0, options=["A. a red ball", "B. dog", "C. ", "D. a"])
        rows = [{"video_id": "v", "fps": 4.0, "questions": [fields]}]
        annotations = write_set(tmp_path / "set.json", rows)
        (asked,) = load_ovbench([annotations]).videos[0].questions
        way = {"blind": True, "answer_by": "text_likelihood"}
        run(make_config(annotations, tmp_path / "out", setting=setting, **way), model)
        (row,) = rows_of(tmp_path / "out")
        scores = []
        for option in asked.options:
            turn = Turn((f"Question at 1.0s: {asked.question}\nAnswer:",), option)
            texts = {"template": model.template, "system_message": protocol_of("streaming").system_message_of("open")}
            layout = layout_prompt([turn], tokenizer=model.tokenizer, **texts)
            ids, labels = torch.tensor([layout.input_ids]), torch.tensor(layout.labels[1:])
            with torch.inference_mode():
                logits = model.network.language_model(input_ids=ids).logits[0, :-1]
            scores.append(-torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        assert row["option_probabilities"] == pytest.approx(torch.stack(scores).softmax(-1).tolist(), abs=2e-6)
        assert row["predicted_index"] == int(torch.stack(scores).argmax())
        assert row["text"] == asked.options[row["predicted_index"]]
        assert row.get("first_token_s") is None

    def test_of_equal_options_the_first_is_taken(self, tiny_model, tmp_path):
        annotations = write_set(
            tmp_path / "set.json",
            [{"video_id": "v", "fps": 4.0, "questions": [question(1.0, options=["A. dog", "B. dog"])]}],
        )
        run(make_config(annotations, tmp_path / "out", blind=True, answer_by="text_likelihood"), tiny_model)
        (row,) = rows_of(tmp_path / "out")
        assert (row["option_probabilities"], row["predicted_index"]) == ([0.5, 0.5], 0)

    @pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
    def test_a_file_that_breaks_off_before_a_question_is_listed(self, tiny_model, tmp_path, setting):
        """Its decoder meets no error: the frames just end."""
        (tmp_path / "media").mkdir()
        whole = write_clip(tmp_path / "media" / "whole.mkv", num_frames=100).read_bytes()
        (tmp_path / "media" / "half.mkv").write_bytes(whole[: len(whole) // 2])
        rows = [{"video_id": name, "questions": [question(1.0), question(9.0)]} for name in ("whole.mkv", "half.mkv")]
        annotations = write_set(tmp_path / "set.json", rows)
        outcome = run(make_config(annotations, tmp_path / "out", setting=setting), tiny_model)
        ((listed,),) = [outcome.metrics["damaged_videos"]]
        assert listed["video"] == "half.mkv"
        assert "of 10.00 s declared" in listed["problem"]
        assert listed["problem"] in (tmp_path / "out" / "report.md").read_text()
        # What comes before the break is whole: nothing has to be said.
        rows = [{"video_id": "half.mkv", "questions": [question(1.0)]}]
        early = write_set(tmp_path / "early.json", rows)
        outcome = run(make_config(early, tmp_path / "early", setting=setting), tiny_model)
        assert outcome.metrics["damaged_videos"] == []

    def test_the_first_frame_may_come_too_late(self, tiny_model, tmp_path):
        (tmp_path / "media").mkdir()
        write_clip(tmp_path / "media" / "late.mkv", start_s=2.0)
        rows = [{"video_id": "late.mkv", "questions": [question(1.0), question(3.0)]}]
        annotations = write_set(tmp_path / "set.json", rows)
        for setting in ("streaming", "sliding_window"):
            outcome = run(make_config(annotations, tmp_path / setting, setting=setting), tiny_model)
            early, later = rows_of(tmp_path / setting)
            assert early["correct"] is False
            assert "error" in early
            assert later["frames_used"][0]["time_s"] == pytest.approx(2.0)
            assert outcome.metrics["num_without_frames"] == 1
            assert outcome.metrics["micro_average"]["num_questions"] == 2

    @pytest.mark.parametrize("setting", ["streaming", "sliding_window"])
    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_damage_at_the_start_costs_the_questions_before_the_first_good_frame(
        self, tiny_model, tmp_path, setting, kind
    ):
        """Ten frames a second: without the first keyframe of a file nothing decodes up to the second one."""
        if kind == "file":
            (tmp_path / "media").mkdir()
            path = write_video(
                tmp_path / "media" / "v.mp4", range(60), keyframe_every=10, container_options={"movflags": "faststart"}
            )
            (start, size), *_ = packet_spans(path)
            content = path.read_bytes()
            path.write_bytes(content[:start] + bytes(size) + content[start + size :])
            lost = "10 frames before 1 s do not decode; decoding errors: 1, the first at 0.000 s"
        else:
            folder = write_frames(tmp_path / "media" / "v.mp4", noise(60))
            for number in range(10):
                (folder / f"img{95 + number}.png").write_bytes(b"torn")
            lost = "decoding errors: 10, the first img95.png"
        rows = [{"video_id": "v.mp4", "fps": 10.0, "questions": [question(time_s) for time_s in (0.5, 1.25, 3.0)]}]
        annotations = write_set(tmp_path / "set.json", rows)
        protocol = {"fps": 5.0} | ({"memory": "keep_all"} if setting == "streaming" else {})
        config = make_config(annotations, tmp_path / "out", setting=setting, protocol=protocol, max_bad_fraction=0.0)
        outcome = run(config, tiny_model)
        early, *others = rows_of(tmp_path / "out")
        assert (early["error_kind"], early["frames_used"], early["correct"]) == ("NoFrameError", [], False)
        if setting == "streaming":
            assert [[frame["time_s"] for frame in row["frames_used"]] for row in others] == [
                pytest.approx([1.0, 1.2]), pytest.approx([1.0 + 0.2 * i for i in range(11)])
            ]  # fmt: skip
        else:
            assert [row["frames_used"][-1]["time_s"] for row in others] == pytest.approx([1.2, 3.0])
            assert others[1]["frames_used"][0]["time_s"] == pytest.approx(1.0)
        assert (outcome.bad_videos, outcome.metrics["num_without_frames"]) == ((), 1)
        ((damaged,),) = [outcome.metrics["damaged_videos"]]
        assert damaged["problem"].startswith(lost)


class TestLongPrompts:
    """A memory that grows, and a context that ends between the first and the second question of each video."""

    @pytest.fixture
    def limited(self, tiny_model, tmp_path, monkeypatch):
        """Settings of the run, and a function that sets the context's length to that of a question's prompt."""
        annotations = folder_set(tmp_path)
        settings = {"protocol": {"memory": "keep_all"}}
        text = tiny_model.network.config.text_config
        monkeypatch.setattr(text, "max_position_embeddings", 1)
        config = make_config(annotations, tmp_path / "none", max_bad_fraction=1.0, **settings)
        run(config, tiny_model)
        lengths = [int(re.search(r"a prompt of (\d+) tokens", row["error"])[1]) for row in rows_of(tmp_path / "none")]
        assert lengths[0] < lengths[1] < lengths[2]
        return (
            annotations,
            settings,
            lambda question: monkeypatch.setattr(text, "max_position_embeddings", lengths[question] + 4),
        )

    @pytest.mark.parametrize("answer_by", ["generation", "likelihood", "text_likelihood"])
    def test_few_are_wrong_and_counted(self, tiny_model, tmp_path, limited, answer_by):
        annotations, settings, limit_to = limited
        limit_to(0)
        config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.7, answer_by=answer_by, **settings)
        metrics = run(config, tiny_model).metrics
        rows = rows_of(tmp_path / "out")
        assert [row.get("error_kind") for row in rows] == [None, "PromptTooLongError", "PromptTooLongError"] * 3
        assert not any(row["correct"] for row in rows if "error" in row)
        assert (metrics["num_too_long"], metrics["num_answered"]) == (6, 9)
        assert "6 questions count as wrong: with their frames they" in (tmp_path / "out" / "report.md").read_text()

    def test_many_end_the_run(self, tiny_model, tmp_path, limited):
        annotations, settings, limit_to = limited
        limit_to(1)
        config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.15, **settings)
        words = (
            r"2 of 9 questions cannot be used, more than max_bad_fraction 0.15 allows; the latest: video1: question "
            r"video1@5.5s-\w+: a prompt of \d+ tokens and an answer of up to 4: the language model's context is \d+"
        )
        for _ in range(2):  # those that were counted before count again
            with pytest.raises(InputError, match=words):
                run(config, tiny_model)
            assert len(rows_of(tmp_path / "out")) == 5
        config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.4, **settings)
        assert run(config, tiny_model).metrics["num_too_long"] == 3

    def test_those_of_all_shards_count(self, tiny_model, tmp_path, limited):
        annotations, settings, limit_to = limited
        limit_to(1)
        configs = [
            make_config(annotations, tmp_path / "out", shard=Shard(index, 3), max_bad_fraction=0.25, **settings)
            for index in range(3)
        ]
        for config in configs[:2]:
            run(config, tiny_model)
        with pytest.raises(InputError, match="3 of 9 questions cannot be used"):
            run(configs[2], tiny_model)


class TestBadVideos:
    @pytest.fixture
    def annotations(self, tmp_path):
        annotations = folder_set(tmp_path, num_videos=2)
        (tmp_path / "media" / "broken.mp4").write_bytes(b"not a video")
        rows = json.loads(annotations.read_text())
        rows.insert(1, {"video_id": "broken.mp4", "questions": [question(1.0), question(2.0)]})
        rows.append({"video_id": "absent.mp4", "questions": [question(1.0)]})
        return write_set(annotations, rows)

    def test_they_are_counted_and_listed(self, tiny_model, tmp_path, annotations):
        outcome = run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5), tiny_model)
        assert len(outcome.bad_videos) == 2
        metrics = outcome.metrics
        assert (metrics["num_bad_videos"], metrics["num_answered"], metrics["num_unanswered"]) == (2, 6, 3)
        report = (tmp_path / "out" / "report.md").read_text()
        assert "- `broken.mp4`: " in report
        assert "- `absent.mp4`: " in report

    def test_too_many_are_fatal_and_cost_no_answer(self, tiny_model, tmp_path, annotations):
        config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.25)
        with pytest.raises(InputError, match=r"2 of 4 videos cannot be used, more than max_bad_fraction 0.25 allows"):
            run(config, tiny_model)
        assert len(rows_of(tmp_path / "out")) == 3
        assert not (tmp_path / "out" / "metrics.json").exists()
        # With a wider limit the same run goes on.
        outcome = run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5), tiny_model)
        assert outcome.num_answered == 6

    def test_a_video_that_turns_bad_is_left_out_as_a_whole(self, tiny_model, tmp_path, monkeypatch):
        """Of its three questions one was answered before: that answer is kept, counted and listed, and not scored."""
        annotations, read = folder_set(tmp_path), VideoFrames.read

        def read_or_fail(self, indices):
            for frame in (frame for group in read(self, indices) for frame in group):
                if self.video.name == "video1" and frame.time_s > 2:
                    raise VideoError("video1: gone")
                yield [frame]

        config = make_config(annotations, tmp_path / "out", max_bad_fraction=0.5, setting="sliding_window")
        monkeypatch.setattr(VideoFrames, "read", read_or_fail)
        metrics = run(config, tiny_model).metrics
        assert [row["video"] for row in rows_of(tmp_path / "out")].count("video1") == 1
        counts = ("num_questions", "num_answered", "num_left_out", "num_unanswered")
        assert [metrics[name] for name in counts] == [9, 6, 1, 2]
        assert metrics["bad_videos"] == [{"video": "video1", "problem": "video1: gone", "num_left_out": 1}]
        assert metrics["micro_average"]["num_questions"] == metrics["datasets"]["other"]["num_questions"] == 6
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert {row["video"] for row in result["results"]} == {"video0", "video2"}
        report = (tmp_path / "out" / "report.md").read_text()
        assert "1 answers of 1 bad videos are left out." in report
        assert "- `video1`: video1: gone (1 answers left out)" in report
        # Once it can be read, all of it counts.
        monkeypatch.setattr(VideoFrames, "read", read)
        metrics = run(config, tiny_model).metrics
        assert [metrics[name] for name in counts] == [9, 9, 0, 0]

    def test_a_repaired_video_is_answered_by_the_next_run(self, tiny_model, tmp_path, annotations):
        run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5), tiny_model)
        write_clip(tmp_path / "media" / "broken.mp4", num_frames=30)
        outcome = run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.5), tiny_model)
        assert outcome.num_answered == 8
        assert outcome.metrics["num_bad_videos"] == 1

    def test_damage_is_reported(self, tiny_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=1)
        (tmp_path / "media" / "video0" / "img97.png").write_bytes(b"x")
        outcome = run(make_config(annotations, tmp_path / "out", protocol={"memory": "keep_all"}), tiny_model)
        assert "img97.png" in outcome.metrics["damaged_videos"][0]["problem"]
        times_s = [frame["time_s"] for frame in rows_of(tmp_path / "out")[0]["frames_used"]]
        assert times_s == [0.0, 0.25, 0.75, 1.0]

    def test_a_folder_needs_a_rate(self, tiny_model, tmp_path):
        write_frames(tmp_path / "media" / "v", noise(3))
        annotations = write_set(tmp_path / "set.json", [{"video_id": "v", "questions": [question(1.0)]}])
        outcome = run(make_config(annotations, tmp_path / "out", max_bad_fraction=1.0), tiny_model)
        assert "expected a frame rate (fps)" in outcome.bad_videos[0]
        rows = [{"video_id": "v", "dataset": "ava", "questions": [question(1.0)]}]
        outcome = run(make_config(write_set(tmp_path / "ava.json", rows), tmp_path / "ava"), tiny_model)
        assert outcome.bad_videos == ()

    def test_bad_rows_are_counted_and_too_many_are_fatal(self, tiny_model, tmp_path):
        annotations = folder_set(tmp_path, num_videos=1, times_s=(1.0, 2.0, 3.0))
        rows = json.loads(annotations.read_text())
        rows[0]["questions"][2]["answer"] = "Z"
        write_set(annotations, rows)
        outcome = run(make_config(annotations, tmp_path / "out", max_bad_fraction=0.4), tiny_model)
        assert len(outcome.metrics["bad_rows"]) == 1
        with pytest.raises(InputError, match="1 of 3 annotated questions cannot be used"):
            make_plan(make_config(annotations, tmp_path / "out", max_bad_fraction=0.1))
