from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videochat_online.errors import InputError
from videochat_online.video import (
    frame_step,
    sample_clip,
    segment_centre_indices,
    sliding_window_indices,
    sliding_window_indices_at_times,
    streaming_indices,
    streaming_indices_at_times,
    uniform_subset,
)
from videochat_online.video.sampling_rules import interval_indices, sample_at_rate, sample_segments


class TestTraining:
    def test_one_frame_at_the_centre_of_each_second(self):
        assert sample_at_rate(100, 25.0, 1.0) == [12, 38, 62, 88]
        assert sample_at_rate(100, 25.0, 2.0, max_num_frames=4) == [6, 31, 56, 94]

    def test_a_rate_above_the_videos_own_repeats_frames(self):
        assert sample_at_rate(3, 1.0, 2.0) == [0, 1, 1, 2, 2]

    def test_shorter_than_half_an_interval_there_is_no_centre(self):
        assert sample_at_rate(12, 25.0, 1.0) == []
        assert sample_clip(12, 25.0, "fps1", max_num_frames=64).indices == (6,)

    def test_middle_and_offset_of_segments(self):
        assert sample_segments(10, 5) == [0, 2, 4, 6, 8]
        assert sample_segments(33, 5, offset=1) == [1, 7, 14, 20, 27]
        assert sample_segments(3, 16) == [0, 1, 2]

    def test_a_clip_is_sampled_on_its_own(self):
        sampled = sample_clip(100, 25.0, "middle", max_num_frames=8, clip_s=(1.5, 3.25))
        assert sampled.indices == (39, 44, 49, 55, 60, 65, 71, 76)
        assert sampled.times_s == (1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0)

    def test_a_clip_past_the_end_moves_back(self):
        assert sample_clip(900, 30.0, "fps1", max_num_frames=64, clip_s=(29, 33)).indices == (795, 825, 855, 885)

    def test_it_moves_back_by_whole_frames(self):
        """4 s of 10 frames are 39 frames, as 10.7 - 6.7 is a little less than 4: the clip begins with frame 38."""
        clip = {"clip_s": (6.7, 10.7)}
        assert sample_clip(77, 10.0, "middle", max_num_frames=8, **clip).indices == (39, 44, 49, 54, 59, 64, 69, 74)
        assert sample_clip(77, 10.0, "fps1", max_num_frames=64, **clip).indices == (43, 53, 63, 73)
        # It ends after the video, and yet no frame of it does.
        assert sample_clip(77, 10.0, "middle", max_num_frames=64, clip_s=(6.75, 7.74)).indices == tuple(range(67, 76))

    def test_a_clip_longer_than_the_video_is_the_video(self):
        whole = sample_clip(100, 25.0, "fps1", max_num_frames=64)
        assert sample_clip(100, 25.0, "fps1", max_num_frames=64, clip_s=(0, 1000)) == whole

    @settings(max_examples=200, deadline=None)
    @given(
        num_frames=st.integers(1, 500),
        fps=st.floats(0.2, 120),
        method=st.sampled_from(["fps1", "fps0.5", "fps8", "middle", "rand"]),
        max_num_frames=st.integers(1, 70),
        clip=st.one_of(st.none(), st.tuples(st.floats(0, 50), st.floats(0, 50)).map(sorted).map(tuple)),
        seed=st.integers(0, 9),
    )
    def test_indices_are_ascending_within_the_video_and_the_limit(
        self, num_frames, fps, method, max_num_frames, clip, seed
    ):
        arguments = {"max_num_frames": max_num_frames, "clip_s": clip}
        sampled = sample_clip(num_frames, fps, method, rng=random.Random(seed), **arguments)
        assert 1 <= len(sampled.indices) <= max_num_frames
        assert list(sampled.indices) == sorted(sampled.indices)
        assert 0 <= sampled.indices[0] <= sampled.indices[-1] < num_frames
        assert sampled.times_s == tuple(round(i / fps, 1) for i in sampled.indices)
        assert sampled == sample_clip(num_frames, fps, method, rng=random.Random(seed), **arguments)

    def test_random_draws_cover_each_segment_but_its_last_frame(self):
        drawn = [set() for _ in range(4)]
        for seed in range(300):
            for slot, index in zip(drawn, sample_segments(20, 4, rng=random.Random(seed)), strict=True):
                slot.add(index)
        assert drawn == [{0, 1, 2, 3}, {5, 6, 7, 8}, {10, 11, 12, 13}, {15, 16, 17, 18}]

    def test_random_draws_from_few_frames_are_a_subset(self):
        draws = {tuple(sample_segments(6, 4, rng=random.Random(seed))) for seed in range(300)}
        assert len(draws) == 15  # all subsets of 4 of 6
        assert all(list(draw) == sorted(set(draw)) for draw in draws)

    @pytest.mark.parametrize(
        ("method", "options", "match"),
        [
            ("fpsx", {}, "fpsN.*'fpsx'"),
            ("fps0", {}, "fpsN.*'fps0'"),
            ("uniform", {}, "fpsN, middle or rand, got 'uniform'"),
            ("rand", {}, "random generator"),
            ("fps1", {"clip_s": (3.0, 1.0)}, r"\[3.0, 1.0\]"),
            ("fps1", {"clip_s": (-1.0, 1.0)}, r"\[-1.0, 1.0\]"),
            ("middle", {"max_num_frames": 0}, "at least 1 frame"),
        ],
    )
    def test_bad_requests(self, method, options, match):
        with pytest.raises(InputError, match=match):
            sample_clip(100, 25.0, method, **{"max_num_frames": 8, **options})

    def test_no_frames_or_rate(self):
        with pytest.raises(InputError, match="at least 1 frame"):
            sample_clip(0, 25.0, "fps1", max_num_frames=8)
        with pytest.raises(InputError, match="video_fps"):
            sample_clip(10, 0.0, "fps1", max_num_frames=8)
        with pytest.raises(InputError, match="got both"):
            sample_segments(10, 2, offset=0, rng=random.Random(0))


class TestUniformSubset:
    @given(st.integers(0, 200), st.integers(1, 80))
    def test_keeps_the_ends_and_spreads_evenly(self, num_items, max_items):
        kept = uniform_subset(range(num_items), max_items)
        assert len(kept) == min(num_items, max_items)
        if len(kept) > 1:
            assert (kept[0], kept[-1]) == (0, num_items - 1)
            gaps = np.diff(kept)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1

    def test_no_limit(self):
        assert uniform_subset([1, 2, 3], -1) == [1, 2, 3]


class TestEvaluation:
    def test_steps_round_as_published(self):
        assert [frame_step(fps, 8) for fps in (30, 25, 12, 8, 1)] == [4, 3, 2, 1, 1]
        assert [frame_step(fps, 8, rounding="down") for fps in (30, 29.97, 25, 8, 1)] == [3, 3, 3, 1, 1]

    def test_streaming_on_a_folder(self):
        assert streaming_indices(40, 3.0, 1, (1.5, 20.0)) == [4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37]
        assert streaming_indices(200, 1, 8, (0, 3)) == [0, 1, 2, 3]
        assert streaming_indices(3, 1, 8, (0, 5)) == [0, 1, 2]
        assert streaming_indices(40, 1, 8, (50, 60)) == []

    def test_streaming_on_a_folder_finds_frames_in_spite_of_binary_fractions(self):
        assert int(0.29 * 100) == 28
        assert streaming_indices(100, 100, 100, (0.29, 0.29)) == [29]
        assert streaming_indices(100, 100, 100, (0.29, 0.29), tolerance_s=0.0) == [28]
        assert sliding_window_indices(100, 100, 100, 0.29, window_s=0.0) == [29]
        assert sliding_window_indices(100, 100, 100, 0.29, window_s=0.0, tolerance_s=0.0) == [28]

    def test_streaming_on_a_video_shows_only_frames_that_have_ended(self):
        ends_s = [(i + 1) / 30 for i in range(300)]
        assert streaming_indices_at_times(ends_s, 30.0, 1, (1.0, 3.0)) == [29, 59, 89]
        assert streaming_indices_at_times(ends_s, 30.0, 1, (0.0, 0.01)) == []

    def test_sliding_window_goes_back_from_the_question(self):
        assert sliding_window_indices(200, 1, 2, 100.0, max_num_frames=4) == [68, 78, 89, 100]
        assert sliding_window_indices(200, 3.0, 2, 33.4, window_s=2) == [94, 96, 98, 100]
        assert sliding_window_indices(200, 3.0, 2, 33.4, window_s=1.7) == [96, 98, 100]
        assert sliding_window_indices(40, 1, 2, 43.0, window_s=2) == [37, 38, 39]

    def test_sliding_window_by_times(self):
        starts_s = [i / 25 for i in range(250)]
        ends_s = [(i + 1) / 25 for i in range(250)]

        def window(question_s, window_s):
            return sliding_window_indices_at_times(
                starts_s, ends_s, 25.0, 2, question_s, window_s=window_s, max_num_frames=4
            )

        assert window(3.34, 2) == [35, 47, 59, 83]
        assert window(15.0, 2) == [249]
        assert window(0.0, 32) == [0]
        assert window(9.0, None) == [9, 81, 153, 225]

    @settings(max_examples=100, deadline=None)
    @given(
        gaps=st.lists(st.floats(0.01, 2), min_size=1, max_size=60),
        question_s=st.floats(0, 60),
        window_s=st.floats(0.5, 40),
        max_num_frames=st.integers(1, 64),
    )
    def test_a_window_never_looks_ahead_nor_further_back(self, gaps, question_s, window_s, max_num_frames):
        edges_s = [0.0, *np.cumsum(gaps).tolist()]
        fps = len(gaps) / edges_s[-1]
        kept = sliding_window_indices_at_times(
            edges_s[:-1], edges_s[1:], fps, 2.0, question_s, window_s=window_s, max_num_frames=max_num_frames
        )
        assert 1 <= len(kept) <= max_num_frames
        assert kept == sorted(set(kept))
        assert all(edges_s[i] <= question_s + 1e-6 for i in kept)
        last = max(i for i, start_s in enumerate(edges_s[:-1]) if start_s <= question_s + 1e-6)
        assert max_num_frames == 1 or kept[-1] == last
        assert all(edges_s[i + 1] >= question_s - window_s - 1e-6 or i == last for i in kept)

    def test_segments_of_multiple_choice_benchmarks(self):
        assert segment_centre_indices(200, 25.0, num_segments=8) == [12, 36, 60, 84, 114, 138, 162, 186]
        assert segment_centre_indices(200, 25.0, clip_s=(0, 3)) == list(range(0, 76, 6))
        assert segment_centre_indices(200, 25.0, num_segments=8, first_index=1)[0] == 13
        assert segment_centre_indices(200, 29.97, clip_s=(3, 3)) == [90]
        assert segment_centre_indices(10, 2.0, clip_s=(1.2, 5.9)) == [2, 3, 4, 5, 6, 7, 8, 9]
        assert segment_centre_indices(10, 2.0, clip_s=(7.0, 9.0)) == [9]

    def test_the_demo_keeps_the_last_frame(self):
        assert interval_indices(10, 2.0, 0.5) == list(range(10))
        assert interval_indices(100, 25.0, 2.5) == [0, 62]
        assert interval_indices(10, 2.0, 0.1) == list(range(10))
        with pytest.raises(InputError, match="interval_s"):
            interval_indices(10, 2.0, 0.0)
