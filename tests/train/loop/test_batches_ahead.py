"""Pixels reach the device as bytes, one batch at a time; the next step's batches are fetched meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader

from train_cases import arguments, losses, online_rows, write_media, write_registry
from videochat_online.data import Collator, Example, TrainingDataset
from videochat_online.errors import InputError
from videochat_online.train import TrainReport, parse_arguments, train
from videochat_online.train.loop import batches_ahead
from videochat_online.train.loop.batches_ahead import BatchesAhead, SharedCollator
from videochat_online.train.loop.trainer import OnlineTrainer
from videochat_online.video import FrameTransform


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Numbers:
    """Batches 0 to 9, in an order of events that a test sets."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.made: list[int] = []
        self.by: set[str] = set()
        self.fails_at = fails_at
        self.is_ended = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for number in range(10):
                if number == self.fails_at:
                    raise KeyError("broken")
                self.made.append(number)
                self.by.add(threading.current_thread().name)
                yield {"number": number}
        finally:
            self.is_ended = True


class TestIterator:
    def test_as_many_as_a_step_has_are_fetched_ahead(self):
        numbers, batches = Numbers(), BatchesAhead()
        source = iter(numbers)
        ahead = batches.of(source, 3)
        assert (numbers.made, threads()) == ([], [])
        assert next(ahead)["number"] == 0
        assert (numbers.made, threads()) == ([0], [])  # the first one in this thread
        assert next(batches.of(source, 3))["number"] == 1
        assert [next(ahead)["number"] for _ in range(8)] == list(range(2, 10))
        assert {name.partition("_")[0] for name in numbers.by} == {"MainThread", "ahead"}
        assert list(ahead) == []
        assert threads() == []

    def test_no_further_than_that(self, monkeypatch):
        asked = []
        monkeypatch.setattr(batches_ahead, "read_ahead", lambda items, ahead: asked.append(ahead) or items)
        assert [batch["number"] for batch in BatchesAhead().of(iter(Numbers()), 4)] == list(range(10))
        assert asked == [4]

    def test_an_error_comes_as_it_is_at_its_place(self):
        ahead = BatchesAhead().of(iter(Numbers(fails_at=3)), 4)
        assert [next(ahead)["number"] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="broken"):
            next(ahead)
        assert threads() == []

    @pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
    def test_nothing_is_left_behind(self, error):
        numbers, batches = Numbers(), BatchesAhead()

        def use() -> None:
            with batches:
                ahead = batches.of(iter(numbers), 2)
                next(ahead), next(ahead)
                if error is not None:
                    raise error("stop")

        if error is None:
            use()
        else:
            with pytest.raises(error, match="stop"):
                use()
        assert threads() == []
        assert numbers.is_ended
        assert len(numbers.made) <= 4

    def test_another_epoch_ends_the_one_before(self):
        first, batches = Numbers(), BatchesAhead()
        next(batches.of(iter(first), 2))
        assert next(batches.of(iter(Numbers()), 2))["number"] == 0
        assert first.is_ended
        batches.close()

    def test_shared_memory_and_files_are_given_back(self):
        shared, own = torch.zeros(3).share_memory_(), torch.ones(3)
        batches = [{"pixels": shared, "ids": own, "ratios": (1,)}] * 2
        for batch in BatchesAhead().of(iter(batches), 1):
            assert not batch["pixels"].is_shared()
            assert torch.equal(batch["pixels"], shared)
            assert (batch["ids"] is own, batch["ratios"]) == (True, (1,))


class TestLoaderProcesses:
    @staticmethod
    def load(collate: Callable[[Any], Any]) -> list[Any]:
        with BatchesAhead() as batches:
            loader = DataLoader(range(4), 1, num_workers=1, collate_fn=SharedCollator(collate))
            return [batch["x"].tolist() for batch in batches.of(iter(loader), 2)]

    def test_batches_come_through_shared_memory(self):
        assert self.load(lambda items: {"x": torch.tensor(items), "report": "as it is"}) == [[0], [1], [2], [3]]

    def test_no_room_is_said_and_not_waited_out(self, monkeypatch):
        def share_memory_(tensor: torch.Tensor) -> None:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )

        monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
        found = (
            r"^dataloader_num_workers: expected room in /dev/shm for the next batch, 1.0 MiB, found .* MiB free: .*\Z"
        )
        with pytest.raises(InputError, match=found):
            self.load(lambda items: {"x": torch.zeros(2**18)})
        assert threads() == []

    @pytest.mark.parametrize(
        ("number", "message"),
        [
            (signal.SIGBUS, "expected room in /dev/shm .* killed by SIGBUS"),
            (signal.SIGKILL, "was killed, as the system does when memory runs out"),
            (signal.SIGTERM, "expected loader processes that go on, found: DataLoader worker"),
        ],
    )
    def test_what_ended_them_is_named(self, number, message):
        with pytest.raises(InputError, match=f"^dataloader_num_workers: .*{message}"):
            self.load(lambda items: os.kill(os.getpid(), number))

    def test_other_errors_stay_what_they_are(self):
        with pytest.raises(RuntimeError, match="no such row"), BatchesAhead():
            raise RuntimeError("no such row")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ahead")
    write_registry(place / "good", write_media(place / "media"), rows=online_rows(10))
    return place


# An epoch and a half of steps of two batches each but for the epoch's last, with noise of the trainer's own numbers.
KEYS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,
    "drop_path_rate": 0.5,
    "max_num_frame": 2,
}


@pytest.fixture(scope="module")
def run(place: Path, tiny_dir: Callable[[str], Path]) -> Callable[..., TrainReport]:
    def start(name: str, **keys: Any) -> TrainReport:
        return train(parse_arguments(None, arguments(place, tiny_dir, name, **KEYS | keys)))

    return start


@pytest.fixture(scope="module")
def plain(run) -> TrainReport:
    """A run whose batches are fetched when they are asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_ahead, "read_ahead", lambda items, ahead: items)
        return run("plain")


@pytest.mark.parametrize("workers", [0, 1])
def test_losses_are_those_without_the_thread(run, plain, workers):
    report = run(f"thread_{workers}", dataloader_num_workers=workers)
    assert losses(report) == losses(plain)
    assert threads() == []
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("owner", [(TrainingDataset, "__getitem__", 9), (OnlineTrainer, "compute_loss", 3)])
def test_a_run_that_fails_leaves_nothing_behind(run, monkeypatch, owner):
    """While loading, in the thread, and while computing, when the thread waits for room."""
    owner, name, place = owner
    method, by = getattr(owner, name), []

    def failing(*arguments: Any, **options: Any) -> Any:
        by.append(threading.current_thread().name.partition("_")[0])
        if len(by) == place:
            raise OSError(5, "Input/output error")
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error$") as failure:
        run(f"failing_{name}")
    assert by[-1] == ("ahead" if owner is TrainingDataset else "MainThread")
    assert threads() == [], failure  # whose frames hold all of the run


def test_before_the_first_forward_one_batch_is_on_the_device(run, monkeypatch):
    prepared: list[torch.Tensor] = []
    held: list[list[torch.Tensor]] = []
    # The hooks of transformers' trainer that a batch passes through.
    prepare, get = OnlineTrainer._prepare_inputs, OnlineTrainer.get_batch_samples
    step = OnlineTrainer.compute_loss

    def _prepare_inputs(self: OnlineTrainer, inputs: Any) -> Any:
        assert (inputs["pixel_values"].dtype, inputs["pixel_values"].shape[-1]) == (torch.uint8, 3)
        inputs = prepare(self, inputs)
        prepared.append(inputs["pixel_values"])
        return inputs

    def get_batch_samples(self: OnlineTrainer, *arguments: Any) -> Any:
        assert self.callback_handler.train_dataloader.device is None
        batches = get(self, *arguments)
        held.append(batches[0])
        prepared.clear()
        return batches

    def compute_loss(self: OnlineTrainer, *arguments: Any, **options: Any) -> Any:
        # Those to come are bytes in the machine's memory, those that were computed are given back.
        left = [batch.get("pixel_values") for batch in held[-1]]
        assert [pixels is None for pixels in left] == [place < len(prepared) for place in range(len(left))]
        assert all(pixels.dtype == torch.uint8 for pixels in left if pixels is not None)
        return step(self, *arguments, **options)

    monkeypatch.setattr(OnlineTrainer, "_prepare_inputs", _prepare_inputs)
    monkeypatch.setattr(OnlineTrainer, "get_batch_samples", get_batch_samples)
    monkeypatch.setattr(OnlineTrainer, "compute_loss", compute_loss)
    run("one_at_a_time", max_steps=2)
    assert [len(batches) for batches in held] == [2, 2]


FRAMES = arrays("uint8", st.tuples(st.integers(1, 3), st.just(8), st.just(8), st.just(3)))


@settings(max_examples=25, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=3), st.sampled_from(["imagenet", "clip", "siglip"]), st.booleans())
def test_the_network_sees_the_very_numbers_of_normalising_on_the_host(frames, name, is_deepspeed):
    """In float32; DeepSpeed's type is given to normalised pixels, and to nothing that counts."""
    transform = FrameTransform(size=8, normalization=name)
    examples = [Example((1, 2), (1, 2), pixels, (1,) * len(pixels)) for pixels in frames]
    expected = torch.cat([transform(pixels) for pixels in frames])
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    trainer = OnlineTrainer.__new__(OnlineTrainer)
    # A trainer without a model, of which one hook is called: the one that moves a batch to the device.
    trainer.args, trainer._normalization = SimpleNamespace(device=torch.device("cpu")), name
    trainer.is_deepspeed_enabled = is_deepspeed
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config)))
    collator = Collator(pad_id=0, image_token_id=9, image_size=8, blank_ratio=1, num_blank_tokens=1)
    for batch in (collator(examples), collator.pack([examples])):
        ids = batch["input_ids"]
        found = trainer._prepare_inputs(batch)
        assert torch.equal(found["pixel_values"], expected.bfloat16() if is_deepspeed else expected)
        assert torch.equal(found["input_ids"], ids)
