"""A run that meets NaN, writes its curves, keeps few checkpoints, and leaves a model that others can read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from train_cases import flags, launch, mixed_rows, spoilt_loss, state, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration, load_model, network_loading
from videochat_online.train import TrainReport, parse_arguments, train
from videochat_online.train import run as run_module
from videochat_online.train.folder.training_folder import TrainingFolder, resolved_keys
from videochat_online.train.loop.nonfinite_guard import MAX_IN_A_ROW, FiniteLosses
from videochat_online.train.setup import model_setup

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    return write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())


@pytest.fixture
def keys(registry, tiny_dir, tmp_path) -> Callable[..., list[str]]:
    """The command line of a run below `tmp_path`."""

    def make(name: str, **changes: Any) -> list[str]:
        paths = {"output_dir": tmp_path / name, "model_name_or_path": tiny_dir("phi3"), "meta_path": registry}
        return flags(**paths | changes)

    return make


@pytest.fixture
def run(keys) -> Callable[..., TrainReport]:
    return lambda name, **changes: train(parse_arguments(None, keys(name, **changes)))


# Of eight samples a step one is a text alone.
ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_steps": 2}


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_batch_whose_loss_is_not_finite_counts_as_zero(tmp_path, run, monkeypatch, factor):
    monkeypatch.setattr(Trainer, "compute_loss", spoilt_loss(factor))
    spoilt = run("spoilt", **ONE_BY_ONE)
    monkeypatch.setattr(Trainer, "compute_loss", spoilt_loss(0.0))
    zero = run("zero", **ONE_BY_ONE)
    assert [entry["loss"] for entry in spoilt.losses] == [entry["loss"] for entry in zero.losses]
    ours, theirs = state(tmp_path / "spoilt"), state(tmp_path / "zero")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (spoilt.nonfinite_batches, zero.nonfinite_batches) == (2, 0)
    assert json.loads((tmp_path / "spoilt" / "report.json").read_text())["nonfinite_batches"] == 2


def test_losses_that_stay_so_end_a_run():
    losses = FiniteLosses(torch.nn.Linear(1, 1))
    for number in range(MAX_IN_A_ROW - 1):
        losses.see(torch.tensor(math.nan))
        assert (number, losses.take(lambda tensor: 2 * tensor)) == (number, 2)
    losses.see(torch.tensor(1.0))
    assert losses.take(lambda tensor: tensor) == 0
    for _ in range(MAX_IN_A_ROW):
        losses.see(torch.tensor(math.nan))
    with pytest.raises(InputError, match="100 batches in a row had no finite loss or gradients"):
        losses.take(lambda tensor: tensor)


def test_a_process_says_how_often_another_met_nan():
    with pytest.raises(InputError, match="^7 batches in a row had no finite loss"):
        FiniteLosses(torch.nn.Linear(1, 1)).check_end(lambda tensor: tensor + 7)


@pytest.mark.parametrize("packing", [{}, {"packing_tokens": 600, "per_device_train_batch_size": 1}])
def test_smoothed_labels_are_those_of_the_next_token(run, packing):
    """So little smoothing leaves the loss as it is; in packs as well, where no sample sees another."""
    keys = packing | {"max_steps": 1}
    plain, smooth = (run(f"smooth{factor}", label_smoothing_factor=factor, **keys) for factor in (0, 1e-7))
    assert smooth.losses[0]["loss"] == pytest.approx(plain.losses[0]["loss"], rel=1e-5)


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path, run, tiny_dir, monkeypatch):
    """Of a finite loss: once in the run, in one part of the model."""
    seen = []

    def compute_loss(self, model, inputs, *rest, **options):
        loss = compute(self, model, inputs, *rest, **options)
        seen.append(loss)
        if len(seen) == 2:
            weight = getattr(model, "module", model).projector.linear_1.weight
            loss = loss + (weight.sum() - weight.sum().detach()) * 1e38 * 1e38
        return loss

    compute = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    report = run("gradient", max_steps=3)
    assert report.nonfinite_batches == 1
    assert all(torch.isfinite(tensor).all() for tensor in state(tmp_path / "gradient").values())
    assert [entry["loss"] > 1 for entry in report.losses] == [True] * 3


def test_a_run_that_diverges_ends_and_saves_nothing(tmp_path, run):
    with pytest.raises(InputError, match="batches in a row had no finite loss"):
        run("diverged", learning_rate=1e30, max_steps=6, logging_strategy="no")
    assert not (tmp_path / "diverged" / "report.json").exists()
    assert not (tmp_path / "diverged" / "model.safetensors").exists()


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, run, monkeypatch):
    step = torch.optim.AdamW.step

    def spoil(self, *arguments, **options):
        result = step(self, *arguments, **options)
        spoilt.append(None)
        if len(spoilt) == 2:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    spoilt: list[None] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(InputError, match="1 tensors hold numbers that are not finite"):
        run("spoilt", max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=1)
    assert [folder.name for folder in (tmp_path / "spoilt").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_step_without_a_finite_loss_has_no_loss(tmp_path, run, monkeypatch):
    bad = iter([False, True, False])
    compute = Trainer.compute_loss
    monkeypatch.setattr(
        Trainer,
        "compute_loss",
        lambda self, *rest, **options: compute(self, *rest, **options) * (math.nan if next(bad) else 1),
    )
    report = run("gap", max_steps=3)
    assert [entry["loss"] is None for entry in report.losses] == [False, True, False]
    assert json.loads((tmp_path / "gap" / "report.json").read_text())["losses"][1]["loss"] is None
    assert report.nonfinite_batches == 1


@pytest.mark.parametrize("lora", [{}, {"freeze_llm": True, "use_llm_lora": 4}])
def test_a_run_that_ended_while_its_result_was_written_only_writes_it(tmp_path, run, monkeypatch, lora):
    """In the middle of an epoch, where transformers would train a step more."""
    keys = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "drop_path_rate": 0.5} | lora
    whole = run("whole", **keys)
    monkeypatch.setattr(run_module, "save_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("ended", **keys)
    monkeypatch.undo()
    done = run("ended", **keys)
    assert (done.steps, done.losses) == (whole.steps, whole.losses)
    ours, theirs = state(tmp_path / "ended"), state(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-7) for name in theirs)
    names = [{file.name for file in (tmp_path / name).iterdir()} for name in ("ended", "whole")]
    assert names[0] ^ names[1] <= {"training_args.bin"}


def test_two_launches_do_not_meet_in_a_folder(tmp_path, run, keys):
    folder = TrainingFolder(tmp_path / "mine", resolved_keys(parse_arguments(None, keys("mine"))))
    folder.open({}, {}, None)
    with pytest.raises(InputError, match="mine: another process is training in this folder"):
        TrainingFolder(tmp_path / "mine", folder.keys).open({}, {}, None)
    with pytest.raises(InputError, match="expected a folder that can be written to"):
        TrainingFolder("/proc/none/run", folder.keys).open({}, {}, None)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_processes_of_which_one_meets_nan_go_on_alike(tmp_path, keys, run, monkeypatch, stage):
    """ZeRO-2 and ZeRO-3 over two processes give what one process does without DeepSpeed."""
    monkeypatch.setattr(Trainer, "compute_loss", spoilt_loss(math.nan))
    one = run("one", **ONE_BY_ONE)
    plan = ROOT / f"configs/deepspeed/zero{stage}.json"
    both = {"per_device_train_batch_size": 1, "global_batch_size": 8, "max_steps": 2, "deepspeed": plan}
    done = launch(keys("two", **both), processes=2, SPOIL_TEXTS_BY="nan")
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["nonfinite_batches"] == one.nonfinite_batches == 2
    assert [entry["loss"] for entry in two["losses"]] == pytest.approx(
        [entry["loss"] for entry in one.losses], abs=1e-5
    )
    ours, theirs = state(tmp_path / "two"), state(tmp_path / "one")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-4


@pytest.mark.slow
def test_packs_over_two_processes_are_those_of_one(tmp_path, keys, run):
    packing = {"packing_tokens": 400, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 1}
    one = run("one", **packing, global_batch_size=2, max_steps=3)
    plan = ROOT / "configs/deepspeed/zero2.json"
    done = launch(keys("two", **packing, global_batch_size=2, max_steps=3, deepspeed=plan), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert [entry["loss"] for entry in two["losses"]] == pytest.approx(
        [entry["loss"] for entry in one.losses], abs=1e-5
    )


def test_the_last_checkpoints_are_kept(tmp_path, run):
    run("few", max_steps=5, save_strategy="steps", save_steps=1, save_total_limit=2)
    kept = sorted(folder.name for folder in (tmp_path / "few").glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5"]
    assert all((tmp_path / "few" / name / "complete.json").is_file() for name in kept)


def test_curves_for_tensorboard(tmp_path, run, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    report = run("watched", report_to="tensorboard", max_steps=3)
    events = accumulator.EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([entry["loss"] for entry in report.losses], abs=1e-5)
    assert {"train/tokens_per_s", "train/visual_tokens_per_s", "train/padding"} <= {*events.Tags()["scalars"]}


@pytest.mark.slow
def test_curves_for_wandb_without_a_network(tmp_path, run, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run("watched", report_to="wandb", max_steps=1)
    wandb.finish()
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(100):  # a process of wandb's own writes it
        if b"visual_tokens_per_s" in written.read_bytes():
            break
        time.sleep(0.3)
    assert b"visual_tokens_per_s" in written.read_bytes()


def test_a_result_with_merged_adapters_reads_as_any_model_and_exports(tmp_path, run, tiny_dir, frames):
    frozen = {"freeze_backbone": True, "freeze_llm": True}
    run("lora", use_llm_lora=4, use_backbone_lora=2, max_steps=2, **frozen)
    network = VideoChatOnlineForConditionalGeneration.from_pretrained(tmp_path / "lora").eval()
    assert main(["convert", str(tmp_path / "lora"), str(tmp_path / "original"), "--format", "original"]) == 0
    ours, theirs = (load_model(tmp_path / name, device="cpu") for name in ("lora", "original"))
    before = load_model(tiny_dir("phi3"), device="cpu")
    pixels = ours.transform(frames(2))
    features = [one(pixels) for one in (network.encode, ours.network.encode, theirs.network.encode)]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[1], features[2])
    assert not torch.allclose(features[0], before.network.encode(pixels), atol=1e-5)
    ids = torch.tensor([[20, 30, 40]])
    logits = [one(input_ids=ids).logits for one in (network, ours.network, theirs.network)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[1], logits[2])


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def test_a_run_starts_from_a_model_on_the_hub(run, tiny_dir, monkeypatch):
    """Plans ask for no weights."""
    asked = []

    def download(name: str, allow_patterns: list[str] | None) -> str:
        asked.append((name, allow_patterns))
        return str(tiny_dir("phi3"))

    monkeypatch.setattr(network_loading, "snapshot_download", download)
    report = run("from_hub", model_name_or_path="owner/name", max_steps=1)
    assert report.steps == 1
    (first, patterns), second = asked
    assert (first, second) == ("owner/name", ("owner/name", None))
    wanted = [name for name in ("config.json", "tokenizer.model", "model.safetensors") if matches(name, patterns)]
    assert wanted == ["config.json", "tokenizer.model"]


def test_liger_kernels_go_into_the_language_model(run, monkeypatch):
    patched = []

    def apply(model: torch.nn.Module, options: dict[str, bool] | None) -> None:
        patched.append((type(model).__name__, options))
        raise ImportError

    monkeypatch.setattr(model_setup, "apply_liger_kernel", apply)
    with pytest.raises(InputError, match="use_liger_kernel: expected the package liger-kernel, found none"):
        run("kernels", use_liger_kernel=True, liger_kernel_config='{"rope": false}')
    assert patched == [("Phi3ForCausalLM", {"rope": False})]
