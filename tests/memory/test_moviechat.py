"""MovieChat and MovieChat+ against slow re-statements and by hand, and how a session hands over its question."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videochat_online.errors import InputError, NonFiniteError
from videochat_online.memory import QuestionAware, make_memory
from videochat_online.memory.moviechat import MovieChatMemoryBank
from videochat_online.memory.moviechat_plus import MovieChatPlusMemoryBank
from videochat_online.streaming import GenerationSettings, StreamingSession
from videochat_online.types import FrameTokens

GRID = (4, 4)


def stream_of(seed, num_frames=50, channels=5):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_frames, channels, *GRID, generator=generator)
    frames = 0.4 * steps.cumsum(0)
    repeated = torch.rand(num_frames, generator=generator) < 0.2
    for index in range(1, num_frames):
        if repeated[index]:
            frames[index] = frames[index - 1]
    return frames


def as_they_are(frame):
    """A question in the space of the features themselves."""
    return frame.tokens_CHW.flatten(1).T


def write(bank, stream_TCHW):
    for index, tokens_CHW in enumerate(stream_TCHW):
        bank.write(FrameTokens(tokens_CHW, index, index / 2, index))
        yield index


def merge(frames, num_left):
    """Each frame is (index, clip, tokens)."""
    frames = list(frames)
    while len(frames) > num_left:
        best, best_product = 0, -np.inf
        for place in range(len(frames) - 1):
            a, b = (frames[place + k][2].mean(axis=(1, 2)) for k in (0, 1))
            if round(float(a @ b), 5) > best_product:
                best, best_product = place, round(float(a @ b), 5)
        (_, _, older), (index, clip, newer) = frames[best], frames[best + 1]
        frames[best : best + 2] = [(index, clip, (older + newer) / 2)]
    return frames


class SlowMovieChat:
    """Plain lists; a question is merged for by `ask`."""

    def __init__(self, num_short, num_long, num_merged, reading):
        self.num_short, self.num_long, self.num_merged, self.reading = num_short, num_long, num_merged, reading
        self.short, self.long, self.clip = [], [], 0

    def merged(self):
        clip = [(index, self.clip + 1, tokens) for index, _, tokens in merge(self.short, self.num_merged)]
        return merge(self.long + clip, self.num_long)

    def write(self, index, tokens):
        if len(self.short) == self.num_short:
            self.long, self.short = self.merged(), []
            self.clip += 1
        self.short.append((index, 0, tokens))

    def read(self):
        return self.merged() if self.reading == "global" else self.long + self.short

    def ask(self, query):
        frames = self.read()
        clips = sorted({clip for _, clip, _ in frames if clip})
        relevance = {}
        for clip in clips:
            means = [tokens.mean(axis=(1, 2)) for _, c, tokens in frames if c == clip]
            relevance[clip] = np.mean([m @ query / np.linalg.norm(m) / np.linalg.norm(query) for m in means])
        kept = []
        for clip in clips:
            members = [frame for frame in frames if frame[1] == clip]
            num_above = sum(relevance[other] > relevance[clip] + 1e-6 for other in clips)
            # Irrelevant: more than half of the clips are above, or exactly half of an even number.
            kept += merge(members, 1) if 2 * num_above >= len(clips) else members
        return kept + [frame for frame in frames if not frame[1]]


def assert_holds(memory, expected):
    assert [frame.index for frame in memory] == [index for index, _, _ in expected]
    for frame, (_, _, tokens) in zip(memory, expected, strict=True):
        np.testing.assert_allclose(frame.tokens_CHW.numpy(), tokens, atol=1e-5)


CASES = [(18, 20, 2), (6, 7, 2), (5, 9, 3), (1, 1, 1), (3, 2, 5), (2, 1, 2), (7, 100, 1)]


@pytest.mark.parametrize("reading", ["global", "breakpoint"])
@pytest.mark.parametrize("sizes", CASES)
def test_both_agree_with_their_restatements(sizes, reading):
    num_short, num_long, num_merged = sizes
    options = {"short_frames": num_short, "long_frames": num_long, "merged_frames": num_merged, "reading": reading}
    for seed in range(2):
        stream_TCHW = stream_of(seed)
        query_D = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        plain = MovieChatMemoryBank(**options, full_grid=GRID, grid=GRID)
        plus = MovieChatPlusMemoryBank(**options, full_grid=GRID, grid=GRID)
        slow = SlowMovieChat(*sizes, reading)
        for index, _ in zip(write(plain, stream_TCHW), write(plus, stream_TCHW), strict=True):
            slow.write(index, stream_TCHW[index].double().numpy())
            assert_holds(plain.read(), slow.read())
            assert_holds(plus.read(), slow.read())
            assert_holds(plus.read_for(query_D, as_they_are), slow.ask(query_D.double().numpy()))
            assert sum(frame.num_tokens for frame in plus.read_for(query_D, as_they_are)) <= plus.max_tokens


def constant_frames(values):
    return torch.tensor(values, dtype=torch.float32)[:, :, None, None].expand(-1, -1, 2, 2)


def test_the_published_numbers_by_hand():
    bank = MovieChatMemoryBank(short_frames=4, long_frames=3, full_grid=(2, 2), grid=(2, 2))
    assert MovieChatMemoryBank().max_tokens == 256 * 16
    assert MovieChatMemoryBank(reading="breakpoint").max_tokens == (256 + 18) * 16
    # Inner products of neighbours: 2, 0, 0; then of the average (1, 0), 0 and 0: the earliest pair.
    for _ in write(bank, constant_frames([(1, 0), (2, 0), (0, 1), (9, 0), (0, 3)])):
        pass
    # Merged: 0, 1 -> (1.5, 0); with (0, 1) -> (0.75, 0.5); the buffer is one frame, which is read as it is.
    memory = bank.read()
    assert [frame.index for frame in memory] == [2, 3, 4]
    assert [frame.tokens_CHW[:, 0, 0].tolist() for frame in memory] == [[0.75, 0.5], [9, 0], [0, 3]]
    assert [frame.content_id for frame in memory][1:] == [3, 4]


def test_a_reading_gives_the_same_ids_again_and_changes_nothing():
    stream_TCHW = stream_of(3)
    read_often, read_once = (MovieChatMemoryBank(short_frames=6, long_frames=7, full_grid=GRID) for _ in range(2))
    for _ in write(read_often, stream_TCHW):
        first, second = read_often.read(), read_often.read()
        assert [frame.content_id for frame in first] == [frame.content_id for frame in second]
    for _ in write(read_once, stream_TCHW):
        pass
    ours, theirs = read_often.state_dict(), read_once.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # What a reading merged has the id that it keeps in the long memory.
    assert any(frame.content_id < 0 for frame in read_once.read())


class TestQuestion:
    @pytest.fixture(name="bank")
    def make_bank(self):
        bank = MovieChatPlusMemoryBank(short_frames=2, long_frames=9, full_grid=(2, 2), grid=(2, 2))
        directions = [(1, 0, 0), (1, 0, 0.1), (0, 1, 0), (0, 1, 0.1), (0, 0, 1), (0.1, 0, 1)]
        for _ in write(bank, constant_frames(directions)):
            pass
        return bank

    def test_what_it_is_about_stays_in_full(self, bank):
        def indices(query):
            return [frame.index for frame in bank.read_for(torch.tensor(query), as_they_are)]

        assert [frame.index for frame in bank.read()] == [0, 1, 2, 3, 4, 5]
        assert indices([0.1, 1.0, 0.0]) == [0, 1, 2, 3, 5]
        assert indices([0.0, 0.1, 1.0]) == [1, 2, 3, 4, 5]
        assert indices([0.0, 0.0, 0.0]) == [0, 1, 2, 3, 4, 5]

    def test_frames_are_compared_where_the_question_lives(self, bank):
        # Its space has the channels in another order, and one more.
        def project(frame):
            tokens_LC = frame.tokens_CHW.flatten(1).T
            return torch.cat([tokens_LC[:, [2, 1, 0]], torch.zeros(len(tokens_LC), 1)], dim=1)

        about_the_first = bank.read_for(torch.tensor([0.0, 0.1, 1.0, 0.0]), project)
        assert [frame.index for frame in about_the_first] == [0, 1, 2, 3, 5]
        with pytest.raises(InputError, match="expected the width of the frames' tokens, 4, got 3"):
            bank.read_for(torch.zeros(3), project)

    @pytest.mark.parametrize("query", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)])
    def test_a_question_that_is_no_vector_is_refused(self, bank, query):
        with pytest.raises(InputError, match=r"query: expected floating-point \[D\]"):
            bank.read_for(query, as_they_are)


class TestSession:
    OPTIONS = {"short_frames": 3, "long_frames": 12, "full_grid": (4, 4)}

    def test_the_question_decides_what_is_remembered(self, tiny_model, frames, monkeypatch):
        asked = []
        original = MovieChatPlusMemoryBank.read_for
        monkeypatch.setattr(
            MovieChatPlusMemoryBank,
            "read_for",
            lambda bank, query_D, project: asked.append(query_D) or original(bank, query_D, project),
        )
        session = StreamingSession(tiny_model, make_memory("moviechat_plus", **self.OPTIONS))
        session.push(frames(20), range(20))
        views = {question: session.prepare(question).frames for question in ("What is red?", "How many dogs?", "")}
        assert len(session.remembered()) == 12
        assert 1 <= len(views["What is red?"]) < 12
        assert views[""] == session.remembered()  # no word, nothing to be relevant to
        ids = tiny_model.tokenizer("What is red?", add_special_tokens=False)["input_ids"]
        embeds_LD = tiny_model.network.get_input_embeddings().weight[ids]
        torch.testing.assert_close(asked[0], embeds_LD.mean(0))
        session.ask("What is red?", settings=GenerationSettings(max_new_tokens=2))

    def test_other_memories_never_see_it(self, tiny_model, frames, monkeypatch):
        monkeypatch.setattr(type(tiny_model), "embed_text", lambda *_: pytest.fail("nobody asked for it"))
        session = StreamingSession(tiny_model, make_memory("moviechat", **self.OPTIONS))
        session.push(frames(5), range(5))
        assert session.prepare("What?").frames == session.remembered()

    def test_frames_are_projected_once_for_relevance_and_prompt(self, tiny_model, frames, monkeypatch):
        projected = []
        original = type(tiny_model).project
        monkeypatch.setattr(
            type(tiny_model), "project", lambda model, tokens: projected.append(1) or original(model, tokens)
        )
        session = StreamingSession(tiny_model, make_memory("moviechat_plus", **self.OPTIONS))
        session.push(frames(2), range(2))
        session.prepare("What?")
        session.prepare("What?")
        assert len(projected) == 2


def test_who_wants_the_question():
    assert isinstance(make_memory("moviechat_plus"), QuestionAware)
    assert not isinstance(make_memory("moviechat"), QuestionAware)
    assert not isinstance(make_memory("pyramid"), QuestionAware)


@pytest.mark.parametrize("name", ["moviechat", "moviechat_plus"])
def test_a_grid_of_one_number_is_refused(name):
    with pytest.raises(InputError, match="grid: expected 2 whole numbers of at least 1"):
        make_memory(name, grid=(2,))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_question_that_is_not_finite_is_refused(value):
    bank = MovieChatPlusMemoryBank(short_frames=5, long_frames=9, full_grid=GRID)
    write(bank, stream_of(1))
    with pytest.raises(NonFiniteError, match="query: expected a finite embedding"):
        bank.read_for(torch.full((5,), value), as_they_are)
