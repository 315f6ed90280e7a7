"""Reuse of the KV cache: what a session answers with it is what it answers without it."""

from __future__ import annotations

import gc
import logging
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from stream_schedules import GRID, LLMS, MEMORIES, ROPE_SWITCH, SHORT, TOLERANCE, Schedule, computed, new_session
from videochat_online.errors import InputError, PromptTooLongError
from videochat_online.memory import KeepAllMemoryBank, WindowMemoryBank
from videochat_online.model import load_model
from videochat_online.model.tokens import in_a_row
from videochat_online.streaming import GenerationSettings, KvBudget, StreamingSession, generate
from videochat_online.streaming.kv.background import LARGEST_PIECE, PIECE_S, SMALLEST_PIECE, Foreground, Pace
from videochat_online.streaming.kv.cache import CachedSequence, DynamicKeyValueCache, kv_bytes_per_token
from videochat_online.streaming.kv.kv_budget import default_budget
from videochat_online.streaming.kv.prefix import common_length
from videochat_online.streaming.kv.static import StaticKeyValueCache, capacity_for

SCHEDULES_EACH = 2
NUM_SCHEDULES = len(LLMS) * len(MEMORIES) * SCHEDULES_EACH  # 30


@pytest.fixture(scope="module")
def models(tiny_dir):
    """One model of each kind; the rope of phi3 switches within the lengths of these tests."""
    loaded = {llm: load_model(tiny_dir(llm), device="cpu") for llm in LLMS}
    loaded["phi3"].network.language_model.model.rotary_emb.switch_length = ROPE_SWITCH
    return loaded


@pytest.fixture
def static(models):
    """Have static caches, for steps of fixed shapes those that backend "eager" traces: no compiler is needed."""
    settings = [model.network.language_model.generation_config for model in models.values()]

    def ask_for(has_steps=False):
        for each in settings:
            each.cache_implementation = "static"
            each.compile_config = CompileConfig(dynamic=False, backend="eager", mode=None) if has_steps else None

    yield ask_for
    for each in settings:
        each.cache_implementation = each.compile_config = None


@pytest.fixture
def session(tiny_model, frames):
    session = new_session(tiny_model)
    session.push(frames(3), range(3))
    return session


@pytest.fixture
def spied(monkeypatch):
    """Logits of every token that was chosen, and regimes of the rope of every request, in order."""
    logits: list[torch.Tensor] = []
    regimes: list[bool | None] = []
    # All tokens are chosen from what passes through this check: a place to look on.
    finite, needs_long_regime = generate._finite, generate.needs_long_regime

    def record(values):
        logits.append(values[0].clone())
        return finite(values)

    def note(network, length):
        regimes.append(needs_long_regime(network, length))
        return regimes[-1]

    monkeypatch.setattr(generate, "_finite", record)
    monkeypatch.setattr(generate, "needs_long_regime", note)
    return logits, regimes


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("llm", LLMS)
def test_schedules_give_what_they_give_without_reuse(models, frames, spied, monkeypatch, tmp_path, llm, memory):
    """NUM_SCHEDULES in all: pushes, questions, prefills, stops, resets, saves, restores in random order."""
    monkeypatch.setattr("videochat_online.streaming.kv.cache.PIECE_TOKENS", 32)
    logits, regimes = spied
    for number in range(SCHEDULES_EACH):
        schedule = Schedule(f"{llm} {memory} {number}", frames, tmp_path)
        results = []
        for reuse in (False, True):
            logits.clear()
            with computed(models[llm]) as counts:
                said = schedule.run(new_session(models[llm], MEMORIES[memory](), reuse_prefix=reuse))
            results.append((said, torch.stack(logits), counts))
        (said_fresh, fresh_NV, counts_fresh), (said, reused_NV, counts_reused) = results
        assert said == said_fresh
        assert reused_NV.argmax(-1).tolist() == fresh_NV.argmax(-1).tolist()
        torch.testing.assert_close(reused_NV, fresh_NV, **TOLERANCE)
        assert counts_reused != counts_fresh
    assert set(regimes) == ({False, True} if llm == "phi3" else {None})


@pytest.mark.parametrize("llm", LLMS)
def test_schedules_with_static_caches(models, frames, spied, monkeypatch, tmp_path, static, llm):
    """Bit for bit what the growing cache gives: crops, growth, pieces, stops and both regimes included."""
    monkeypatch.setattr("videochat_online.streaming.kv.cache.PIECE_TOKENS", 32)
    monkeypatch.setattr("videochat_online.streaming.kv.static.SMALLEST_CAPACITY", 16)
    logits, _ = spied
    schedule, results = Schedule(f"{llm} static", frames, tmp_path), []
    for is_static in (False, True):
        if is_static:
            static()
            monkeypatch.setattr("transformers.DynamicCache.update", None)
        logits.clear()
        said = schedule.run(new_session(models[llm], MEMORIES["pyramid"]()))
        results.append((said, torch.stack(logits)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("llm", LLMS)
def test_steps_of_fixed_shapes(models, monkeypatch, static, llm):
    """Logits are those of the growing cache to 1e-6, whatever comes before a step; other caches are no other shapes."""
    monkeypatch.setattr("videochat_online.streaming.kv.static.SMALLEST_CAPACITY", 64)
    static(has_steps=True)
    model = models[llm].network.language_model
    tokens = in_a_row(0.3 * torch.randn(80, 64, generator=torch.Generator().manual_seed(0)), range(80))
    calls, traced, compiled = [], [], model.get_compiled_call

    def count(config):
        calls.append(config)
        return compiled(config)

    monkeypatch.setattr(model, "get_compiled_call", count)
    for regime in (False, True, False, True) if llm == "phi3" else (None, None):
        growing, fixed = (
            CachedSequence(cache, regime) for cache in (DynamicKeyValueCache(model), StaticKeyValueCache(model, 50))
        )
        calls.clear()
        # A number alone crops.
        for part in ((0, 20), (20, 21), (21, 22), (22, 40), (40, 41), (30,), (30, 31), (31, 37), (37, 38), (38, 70)):
            if len(part) == 1:
                for sequence in (growing, fixed):
                    sequence.crop(*part)
                continue
            start, stop = part
            logits = [s.append(tokens[start:stop]) for s in (growing, fixed)]
            torch.testing.assert_close(logits[1], logits[0], atol=1e-6, rtol=0.0)
        traced.append(counters["stats"]["unique_graphs"])
        assert len(calls) == 5
        assert fixed.num_tokens == growing.num_tokens == 70  # more than there was room for: all was copied
    assert traced[-1] == traced[-2]


def test_capacities_are_few_and_not_much_too_large():
    assert [capacity_for(n) for n in (1, 512, 513, 768, 769, 1100, 13_200)] == [512, 512, 768, 768, 1024, 1536, 16384]
    assert len({capacity_for(n) for n in range(1, 20_000)}) == 12
    assert all(n <= capacity_for(n) <= max(512, 1.5 * n) for n in range(1, 20_000))


@pytest.mark.parametrize(
    ("first", "second", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, (0, 5, 4)], [1, (1, 5, 4)], 1)]
)
def test_common_length(first, second, length):
    assert common_length(first, second) == common_length(second, first) == length


def test_only_what_is_new_is_computed(session):
    """Of a second question: not the prompt of the first, nor the ids of its answer as far as they come again."""
    first = session.prepare("What?").prompt.tokens.keys
    with computed(session.model) as counts:
        session.ask("What?")
        kept = list(session.kept_prefix.budget.peek(session.kept_prefix).keys)
        second = session.prepare("And where?").prompt.tokens.keys
        session.ask("And where?")
    assert counts[0] == len(first)
    assert counts[1:4] == counts[5:] == [1, 1, 1]
    assert tuple(kept[:-3]) == first  # the fourth id of the answer was never read
    assert counts[4] == len(second) - common_length(kept, second) <= len(second) - len(first)


def test_a_changed_frame_is_computed_again_with_all_that_follows(tiny_model, frames):
    message = "Watch the stream, and answer in a few words."
    session = new_session(tiny_model, WindowMemoryBank(num_frames=3, full_grid=GRID), system_message=message)
    session.push(frames(3), range(3))
    session.ask("What?")
    session.forget_dialogue()
    session.push(frames(4)[3:], [3.0])  # the first of three frames leaves
    keys = session.prepare("What?").prompt.tokens.keys
    before_the_frames = session.prepare("What?").prompt.layout.visual_spans[0][0]
    with computed(tiny_model) as counts:
        session.ask("What?")
    # "Frame1" and "Frame2" differ in their number already.
    assert len(keys) - before_the_frames < counts[0] < len(keys)
    visual = [key for key in keys if isinstance(key, tuple)]
    assert visual == [(index, 16) for index in (1, 2, 3) for _ in range(16)]


def test_after_prefill_only_the_question_is_left(session):
    end = session.model.tokenizer("What now?<|end|><|assistant|>\n", add_special_tokens=False)["input_ids"]
    with computed(session.model) as counts:
        num_prefilled = session.prefill()
        assert counts == [num_prefilled]
        assert session.prefill() == 0
        session.ask("What now?")
    assert counts[1] == len(end)
    session.forget_dialogue()
    assert counts[0] + counts[1] == len(session.prepare("What now?").prompt.tokens.keys)


def test_prefill_before_the_first_frame_and_without_reuse(tiny_model, frames):
    session = new_session(tiny_model)
    assert session.prefill() == 0
    fresh = new_session(tiny_model, reuse_prefix=False)
    fresh.push(frames(1), [0.0])
    with computed(tiny_model) as counts:
        assert fresh.prefill() == 0
    assert counts == []


def test_a_memory_beyond_the_context_cannot_be_prefilled(session, monkeypatch):
    monkeypatch.setattr(session.model.config.text_config, "max_position_embeddings", 60)
    with pytest.raises(PromptTooLongError, match="context is 60"):
        session.prefill()


def test_little_in_common_is_not_reused(tiny_model, frames):
    """The longer prompt begins with all of the shorter one's frames, less than an eighth of its own."""
    session = new_session(tiny_model, KeepAllMemoryBank(full_grid=GRID))
    session.push(frames(1), [0.0])
    session.prefill()
    session.push(frames(40)[1:], range(1, 40))
    num_kept, num_prompt = session.kept_prefix.num_tokens, len(session.prepare("What?").prompt.tokens.keys)
    assert 0 < num_kept < num_prompt / 8
    with computed(tiny_model) as counts:
        session.ask("What?")
    assert counts[0] == num_prompt


def test_what_follows_a_prefix_is_computed_in_pieces(session, monkeypatch):
    monkeypatch.setattr("videochat_online.streaming.kv.cache.PIECE_TOKENS", 5)
    session.prefill()
    with computed(session.model) as counts:
        session.ask("What is to be seen now?")
    assert counts[:2] == [5, 5]


def test_a_cache_of_the_other_regime_is_not_used(models, frames, spied):
    session, fresh = (new_session(models["phi3"], reuse_prefix=reuse) for reuse in (True, False))
    for one in (session, fresh):
        one.push(frames(3), range(3))
    num_prompt = len(session.prepare("What?").prompt.tokens.keys)
    long = GenerationSettings(max_new_tokens=ROPE_SWITCH)
    answers = [[one.ask("What?", settings=SHORT), one.forget_dialogue()] for one in (session, fresh)]
    assert answers[0] == answers[1]
    assert num_prompt + 4 < ROPE_SWITCH
    logits, regimes = spied
    with computed(session.model) as counts:
        for one in (session, fresh):
            next(one.stream("What?", settings=long))
    assert counts[:2] == [num_prompt] * 2
    assert regimes == [False, False, True, True]
    assert torch.equal(logits[-1], logits[-2])


def test_contents_of_before_a_reset_are_not_taken_for_those_after_it(session, tiny_model, frames, spied, tmp_path):
    """Frames are counted from 0 again, so their content ids come again."""
    logits, _ = spied
    session.save(tmp_path / "state")
    session.ask("What?")
    old = session.prepare("What?")
    session.reset()
    session.push(frames(3, seed=1), range(3))
    assert session.prefill() > 0
    fresh = new_session(tiny_model, reuse_prefix=False)
    fresh.push(frames(3, seed=1), range(3))
    logits.clear()
    session.ask("What?")
    fresh.ask("What?")
    torch.testing.assert_close(*torch.stack(logits).chunk(2), **TOLERANCE)
    session.reset()
    session.push(frames(3), range(3))
    session.ask("What?")
    assert old.num_exchanges == len(session.history)
    with pytest.raises(InputError, match="another state of the dialogue"):
        next(session.stream_prepared(old))
    session.restore(tmp_path / "state")
    assert session.kept_prefix.num_tokens == 0


def test_after_an_error_nothing_is_kept(session, monkeypatch):
    session.ask("What?")
    attention = session.model.network.language_model.model.layers[1].self_attn

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(attention, "forward", fail)  # the first layer has its keys, this one does not
        with pytest.raises(RuntimeError, match="out of memory"):
            session.ask("And?")
    assert session.kept_prefix.num_tokens == 0
    assert session.ask("And?").text


def test_a_stopped_answer_is_kept_up_to_where_it_was_stopped(session):
    stream = session.stream("What?")
    next(stream)
    stream.close()
    assert session.kept_prefix.num_tokens >= len(session.prepare("What?").prompt.tokens.keys) - 20
    with computed(session.model) as counts:
        session.ask("And?")
    assert counts[0] < 40


def test_layers_that_cannot_be_cropped_are_computed_anew(tiny_dir, frames, caplog):
    model = load_model(tiny_dir("phi3"), device="cpu")
    model.config.text_config.sliding_window = 16
    with caplog.at_level(logging.INFO):
        session = new_session(model)
    assert "cannot be cropped (DynamicSlidingWindowLayer)" in caplog.text
    session.push(frames(3), range(3))
    assert session.prefill() == 0
    with computed(model) as counts:
        for _ in range(2):
            session.ask("What?")
            session.forget_dialogue()
    assert counts[0] == counts[4] > 40


class TestBudget:
    def sessions(self, model, frames, count, budget):
        sessions = [new_session(model, kv_budget=budget) for _ in range(count)]
        for one in sessions:
            one.push(frames(3), range(3))
        return sessions

    def test_the_least_recently_used_go_first_and_the_sum_stays_within(self, tiny_model, frames, monkeypatch):
        size = kv_bytes_per_token(tiny_model.network.language_model)
        budget = KvBudget(0)
        sessions = self.sessions(tiny_model, frames, 3, budget)
        # Room for two, and for what a third prompt can come to have in a later turn.
        budget.max_bytes = 2 * size * (len(sessions[0].prepare("What?").prompt.tokens.keys) + 30)
        in_passes = []
        handle = tiny_model.network.language_model.register_forward_hook(lambda *_: in_passes.append(budget.num_bytes))
        holding = []
        for which in (0, 1, 0, 2, 1):
            sessions[which].forget_dialogue()
            sessions[which].ask("What?")
            holding.append({number for number, one in enumerate(sessions) if one.kept_prefix.num_tokens})
            assert budget.num_bytes <= budget.max_bytes
        handle.remove()
        assert holding == [{0}, {0, 1}, {0, 1}, {0, 2}, {1, 2}]
        assert max(in_passes) <= budget.max_bytes

    def test_bytes_are_those_of_the_tensors(self, session):
        session.ask("What?")
        kept = session.kept_prefix
        per_token = kv_bytes_per_token(session.model.network.language_model)
        assert kept.budget.num_bytes == kept.num_tokens * per_token > 0

    def test_bytes_of_a_static_cache_are_those_of_all_its_places(self, models, frames, static):
        static()
        per_token = kv_bytes_per_token(models["qwen2"].network.language_model)
        (session,) = self.sessions(models["qwen2"], frames, 1, KvBudget(512 * per_token))
        session.ask("What?")
        assert session.kept_prefix.budget.num_bytes == 512 * per_token
        session.kept_prefix.budget.max_bytes -= 1
        session.reset()
        session.push(frames(1), [0.0])
        assert session.prefill() == 0

    def test_a_static_cache_counts_whole_for_a_shorter_prompt(self, models, frames, static):
        static()
        (session,) = self.sessions(models["qwen2"], frames, 1, KvBudget(1 << 30))
        session.ask("What? " * 600)
        session.forget_dialogue()
        budget = session.kept_prefix.budget
        num_bytes = budget.num_bytes
        answer = session.stream("What?")
        next(answer)
        assert budget.num_bytes == num_bytes > 512 * kv_bytes_per_token(models["qwen2"].network.language_model)
        answer.close()

    def test_a_holder_that_ends_while_room_is_made_for_another(self):
        """Its last reference goes, in another thread, after its bytes were counted."""

        class Holder:
            pass

        class Leaving:
            num_tokens = 0
            is_over = False

            @property
            def num_bytes(self):
                if self.is_over:
                    holders.clear()
                return 100

        budget, cache, holders, other = KvBudget(150), Leaving(), [Holder()], Holder()
        budget.give_back(holders[0], CachedSequence(cache, None))
        cache.is_over = True
        assert budget.take(other, 100) is None
        assert budget.num_bytes == 100

    def test_what_another_holder_uses_counts(self):
        """Two holders, of which one answers: what the other gives back is kept only beside what is in use."""

        class Holder:
            pass

        def of(num_bytes):
            return CachedSequence(SimpleNamespace(num_bytes=num_bytes, num_tokens=1), None)

        budget, idle, answering = KvBudget(250), Holder(), Holder()
        assert budget.take(answering, 150) is None
        budget.give_back(idle, of(101))
        assert (budget.peek(idle), budget.num_bytes) == (None, 150)
        budget.give_back(idle, kept := of(100))
        assert (budget.peek(idle), budget.num_bytes) == (kept, 250)
        budget.take(answering, 150)
        assert budget.peek(idle) is kept
        budget.take(answering, 151)  # it needs more than it said: never refused, so the other one's goes
        assert (budget.peek(idle), budget.num_bytes) == (None, 151)
        budget.give_back(answering, None)
        assert budget.num_bytes == 0

    def test_too_small_a_budget_keeps_nothing_and_computes_nothing_ahead(self, tiny_model, frames):
        budget = KvBudget(1000)
        (session,) = self.sessions(tiny_model, frames, 1, budget)
        assert session.prefill() == 0
        session.ask("What?")
        assert budget.num_bytes == 0
        with pytest.raises(InputError, match="at least 0 bytes, got -1"):
            KvBudget(-1)

    @pytest.mark.parametrize("end", ["reset", "close", "garbage"])
    def test_what_ends_releases(self, tiny_model, frames, end):
        budget = KvBudget(1 << 30)
        sessions = self.sessions(tiny_model, frames, 1, budget)
        sessions[0].ask("What?")
        assert budget.num_bytes > 0
        if end == "garbage":
            sessions.clear()
            gc.collect()
        else:
            getattr(sessions[0], end)()
        assert budget.num_bytes == 0

    def test_the_default_is_one_for_the_process(self, tiny_model, frames):
        first, second = (StreamingSession(tiny_model).kept_prefix.budget for _ in range(2))
        assert first is second is default_budget(torch.device("cpu"))
        assert first.max_bytes == psutil.virtual_memory().total // 4


class TestThreads:
    def test_sessions_in_threads_with_little_room(self, tiny_model, frames):
        """Pushes, prefills ahead and questions of four sessions at once, of which two caches have room."""
        fresh = new_session(tiny_model, reuse_prefix=False)
        expected = [self.said(fresh, frames)]
        budget = KvBudget(300 * kv_bytes_per_token(tiny_model.network.language_model))
        sessions = [new_session(tiny_model, kv_budget=budget, prefill_in_background=True) for _ in range(4)]
        found = [None] * 4

        def run(number):
            found[number] = self.said(sessions[number], frames)

        threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in sessions:
            one.close()
        assert found == expected * 4
        assert budget.num_bytes == 0

    def said(self, session, frames):
        pixels, said = frames(8), []
        for t in range(8):
            session.push(pixels[t : t + 1], [float(t)])
            if t % 2:
                said.append(session.ask("What?").text)
        return said

    def test_in_the_background_everything_up_to_the_question_gets_ready(self, tiny_model, frames):
        session = new_session(tiny_model, prefill_in_background=True)
        twin = new_session(tiny_model)
        for one in (session, twin):
            one.push(frames(3), range(3))
        num_prefix = twin.prefill()
        wait_until(lambda: session.kept_prefix.num_tokens >= num_prefix)
        session.close()
        assert prefilling_threads() == []
        session.close()
        assert session.kept_prefix.num_tokens == 0
        assert session.ask("What?").text == twin.ask("What?").text

    def test_a_question_waits_for_one_piece_only(self, tiny_model, frames, monkeypatch):
        session = new_session(tiny_model, prefill_in_background=True)
        in_piece, go_on = threading.Event(), threading.Event()

        def hold(*_):
            if threading.current_thread().name == "prefill":
                in_piece.set()
                go_on.wait(30)

        handle = tiny_model.network.language_model.register_forward_hook(hold)
        session.push(frames(3), range(3))
        assert in_piece.wait(30)
        asker = threading.Thread(target=session.ask, args=["What?"])
        with computed(tiny_model) as counts:
            asker.start()
            wait_until(lambda: session.foreground.is_busy)
            session.push(frames(4)[3:], [3.0])  # is not held up at all
            go_on.set()
            asker.join(30)
            assert not asker.is_alive()
        handle.remove()
        session.close()
        # No further piece came between: the answer took over the one that was done, and computed the rest at once.
        assert counts[0] > len(session.prepare("What?").prompt.tokens.keys) / 2

    def test_pushes_questions_and_prefill_make_it_wait(self, session, frames, monkeypatch):
        network, busy = session.model.network, []
        encode = type(network).encode
        monkeypatch.setattr(
            network, "encode", lambda pixels: busy.append(session.foreground.is_busy) or encode(network, pixels)
        )
        handle = network.language_model.register_forward_hook(lambda *_: busy.append(session.foreground.is_busy))
        session.push(frames(4)[3:], [3.0])
        session.prefill()
        session.ask("What?")
        handle.remove()
        assert busy == [True] * 6
        assert not session.foreground.is_busy

    def test_a_session_that_is_dropped_ends_its_thread(self, tiny_model, frames):
        session = new_session(tiny_model, prefill_in_background=True)
        session.push(frames(1), [0.0])
        assert prefilling_threads()
        del session
        gc.collect()
        wait_until(lambda: not prefilling_threads())
        assert not prefilling_threads()

    def test_interrupted_again_and_again_it_still_gets_on(self, session):
        num_tokens = []
        for _ in range(3):
            sizes = iter([2, 0])
            # As the thread in the background calls it, interrupted where the test wants it.
            session._prefill_if_free(lambda sizes=sizes: next(sizes))
            num_tokens.append(session.kept_prefix.num_tokens)
        assert num_tokens == [2, 4, 6]
        assert num_tokens[-1] < len(session.prepare("What?").prompt.tokens.keys) / 8

    def test_without_reuse_there_is_nothing_to_prefill(self, tiny_model):
        with pytest.raises(InputError, match="prefill_in_background: expected reuse_prefix=True"):
            new_session(tiny_model, reuse_prefix=False, prefill_in_background=True)

    def test_pieces_take_as_long_as_they_should(self, monkeypatch):
        now_s, busy = [0.0], Foreground()
        monkeypatch.setattr("videochat_online.streaming.kv.background.time.perf_counter", lambda: now_s[0])
        pace = Pace(torch.device("cpu"), lambda: busy.is_busy).begin()
        sizes = []
        for cost_s in [PIECE_S / 1000] * 12 + [PIECE_S * 2] + [PIECE_S] + [PIECE_S * 1000]:
            sizes.append(pace())
            now_s[0] += cost_s
        assert sizes[:3] == [SMALLEST_PIECE, 2 * SMALLEST_PIECE, 4 * SMALLEST_PIECE]
        assert sizes[12:] == [LARGEST_PIECE, LARGEST_PIECE // 2, LARGEST_PIECE // 2]
        assert pace() == SMALLEST_PIECE
        with busy.busy():
            assert pace() == 0


def prefilling_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefill"]


def wait_until(holds, timeout_s=30.0):
    """Wait for another thread; fails where it never comes."""
    event = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if holds():
            return
        event.wait(0.01)
    raise AssertionError("it did not come about")
