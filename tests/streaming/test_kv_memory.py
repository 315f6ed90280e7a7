"""The memory in the KV cache: a language model of one layer tells exactly whether all is at its place.

Keys and values of a first layer depend on a token and its position alone. So with one layer nothing is approximate,
whatever was evicted before: a session with this memory has to answer as one without.
"""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from comparison_sets import make_run, make_set
from evaluation_sets import folder_set, make_config, rows_of, run
from stream_schedules import LLMS, MEMORIES, ROPE_SWITCH, TOLERANCE, Schedule, computed, new_session
from videochat_online.errors import InputError
from videochat_online.evaluation import resolve_protocol
from videochat_online.evaluation.compare.compare import compare_runs
from videochat_online.evaluation.config import ANSWER_BY
from videochat_online.memory import KeepAllMemoryBank, PyramidMemoryBank, WindowMemoryBank
from videochat_online.memory.moviechat_plus import MovieChatPlusMemoryBank
from videochat_online.model import load_model
from videochat_online.model.tokens import in_a_row
from videochat_online.streaming import KvBudget, generate, make_strategy
from videochat_online.streaming.kv.cache import kv_bytes_per_token
from videochat_online.streaming.kv.movable import MovableCache, sources, turned, why_not_movable

GRID = (4, 4)


def load(tiny_dir, llm, num_layers):
    model = load_model(tiny_dir(llm), device="cpu")
    language_model = model.network.language_model
    language_model.config.num_hidden_layers = num_layers
    language_model.model.layers = language_model.model.layers[:num_layers]
    if llm == "phi3":
        language_model.model.rotary_emb.switch_length = ROPE_SWITCH
    return model


@pytest.fixture(scope="module")
def shallow_models(tiny_dir):
    """One layer each."""
    return {llm: load(tiny_dir, llm, 1) for llm in LLMS}


@pytest.fixture(scope="module")
def model(tiny_dir):
    """Two layers: what follows an eviction is an approximation."""
    return load(tiny_dir, "llama", 2)


@pytest.fixture
def logits(monkeypatch):
    """Logits of every token that was chosen, in order."""
    seen: list[torch.Tensor] = []
    # All tokens are chosen from what passes through this check: a place to look on.
    finite = generate._finite

    def record(values):
        seen.append(values[0].clone())
        return finite(values)

    monkeypatch.setattr(generate, "_finite", record)
    return seen


def answers(session, logits, question="What?"):
    """Logits of an answer [N, V] that leaves no trace in the dialogue."""
    logits.clear()
    session.ask(question)
    session.forget_dialogue()
    return torch.stack(logits)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("llm", LLMS)
def test_of_one_layer_schedules_give_what_a_fresh_prefill_gives(
    shallow_models, frames, logits, monkeypatch, tmp_path, llm, memory
):
    """Pushes, questions, stops, resets, saves, restores in random order, over the switch of the rope."""
    monkeypatch.setattr("videochat_online.streaming.kv.cache.PIECE_TOKENS", 32)
    schedule, results = Schedule(f"blocks {llm} {memory}", frames, tmp_path), []
    for options in ({"reuse_prefix": False}, {"kv_memory": True}):
        logits.clear()
        with computed(shallow_models[llm]) as counts:
            said = schedule.run(new_session(shallow_models[llm], MEMORIES[memory](), **options))
        results.append((said, torch.stack(logits), counts))
    (said_fresh, fresh_NV, counts_fresh), (said, kept_NV, counts) = results
    assert said == said_fresh
    torch.testing.assert_close(kept_NV, fresh_NV, **TOLERANCE)
    assert counts != counts_fresh


def test_as_long_as_nothing_leaves_it_is_exact_for_any_depth(model, frames, logits):
    kept, fresh = (
        new_session(model, KeepAllMemoryBank(full_grid=GRID), **options)
        for options in ({"kv_memory": True}, {"reuse_prefix": False})
    )
    for start in range(0, 9, 3):
        for session in (kept, fresh):
            session.push(frames(9)[start : start + 3], range(start, start + 3))
        torch.testing.assert_close(answers(kept, logits), answers(fresh, logits), **TOLERANCE)


def test_what_remains_still_knows_of_what_was_evicted(model, frames, logits):
    """Two streams that differ in a frame that has left: the features are the same, the cache is not."""
    said = {}
    for seed in (0, 1):
        for kv_memory in (False, True):
            session = new_session(model, WindowMemoryBank(num_frames=2, full_grid=GRID), kv_memory=kv_memory)
            session.push(frames(1, seed=seed), [0.0])
            session.push(frames(3)[1:], [1.0, 2.0])
            said[seed, kv_memory] = answers(session, logits)
    assert torch.equal(said[0, False], said[1, False])
    assert (said[0, True] - said[1, True]).abs().max() > 1e-3


def test_a_dialogue_that_is_forgotten_leaves_no_trace(model, frames, logits):
    """Frames that came after a question were read with it."""
    said = []
    for question in ("What?", "Is the red ball on the table or on the floor?"):
        session = new_session(model, KeepAllMemoryBank(full_grid=GRID), kv_memory=True)
        session.push(frames(2), range(2))
        session.ask(question)
        session.push(frames(4)[2:], [2.0, 3.0])
        session.forget_dialogue()
        said.append(answers(session, logits))
    assert torch.equal(*said)


def complex_turn(keys, positions):
    """The rope of a Llama without its tables: pairs of dimensions as complex numbers."""
    half = keys.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(keys[..., :half].double(), keys[..., half:].double()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat((pairs.real, pairs.imag), dim=-1).float()


def row(embeds_LD):
    return in_a_row(embeds_LD, range(len(embeds_LD)))


def test_against_a_cache_put_together_by_hand(model):
    """Three blocks, of which the middle one leaves, then one comes in before the last."""
    language_model, torch_random = model.network.language_model, torch.Generator().manual_seed(0)
    width, theta = language_model.config.hidden_size, language_model.config.rope_parameters["rope_theta"]
    assert theta == 10000.0
    first, middle, last, new, question = (
        torch.randn(length, width, generator=torch_random) for length in (5, 4, 6, 3, 2)
    )
    cache = MovableCache(language_model)
    whole = row(torch.cat((first, middle, last)))
    wanted = row(torch.cat((first, new, last, question)))
    cache.append(whole)
    cache.rearrange([(whole[:5], slice(0, 5)), (whole[5:11], slice(9, 15))])
    cache.rearrange([(wanted[:5], slice(0, 5)), (wanted[5:8], None), (wanted[8:14], slice(5, 11))])
    found_V = cache.append(wanted[14:])

    with torch.inference_mode():
        whole, with_new = DynamicCache(config=language_model.config), DynamicCache(config=language_model.config)
        language_model(inputs_embeds=torch.cat((first, middle, last))[None], past_key_values=whole)
        language_model(inputs_embeds=torch.cat((first, new))[None], past_key_values=with_new)
        for layer, old in zip(with_new.layers, whole.layers, strict=True):
            moved = complex_turn(old.keys[..., 9:, :], torch.full((6,), -1.0, dtype=torch.float64))
            layer.keys = torch.cat((layer.keys, moved), dim=-2)
            layer.values = torch.cat((layer.values, old.values[..., 9:, :]), dim=-2)
        expected_V = language_model(inputs_embeds=question[None], past_key_values=with_new).logits[0, -1]
    torch.testing.assert_close(found_V, expected_V, **TOLERANCE)
    assert cache.num_tokens == 16


def test_moving_often_costs_no_precision(model):
    """In bf16: a hundred moves of one token each are one move of a hundred."""
    language_model = load_like(model).to(torch.bfloat16)
    tokens = row(torch.randn(140, language_model.config.hidden_size, dtype=torch.bfloat16))
    often, once = MovableCache(language_model), MovableCache(language_model)
    for cache in (often, once):
        cache.append(tokens)
    for _ in range(100):
        length = often.num_tokens - 1
        often.rearrange([(tokens[:length], slice(1, length + 1))])
    once.rearrange([(tokens[:40], slice(100, 140))])
    # Keys where they lie: only the attention reads them otherwise.
    for one, other in zip(often._cache.layers, once._cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def load_like(model):
    """A language model that may be changed."""
    kind = type(model.network.language_model)
    torch.manual_seed(0)
    return kind(model.network.language_model.config).eval()


@pytest.mark.parametrize("llm", LLMS)
def test_keys_turn_as_the_model_turns_them(shallow_models, llm):
    """Moved from anywhere to anywhere, a key is what it would have been had it been computed there."""
    language_model, cache = shallow_models[llm].network.language_model, MovableCache
    embeds = torch.randn(9, language_model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    moved, there = cache(language_model), cache(language_model)
    moved.append(row(embeds))
    moved.rearrange([(row(embeds)[:6], slice(3, 9))])
    there.append(row(embeds[3:]))
    # Keys where they lie: only the attention reads them otherwise.
    torch.testing.assert_close(moved._cache.layers[0].keys, there._cache.layers[0].keys, **TOLERANCE)


def test_turned_leaves_what_the_rope_leaves():
    keys = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.full((1, 3, 4), torch.pi)
    found = turned(keys, angles.cos(), angles.sin())
    torch.testing.assert_close(found[..., :4], -keys[..., :4])
    assert torch.equal(found[..., 4:], keys[..., 4:])


def frame(number, size=2):
    return [(0, number, size)] * size


@pytest.mark.parametrize(
    ("kept", "wanted", "expected"),
    [
        ([1, 2], [1, 2, 3], [0, 1, None]),
        # the first of two leaves: its text, too, and that of the other is known by its end
        ([9, 1, *frame(1), 7, 9, 2, *frame(2), 7], [9, 2, *frame(2), 7], [0, 6, 7, 8, 9]),
        # one in the middle is changed: the text around it stays
        (
            [1, *frame(1), 7, 2, *frame(2), 7, 3, *frame(3), 7],
            [1, *frame(1), 7, 2, *frame(-2, 1), 7, 3, *frame(3), 7],
            [0, 1, 2, 3, 4, None, 7, 8, 9, 10, 11],
        ),
        # a question gives way to a frame
        ([1, *frame(1), 7, 50, 51], [1, *frame(1), 7, 2, *frame(2), 7], [0, 1, 2, 3, None, None, None, None]),
        # what is alike at both ends of a text is taken once
        ([*frame(1), 7, *frame(2)], [*frame(1), 7, 7, *frame(2)], [0, 1, 2, None, 3, 4]),
        # frames that have changed places: one of them is computed
        ([*frame(1), *frame(2)], [*frame(2), *frame(1)], [2, 3, None, None]),
        # what stood after another frame is not taken for the text after a new one
        ([*frame(1), 8], [*frame(1), *frame(5), 8], [0, 1, None, None, None]),
        ([], [1, *frame(1)], [None, None, None]),
    ],
)
def test_sources(kept, wanted, expected):
    assert sources(kept, wanted) == expected


def test_sources_of_random_sequences():
    """Ascending, of the right tokens, and every frame that can be kept is."""
    draw = random.Random(0)
    for _ in range(300):
        numbers = sorted(draw.sample(range(12), 8))
        kept, wanted = (
            [
                key
                for number in numbers
                if draw.random() < 0.7
                for key in (*[draw.randrange(2) for _ in range(draw.randrange(3))], number, *frame(number))
            ]
            for _ in range(2)
        )
        found = sources(kept, wanted)
        taken = [place for place in found if place is not None]
        assert taken == sorted(set(taken))
        assert all(place is None or kept[place] == key for place, key in zip(found, wanted, strict=True))
        for place, key in zip(found, wanted, strict=True):
            if isinstance(key, tuple):
                assert (place is not None) == (key in kept)


def test_a_push_reads_its_frame_and_a_question_only_itself(model, frames):
    """In a window of three: of a frame that comes, the others are not read again."""
    session = new_session(model, WindowMemoryBank(num_frames=3, full_grid=GRID), kv_memory=True)
    session.push(frames(5), range(5))
    with computed(model) as counts:
        session.push(frames(6)[5:], [5.0])
    assert 16 < sum(counts) < 32
    with computed(model) as counts:
        session.ask("What?")
    question = model.tokenizer("What?<|end|><|assistant|>\n", add_special_tokens=False)["input_ids"]
    assert counts[0] <= len(question) + 2
    session.forget_dialogue()
    with computed(model) as counts:
        session.ask("What?")
    assert counts[0] == 1


def test_frames_in_one_push_or_in_many_are_the_same(model, frames, logits):
    found = []
    for size in (1, 3, 8):
        memory = PyramidMemoryBank(capacities=(1, 1, 3), full_grid=GRID)
        session = new_session(model, memory, kv_memory=True)
        for start in range(0, 8, size):
            session.push(frames(8)[start : start + size], range(8)[start : start + size])
        found.append(answers(session, logits))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_frames_that_come_during_an_answer_are_read_after_it(shallow_models, frames, logits):
    model = shallow_models["llama"]
    kept, fresh = (
        new_session(model, PyramidMemoryBank(capacities=(1, 1, 3), full_grid=GRID), **options)
        for options in ({"kv_memory": True}, {"reuse_prefix": False})
    )
    for session in (kept, fresh):
        session.push(frames(8), range(8))
        pieces = session.stream("What?")
        next(pieces)
        session.push(frames(11)[8:], range(8, 11))
        list(pieces)
    with computed(model) as counts:
        assert kept.prefill() == sum(counts) > counts[-1]
    torch.testing.assert_close(answers(kept, logits, "And now?"), answers(fresh, logits, "And now?"), **TOLERANCE)


def test_a_memory_beyond_the_context_is_not_read_and_not_lost(model, frames, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 60)
    session = new_session(model, WindowMemoryBank(num_frames=4, full_grid=GRID), kv_memory=True)
    session.push(frames(4), range(4))
    assert session.num_frames == len(session.remembered()) == 4
    with pytest.raises(InputError, match="context is 60"):
        session.ask("What?")


def test_keys_are_counted_twice(model, frames):
    budget = KvBudget(1 << 30)
    session = new_session(model, WindowMemoryBank(num_frames=2, full_grid=GRID), kv_memory=True, kv_budget=budget)
    session.push(frames(4), range(4))
    kept = budget.peek(session.kept_prefix)
    # The oracle counts the keys where they lie.
    keys = sum(layer.keys.numel() for layer in kept.cache._cache.layers) * 4
    assert kept.cache.num_bytes >= 3 * keys - keys // 2
    assert budget.num_bytes == kept.cache.num_bytes
    session.close()
    assert budget.num_bytes == 0
    budget.max_bytes = kept.num_tokens * kv_bytes_per_token(model.network.language_model) + 100
    assert session.prefill() == 0


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"reuse_prefix": False}, "kv_memory: expected reuse_prefix=True with it, got False"),
        ({"prefill_in_background": True}, "kv_memory reads .*: expected it without prefill_in_background$"),
        ({"strategy": make_strategy("retrieval")}, "expected it without strategy Retrieval$"),
        ({"memory": MovieChatPlusMemoryBank(full_grid=GRID)}, "expected it without memory MovieChatPlusMemoryBank$"),
    ],
)
def test_options_that_do_not_go_together(model, options, found):
    with pytest.raises(InputError, match=found):
        new_session(model, kv_memory=True, **options)


def test_models_that_cannot_have_one(model, monkeypatch):
    language_model = model.network.language_model
    assert why_not_movable(language_model) is None
    monkeypatch.setitem(language_model.config.rope_parameters, "rope_type", "dynamic")
    with pytest.raises(InputError, match="its rope is of type 'dynamic'"):
        new_session(model, kv_memory=True)


class TestEvaluation:
    @pytest.mark.parametrize("answer_by", ANSWER_BY)
    def test_of_one_layer_answers_are_those_without(self, shallow_models, tmp_path, answer_by):
        """In every way of answering; and the language model reads the questions alone."""
        model, annotations, rows, read = shallow_models["llama"], folder_set(tmp_path, num_videos=1), {}, {}
        for kv_memory in (False, True):
            protocol = {"kv_memory": kv_memory, "memory_options": {"capacities": (1, 1, 2)}}
            out = tmp_path / str(kv_memory)
            with computed(model) as counts:
                run(make_config(annotations, out, protocol=protocol, answer_by=answer_by), model)
            rows[kv_memory], read[kv_memory] = rows_of(out), sum(counts)
        said = "text" if answer_by == "generation" else "option_probabilities"
        assert len(rows[True]) == 3
        for kept, fresh in zip(rows[True], rows[False], strict=True):
            assert (kept["predicted_index"], kept["frames_used"]) == (fresh["predicted_index"], fresh["frames_used"])
            assert kept[said] == (fresh[said] if said == "text" else pytest.approx(fresh[said], abs=2e-6))
        assert read[True] != read[False]

    def test_it_is_part_of_what_a_run_is(self, tmp_path):
        make_set(tmp_path)
        plain = make_run(tmp_path, "plain", 0.5)
        kept = make_run(tmp_path, "kept", 0.9, protocol={"kv_memory": True})
        compared = compare_runs([plain, kept])
        assert [one.label for one in compared.runs] == ["pyramid 2/2/12", "pyramid 2/2/12 + kv_memory"]
        assert compared.protocol_differences == ()

    @pytest.mark.parametrize(
        ("setting", "more", "says"),
        [
            ("streaming", {"strategy": "retrieval"}, "kv_memory only without a strategy.*, got retrieval"),
            ("streaming", {"memory": "moviechat_plus"}, "kv_memory only without a strategy.*, got moviechat_plus"),
            ("sliding_window", {}, "'sliding_window' does not use --kv_memory"),
        ],
    )
    def test_where_it_has_no_meaning(self, setting, more, says):
        assert resolve_protocol("streaming", kv_memory=True).kv_memory
        with pytest.raises(InputError, match=says):
            resolve_protocol(setting, kv_memory=True, **more)
