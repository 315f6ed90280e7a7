"""What belongs to a token stays with it; every pass through a language model states its positions."""

from __future__ import annotations

import random

import pytest
import torch

from videochat_online.memory import PyramidMemoryBank
from videochat_online.model.tokens import NO_TOKEN, Tokens, in_a_row, joined, run_language_model
from videochat_online.streaming.generate import GenerationSettings
from videochat_online.streaming.kv.kv_budget import KvBudget
from videochat_online.streaming.session import StreamingSession
from videochat_online.streaming.strategies import make_strategy

SHORT = GenerationSettings(max_new_tokens=4, min_new_tokens=4)


def marked(length, num_rows=3, num_levels=2, first=0):
    """Tokens of which every number says which one it belongs to."""
    numbers = torch.arange(first, first + length)
    return Tokens(
        embeds_LD=numbers[:, None] * torch.ones(5),
        positions_RL=numbers.expand(num_rows, -1),
        keys=tuple(numbers.tolist()),
        deeper_SLD=numbers[:, None] * torch.ones(num_levels, 1, 5),
    )


def numbers_of(tokens):
    """What each part of the tokens says they are: all the same."""
    said = [list(tokens.keys), *tokens.positions_RL.tolist(), *tokens.embeds_LD.T.tolist()]
    return said + [column for level in tokens.deeper_SLD for column in level.T.tolist()]


@pytest.mark.parametrize(("num_rows", "num_levels"), [(1, 0), (3, 0), (3, 3)])
def test_cut_and_joined_as_one(num_rows, num_levels):
    rng, whole = random.Random(0), marked(20, num_rows, num_levels)
    for _ in range(50):
        cuts = sorted(rng.choices(range(21), k=3))
        parts = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, 20], strict=True)]
        for part, start, stop in zip(parts, [0, *cuts], [*cuts, 20], strict=True):
            assert numbers_of(part) == [list(range(start, stop))] * (1 + num_rows + 5 + 5 * num_levels)
            assert len(part) == stop - start
        assert numbers_of(joined(parts)) == numbers_of(whole)
        assert numbers_of(whole[: -len(parts[-1]) or None]) == numbers_of(whole[: cuts[-1]])


def test_padding_on_the_left_is_nothing():
    padded = marked(3, first=1).padded(5)
    assert padded.keys == (NO_TOKEN, NO_TOKEN, 1, 2, 3)
    assert numbers_of(padded)[1:] == [[0, 0, 1, 2, 3]] * 18


def test_text_comes_after_the_largest_position_of_any_row():
    positions_RL = torch.tensor([[7] * 4, [7, 7, 8, 8], [7, 8, 7, 8]])
    picture = Tokens(torch.ones(4, 5), positions_RL, ((3, 4),) * 4, torch.ones(2, 4, 5))
    assert picture.next_position == 9
    text = picture.following(torch.full((2, 5), 2.0), (11, 12))
    assert text.positions_RL.tolist() == [[9, 10]] * 3
    assert text.keys == (11, 12)
    assert not text.deeper_SLD.any()
    assert text.deeper_SLD.shape == (2, 2, 5)
    assert text.following(torch.ones(1, 5), (13,)).positions_RL.tolist() == [[11]] * 3
    assert picture.moved(5).positions_RL.tolist() == [[12] * 4, [12, 12, 13, 13], [12, 13, 12, 13]]
    assert picture[:0].next_position == 0


def test_what_a_language_model_is_given():
    seen = {}

    class Seen:
        logits = torch.zeros(2, 4, 9)

    run_language_model(lambda **inputs: seen.update(inputs) or Seen, [marked(4), marked(4, first=10)], logits_to_keep=1)
    assert seen["inputs_embeds"][:, :, 0].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert seen["position_ids"].shape == (3, 2, 4)
    assert seen["position_ids"][2].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert seen["logits_to_keep"] == 1
    # As the native text models take vectors for the hidden states after their first layers.
    assert seen["visual_pos_masks"].all()
    assert seen["visual_pos_masks"].shape == (2, 4)
    assert [level[:, 0].tolist() for level in seen["deepstack_visual_embeds"]] == [[0, 1, 2, 3, 10, 11, 12, 13]] * 2
    seen.clear()
    run_language_model(lambda **inputs: seen.update(inputs) or Seen, [in_a_row(torch.zeros(4, 5), range(4))])
    assert seen["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert seen.keys() == {"inputs_embeds", "position_ids"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reuse_prefix": False},
        {"kv_memory": True},
        {"strategy": "retrieval"},
        {"strategy": "chain_of_shot"},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_every_pass_states_its_positions(tiny_model, frames, options, monkeypatch):
    """What the positions are is known by the logits of other tests; a model that turns by one number hides a lack."""
    monkeypatch.setattr("videochat_online.streaming.kv.cache.PIECE_TOKENS", 16)
    network, calls = tiny_model.network.language_model, []

    def record(_, __, given):
        cache = given.get("past_key_values")
        calls.append((given, 0 if cache is None else cache.get_seq_length()))

    handle = network.register_forward_pre_hook(record, with_kwargs=True)
    strategy = options.pop("strategy", None)
    if strategy is not None:
        options = {"strategy": make_strategy(strategy)}
    memory = PyramidMemoryBank(capacities=(2, 2, 12), full_grid=(4, 4))
    session = StreamingSession(tiny_model, memory, settings=SHORT, kv_budget=KvBudget(1 << 30), **options)
    try:
        session.push(frames(6), range(6))
        session.prefill()
        session.ask("What?")
        session.push(frames(12)[6:], range(6, 12))
        session.ask("And now?")
    finally:
        handle.remove()
    assert len(calls) >= 8
    for given, held in calls:
        assert given["position_ids"].shape[-1] == given["inputs_embeds"].shape[1]
        if given.get("attention_mask") is None:
            expected = list(range(held, held + given["inputs_embeds"].shape[1]))
            assert given["position_ids"][0].tolist() == expected
