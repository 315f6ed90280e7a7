from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from train_cases import dialogue, mixed_rows, normalised, online_rows, tiny_encoder, write_media, write_registry
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import (
    BATCH_REPORT,
    Collator,
    EpochSampler,
    Example,
    FrameSampling,
    SampleEncoder,
    SetCount,
    SkippedSample,
    TrainingDataset,
    load_registries,
)
from videochat_online.data.batches import mixture as mixture_module
from videochat_online.data.batches import training_dataset as dataset_module
from videochat_online.data.batches.mixture import check_epoch, epoch_key, repeated_rows, unpack_key
from videochat_online.errors import InputError
from videochat_online.train.run import make_collator


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("data") / "media")


@pytest.fixture(scope="module")
def encoder(tiny_model) -> SampleEncoder:
    return tiny_encoder(tiny_model, system_message="", sampling=FrameSampling(method="rand", max_num_frames=3))


def dataset(encoder: SampleEncoder, registry: Path, seed: int = 0) -> TrainingDataset:
    return TrainingDataset(load_registries(str(registry)), encoder, seed)


def weighted(registry: Path, key: str = "repeat_time", **values: float) -> Path:
    entries = json.loads(registry.read_text(encoding="utf-8"))
    for name, value in values.items():
        entries[name][key] = value
    registry.write_text(json.dumps(entries), encoding="utf-8")
    return registry


def test_every_kind_of_row_becomes_an_example(encoder, media, tmp_path):
    data = dataset(encoder, write_registry(tmp_path, media, mixed=mixed_rows()))
    assert all(isinstance(data[index], Example) for index in range(len(data)))
    assert data.counts() == {"mixed": SetCount(8, 8)}


def test_a_second_epoch_sees_the_same_text_and_other_frames(encoder, media, tmp_path):
    data = dataset(
        encoder, write_registry(tmp_path, media, video=[{"video": "clip.mp4", "QA": [{"q": "a", "a": "b"}]}])
    )
    first, again, second = data[0], data[0], data[epoch_key(1, 0, len(data))]
    assert first.input_ids == second.input_ids
    assert (first.pixels_TSSC == again.pixels_TSSC).all()
    assert (first.pixels_TSSC != second.pixels_TSSC).any()


def test_a_bad_row_is_named_and_not_replaced(encoder, media, tmp_path):
    rows = [*online_rows(1), {"video": "none.mp4", "QA": [{"q": "a", "a": "b"}]}, {"QA": 3}]
    (tmp_path / "media").mkdir()
    data = dataset(encoder, write_registry(tmp_path, media, one=rows))
    assert isinstance(data[0], Example)
    assert data[1] == SkippedSample(
        "one", 1, f"{media}/none.mp4: expected a video file or a folder of frames, found no such file"
    )
    assert data[2] == SkippedSample("one", 2, "QA: expected a list, found 3")
    assert data.estimate_lengths()[2] == 1


def test_a_fault_of_the_program_names_the_row_and_is_no_bad_row(encoder, media, tmp_path, monkeypatch):
    data = dataset(encoder, write_registry(tmp_path, media, one=online_rows(2)))
    monkeypatch.setattr(SampleEncoder, "encode", lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="one: row 1: ZeroDivisionError"):
        data[1]
    monkeypatch.setattr(dataset_module.LengthCounter, "outline", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="one: row 1: ZeroDivisionError"):
        data.estimates([1])


def test_repeats(encoder, media, tmp_path):
    registry = write_registry(tmp_path, media, a=online_rows(4), b=online_rows(4), c=online_rows(4))
    data = dataset(encoder, weighted(registry, a=2, b=0.5, c=1.25))
    assert data.counts() == {"a": SetCount(4, 8), "b": SetCount(4, 2), "c": SetCount(4, 5)}
    assert len(data) == 15
    assert Counter(repeated_rows(4, 2, random.Random(0))) == {0: 2, 1: 2, 2: 2, 3: 2}
    part = repeated_rows(100, 0.3, random.Random(0))
    assert (len(part), len(set(part))) == (30, 30)
    assert part == repeated_rows(100, 0.3, random.Random(0)) != repeated_rows(100, 0.3, random.Random(1))
    assert len(repeated_rows(10, 0.001, random.Random(0))) == 1


def test_an_epoch_has_an_end(encoder, media, tmp_path, monkeypatch):
    registry = write_registry(tmp_path, media, a=online_rows(4), b=online_rows(1))
    with pytest.raises(InputError, match="expected at most 2,147,483,648 items in an epoch of all sets, found 4,000"):
        check_epoch([1000, 3000], [1e6, 1e6])
    monkeypatch.setattr(mixture_module, "MAX_EPOCH_ITEMS", 10)
    with pytest.raises(InputError, match="repeat_time: .* at most 10 items .* found 13"):
        dataset(encoder, weighted(registry, a=3))


def test_weights_share_an_epoch_whatever_the_sizes_of_sets(encoder, media, tmp_path):
    texts = [{"conversations": dialogue(f"Number {number}?", "Yes.")} for number in range(20)]
    registry = write_registry(tmp_path, media, small=texts[:2], large=texts[2:])
    data = dataset(encoder, weighted(registry, "weight", small=3, large=1))
    assert data.counts() == {"small": SetCount(2, 15), "large": SetCount(18, 5)}
    small = [data[number] for number in range(15)]
    assert sorted(Counter(example.input_ids for example in small).values()) == [7, 8]
    assert len({data[number].input_ids for number in range(15, 20)}) == 5
    equal = dataset(encoder, weighted(registry, "weight", small=0.2, large=0.2))
    assert equal.counts() == {"small": SetCount(2, 10), "large": SetCount(18, 10)}


def test_unusable_settings_fail_at_once(encoder, media, tmp_path):
    bad = replace(encoder, sampling=FrameSampling(method="all"))
    with pytest.raises(InputError, match="sampling_method"):
        dataset(bad, write_registry(tmp_path, media, one=online_rows(1)))


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    keys = [unpack_key(key, len(sampler)) for key in sampler]
    assert {number for number, _ in keys} == {epoch}
    return [index for _, index in keys]


def test_each_epoch_has_its_own_order_that_follows_from_the_seed():
    first, second = order(EpochSampler(50, seed=1), 0), order(EpochSampler(50, seed=1), 1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert order(EpochSampler(50, seed=1), 1) == second
    assert order(EpochSampler(50, seed=2), 1) != second
    assert order(EpochSampler(5, seed=1, shuffle=False), 3) == [0, 1, 2, 3, 4]


def test_grouping_brings_equal_lengths_together():
    lengths = [random.Random(i).randrange(1, 1000) for i in range(400)]
    grouped = order(EpochSampler(400, seed=1, lengths=lengths, group_size=4), 0)
    assert sorted(grouped) == list(range(400))

    def spread(indices: list[int]) -> float:
        groups = [indices[i : i + 4] for i in range(0, 400, 4)]
        return sum(max(lengths[i] for i in group) - min(lengths[i] for i in group) for group in groups)

    assert spread(grouped) < spread(order(EpochSampler(400, seed=1), 0)) / 5
    assert grouped == order(EpochSampler(400, seed=1, lengths=lengths, group_size=4), 0)
    assert grouped != order(EpochSampler(400, seed=1, lengths=lengths, group_size=4), 1)
    largest = max(range(400), key=lengths.__getitem__)
    assert grouped[0] == largest  # running out of memory shows at once


@pytest.fixture
def collate() -> Collator:
    return Collator(pad_id=0, image_token_id=9, image_size=56, blank_ratio=2, num_blank_tokens=1)


def test_the_collators_docstring(collate):
    frame = np.zeros((1, 56, 56, 3), np.uint8)
    batch = collate([Example((1, 9, 5, 7), (-100, -100, -100, 7), frame, (2,)), Example((1, 8), (-100, 8), None, ())])
    text = "".join(Collator.__doc__.split())
    for key in ("input_ids", "labels", "attention_mask", "pool_ratios"):
        assert "".join(f"'{key}': {batch[key]!r}".split()) in text
    assert "".join(f"'{BATCH_REPORT}': {batch[BATCH_REPORT]!r}".split()) in text
    assert (batch["pixel_values"].dtype, list(batch["pixel_values"].shape)) == (torch.uint8, [1, 56, 56, 3])
    assert "bytesofshape[1,56,56,3]" in text


def test_frames_of_all_samples_stand_in_order(collate):
    frames = [np.full((n, 2, 2, 3), n, np.uint8) for n in (2, 1)]
    batch = collate([Example((1, 2), (1, 2), frames[0], (1, 2)), Example((3,), (3,), frames[1], (4,))])
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [2, 2, 1]
    assert batch["pool_ratios"] == (1, 2, 4)


def test_a_batch_of_texts_gets_a_blank_frame_that_nothing_attends_to(collate):
    batch = collate([Example((1, 2), (-100, 2), None, ()), Example((1, 2, 3), (-100, 2, 3), None, ())])
    assert batch["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 2, 3]]
    assert (batch["pixel_values"].shape, batch["pool_ratios"]) == ((1, 56, 56, 3), (2,))


def test_a_batch_without_any_usable_sample_teaches_nothing(collate):
    skipped = SkippedSample("a", 1, "broken")
    batch = collate([skipped])
    assert batch[BATCH_REPORT].skipped == (skipped,)
    assert batch["labels"].unique().tolist() == [IGNORE_INDEX]
    assert batch["attention_mask"].tolist() == [[1, 0]]


def test_a_blank_frame_changes_neither_the_loss_nor_any_gradient(tiny_model, encoder, media, tmp_path):
    data = dataset(encoder, write_registry(tmp_path, media, one=[{"conversations": dialogue("Hello.", "Good day.")}]))
    batch = make_collator(encoder, tiny_model.tokenizer)([data[0]])
    batch.pop(BATCH_REPORT)
    network = tiny_model.network
    length = int(batch["attention_mask"].sum())
    assert batch["input_ids"].shape[1] == length + 1
    plain = network(input_ids=batch["input_ids"][:, :length], labels=batch["labels"][:, :length]).loss
    wanted = torch.autograd.grad(plain, network.language_model.lm_head.weight)[0]
    loss = network(**normalised(batch)).loss
    parameters = [network.language_model.lm_head.weight, network.projector.linear_2.weight]
    ours, projector = torch.autograd.grad(loss, parameters)
    assert torch.allclose(loss, plain, atol=1e-6)
    assert torch.allclose(ours, wanted, atol=1e-6)
    assert projector.abs().max() == 0  # connected, and nothing is learned


def test_loader_processes_give_the_same_batches(encoder, media, tmp_path, collate):
    data = dataset(encoder, write_registry(tmp_path, media, one=[*online_rows(3), {"QA": 3}]))
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(len(data), seed=3)
        sampler.set_epoch(1)
        batches.append(list(DataLoader(data, 2, sampler=sampler, collate_fn=collate, num_workers=workers)))
    for ours, theirs in zip(*batches, strict=True):
        assert ours[BATCH_REPORT] == theirs[BATCH_REPORT]
        assert (ours["input_ids"] == theirs["input_ids"]).all()
        assert (ours["pixel_values"] == theirs["pixel_values"]).all()
    assert sum(len(batch[BATCH_REPORT].skipped) for batch in batches[0]) == 1


def test_lengths_are_those_of_the_rows_however_many_processes_count_them(encoder, media, tmp_path):
    rows = [*online_rows(3), {"QA": 3}, {"conversations": dialogue("a", "\u4f60\u597d" * 50)}]
    data = dataset(encoder, weighted(write_registry(tmp_path, media, a=rows, b=rows), a=2, b=0.5))
    lengths = data.estimate_lengths()
    parts = sum(data.estimate_lengths(part, 3) for part in range(3))
    assert lengths.tolist() == parts.tolist() == [e.tokens for e in data.estimates()]
    assert lengths[3] == 1
    assert lengths[4] == len(data[4])
