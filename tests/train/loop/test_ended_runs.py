"""Runs that are told to save or to end while something else is due: an evaluation, the best step, early stopping."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train_cases import arguments, dialogue, losses, state, write_media, write_registry
from videochat_online.errors import InputError
from videochat_online.train import TrainReport, distributed, dry_run, parse_arguments, train
from videochat_online.train.folder import disk
from videochat_online.train.folder.training_folder import TrainingFolder, resolved_keys, shared_keys

KEYS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts to train on, four steps an epoch, and one that is held out."""
    place = tmp_path_factory.mktemp("ended")
    media = write_media(place / "media")
    texts = [{"conversations": dialogue(f"Number {number}?", f"It is {number}.")} for number in range(9)]
    write_registry(place / "good", media, words=texts[:8])
    write_registry(place / "held", media, other=texts[8:])
    return place


@pytest.fixture(scope="module")
def run(place: Path, tiny_dir: Callable[[str], Path]) -> Callable[..., TrainReport]:
    def start(name: str, **keys: Any) -> TrainReport:
        every = KEYS | {"eval_meta_path": place / "held/registry.json"} | keys
        return train(parse_arguments(None, arguments(place, tiny_dir, name, **every)))

    return start


def told(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


NEVER_BETTER = {"learning_rate": 0.0, "metric_for_best_model": "loss", "load_best_model_at_end": True}


@pytest.mark.parametrize(("when", "asked", "end"), [("steps", 6, 7), ("epoch", 4, 8)])
def test_what_is_asked_for_is_saved_though_the_step_is_not_the_best(run, at, saved, when, asked, end):
    """With `save_strategy` best an evaluation decides what is saved: not of what was asked for."""
    keys = NEVER_BETTER | {"save_strategy": "best", "eval_strategy": when, "max_steps": 12}
    at[asked - 1] = told("SIGUSR1")
    at[end - 1] = told("SIGTERM")
    report = run(f"asked_{when}", **keys)
    assert (report.status, report.steps) == ("ended early", end)
    assert {*saved} == ({2, 6, 7} if when == "steps" else {4, 8})  # the first evaluation is the best so far


def test_a_stop_at_the_best_step_saves_once(place, run, at, saved):
    keys = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1}
    at[1] = told("SIGTERM")
    assert run("once", **keys).status == "ended early"
    assert saved == [2]
    undisturbed, report = run("undisturbed", **keys), run("once", **keys)
    assert losses(report) == losses(undisturbed)
    assert (report.best, report.result_step) == (undisturbed.best, undisturbed.result_step)


def test_a_stop_at_the_best_step_that_ends_an_epoch_saves_once(run, at, saved):
    """Between the ends of the step and of the epoch nothing happens; what is logged there is worth a second time."""
    keys = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "max_steps": 8}
    at[3] = told("SIGTERM")
    assert run("epoch_once", **keys, save_steps=100).steps == 4
    assert saved == [2, 4]
    saved.clear()
    at[3] = told("SIGTERM")
    logged = run("epoch_logged", **keys, save_steps=100, logging_strategy="epoch")
    assert (saved, losses(logged)) == ([2, 4, 4], [pytest.approx(5.7, abs=1)])
    assert len(losses(run("epoch_logged", **keys, save_steps=100, logging_strategy="epoch"))) == 2


@pytest.mark.parametrize("is_best_wanted", [False, True])
def test_a_result_that_is_gone_is_written_again(place, run, caplog, is_best_wanted):
    folder = place / f"gone_{is_best_wanted}"
    keys = {"load_best_model_at_end": is_best_wanted, "metric_for_best_model": "loss", "save_total_limit": 2}
    keys |= {"learning_rate": 0.0} if is_best_wanted else {}  # the first evaluation is the best
    first = run(folder.name, **keys)
    weights = state(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
        again = run(folder.name, **keys)
        assert (again.result_step, losses(again)) == (first.result_step, losses(first))
        assert all(torch.equal(weights[key], tensor) for key, tensor in state(folder).items())
    caplog.clear()
    run(folder.name, **keys)
    assert "nothing to do" in caplog.text
    (folder / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(folder / f"checkpoint-{2 if is_best_wanted else 6}")
    missing = "checkpoint-2, the best" if is_best_wanted else r"not there any more .*model.safetensors.* checkpoint-6"
    for _ in range(2):  # nothing was changed that would let the next launch think otherwise
        with pytest.raises(InputError, match=missing):
            run(folder.name, **keys)


def test_a_run_that_goes_on_beyond_its_early_end_is_not_over_before_the_next_evaluation(place, run, at, monkeypatch):
    keys = NEVER_BETTER | {"early_stopping_patience": 1, "save_steps": 2, "max_steps": 8}
    assert (run("beyond", **keys).steps, run("beyond", **keys).status) == (4, "finished")
    longer = keys | {"max_steps": 20, "extend": True}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingFolder, "wait_for", lambda *rest: os.kill(os.getpid(), signal.SIGTERM))
        report = run("beyond", **longer)
    assert (report.status, report.steps) == ("ended early", 4)
    at[4] = told("SIGTERM")
    report = run("beyond", **longer)
    assert (report.status, report.steps) == ("ended early", 5)
    report = run("beyond", **longer)
    assert (report.status, report.steps, report.result_step) == ("finished", 6, 2)
    for name in ("report.json", "model.safetensors"):
        (place / "beyond" / name).unlink()
    again = run("beyond", **longer)  # the result alone was missing
    assert (again.status, again.steps, again.result_step) == ("finished", 6, 2)
    assert state(place / "beyond")


def test_processes_that_would_wait_for_each_other_are_told_so(place, tiny_dir, run, monkeypatch):
    """Keys that decide nothing of what is computed, but when all processes do something together."""

    def shared(**keys: Any) -> dict[str, Any]:
        return shared_keys(resolved_keys(parse_arguments(None, arguments(place, tiny_dir, "alike", **keys))))

    monkeypatch.setattr(distributed, "gathered", lambda own: [("n1", shared()), own])
    distributed.check_alike(shared(dataloader_num_workers=3, video_backend="pyav", report_to="none"))
    others = {"save_steps": 3, "logging_steps": 2, "eval_steps": 5, "per_device_eval_batch_size": 7, "extend": True}
    for key, other in others.items():
        with pytest.raises(InputError, match=f"was started otherwise than process 0 on n1: {key}: {json.dumps(other)}"):
            distributed.check_alike(shared(**{key: other}))


def test_held_out_sets_are_the_same_in_all_processes(run, monkeypatch):
    facts: list[dict[str, Any]] = []
    monkeypatch.setattr("videochat_online.train.run.check_alike", facts.append)
    monkeypatch.setattr("videochat_online.train.run.set_seed", lambda seed: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("facts")
    assert "set eval_meta_path: other" in facts[0]


def test_one_process_speaks_for_all(caplog):
    ours = logging.getLogger("videochat_online.train.run")
    for speaks in (True, False):
        with distributed.quiet_but_first(speaks=speaks):
            ours.warning("going on %s", speaks)
            ours.error("broken %s", speaks)
    ours.warning("afterwards")
    assert caplog.messages == ["going on True", "broken True", "broken False", "afterwards"]


def test_a_dry_run_counts_checkpoints_of_best_steps(place, tiny_dir, monkeypatch):
    def kept(**keys: Any) -> float:
        every = KEYS | {"eval_meta_path": place / "held/registry.json"} | keys
        found = dry_run(parse_arguments(None, arguments(place, tiny_dir, "planned", **every)))["estimate"]["disk_gib"]
        return found["at_most"] / found["checkpoint"]

    monkeypatch.setattr(disk, "GIB", 1)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "max_steps": 20, "save_steps": 10}
    assert kept(**best, save_total_limit=1) == pytest.approx(3)
    assert kept(**best, eval_steps=5) == pytest.approx(4 + 1 / 3, rel=0.01)
    assert kept(**best | {"save_strategy": "best"}, eval_steps=5, save_total_limit=3) == pytest.approx(4)
    assert kept(save_strategy="no") == pytest.approx(1 + 1 / 3, rel=0.01)
    # Beside adapters checkpoints are of what learns, however much that is: weights, two moments of each, no more.
    adapters = {"freeze_backbone": True, "use_backbone_lora": 2}
    dry = dry_run(parse_arguments(None, arguments(place, tiny_dir, "planned", **adapters)))
    numbers = dry["estimate"]["parameters"]["together"]
    assert numbers["all"] < 2 * numbers["learning"] < 2 * numbers["all"]
    assert dry["estimate"]["disk_gib"]["checkpoint"] == 12 * numbers["learning"]
