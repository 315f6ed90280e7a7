"""Validation during training: its numbers, that training does not notice, and which step becomes the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.integration_utils import rewrite_logs
from transformers.trainer_callback import CallbackHandler

from plot_training import draw
from train_cases import arguments, dialogue, launch, losses, mixed_rows, online_rows, state, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import HeldOutRows, TrainingDataset, load_registries
from videochat_online.data.batches.held_out import leaked_rows
from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.train import TrainReport, dry_run, parse_arguments, train
from videochat_online.train.keys.arguments import RunArguments
from videochat_online.train.loop.throughput import Throughput
from videochat_online.train.loop.validation import Validation, load_held_out
from videochat_online.train.run import make_collator
from videochat_online.train.setup.model_setup import load_texts, make_encoder
from videochat_online.video import normalize

ROOT = Path(__file__).resolve().parents[3]
MISSING = {"video": "none.mp4", "QA": [{"q": "a", "a": "b"}]}
TRACK = {
    "video": "frames",
    "all_image_files": [f"frame{number}.png" for number in (1, 2, 3)],
    "image_bboxes": [{"timestamp": float(number), "bbox": [number, 1, 2, 3]} for number in range(3)],
    "query_template": "What is at <bbox>?",
}
TIMES = ("eval_runtime", "eval_samples_per_second")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media, a registry to train on, and one that is held out: two sets, whose rows divide by nothing."""
    place = tmp_path_factory.mktemp("validation")
    media = write_media(place / "media")
    write_registry(place / "good", media, mixed=mixed_rows())
    asked = [{"conversations": dialogue("Hi.", "Hello there, you.")}, *online_rows(7)[5:]]
    write_registry(place / "held", media, talk=[MISSING, *asked], stills=mixed_rows()[3:4])
    write_registry(place / "lost", media, lost=[MISSING, {"QA": 3}], good=asked)
    texts = [{"conversations": dialogue(f"Number {number}?", f"It is {number}.")} for number in range(8)]
    write_registry(place / "words", media, words=texts[2:])
    write_registry(place / "few", media, seen=texts[2:3], other=texts[:2])
    (place / "none.json").write_text("{}")
    return place


@pytest.fixture(scope="module")
def run(place: Path, tiny_dir: Callable[[str], Path]) -> Callable[..., TrainReport]:
    def start(name: str, **keys: Any) -> TrainReport:
        return train(parse_arguments(None, arguments(place, tiny_dir, name, **keys)))

    return start


def held(place: Path, **keys: Any) -> dict[str, Any]:
    return {"eval_meta_path": place / "held/registry.json", "eval_strategy": "steps", "eval_steps": 2} | keys


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an evaluation, without its place and its times."""
    return {key: value for key, value in entry.items() if key not in (*TIMES, "step", "epoch")}


NOISY = {"max_steps": 5, "drop_path_rate": 0.5, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def curves() -> list[dict[str, Any]]:
    """What wandb and tensorboard are told."""
    return []


@pytest.fixture(scope="module")
def validated(place, run, curves) -> TrainReport:
    on_log = CallbackHandler.on_log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CallbackHandler,
            "on_log",
            lambda self, *rest: (curves.append(rewrite_logs(rest[-1])), on_log(self, *rest))[1],
        )
        return run("validated", **NOISY, **held(place, eval_on_start=True))


def test_training_does_not_notice(place, run, validated):
    plain = run("plain", **NOISY)
    assert losses(validated) == losses(plain)
    assert [entry["step"] for entry in validated.validation] == [0, 2, 4, 5]
    with_it, without = state(place / "validated"), state(place / "plain")
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    # And when it goes on from a checkpoint.
    shutil.copytree(place / "validated", place / "resumed", ignore=shutil.ignore_patterns("report.json", "*-5"))
    again = run("resumed", **NOISY, **held(place, eval_on_start=True))
    assert losses(again) == losses(plain)
    assert list(map(figures, again.validation)) == list(map(figures, validated.validation))


def test_numbers_are_those_of_the_rows_one_by_one(place, validated):
    model = load_model(place / "validated", device="cpu")
    given = parse_arguments(None, arguments(place, lambda kind: place / "validated", "x"))
    encoder = make_encoder(*load_texts(given), given.data)
    entries = load_registries(str(place / "held/registry.json"))
    sums: dict[str, list[float]] = {}
    for entry in entries:
        data = TrainingDataset([entry], encoder)
        for item in (data[row] for row in range(len(data)) if (entry.name, row) != ("talk", 0)):
            ids, labels = torch.tensor([item.input_ids]), torch.tensor([item.labels])
            pixels = {} if item.pixels_TSSC is None else {"pixel_values": normalize(item.pixels_TSSC)}
            with torch.no_grad():
                output = model.network(input_ids=ids, labels=labels, pool_ratios=item.pool_ratios, **pixels)
            target = labels[0, 1:]
            num = int((target != IGNORE_INDEX).sum())
            hits = float((output.logits[0, :-1].argmax(-1) == target).sum())
            for name in (f"eval_{entry.name}", "eval"):
                found = sums.setdefault(name, [0.0, 0.0, 0])
                sums[name] = [found[0] + float(output.loss) * num, found[1] + hits, found[2] + num]
    last = validated.validation[-1]
    for name, (loss, hits, num) in sums.items():
        assert last[f"{name}_tokens"] == num
        assert last[f"{name}_loss"] == pytest.approx(loss / num, rel=1e-5)
        assert last[f"{name}_token_accuracy"] == hits / num
    assert sums["eval_talk"][2] > 2 * sums["eval_stills"][2] > 0
    assert last["eval_rows_skipped"] == 1


def test_what_is_written_down(place, validated, curves):
    report = json.loads((place / "validated" / "report.json").read_text())
    assert report["held_out"] == {"talk": {"rows": 4, "items": 4}, "stills": {"rows": 1, "items": 1}}
    assert report["skipped_held_out"]["by_set"] == {"talk": 1}
    assert "none.mp4" in report["skipped_held_out"]["rows"][0]["reason"]
    assert (report["skipped"]["count"], report["best"], report["result_step"]) == (0, None, 5)
    assert tuple(report["validation"]) == validated.validation
    history = json.loads((place / "validated/checkpoint-5/trainer_state.json").read_text())["log_history"]
    assert [entry for entry in history if "eval_loss" in entry] == report["validation"]
    (told, *_) = [entry for entry in curves if "eval/loss" in entry]
    for figure in ("loss", "token_accuracy", "tokens"):
        assert told[f"eval/talk/{figure}"] == validated.validation[0][f"eval_talk_{figure}"]
    end = next(entry for entry in curves if "train/train_runtime" in entry)
    assert report["seconds"] == end["train/train_runtime"] > 0
    assert end["eval/seconds"] == pytest.approx(sum(e["eval_runtime"] for e in validated.validation), abs=1e-3)
    assert report["steps_per_second"] == pytest.approx(5 / report["seconds"], rel=0.01)


def test_a_picture_of_the_curves(place, validated):
    for folder in (place / "validated", place / "under_way"):
        losses_of, accuracy, rate = draw([folder]).axes
        shown = {line.get_label(): line.get_xydata().tolist() for line in losses_of.lines}
        assert list(shown) == ["training", "held out", "stills", "talk"]
        for label, key in (("held out", "eval_loss"), ("talk", "eval_talk_loss")):
            assert shown[label] == [[entry["step"], entry[key]] for entry in validated.validation]
        assert [step for step, _ in shown["training"]] == [1, 2, 3, 4, 5]
        assert [line.get_label() for line in accuracy.lines] == ["held out", "stills", "talk"]
        assert len(rate.lines[0].get_xydata()) == 5
        # Of a run that has no report yet, the newest checkpoint tells.
        shutil.copytree(
            place / "validated",
            place / "under_way",
            ignore=shutil.ignore_patterns("report.json", "*.pt"),
            dirs_exist_ok=True,
        )
    with pytest.raises(InputError, match="expected report.json or a checkpoint of a run, found neither"):
        draw([place / "media"])


@pytest.mark.parametrize("world", [2, 3, 4])
def test_rows_are_spread_over_processes_each_once(place, validated, monkeypatch, world):
    """As many forward passes on each, and together the very sums of one process."""
    model = load_model(place / "validated", device="cpu")
    given = parse_arguments(None, arguments(place, lambda kind: place / "validated", f"spread{world}", **held(place)))
    encoder = make_encoder(*load_texts(given), given.data)
    rows, collator = HeldOutRows(load_held_out(given), encoder), make_collator(encoder, model.tokenizer)
    given.training.output_dir = str(place / "validated")

    def sums(index: int, size: int) -> torch.Tensor:
        monkeypatch.setattr(RunArguments, "world_size", size)
        monkeypatch.setattr(RunArguments, "process_index", index)
        found: list[torch.Tensor] = []
        calls.append(0)

        def prepare(batch: dict[str, Any]) -> dict[str, Any]:
            calls[-1] += 1
            return batch | {"pixel_values": normalize(batch["pixel_values"])}

        figures = Validation(rows, collator, given.training).evaluate(
            model.network, prepare, lambda sums_N3: found.append(sums_N3) or sums_N3
        )
        assert figures.keys() == {key for key in validated.validation[0] if key not in ("step", "epoch")}
        return found[-1]

    calls: list[int] = []
    alone = sums(0, 1)
    assert torch.equal(sum(sums(index, world) for index in range(world)), alone)
    assert calls == [3, *[-(-3 // world)] * world]
    assert (alone[:, 2] > 0).tolist() == [False, True, True, True, True]
    assert model.network.training is False


def test_a_process_that_cannot_load_its_rows_still_takes_part(place, tiny_dir, monkeypatch):
    """The others would wait for its passes; then all of them end, and it says why."""
    model = load_model(tiny_dir("phi3"), device="cpu")
    given = parse_arguments(None, arguments(place, tiny_dir, "unread", **held(place)))
    encoder = make_encoder(*load_texts(given), given.data)
    rows, collator = HeldOutRows(load_held_out(given), encoder), make_collator(encoder, model.tokenizer)
    validation, calls = Validation(rows, collator, given.training), []

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        calls.append(len(batch["input_ids"]))
        return batch | {"pixel_values": normalize(batch["pixel_values"])}

    # This process tells the others that it skipped nothing; the one below pretends otherwise.
    monkeypatch.setattr(validation._skipped, "add", lambda report: None)
    with pytest.raises(InputError, match="1 other processes could not load held-out rows"):
        validation.evaluate(model.network, prepare, lambda tensor: tensor + 1)
    num_passes = len(calls)
    monkeypatch.setattr(HeldOutRows, "__getitem__", lambda self, number: {}[number])
    with pytest.raises(KeyError):
        validation.evaluate(model.network, prepare, lambda tensor: tensor)
    assert calls[num_passes:] == [1] * num_passes
    assert num_passes == 3


def test_several_processes_find_the_very_same_numbers(place, tiny_dir, validated):
    """Where weights are spread, too, and rows packed in training."""
    keys = held(place, eval_on_start=True, eval_steps=9, max_steps=1, deepspeed=ROOT / "configs/deepspeed/zero3.json")
    keys |= {"packing_tokens": 300, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 2}
    done = launch(arguments(place, tiny_dir, "spread", **keys), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((place / "spread" / "report.json").read_text())
    assert figures(report["validation"][0]) == figures(validated.validation[0])
    assert report["skipped_held_out"]["count"] == 1


def test_nothing_is_drawn_anew(place, run):
    """With weights that stay, whatever would be drawn in training."""
    media = place / "media"
    path = write_registry(place / "drawn", media, rows=[*online_rows(2), TRACK], other=mixed_rows()[:2])
    entries = json.loads(path.read_text())
    entries["rows"] |= {"data_augment": True, "weight": 0.1}
    entries["other"] |= {"weight": 5}
    path.write_text(json.dumps(entries))
    keys = {"learning_rate": 0, "drop_path_rate": 0.5, "sampling_method": "rand", "max_num_frame": 2}
    keys |= held(place, eval_meta_path=path, eval_steps=1) | {"registry": "words"}
    first = run("drawn_a", **keys, max_steps=2)
    other = run("drawn_b", **keys, max_steps=1, seed=9, dataloader_num_workers=1)
    assert [figures(entry) for entry in (*first.validation, *other.validation)] == [figures(first.validation[0])] * 3
    assert "eval_rows_skipped" not in first.validation[0]
    assert {name: count.items for name, count in first.held_out.items()} == {"rows": 3, "other": 2}


WORSE = {
    "max_steps": 8,
    "learning_rate": 0.03,
    "load_best_model_at_end": True,
    "save_strategy": "steps",
    "registry": "words",
}
"""Keys of a run that gets worse after its sixth step."""


def test_the_best_step_becomes_the_result(place, run):
    keys = WORSE | held(place, save_steps=4, save_total_limit=1, eval_meta_path=place / "few/registry.json")
    keys |= {"metric_for_best_model": "other_loss"}
    report = run("best", **keys)
    best = min(report.validation, key=lambda entry: entry["eval_other_loss"])
    assert 0 < best["step"] < 8
    assert report.best == {"metric": "eval_other_loss", "value": best["eval_other_loss"], "step": best["step"]}
    assert report.result_step == best["step"]
    folder = place / "best"
    # Saved although no multiple of save_steps, and kept beside the last one, by which the run could go on.
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{best['step']}", "checkpoint-8"}
    result, saved = state(folder), state(folder / f"checkpoint-{best['step']}")
    assert all(torch.equal(result[name], saved[name]) for name in saved)
    assert any(not torch.equal(result[name], weight) for name, weight in state(folder / "checkpoint-8").items())
    # The result alone is missing; then the last steps are, too.
    for lost in ("none", "checkpoint-8"):
        shutil.rmtree(folder / lost, ignore_errors=True)
        for name in ("report.json", "model.safetensors"):
            (folder / name).unlink()
        again = run("best", **keys)
        assert (again.best, again.result_step, again.steps) == (report.best, report.result_step, 8)
        assert list(map(figures, again.validation)) == list(map(figures, report.validation))
        assert all(torch.equal(weight, saved[name]) for name, weight in state(folder).items())


def test_a_run_ends_early_where_nothing_gets_better(place, run):
    keys = WORSE | held(place, save_steps=1, eval_steps=1, early_stopping_patience=2, max_steps=30)
    keys |= {"metric_for_best_model": "seen_token_accuracy", "learning_rate": 0.0}
    keys |= {"eval_meta_path": place / "few/registry.json"}
    report = run("early", **keys)
    # The first is the best; two more are not better.
    assert (report.status, report.steps, report.result_step) == ("finished", 3, 1)
    assert report.best["metric"] == "eval_seen_token_accuracy"
    (place / "early/report.json").unlink()
    again = run("early", **keys)
    assert (again.steps, again.status, again.result_step) == (3, "finished", 1)
    # Of other rows, another step may be the best.
    other = write_registry(place / "more", place / "media", seen=online_rows(1), other=online_rows(1))
    with pytest.raises(InputError, match="begun with other data: eval_meta_path: other.annotation_sha256 was"):
        run("early", **keys | {"eval_meta_path": other})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_strategy": "no"}, "eval_meta_path: expected eval_strategy steps or epoch beside it, found no"),
        ({"eval_meta_path": ""}, "eval_meta_path: expected the path of a registry of held-out sets, found none"),
        ({"eval_meta_path": ","}, "eval_meta_path: expected the path of a registry, found ','"),
        ({"eval_meta_path": "{place}/none.json"}, "none.json: expected a JSON object with one entry a set, found"),
        ({"eval_meta_path": "{place}/lost/registry.json"}, "eval_meta_path: lost: none of its 2 rows .* row 0: .*none"),
        (
            {"metric_for_best_model": "accuracy"},
            "expected one of eval_loss, eval_token_accuracy, eval_talk_loss, .*'acc",
        ),
        ({"metric_for_best_model": "eval_runtime"}, "metric_for_best_model: expected one of"),
        ({"early_stopping_patience": 2}, "early_stopping_patience: expected load_best_model_at_end beside it"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: expected a number of at least 1, found 0"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size: expected a number of at least 0, found -1"),
        ({"eval_steps": -2}, "eval_steps: expected a number of at least 0, found -2"),
        ({"eval_delay": -1}, "eval_delay: expected a number of at least 0, found -1"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end requires the save and eval strategy to match"),
        (
            {"eval_strategy": "no", "eval_meta_path": "", "save_strategy": "best"},
            "save_strategy best: expected eval_str",
        ),
    ],
)
def test_what_cannot_be_validated_is_said_before_anything_is_written(place, run, keys, message):
    keys = {key: value.format(place=place) if isinstance(value, str) else value for key, value in keys.items()}
    with pytest.raises(InputError, match=message):
        run("refused", **held(place, **keys))
    assert not (place / "refused").exists()


def test_rows_that_are_trained_on_as_well_are_found(place, tiny_dir, tmp_path, caplog):
    media = place / "media"
    text = {"conversations": dialogue("Hello.", "Good day.")}  # also in mixed_rows
    same = {"video": "../media/clip.mp4", "id": 7, "conversations": online_rows(1)[0]["conversations"]}
    other = {"video": "frames", "conversations": online_rows(1)[0]["conversations"]}
    path = write_registry(
        tmp_path, media, new=[other, MISSING, {"QA": 3}], known=[online_rows(9)[8], text, same, TRACK]
    )
    given = parse_arguments(None, arguments(place, tiny_dir, "leak", **held(place, eval_meta_path=path)))
    encoder = make_encoder(*load_texts(given), given.data)
    rows = HeldOutRows(load_registries(str(path)), encoder)
    training = load_registries(str(place / "good/registry.json"))
    assert leaked_rows(rows, TrainingDataset(training, encoder)) == [("known", 1), ("known", 2)]
    assert len(leaked_rows(rows, TrainingDataset(load_registries(str(path)), encoder))) == 6
    dry_run(given)
    assert "2 of 7 held-out rows are also in the training sets" in caplog.text


def test_a_dry_run_says_what_validation_costs(place, tiny_dir, capsys):
    keys = {"max_steps": 9, "eval_on_start": True, "eval_delay": 3}
    given = parse_arguments(None, arguments(place, tiny_dir, "dry", **held(place, **keys)))
    found = dry_run(given)
    cost = found["validation"]
    assert (cost["rows"], cost["evaluations"]) == (5, 5)  # 0, 4, 6, 8, 9
    assert found["held_out"]["talk"]["tried"] == 4
    assert found["held_out"]["talk"]["unusable"][0]["row"] == 0
    # Forward alone, and about as many tokens a row: a third of an epoch of training for as many tokens.
    seen = 9 * 2 * found["estimate"]["tokens_of_a_sample"]["mean"]
    assert cost["part_of_training"] == pytest.approx(5 * cost["tokens"] / seen / 3, rel=0.2)
    lost = arguments(place, tiny_dir, "dry", **held(place, eval_meta_path=place / "lost/registry.json"))
    assert main(["train", *lost, "--dry_run"]) == 2
    assert "error: lost: none of the rows that were tried can be used" in capsys.readouterr().err


def test_time_of_validation_is_no_time_of_training(tiny_model, monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("videochat_online.train.loop.throughput.time.perf_counter", lambda: next(clock))
    throughput = Throughput(tiny_model.network, torch.device("cpu"))
    throughput.add(
        {
            "input_ids": torch.ones(1, 40, dtype=torch.long),
            "labels": torch.ones(1, 40, dtype=torch.long),
            "position_ids": torch.arange(40)[None],
            "pool_ratios": (),
        }
    )
    throughput.pause(6.0)
    assert throughput.take(lambda tensor: tensor)["tokens_per_s"] == 10.0
