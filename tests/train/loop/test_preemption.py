"""Runs that are told to save or to end, fill the disk, or go on beyond their end."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from train_cases import arguments, launch, losses, state, write_good_and_bad
from videochat_online.cli.convert import all_or_nothing
from videochat_online.cli.main import main
from videochat_online.data import BatchReport, SkippedSample
from videochat_online.errors import InputError
from videochat_online.train import TrainReport, distributed, dry_run, parse_arguments, train
from videochat_online.train.folder import checkpoints, disk
from videochat_online.train.folder.checkpoints import last_checkpoint, rotate
from videochat_online.train.folder.training_folder import TrainingFolder
from videochat_online.train.loop.nonfinite_guard import FiniteLosses
from videochat_online.train.loop.preemption import NOTHING, SAVE, STOP, Requests, ignore_signals_to_all
from videochat_online.train.loop.skipped_rows import SkippedLog
from videochat_online.train.loop.trainer import OnlineTrainer

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
# Four steps an epoch, with noise of the trainer's own random numbers.
KEYS = {"max_steps": 6, "drop_path_rate": 0.5, "save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media and registries; runs go beside them."""
    return write_good_and_bad(tmp_path_factory.mktemp("preemption"))


@pytest.fixture(scope="module")
def run(place: Path, tiny_dir: Callable[[str], Path]) -> Callable[..., TrainReport]:
    """Train in this process; keys as `flags` takes them."""
    return lambda name, **keys: train(parse_arguments(None, arguments(place, tiny_dir, name, **KEYS | keys)))


@pytest.fixture(scope="module")
def whole(run) -> TrainReport:
    return run("whole")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = state(one), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_is_told_to_end_goes_on_as_if_nothing_had_happened(place, run, whole, tiny_dir, at, saved, capsys):
    """By a signal, by the file, and at the end of an epoch where a checkpoint is due anyway."""
    folder, by_epoch = place / "told", {"save_strategy": "epoch"}
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    at[1] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert main(["train", *arguments(place, tiny_dir, "told", **KEYS | by_epoch)]) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "ended early"
    report = json.loads((folder / "report.json").read_text())
    assert (report["finished"], report["status"], report["steps"]) == (False, "ended early", 2)
    at[2] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    at[3] = lambda: (folder / "SAVE").write_text("stop\n")
    assert run("told", **by_epoch).status == "ended early"
    assert not (folder / "SAVE").exists()
    assert not (folder / "model.safetensors").exists()
    at[5] = lambda: os.kill(os.getpid(), signal.SIGTERM)  # in the last step: what is left is the result
    report = run("told", **by_epoch)
    assert (report.status, losses(report)) == ("finished", losses(whole))
    assert same_weights(folder, place / "whole")
    assert saved == [2, 3, 4, 6]
    launches = json.loads((folder / "run.json").read_text())["launches"]
    assert [launched["resumed_from"] for launched in launches] == [None, "checkpoint-2", "checkpoint-4"]
    assert {name: signal.getsignal(name) for name in handlers} == handlers
    assert run("told", **by_epoch) == report


def test_whoever_may_enter_a_run_s_folder_may_read_it(place, run, whole, at):
    """Libraries write some files for their owner alone; of a run that was ended, too."""
    at[0] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    run("shared")
    for name, written in (("whole", {"model.safetensors", "report.json"}), ("shared", {"optimizer.pt", "report.json"})):
        wanted = (place / name).stat().st_mode & 0o444
        files = [file for file in (place / name).rglob("*") if file.is_file()]
        assert written <= {file.name for file in files}
        assert [file for file in files if file.stat().st_mode & 0o444 != wanted] == []


def test_a_file_of_that_name_in_another_folder_is_left(place, run):
    folder = place / "thesis"
    folder.mkdir()
    (folder / "SAVE").write_text("the whales")
    with pytest.raises(InputError, match="found 1 other files"):
        run("thesis")
    assert (folder / "SAVE").read_text() == "the whales"


def test_what_is_asked_before_the_first_step_ends_the_run_there(place, run, monkeypatch, saved, whole):
    def ended(name: str) -> TrainReport:
        monkeypatch.setattr(TrainingFolder, "wait_for", lambda *rest: os.kill(os.getpid(), signal.SIGTERM))
        report = run(name)
        monkeypatch.setattr(TrainingFolder, "wait_for", lambda *rest: None)
        return report

    report = ended("early")
    assert (report.status, report.steps, saved) == ("ended early", 0, [])
    assert losses(run("early")) == losses(whole)


def test_a_mean_over_steps_that_a_stop_divides_is_that_of_an_undisturbed_run(run, at, monkeypatch):
    undisturbed = run("means", logging_steps=3)
    at[1] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert run("divided", logging_steps=3).losses == ()
    report = run("divided", logging_steps=3)
    assert losses(report) == losses(undisturbed)
    assert [entry["step"] for entry in report.losses] == [3, 6]


@pytest.mark.slow
def test_any_of_two_processes_ends_both(place, tiny_dir):
    plan = ROOT / "configs/deepspeed/zero2.json"
    keys = {"deepspeed": plan, "per_device_train_batch_size": 1, "save_strategy": "no", "max_steps": 3}
    told, whole = (arguments(place, tiny_dir, name, **keys) for name in ("both", "both_whole"))
    ended = launch(told, processes=2, DO="os.kill(os.getpid(), signal.SIGTERM)", DO_AT_STEP="1", DO_ON_RANK="1")
    assert ended.returncode == 3, ended.stderr[-3000:]
    assert last_checkpoint(place / "both") == place / "both" / "checkpoint-2"
    for command in (told, whole):
        done = launch(command, processes=2)
        assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads((place / name / "report.json").read_text()) for name in ("both", "both_whole")]
    assert losses(reports[0]) == losses(reports[1])


def test_processes_that_were_started_otherwise_say_so(place, tiny_dir):
    command = arguments(place, tiny_dir, "alike")
    done = launch(command, processes=2, KEYS_OF_RANK_1="--learning_rate 0.5")
    assert done.returncode == 2
    assert "was started otherwise than process 0 on" in done.stderr
    assert "learning_rate: 0.5, there 0.001" in done.stderr
    assert not (place / "alike" / "run.json").exists()
    other = ["--output_dir", str(place / "unshared")]
    done = launch(command, processes=2, KEYS_OF_RANK_1=" ".join(other), SEEN_WITHIN_S="0.1")
    assert done.returncode == 2
    assert "unshared: expected the folder that process 0 writes to" in done.stderr


def test_requests_of_signals_files_and_the_clock(tmp_path, monkeypatch, caplog):
    (tmp_path / "SAVE").write_text("stop")
    monkeypatch.setenv("SAVE_FILE", str(tmp_path / "other"))
    with Requests(tmp_path, rank=0) as requests:
        requests.forget_earlier()
        assert "SAVE: removed; it is from before this launch" in caplog.text
        assert requests.agreed(CPU) == NOTHING
        for kind, name in ((SAVE, "SIGUSR1"), (STOP, "SIGTERM"), (STOP, "SIGINT")):
            os.kill(os.getpid(), getattr(signal, name))
            assert [requests.agreed(CPU), requests.agreed(CPU)] == [kind, NOTHING]
        for file, word, kind in (("SAVE", "", SAVE), ("other", "Stop\n", STOP), ("SAVE", "save", SAVE)):
            (tmp_path / file).write_text(word)
            assert [requests.agreed(CPU), requests.agreed(CPU)] == [kind, NOTHING]
        with requests.writing():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert requests.agreed(CPU) == STOP
        (tmp_path / "SAVE").write_text("")
        monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(OSError(1, "no")))
        assert [requests.agreed(CPU), requests.agreed(CPU)] == [SAVE, NOTHING]
    now = [0.0]
    monkeypatch.setattr("videochat_online.train.loop.preemption.time.monotonic", lambda: now[0])
    timed = Requests(tmp_path / "timed", rank=0, save_minutes=2)
    asked = []
    for now[0] in (119.0, 120.0, 121.0):
        asked.append(timed.agreed(CPU))
    timed.saved()
    asked.append(timed.agreed(CPU))
    assert asked == [NOTHING, SAVE, SAVE, NOTHING]
    now[0] = 500.0
    assert Requests(tmp_path, rank=1, save_minutes=2).agreed(CPU) == NOTHING  # one clock, one look at the disk


def test_signals_that_nobody_heeds_stay_as_they_are(tmp_path, caplog):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Requests(tmp_path, rank=0):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere() -> None:
        with Requests(tmp_path, rank=0) as requests:
            (tmp_path / "SAVE").write_text("stop")
            asked.append(requests.agreed(CPU))

    asked: list[int] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == [STOP]
    assert "outside the main thread: signals are not heeded" in caplog.text


def test_processes_that_load_outlive_a_signal_to_all(monkeypatch):
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    seen: list[int] = []
    ignore_signals_to_all(seen.append, 3)
    assert {*handlers.values()} == {signal.SIG_IGN}
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} == handlers.keys()
    assert seen == [3]


def test_a_signal_to_all_processes_of_a_job_ends_no_loader(run, whole, at):
    """Slurm sends SIGTERM to them all, torchrun to all that its workers have started."""

    def to_all() -> None:
        loaders.extend(multiprocessing.active_children()[-1:])
        # By another process: a loader takes it for its end when it comes from the one that trains.
        subprocess.run(["kill", "-TERM", str(loaders[-1].pid), str(os.getpid())], check=True)

    loaders: list[Any] = []
    for step in (1, 2):  # the second loader skips what was trained on
        at[step] = to_all
        assert run("loading", dataloader_num_workers=1).status == "ended early"
    assert len({loader.pid for loader in loaders}) == 2
    assert losses(run("loading", dataloader_num_workers=1)) == losses(whole)


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Writing fails beyond so many bytes of a file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_estimate(command: list[str], checkpoint: Path) -> None:
    parameters = json.loads((checkpoint.parent / "report.json").read_text())["parameters"]
    is_whole = not (checkpoint / "learned.safetensors").exists()
    estimate = disk.checkpoint_bytes(parameters, parse_arguments(None, command).training, is_whole=is_whole)
    assert estimate == pytest.approx(disk.folder_bytes(checkpoint), rel=0.1)


def test_a_disk_that_fills_up_under_a_tokenizer(tmp_path, tiny_model, small_files):
    """Its library raises what names neither a place nor a kind of error."""
    for place in (disk.writing(tmp_path / "out", 1, None), all_or_nothing(tmp_path / "out")):
        small_files(1000)
        with pytest.raises(InputError, match=r"out: (could not|cannot) be written.*File too large"), place:
            tiny_model.tokenizer.save_pretrained(tmp_path / "out")
        small_files(resource.RLIM_INFINITY)
    for place in (disk.writing(tmp_path / "out", 1, None), all_or_nothing(tmp_path / "out")):
        with pytest.raises(KeyError), place:
            raise KeyError("a fault of the program")


@pytest.mark.parametrize(("size", "error"), [(500_000, "SafetensorError"), (1_500_000, "RuntimeError")])
def test_a_disk_that_fills_up_ends_a_run_that_goes_on_later(place, run, tiny_dir, at, small_files, size, error):
    """While weights are written, or the optimizer's state."""
    folder, keys = place / f"full_{size}", {"max_steps": 3, "save_steps": 1}
    at[1] = lambda: small_files(size)
    message = rf"checkpoint-2: could not be written \({error}.*it takes about .* are free"
    with pytest.raises(InputError, match=message) as found:
        run(folder.name, **keys)
    assert "after checkpoint-1, which is kept" in str(found.value)
    small_files(resource.RLIM_INFINITY)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    report = run(folder.name, **keys)
    assert (report.status, report.steps) == ("finished", 3)
    check_estimate(arguments(place, tiny_dir, folder.name), folder / "checkpoint-3")


@pytest.mark.slow
def test_a_disk_that_fills_up_under_deepspeed(place, tiny_dir, monkeypatch):
    folder, plan = place / "full_zero2", ROOT / "configs/deepspeed/zero2.json"
    command = arguments(place, tiny_dir, folder.name, deepspeed=plan, max_steps=3, save_strategy="steps", save_steps=1)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))"
    full = launch(command, DO=limit, DO_AT_STEP="1")
    assert full.returncode == 2, full.stderr[-3000:]
    assert "full_zero2/checkpoint-2: could not be written (RuntimeError" in full.stderr
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    done = launch(command)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    check_estimate(command, folder / "checkpoint-3")


def test_a_run_that_diverges_in_its_extension_leaves_the_model(place, run, whole, monkeypatch):
    run("diverging", max_steps=4)
    model = (place / "diverging" / "model.safetensors").read_bytes()

    def check_end(self: FiniteLosses, reduce: Any) -> None:
        raise InputError("the run has diverged")

    monkeypatch.setattr(FiniteLosses, "check_end", check_end)
    with pytest.raises(InputError, match="the run has diverged"):
        run("diverging", extend=True)
    assert (place / "diverging" / "model.safetensors").read_bytes() == model


def test_a_result_that_does_not_fit_is_written_later(place, run, monkeypatch, small_files, whole):
    save = OnlineTrainer.save_model

    def into_a_full_disk(self, folder, **options):
        small_files(500_000 if "checkpoint" not in folder else resource.RLIM_INFINITY)
        save(self, folder, **options)

    monkeypatch.setattr(OnlineTrainer, "save_model", into_a_full_disk)
    with pytest.raises(InputError, match="result: could not be written"):
        run("result")
    small_files(resource.RLIM_INFINITY)
    monkeypatch.setattr(OnlineTrainer, "save_model", save)
    assert not (place / "result" / "model.safetensors").exists()
    assert losses(run("result")) == losses(whole)
    assert same_weights(place / "result", place / "whole")


def test_too_little_room_is_noticed_before_anything_is_written(place, run, monkeypatch, at):
    usage = disk.shutil.disk_usage
    at[1] = lambda: monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(InputError, match=r"checkpoint-2: expected room for \d.* MB, found 1.0 kB free; .*checkpoint-1"):
        run("tight", max_steps=3, save_steps=1)
    assert [path.name for path in (place / "tight").glob("checkpoint-*")] == ["checkpoint-1"]


def test_small_files_are_whole_or_as_they_were(tmp_path, small_files):
    folder = TrainingFolder(tmp_path, {})
    folder.write_json("report.json", {"steps": 1})
    small_files(1000)
    with pytest.raises(InputError, match=r"report.json: could not be written: File too large"):
        folder.write_json("report.json", {"text": "long" * 1000})
    odd = BatchReport(1, (SkippedSample("a", 1, "long" * 1000),))
    with pytest.raises(InputError, match=r"skipped.0.jsonl: could not be written: File too large"):
        SkippedLog(tmp_path, 0, 10, 0.5).add(odd)
    assert json.loads((tmp_path / "report.json").read_text()) == {"steps": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "skipped.0.jsonl"}


def test_old_checkpoints_go_mark_first(tmp_path, monkeypatch):
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "complete.json").write_text("{}")
    rotate(tmp_path, None)
    rotate(tmp_path, 3)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda folder, **options: None)  # as if killed here
    rotate(tmp_path, 2)
    assert not (tmp_path / "checkpoint-9" / "complete.json").exists()
    assert last_checkpoint(tmp_path, before=11) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path, before=10) is None


def test_a_finished_run_is_extended_when_that_is_asked_for(place, run, whole):
    short = run("longer", max_steps=4)
    with pytest.raises(InputError, match=r"max_steps was 4, now 6. Choose another output_dir; `--extend True` goes on"):
        run("longer")
    with pytest.raises(InputError, match="max_steps was 4, now 3"):
        run("longer", max_steps=3, extend=True)
    assert run("longer", max_steps=4, extend=True) == short
    longer = run("longer", extend=True)
    assert (longer.steps, losses(longer)) == (6, losses(whole))
    assert same_weights(place / "longer", place / "whole")
    assert run("longer", extend=True) == longer == run("longer")


def test_an_extension_follows_the_schedule_of_the_new_length(place, run, at):
    keys = {"max_steps": -1, "lr_scheduler_type": "linear"}
    run("epochs", num_train_epochs=1, **keys)
    at[4] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    more = run("epochs", num_train_epochs=2, extend=True, **keys)
    assert more.status == "ended early"
    assert json.loads((place / "epochs" / "report.json").read_text())["finished"] is False
    rates = [entry["learning_rate"] for entry in run("epochs", num_train_epochs=2, extend=True, **keys).losses]
    assert rates == pytest.approx([1e-3 * part for part in (1, 3 / 4, 2 / 4, 1 / 4, 4 / 8, 3 / 8, 2 / 8, 1 / 8)])


def test_an_extension_needs_the_last_checkpoint(run):
    run("unsaved", max_steps=2, save_strategy="no")
    with pytest.raises(InputError, match="extend: expected checkpoint-2, of the last step, to go on from, found none"):
        run("unsaved", max_steps=3, extend=True)


def test_processes_agree_before_one_of_them_fails():
    other_is_spoilt = lambda counts: counts + torch.tensor([0, 1])  # noqa: E731
    with pytest.raises(InputError, match="batches in a row had no finite loss"):
        FiniteLosses(torch.nn.Linear(1, 1)).take(other_is_spoilt)
    with pytest.raises(InputError, match="batches in a row had no finite loss"):
        FiniteLosses(torch.nn.Linear(1, 1)).check_end(lambda tensor: tensor + 1)


def test_what_another_process_could_not_do_is_said_by_all(monkeypatch):
    monkeypatch.setattr(distributed, "gathered", lambda value: [None, ("node7", "no such file"), value])
    with pytest.raises(InputError, match="^process 1 on node7: no such file$"), distributed.fail_together():
        pass
    with pytest.raises(ZeroDivisionError), distributed.fail_together():
        1 / 0  # noqa: B018


def test_a_loader_that_fails_ends_every_process(run, monkeypatch):
    reduce = OnlineTrainer.reduce
    others = {(3,): torch.tensor([0, 0, 1])}
    monkeypatch.setattr(OnlineTrainer, "reduce", lambda self, own: reduce(self, own) + others.get(tuple(own.shape), 0))
    with pytest.raises(InputError, match="1 other processes could not load their batches"):
        run("failing", max_steps=1)


def test_a_dry_run_says_what_the_disk_must_hold(place, tiny_dir, tmp_path, monkeypatch):
    def estimate(**keys: Any) -> dict[str, float]:
        command = arguments(place, tiny_dir, "planned", **KEYS | keys)
        return dry_run(parse_arguments(None, command))["estimate"]["disk_gib"]

    monkeypatch.setattr(disk, "GIB", 1)
    one = estimate(max_steps=20, save_steps=2, save_total_limit=2)
    assert one["at_most"] == 3 * one["checkpoint"]
    assert estimate(max_steps=20, save_steps=2)["at_most"] == pytest.approx((10 + 1 / 3) * one["checkpoint"], rel=0.01)
    assert one["free_now"] > 0


def test_what_transformers_has_for_it_changes_nothing(place, tiny_dir, run, caplog):
    command = arguments(place, tiny_dir, "jit", enable_jit_checkpoint=True)
    assert parse_arguments(None, command).training.enable_jit_checkpoint is False
    with pytest.raises(InputError, match="save_on_each_node: expected False"), caplog.at_level(logging.INFO):
        run("each", save_on_each_node=True)
