"""Packing: every item once, full packs, and a loss that is exactly that of the samples apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from train_cases import dialogue, mixed_rows, normalised, tiny_encoder, write_media, write_registry
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import (
    BATCH_REPORT,
    BatchReport,
    Collator,
    Example,
    PackedDataset,
    SkippedSample,
    Tiling,
    TrainingDataset,
    load_registries,
)
from videochat_online.data.batches import packing
from videochat_online.data.batches.mixture import epoch_key
from videochat_online.model import load_model
from videochat_online.train.run import make_collator


class Items:
    """As `TrainingDataset` has them; an item is its epoch and number."""

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, key):
        return divmod(key, len(self))


def packed(lengths, max_tokens=100, shuffle=True, seed=0):
    packs = PackedDataset(Items(len(lengths)), np.array(lengths), max_tokens, shuffle, seed)
    return packs, [packs.items(number).tolist() for number in range(len(packs))]


def mixed_lengths(count):
    """Images, short and long videos, texts: from a fiftieth of a pack to most of it."""
    rng = random.Random(0)
    return [rng.choice((rng.randint(2, 9), 17, rng.randint(20, 50), rng.randint(60, 90))) for _ in range(count)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window", [7, 50, 4096])
def test_each_item_is_in_one_pack_that_has_room_for_it(monkeypatch, shuffle, window):
    monkeypatch.setattr(packing, "WINDOW", window)
    lengths = [*mixed_lengths(300), 100, 101, 250]
    _, packs = packed(lengths, shuffle=shuffle)
    assert sorted(item for pack in packs for item in pack) == list(range(303))
    assert all(len(pack) == 1 or sum(lengths[item] for item in pack) <= 100 for pack in packs)


def test_packs_of_a_mixture_are_full():
    lengths = mixed_lengths(5000)
    _, packs = packed(lengths)
    assert sum(lengths) > 0.98 * 100 * len(packs)


def test_items_that_never_fit_together_cost_no_more_than_once(monkeypatch):
    """All of a length of which no two fill a pack: packs must not be taken apart for ever."""
    monkeypatch.setattr(packing, "WINDOW", 10)
    fitted = []
    # Counts how often the inner step is taken.
    original = packing._best_fit
    monkeypatch.setattr(packing, "_best_fit", lambda items, *rest: fitted.append(len(items)) or original(items, *rest))
    _, packs = packed([60] * 500)
    assert len(packs) == 500
    assert max(fitted) <= 20


def test_packs_follow_from_the_seed():
    lengths = mixed_lengths(500)
    assert packed(lengths, seed=1)[1] == packed(lengths, seed=1)[1] != packed(lengths, seed=2)[1]


def test_without_shuffling_packs_hold_neighbours_in_order():
    assert packed([60, 30, 20, 90, 10, 1, 300, 5], shuffle=False)[1] == [[0, 1], [2], [3, 4], [5], [6], [7]]


def test_the_epoch_of_a_pack_is_that_of_its_items():
    packs, items = packed(mixed_lengths(50))
    number = next(number for number, pack in enumerate(items) if len(pack) > 1)
    assert packs[epoch_key(3, number, len(packs))] == tuple((3, item) for item in items[number])
    assert packs[number] == tuple((0, item) for item in items[number])


@pytest.fixture
def wrong_sizes(tiny_model, tmp_path) -> TrainingDataset:
    """Two rows of an image of three tiles and a thumbnail that say that it is a square, and texts."""
    Image.new("RGB", (336, 112)).save(tmp_path / "wide.png")
    row = {"image": "wide.png", "width": 112, "height": 112, "conversations": dialogue("What?", "Nothing.")}
    rows = [row, row, *({"conversations": dialogue(f"Is it {number}?", "No.")} for number in range(6))]
    encoder = tiny_encoder(tiny_model, tiling=Tiling(max_tiles=6))
    return TrainingDataset(load_registries(str(write_registry(tmp_path / "sets", tmp_path, all=rows))), encoder)


def test_what_is_longer_than_its_row_says_gets_fewer_tiles_where_its_pack_has_no_room(wrong_sizes):
    lengths = wrong_sizes.estimate_lengths()
    planned, real = lengths[0], len(wrong_sizes[0])
    assert real == planned + 3 * 16
    packs = PackedDataset(wrong_sizes, lengths, int(lengths.sum()), False, 0)
    (pack,) = [packs[number] for number in range(len(packs))]
    assert sum(map(len, pack)) == lengths.sum()
    assert [item.is_reduced for item in pack] == [True] * 2 + [False] * 6
    assert pack[0].labels[-5:] == wrong_sizes[0].labels[-5:]  # all of the text is there
    assert len(pack[0].pixels_TSSC) == len(pack[0].pool_ratios) == 1
    for room, reduced in ((lengths.sum() + 2 * 48, 0), (lengths.sum() + 48, 1)):
        pack = PackedDataset(wrong_sizes, lengths, int(room), False, 0)[0]
        assert sum(item.is_reduced for item in pack) == reduced
        assert sum(map(len, pack)) == room
    (alone,) = PackedDataset(wrong_sizes, lengths, int(planned), False, 0)[0]  # there is room for what its row says
    assert (len(alone), alone.is_reduced) == (planned, True)
    alone = PackedDataset(wrong_sizes, lengths, 1, False, 0)[0]
    assert [len(item) for item in alone] == [real]


def test_what_is_too_long_with_a_single_tile_cannot_be_used(wrong_sizes):
    reason = rf"expected at most {5} tokens, as its row says, found"
    assert wrong_sizes.reduced(1, 5).reason.startswith(reason)
    assert wrong_sizes.reduced(1, 5).row == 1


def test_the_batch_says_how_many_are_reduced(collator):
    item = Example((1, 9), (-100, 9), FRAME, (2,), is_reduced=True)
    assert collator.pack([(item, item)])[BATCH_REPORT] == BatchReport(2, (), 2)


def test_a_pack_of_texts_has_room_for_a_blank_frame(wrong_sizes):
    lengths = wrong_sizes.estimate_lengths()
    most = int(lengths[2:4].sum())
    packs = PackedDataset(wrong_sizes, lengths, most, False, 0, num_blank_tokens=1)
    assert [len(pack) for pack in (packs[number] for number in range(len(packs)))] == [1] * 8


@pytest.fixture
def collator() -> Collator:
    return Collator(pad_id=0, image_token_id=9, image_size=56, blank_ratio=2, num_blank_tokens=1)


FRAME = np.zeros((1, 56, 56, 3), np.uint8)


def test_the_docstring_of_pack(collator):
    question, text = Example((1, 9, 5), (-100, -100, 5), FRAME, (2,)), Example((1, 8), (-100, 8), None, ())
    batch = collator.pack([(question, text)])
    documented = "".join(Collator.pack.__doc__.split())
    for key in ("input_ids", "labels", "position_ids", "pool_ratios"):
        assert "".join(f"'{key}': {batch[key]!r}".split()) in documented
    assert "".join(f"'{BATCH_REPORT}': {batch[BATCH_REPORT]!r}".split()) in documented
    assert (batch["pixel_values"].dtype, list(batch["pixel_values"].shape)) == (torch.uint8, [1, 56, 56, 3])
    assert "attention_mask" not in batch


def test_nothing_is_learned_across_a_border(collator):
    """A first token that is learned from would be learned from the sample before."""
    batch = collator.pack([(Example((1, 2), (1, 2), FRAME, (1,)),), (Example((3, 4), (3, 4), None, ()),)])
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 2, IGNORE_INDEX, 4]]


def test_texts_get_a_blank_frame_in_a_sequence_of_its_own(collator):
    skipped = SkippedSample("a", 1, "broken")
    batch = collator.pack([(Example((1, 2), (-100, 2), None, ()), skipped)])
    assert batch["input_ids"].tolist() == [[1, 2, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 0]]
    assert (batch["pixel_values"].shape, batch["pool_ratios"]) == ((1, 56, 56, 3), (2,))
    assert batch[BATCH_REPORT] == BatchReport(2, (skipped,))
    nothing = collator.pack([(skipped,)])
    assert nothing["labels"].tolist() == [[IGNORE_INDEX]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    long = {"conversations": dialogue("Say it again. " * 40, "Again and again. " * 10)}
    return write_registry(folder, write_media(folder / "media"), mixed=[*mixed_rows(), long])


@pytest.mark.parametrize("llm", ["phi3", "qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_apart(tiny_dir, registry, llm, attention):
    """Loss and gradients of one packed row are those of each sample alone, weighted by their learned tokens."""
    model = load_model(tiny_dir(llm), device="cpu")
    network = model.network
    network.set_attn_implementation(attention)
    data = TrainingDataset(load_registries(str(registry)), tiny_encoder(model), 0)
    collator = make_collator(data.encoder, model.tokenizer)
    examples = [data[number] for number in range(len(data))]
    assert all(isinstance(example, Example) for example in examples)
    parameters = [network.projector.linear_2.weight, network.get_input_embeddings().weight]

    def loss_and_gradients(batch):
        batch.pop(BATCH_REPORT)
        loss = network(**normalised(batch), num_items_in_batch=1).loss
        return loss.detach(), torch.autograd.grad(loss, parameters)

    alone = [loss_and_gradients(collator([example])) for example in examples]
    loss, gradients = loss_and_gradients(collator.pack([examples[:4], examples[4:]]))
    wanted = sum(found for found, _ in alone)
    assert abs(float(loss / wanted) - 1) < 1e-6
    for ours, *theirs in zip(gradients, *(found for _, found in alone), strict=True):
        assert torch.allclose(ours, sum(theirs), atol=1e-5 * float(ours.abs().max()))


def test_each_sample_of_a_row_has_the_rotary_regime_of_its_own_length(tiny_dir):
    """Phi-3's frequencies change above a length; what rides in the same row must not decide it."""
    model = load_model(tiny_dir("phi3"), device="cpu")
    network = model.network
    switch = network.language_model.model.rotary_emb.switch_length
    rng, row = random.Random(0), []
    for length in (switch + 40, 50):
        ids = tuple(rng.randrange(20, 100) for _ in range(length))
        row.append(Example(ids, (IGNORE_INDEX, *ids[1:]), None, ()))
    collator = make_collator(tiny_encoder(model), model.tokenizer)
    found = []
    with torch.inference_mode():
        for packs in ([row], [row[:1]], [row[1:]]):
            batch = collator.pack(packs)
            batch.pop(BATCH_REPORT)
            found.append(float(network(**normalised(batch), num_items_in_batch=1).loss))
    assert found[0] == pytest.approx(found[1] + found[2], rel=1e-6)
