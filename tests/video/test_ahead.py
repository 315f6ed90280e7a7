"""Decoding ahead in a thread: the same chunks, errors at their place, nothing left behind."""

from __future__ import annotations

import threading

import numpy as np
import psutil
import pytest

from video_files import write_video
from videochat_online.errors import InputError, VideoError
from videochat_online.video import read_ahead, read_video


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def numbers(made, fails_at=None):
    for number in range(10):
        if number == fails_at:
            raise VideoError("broken")
        made.append(number)
        yield number


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_the_same_items_in_the_same_order(ahead):
    assert list(read_ahead(numbers([]), ahead)) == list(range(10))
    assert list(read_ahead([], ahead)) == []
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_so_many_are_made_before_they_are_asked_for(ahead):
    made = []
    items = read_ahead(numbers(made), ahead)
    assert made == []
    assert [next(items), next(items)] == [0, 1]
    for future in items.gi_frame.f_locals["waiting"] if ahead else ():
        future.result(30)
    assert len(made) == 2 + ahead if ahead else 2
    items.close()


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_an_error_comes_where_its_item_would_have_come(ahead):
    items = read_ahead(numbers([], fails_at=3), ahead)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(VideoError, match="broken"):
        next(items)
    assert threads() == []
    assert list(items) == []


def test_closed_early_nothing_more_is_made():
    made = []
    source = numbers(made)
    items = read_ahead(source, 2)
    next(items)
    items.close()
    assert threads() == []
    count = len(made)
    assert count <= 4
    assert next(source) == count  # not closed: who owns it may go on with it


def test_less_than_nothing_cannot_be_made_ahead():
    with pytest.raises(InputError, match="ahead: expected at least 0, got -1"):
        read_ahead([], -1)


class TestVideo:
    @pytest.fixture(scope="class")
    def clip(self, tmp_path_factory):
        return write_video(tmp_path_factory.mktemp("ahead") / "clip.mkv", range(40))

    def is_open(self, clip):
        return str(clip) in {file.path for file in psutil.Process().open_files()}

    def test_the_same_chunks(self, clip):
        plain, ahead = (list(read_video(clip, fps=5, chunk=3, ahead=ahead)) for ahead in (0, 2))
        assert [chunk.times_s for chunk in ahead] == [chunk.times_s for chunk in plain]
        assert all(np.array_equal(a.pixels_THWC, b.pixels_THWC) for a, b in zip(ahead, plain, strict=True))
        assert not self.is_open(clip)

    @pytest.mark.parametrize("end", ["close", "garbage"])
    def test_closed_early_the_file_is_closed_and_the_thread_gone(self, clip, end):
        chunks = read_video(clip, chunk=2, ahead=3)
        next(chunks)
        assert self.is_open(clip)
        assert threads()
        if end == "close":
            chunks.close()
        del chunks
        assert threads() == []
        assert not self.is_open(clip)

    def test_bad_requests_fail_at_once(self, clip):
        with pytest.raises(InputError, match="ahead: expected"):
            read_video(clip, ahead=-1)
        assert not self.is_open(clip)
