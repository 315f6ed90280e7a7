"""A viewer's stream without a page: order, causality, what is dropped, what is remembered, who gets in."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from api_server import SimulatedClock
from clips import write_clip
from videochat_online.errors import InputError
from videochat_online.serving.sources.file_source import FilePlayer
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.live_answer import UnknownStreamError
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.memory_trace import NUM_FORGOTTEN, MemoryView
from videochat_online.serving.streams.pool import BusyError, StreamPool
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.types import FrameUse
from videochat_online.video import open_video

SHORT = GenerationSettings(max_new_tokens=6, min_new_tokens=6)
WAIT_S = 60.0
"""Longer than anything here takes: a hang fails instead of stopping the tests."""


@pytest.fixture
def live(tiny_model):
    streams = []

    def make(**options):
        options.setdefault("generation", SHORT)
        options.setdefault("max_waiting", 1000)
        streams.append(LiveStream(tiny_model, StreamOptions(**options), ModelGate()))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


@pytest.fixture
def held_encoder(tiny_model, monkeypatch):
    """The vision tower waits at every call until `set`; `asked` counts the calls that have begun."""
    may_go, original, asked = threading.Event(), type(tiny_model.network).encode, []

    def encode(pixels):
        asked.append(len(pixels))
        assert may_go.wait(WAIT_S)
        return original(tiny_model.network, pixels)

    monkeypatch.setattr(tiny_model.network, "encode", encode)
    may_go.asked = asked
    yield may_go
    may_go.set()


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


class TestGate:
    def test_turns_come_in_the_order_of_arrival(self):
        gate, order, threads = ModelGate(), [], []

        def take(number):
            with gate.turn():
                order.append(number)

        with gate.turn():
            for number in range(8):
                threads.append(threading.Thread(target=take, args=(number,)))
                threads[-1].start()
                wait_for(lambda number=number: gate.num_waiting == number + 1)
        for thread in threads:
            thread.join(WAIT_S)
        assert order == list(range(8))
        assert gate.num_waiting == 0

    def test_whoever_asks_again_waits_for_the_others(self):
        gate, order = ModelGate(), []

        def greedy(name):
            for _ in range(5):
                with gate.turn():
                    order.append(name)
                    wait_for(lambda: gate.num_waiting == 1 or len(order) > 8)

        threads = [threading.Thread(target=greedy, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert "".join(order[:8]) in ("abababab", "babababa")

    def test_a_failure_gives_the_turn_up(self):
        gate = ModelGate()
        with pytest.raises(ZeroDivisionError), gate.turn():
            _ = 1 / 0
        with gate.turn():
            pass


class TestLiveStream:
    def test_remembers_and_answers_as_a_session_does(self, live, tiny_model, frames):
        pixels = frames(30)
        session = StreamingSession(tiny_model, settings=SHORT)
        session.push(pixels, range(30))
        stream = live()
        for index in range(30):
            stream.receive(pixels[index], float(index))
        answer = stream.ask("What now?")
        assert "".join(answer.pieces()).strip() == answer.text == session.ask("What now?").text
        assert (answer.state, answer.asked_at_s, answer.error) == ("answered", 29.0, None)
        kept = stream.memory().remembered
        assert [(f.index, f.time_s, f.num_tokens) for f in kept] == [
            (f.index, f.time_s, f.num_tokens) for f in session.remembered()
        ]
        assert all(frame.thumbnail.startswith(b"\xff\xd8") for frame in kept)
        status = stream.status()
        assert (status.num_frames_in, status.num_frames_seen, status.num_frames_dropped) == (30, 30, 0)
        assert status.num_tokens == sum(frame.num_tokens for frame in kept) <= status.max_tokens
        assert status.first_token_s > 0
        assert status.real_time_factor > 0

    def test_a_question_is_not_answered_from_later_frames(self, live, tiny_model, frames, held_encoder):
        pixels = frames(20)
        stream = live()
        for index in range(5):
            stream.receive(pixels[index], float(index))
        answer = stream.ask("What now?")
        for index in range(5, 20):
            stream.receive(pixels[index], float(index))
        held_encoder.set()
        assert answer.wait(WAIT_S)
        assert stream.drain(WAIT_S)
        session = StreamingSession(tiny_model, settings=SHORT)
        session.push(pixels[:5], range(5))
        assert answer.text == session.ask("What now?").text
        assert answer.asked_at_s == 4.0
        assert stream.status().num_frames_seen == 20

    def test_frames_go_on_arriving_while_an_answer_is_given(self, live, frames, monkeypatch):
        stream, pixels, original = live(), frames(20), StreamingSession.stream_prepared

        def slow(session, prepared):
            # Its second piece comes only when later frames were taken in: an answer that kept them out would hang.
            pieces = original(session, prepared)
            yield next(pieces)
            yield "|"
            limit = time.monotonic() + WAIT_S
            while session.num_frames < 20:
                assert time.monotonic() < limit
                yield ""
            yield from pieces

        monkeypatch.setattr(StreamingSession, "stream_prepared", slow)
        for index in range(5):
            stream.receive(pixels[index], float(index))
        answer = stream.ask("What now?")
        pieces = answer.pieces()
        next(pieces)
        for index in range(5, 20):
            stream.receive(pixels[index], float(index))
        assert answer.wait(WAIT_S)
        assert answer.state == "answered"
        assert "|" in answer.text

    def test_the_newest_frames_are_kept(self, live, frames, held_encoder):
        stream, pixels = live(max_waiting=4), frames(30)
        stream.receive(pixels[0], 0.0)
        wait_for(lambda: held_encoder.asked)
        for index in range(1, 30):
            stream.receive(pixels[index], float(index))
        held_encoder.set()
        assert stream.drain(WAIT_S)
        status = stream.status()
        assert (status.num_frames_in, status.num_frames_dropped, status.num_frames_seen) == (30, 25, 5)
        assert [frame.time_s for frame in stream.memory().remembered] == [0.0, 26.0, 27.0, 28.0, 29.0]

    def test_every_call_of_the_model_is_a_turn(self, tiny_model, frames, monkeypatch):
        """Frames, prompt, the begin of an answer and each of its tokens; a batch is of eight frames at most."""
        gate, calls = ModelGate(), []

        def noted(name, original):
            def call(*arguments, **options):
                calls.append((name, gate.is_taken))
                return original(*arguments, **options)

            return call

        def pieces(session, prepared):
            calls.append(("begin", gate.is_taken))
            try:
                for word in "abc":
                    yield word
                    calls.append(("piece", gate.is_taken))
            finally:
                calls.append(("end", None))

        batches, encode = [], tiny_model.network.encode
        monkeypatch.setattr(tiny_model.network, "encode", lambda pixels: batches.append(len(pixels)) or encode(pixels))
        for name in ("push", "prepare"):
            monkeypatch.setattr(StreamingSession, name, noted(name, getattr(StreamingSession, name)))
        monkeypatch.setattr(StreamingSession, "stream_prepared", noted("stream", pieces))
        stream = LiveStream(tiny_model, StreamOptions(max_waiting=100), gate)
        with gate.turn():
            for index, picture in enumerate(frames(30)):
                stream.receive(picture, float(index))
        answer = stream.ask("What now?")
        assert answer.wait(WAIT_S)
        assert answer.text == "abc"
        assert {name for name, _ in calls} == {"push", "prepare", "stream", "begin", "piece", "end"}
        assert all(is_taken for name, is_taken in calls if name != "end")
        assert sum(batches) == 30
        assert max(batches) <= 8
        stream.close()

    def test_stopping_and_closing_end_an_answer_that_would_go_on(self, live, frames, monkeypatch):
        ended = []

        def endless(session, prepared):
            try:
                while True:
                    time.sleep(0.001)
                    yield "word "
            finally:
                ended.append(prepared)

        monkeypatch.setattr(StreamingSession, "stream_prepared", endless)
        stream = live()
        stream.receive(frames(1)[0], 0.0)
        for number, end in enumerate((stream.stop_answer, stream.close), start=1):
            answer = stream.ask("What now?")
            next(answer.pieces())
            first_s = answer.first_token_s
            wait_for(lambda answer=answer: len(answer.text) > 20)
            end()
            assert answer.wait(WAIT_S)
            assert (answer.state, answer.first_token_s) == ("stopped", first_s)
            wait_for(lambda number=number: len(ended) == number)
            answer.stop()
        assert stream.status().first_token_s == first_s != stream.answers[0].first_token_s

    def test_a_stop_after_the_end_changes_nothing(self, live, frames):
        stream = live()
        stream.receive(frames(1)[0], 0.0)
        answer = stream.ask("What now?")
        assert answer.wait(WAIT_S)
        stream.stop_answer()
        assert answer.state == "answered"

    def test_a_question_stopped_before_its_turn_costs_nothing(self, live, frames, held_encoder, monkeypatch):
        stream, prepared = live(), []
        original = StreamingSession.prepare
        monkeypatch.setattr(
            StreamingSession, "prepare", lambda *given, **more: prepared.append(given) or original(*given, **more)
        )
        stream.receive(frames(1)[0], 0.0)
        answer = stream.ask("What now?")
        stream.stop_answer()
        held_encoder.set()
        assert answer.wait(WAIT_S)
        assert (answer.state, answer.text, prepared) == ("stopped", "", [])

    def test_a_new_dialogue_knows_nothing_of_the_old(self, live, frames):
        stream, texts, version = live(), [], 0
        stream.receive(frames(1)[0], 0.0)
        for _ in range(2):
            answer = stream.ask("What now?")
            assert answer.wait(WAIT_S)
            texts.append(answer.text)
            assert stream.memory().version > version
            stream.forget_dialogue()
            assert stream.session.history == ()
        assert texts[0] == texts[1]

    def test_an_answer_can_be_stopped_and_the_dialogue_goes_on(self, live, frames):
        stream = live(generation=GenerationSettings(max_new_tokens=500, min_new_tokens=500))
        stream.receive(frames(1)[0], 0.0)
        answer = stream.ask("What now?")
        pieces = answer.pieces()
        first = next(pieces)
        with pytest.raises(InputError, match="an answer is still being given"):
            stream.ask("And now?")
        with pytest.raises(InputError, match="an answer is still being given"):
            stream.forget_dialogue()
        stream.stop_answer()
        assert answer.wait(WAIT_S)
        assert answer.state == "stopped"
        assert answer.text.startswith(first.strip())
        again = stream.ask("And now?")
        next(again.pieces())
        stream.stop_answer()
        assert again.wait(WAIT_S)
        assert [one.question for one in stream.answers] == ["What now?", "And now?"]
        stream.forget_dialogue()
        assert stream.answers == ()
        assert len(stream.memory().remembered) == 1

    def test_what_cannot_be_answered_says_why(self, live, frames, monkeypatch):
        stream = live()
        early = stream.ask("What now?")
        assert early.wait(WAIT_S)
        assert early.state == "failed"
        assert "nothing has been seen yet" in early.error
        stream.receive(frames(1)[0], 0.0)
        with pytest.raises(InputError, match="^question: expected Unicode text, found half of a surrogate pair at"):
            stream.ask("What \ud800?")
        with pytest.raises(InputError, match="^system_message: expected Unicode text, without"):
            StreamOptions(system_message="\udfff")
        token = stream.ask("What is <IMG_CONTEXT>?")
        assert token.wait(WAIT_S)
        assert token.state == "answered"

        def fail(*_, **__):
            raise RuntimeError("no memory")

        monkeypatch.setattr("videochat_online.streaming.generate.generate_ids", fail)
        broken = stream.ask("What now?")
        assert broken.wait(WAIT_S)
        assert (broken.state, broken.error) == ("failed", "the model failed: RuntimeError")
        assert "".join(broken.pieces()) == ""
        with pytest.raises(InputError, match="got an empty one"):
            stream.ask("  ")

    def test_bad_frames_are_refused(self, live, frames):
        stream, (picture,) = live(), frames(1)
        stream.receive(picture, 2.0)
        for pixels, time_s, says in [
            (picture, 1.0, "time goes backwards, from 2 s to 1 s"),
            (picture, float("nan"), "a time of at least 0 s"),
            (picture[..., 0], 3.0, r"uint8 \[H, W, 3\], got uint8 \(60, 80\)"),
            (picture.astype(np.float32), 3.0, "got float32"),
            (picture[:0], 3.0, r"\(0, 80, 3\)"),
        ]:
            with pytest.raises(InputError, match=says):
                stream.receive(pixels, time_s)
        stream.receive(np.ascontiguousarray(picture[:30]), 3.0)  # a camera may change its size
        assert stream.drain(WAIT_S)
        assert stream.status().num_frames_seen == 2

    def test_a_stream_that_fails_says_so(self, live, frames, tiny_model, monkeypatch):
        def fail(pixels):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(tiny_model.network, "encode", fail)
        stream = live()
        stream.receive(frames(1)[0], 0.0)
        answer = stream.ask("What now?")
        assert answer.wait(WAIT_S)
        assert answer.error == stream.status().problem == "the stream has failed: RuntimeError"
        with pytest.raises(InputError, match="the stream has failed"):
            stream.receive(frames(1)[0], 1.0)
        with pytest.raises(InputError, match="the stream has failed"):
            stream.ask("And now?")

    def test_a_question_that_breaks_the_stream_is_told(self, live, frames, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("out of memory")

        stream = live()
        stream.receive(frames(1)[0], 0.0)
        monkeypatch.setattr(StreamingSession, "prepare", fail)
        answer = stream.ask("What now?")
        assert answer.wait(WAIT_S)
        assert answer.error == stream.status().problem == "the stream has failed: RuntimeError"

    def test_closing_ends_threads_and_answers(self, live, frames, held_encoder):
        before = threading.active_count()
        stream = live()
        stream.receive(frames(1)[0], 0.0)
        wait_for(lambda: held_encoder.asked)
        answer = stream.ask("What now?")
        pictures = stream.pictures()
        threading.Timer(0.05, held_encoder.set).start()
        stream.close()
        assert answer.is_over
        assert list(pictures) == []
        wait_for(lambda: threading.active_count() == before)
        assert stream.memory().remembered == ()
        with pytest.raises(InputError, match="the stream is closed"):
            stream.receive(frames(1)[0], 1.0)
        with pytest.raises(InputError, match="the stream is closed"):
            stream.ask("What now?")

    def test_the_picture_shown_is_the_newest(self, live, frames):
        stream, pixels = live(), frames(3)
        pictures = stream.pictures(timeout_s=0.01)
        stream.receive(pixels[0], 0.0)
        first = next(pictures)
        assert next(pictures) == first  # nothing newer: the same again
        stream.receive(pixels[1], 0.1)
        stream.receive(pixels[2], 0.2)
        newest = next(pictures)
        assert newest != first
        assert newest == next(pictures)
        assert stream.status().num_frames_in == 1  # the model sees one a second

    @pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.0])
    def test_the_model_sees_the_first_frame_of_every_interval(self, live, frames, fps):
        stream, (picture,) = live(fps=fps), frames(1)
        times = np.sort(np.random.default_rng(0).uniform(0, 20, 300))
        taken = [time_s for time_s in times if stream.receive(picture, float(time_s))]
        expected = [times[np.floor(times * fps) == slot][0] for slot in np.unique(np.floor(times * fps))]
        assert taken == pytest.approx(expected)

    def test_options_out_of_range(self, live):
        for options, says in [
            ({"fps": 0}, "fps"),
            ({"fps": float("nan")}, "fps"),
            ({"max_waiting": 0}, "max_waiting"),
            ({"memory": "none"}, "unknown memory"),
            ({"memory_options": {"num_frames": 3}}, "does not take num_frames"),
        ]:
            with pytest.raises(InputError, match=says):
                live(**options)

    def test_an_hour_holds_memory_and_questions_flat(self, live, tiny_model, frames, monkeypatch):
        """3,600 frames: threads, inbox, trace and the prompt stay as they are after a minute."""
        pixels, features = frames(1)[0], tiny_model.encode(frames(8))

        def encode(batch):
            return features[: len(batch)]

        monkeypatch.setattr(tiny_model.network, "encode", encode)
        stream, sizes, answers = live(max_waiting=64), [], []
        for second in range(3600):
            stream.receive(pixels, float(second))
            if second % 60 == 59:
                assert stream.drain(WAIT_S)
                sizes.append(
                    (len(stream.memory().remembered), len(stream.memory().forgotten), stream.status().num_tokens)
                )
            if second % 1200 == 1199:
                answers.append(stream.ask("What now?"))
                assert answers[-1].wait(WAIT_S)
                stream.forget_dialogue()
        assert stream.status().num_frames_seen == 3600
        assert stream.status().num_frames_dropped == 0
        assert set(sizes[1:]) == {sizes[1]}
        assert [answer.state for answer in answers] == ["answered"] * 3


def test_the_trace_tells_what_became_of_each_frame():
    """Restated over the whole history of what was remembered."""
    rng = np.random.default_rng(0)
    trace, history = MemoryView(), []
    tokens = {}
    for step in range(200):
        tokens[step] = 16
        for index in list(tokens):
            draw = rng.random()
            if draw < 0.1:
                del tokens[index]
            elif draw < 0.3:
                tokens[index] = max(1, tokens[index] // 4)
            elif draw < 0.35:
                tokens[index] = 16
        now = [FrameUse(index, float(index), tokens[index]) for index in sorted(tokens)]
        history.append({frame.index: frame.num_tokens for frame in now})
        trace = trace.after(now, float(step), {step: b"%d" % step})
    pairs = list(zip(history, history[1:], strict=False))
    assert trace.num_forgotten == sum(len(before.keys() - after.keys()) for before, after in pairs)
    assert trace.num_demotions == sum(after[i] < before[i] for before, after in pairs for i in before.keys() & after)
    assert {frame.index: frame.num_tokens for frame in trace.remembered} == history[-1]
    assert len(trace.forgotten) == NUM_FORGOTTEN
    for frame in (*trace.remembered, *trace.forgotten):
        seen = [step for step, row in enumerate(history) if frame.index in row]
        sizes = [history[step][frame.index] for step in seen]
        assert (frame.first_num_tokens, frame.num_tokens) == (sizes[0], sizes[-1])
        changes = [step for step, (a, b) in zip(seen[1:], zip(sizes, sizes[1:], strict=False), strict=False) if b < a]
        assert frame.demoted_at_s == (changes[-1] if changes else None)
        assert frame.thumbnail == b"%d" % frame.index
    assert [frame.forgotten_at_s for frame in trace.remembered] == [None] * len(trace.remembered)


class TestPlayer:
    @pytest.fixture
    def clip(self, tmp_path):
        return write_clip(tmp_path / "clip.mp4", num_frames=100, fps=10)

    def test_every_second_is_seen_once_and_in_order(self, live, clip):
        stream = live(fps=2.0)
        player = FilePlayer(clip, stream, clock=SimulatedClock())
        assert player.status().state == "paused"
        player.play()
        assert player.wait_until_over(WAIT_S)
        assert stream.drain(WAIT_S)
        status = player.status()
        assert (status.state, status.problem) == ("ended", None)
        assert status.duration_s == pytest.approx(10.0)
        assert stream.status().num_frames_seen == 20
        with open_video(clip) as source:
            expected = [time_s for chunk in source.read(fps=2.0) for time_s in chunk.times_s]
        seen = [frame.time_s for frame in stream.memory().remembered]
        assert set(seen) <= set(expected)
        assert stream.status().time_s >= 9.8
        player.close()

    def test_real_time_passes_at_the_asked_speed(self, live, clip):
        """With the machine's clock: at least the due time, however slow the machine."""
        stream = live()
        player = FilePlayer(clip, stream)
        player.set_speed(16.0)
        start = time.monotonic()
        player.play()
        assert player.wait_until_over(WAIT_S)
        assert time.monotonic() - start >= 9.8 / 16 - 0.05
        player.close()

    def test_a_pause_holds_and_a_seek_goes_forward_only(self, live, clip):
        stream = live(fps=1.0)
        player = FilePlayer(clip, stream)
        player.play()
        wait_for(lambda: player.status().position_s > 0.3)
        player.pause()
        held = player.status().position_s
        time.sleep(0.3)
        assert player.status().position_s <= held + 0.13  # a frame that was on its way
        assert player.status().state == "paused"
        with pytest.raises(InputError, match="a stream only goes forward"):
            player.seek(0.1)
        with pytest.raises(InputError, match="within the video, 10 s, got 11 s"):
            player.seek(11.0)
        with pytest.raises(InputError, match="speed: expected 0.25 to 16, got 20"):
            player.set_speed(20)
        player.set_speed(16.0)
        player.seek(7.0)
        wait_for(lambda: player.status().position_s == pytest.approx(7.0))  # its picture is shown in a pause, too
        assert player.status().state == "paused"
        player.seek(8.0)
        player.play()
        assert player.wait_until_over(WAIT_S)
        assert stream.drain(WAIT_S)
        seen = [frame.time_s for frame in stream.memory().remembered]
        assert [time_s for time_s in seen if time_s > 1.5] == pytest.approx([7.0, 8.0, 9.0])
        with pytest.raises(InputError, match="the video has ended"):
            player.seek(9.9)
        player.close()

    def test_orders_are_followed_at_once(self, live, clip):
        """At a quarter of the speed a frame waits half a second; a closed player waits for none."""
        stream = live()
        player = FilePlayer(clip, stream)
        player.set_speed(0.25)
        player.play()
        wait_for(lambda: player.status().position_s > 0)
        player.set_speed(16.0)
        player.pause()
        player.close()  # waits for its thread: ten seconds, if that does not hear of it
        # A thread that goes on is seen nowhere else.
        assert not player._thread.is_alive()

    def test_a_file_that_is_no_video(self, live, tmp_path):
        (tmp_path / "clip.mp4").write_bytes(b"hello" * 100)
        player = FilePlayer(tmp_path / "clip.mp4", live())
        assert player.wait_until_over(WAIT_S)
        assert player.status().state == "failed"
        assert "expected a video file" in player.status().problem
        assert str(tmp_path) not in player.status().problem
        player.close()

    def test_damage_is_told_at_the_end(self, live, tmp_path):
        whole = write_clip(tmp_path / "whole.mkv", 100).read_bytes()
        (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
        player = FilePlayer(tmp_path / "half.mkv", live(), clock=SimulatedClock())
        player.play()
        assert player.wait_until_over(WAIT_S)
        assert player.status().state == "ended"
        assert "of 10.00 s declared" in player.status().problem
        player.close()


class TestPool:
    @pytest.fixture
    def pool(self, tiny_model):
        self.now = 0.0
        pool = StreamPool(tiny_model, max_streams=2, idle_s=10.0, now=lambda: self.now)
        yield pool
        pool.close_all()

    def test_places_are_bounded_and_come_back(self, pool):
        one, two = pool.open(StreamOptions()), pool.open(StreamOptions())
        assert len({one.id, two.id}) == 2
        assert len(pool) == 2
        with pytest.raises(BusyError, match="all 2 places are taken"):
            pool.open(StreamOptions())
        (one.folder / "upload.mp4").write_bytes(b"x")
        pool.close(one.id)
        pool.close(one.id)
        assert not one.folder.exists()
        assert one.stream.is_closed
        assert pool.find(pool.open(StreamOptions()).id).stream.is_closed is False
        with pytest.raises(UnknownStreamError, match="no such stream"):
            pool.find(one.id)

    def test_a_stream_left_alone_is_freed(self, pool):
        left, used = pool.open(StreamOptions()), pool.open(StreamOptions())
        self.now = 9.0
        pool.find(used.id)
        self.now = 11.0
        assert pool.open(StreamOptions()).stream.is_closed is False
        assert left.stream.is_closed
        assert not used.stream.is_closed
        with pytest.raises(UnknownStreamError):
            pool.find(left.id)

    def test_viewers_do_not_see_each_other(self, pool, frames):
        streams = [pool.open(StreamOptions(generation=SHORT)).stream for _ in range(2)]
        for number, stream in enumerate(streams):
            for index, picture in enumerate(frames(3, seed=number)):
                stream.receive(picture, float(index + 10 * number))
        answers = [stream.ask(f"Who is {number}?") for number, stream in enumerate(streams)]
        assert all(answer.wait(WAIT_S) for answer in answers)
        for number, stream in enumerate(streams):
            assert [answer.question for answer in stream.answers] == [f"Who is {number}?"]
            assert [f.time_s for f in stream.memory().remembered] == [10.0 * number + index for index in range(3)]

    def test_bad_options_take_no_place(self, pool):
        for _ in range(3):
            with pytest.raises(InputError, match="unknown memory"):
                pool.open(StreamOptions(memory="none"))
        assert len(pool) == 0

    def test_shutting_down_closes_all(self, tiny_model, tmp_path):
        pool = StreamPool(tiny_model)
        one = pool.open(StreamOptions())
        one.player = FilePlayer(write_clip(tmp_path / "clip.mp4"), one.stream)
        one.player.play()
        pool.close_all()
        assert one.stream.is_closed
        assert not one.folder.parent.exists()
        with pytest.raises(InputError, match="shutting down"):
            pool.open(StreamOptions())
