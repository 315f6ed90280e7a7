"""Rows that cannot be used, keys that cannot be met, and what a dry run says of them."""

from __future__ import annotations

import json
import random

import pytest
import torch

from train_cases import (
    arguments,
    dialogue,
    flags,
    losses,
    online_rows,
    state,
    write_media,
    write_registry,
)
from videochat_online.cli.main import main
from videochat_online.data import BatchReport, SkippedSample
from videochat_online.errors import InputError
from videochat_online.train import dry_run, parse_arguments
from videochat_online.train.loop.skipped_rows import SkippedLog, read_skipped


def test_a_precision_that_would_be_another_one_is_refused(place, run):
    with pytest.raises(InputError, match="fp16: expected a GPU"):
        run("fp16", fp16=True)
    assert not (place / "fp16").exists()


def test_bad_rows_are_counted_and_listed(place, run, capsys):
    report = run("spoilt", registry="bad", max_bad_fraction=0.2, max_steps=8)
    assert [(row.set_name, row.row) for row in report.skipped] == [("spoilt", 0), ("spoilt", 9)]
    logged = capsys.readouterr().out
    assert "'samples_skipped': '2'" in logged or "'samples_skipped': 2" in logged
    listed = json.loads((place / "spoilt" / "report.json").read_text())["skipped"]
    assert (listed["count"], listed["by_set"]) == (2, {"spoilt": 2})
    assert listed["rows"][0]["reason"].endswith(
        "none.mp4: expected a video file or a folder of frames, found no such file"
    )
    assert listed["rows"][1]["reason"].startswith("QA: expected a list")


def test_too_many_bad_rows_end_the_run(place, run):
    with pytest.raises(InputError, match=r"2 of \d+ samples so far cannot be used, of 16 in all: .*spoilt row"):
        run("hopeless", registry="bad", max_bad_fraction=0.1, max_steps=8)
    assert len(read_skipped(place / "hopeless")) == 2
    assert not (place / "hopeless" / "report.json").exists()


def test_a_batch_of_bad_rows_only_teaches_nothing(place, run, tiny_dir):
    write_registry(place / "worst", place / "media", worst=[{"QA": 3}] * 2)
    report = run("worst_run", registry="worst", max_bad_fraction=1, max_steps=1)
    assert losses(report) == [None]
    before, after = state(tiny_dir("phi3")), state(place / "worst_run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_was_skipped_is_written_once_and_read_back(tmp_path):
    log = SkippedLog(tmp_path, 0, 1000, 0.05)
    odd = SkippedSample("a", 7, "half\ud83d a character, a line\u2028end")
    for skipped in (*(SkippedSample("a", row, "broken") for row in (*range(5), 4)), odd):
        log.add(BatchReport(1, (skipped,)))
    log.add(BatchReport(993, ()))
    assert (log.num_seen, log.num_bad, log.num_skipped) == (1000, 7, 6)
    with (tmp_path / "skipped.0.jsonl").open("a") as file:
        file.write('{"set_name": "a", "ro')
    assert read_skipped(tmp_path) == [*(SkippedSample("a", row, "broken") for row in range(5)), odd]


def test_the_verdict_on_bad_rows_is_fair(tmp_path):
    """Runs whose rows are bad as often as allowed go on; hopeless ones end early; in the end the limit is exact."""

    def ends_at(part: float, num_items: int, allowed: float, seed: int) -> int | None:
        log, draw = SkippedLog(tmp_path, 0, num_items, allowed), random.Random(seed)
        bad = 0
        for seen in range(1, num_items + 1):
            bad += draw.random() < part
            try:
                log.check(seen, bad)
            except InputError:
                return seen
        return None

    assert [ends_at(0.005, 3000, 0.01, seed) for seed in range(40)] == [None] * 40
    assert all(0 < (ends_at(0.2, 3000, 0.01, seed) or 9e9) < 100 for seed in range(40))
    assert ends_at(1.0, 1000, 0.0, 0) == 1
    log = SkippedLog(tmp_path, 0, 100, 0.05)
    log.check(100, 5)
    log.check(10, 5)
    with pytest.raises(InputError, match="6 of 10 samples so far cannot be used, of 100 in all"):
        log.check(10, 6)
    log.check(200, 10)  # a second epoch has as many again
    with pytest.raises(InputError, match="11 of 200 samples"):
        log.check(200, 11)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"meta_path": "none.json"}, "none.json: expected a registry"),
        ({"model_name_or_path": "none"}, "none: expected a model directory with config.json, found nothing"),
        ({"conv_style": "none"}, "unknown template 'none': expected one of"),
        ({"conv_style": "Hermes-2"}, "chat template 'Hermes-2': expected .* to be a token of the tokenizer"),
        ({"sampling_method": "all"}, "sampling_method: expected fpsN"),
        ({"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}, "nothing would learn"),
        ({"unfreeze_vit_layers": 3}, "unfreeze_vit_layers: expected 0 to 2"),
        ({"use_llm_lora": 4}, "use_llm_lora: adapters go into a frozen part: set freeze_llm"),
        ({"force_image_size": 100}, "force_image_size: expected a multiple of 28 pixels"),
        ({"attn_implementation": "fast"}, "attn_implementation: expected one of auto, sdpa, flash_attention_2, eager"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_meta_path: expected the path of a registry of held-out"),
        ({"activation_checkpointing_kwargs": '{"use_reentrant": true}'}, "expected use_reentrant false"),
        ({"train_sampling_strategy": "group_by_length", "packing_tokens": 100}, "packing_tokens: expected train_samp"),
        ({"vit_layer_decay": 0}, "vit_layer_decay: expected a number above 0, found 0.0"),
        ({"mlp_learning_rate": 0}, "mlp_learning_rate: expected a number above 0, found 0.0"),
        ({"save_only_model": True}, "save_only_model: expected False, a run could not go on"),
        ({"drop_path_rate": -1}, "drop_path_rate: expected a number of at least 0, found -1"),
        ({"force_image_size": -56}, "force_image_size: expected a number of at least 1, found -56"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch: expected a number of at least 1, found 0"),
        ({"max_seq_length": 0}, "max_seq_length: expected a number of at least 1, found 0"),
        ({"max_overrun_s": "nan"}, "max_overrun_s: expected a finite number, found nan"),
        ({"cache_frames_mb": "inf"}, "cache_frames_mb: expected a finite number, found inf"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected a number of at least 1, found 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps: expected a number of at least 1, found -1"),
        ({"seed": -1}, "seed: expected a number of at least 0, found -1"),
        ({"learning_rate": "inf"}, "learning_rate: expected a finite number, found inf"),
        ({"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs: expected a number above 0, found 0"),
        ({"packing_tokens": -1}, "packing_tokens: expected a number of at least 0, found -1"),
        (
            {"train_sampling_strategy": "batch_rebalance"},
            "train_sampling_strategy: expected one of random, sequential, ",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(place, run, keys, message):
    with pytest.raises(InputError, match=message):
        run("refused", **keys)
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("lr_scheduler_type", "cosine_with_min_lr"), ("optim", "galore_adamw")]
)  # the first lacks its lowest rate; the second its package, or the layers that it is for
def test_an_optimizer_or_a_schedule_that_cannot_be_had_is_wrong_input(run, key, value):
    with pytest.raises(InputError, match=f"{key}: cannot be set up: "):
        run(f"no_{key}", max_steps=1, **{key: value})


def test_a_dry_run_ends_with_an_error_where_no_row_of_a_set_can_be_used(place, tiny_dir, capsys):
    write_registry(place / "lost", place / "media", good=online_rows(3), lost=[{"QA": 3}] * 20)
    assert main(["train", *arguments(place, tiny_dir, "dry", registry="lost"), "--dry_run"]) == 2
    out, err = capsys.readouterr()
    assert [len(one["unusable"]) for one in json.loads(out)["sets"].values()] == [0, 8]
    assert "warning: lost row 0: QA: expected a list" in err
    assert "error: lost: none of the rows that were tried can be used" in err
    assert main(["train", *arguments(place, tiny_dir, "dry", registry="bad"), "--dry_run"]) == 0
    assert "warning: spoilt row 0:" in capsys.readouterr().err


def test_a_dry_run_of_rows_without_a_word(tmp_path, tiny_dir):
    """Of which nothing but the template is learned: no length is estimated, and none divided by."""
    rows = [{"conversations": dialogue("a", "")}]
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), text=rows)
    keys = {"model_name_or_path": tiny_dir(), "meta_path": registry, "output_dir": tmp_path / "run"}
    assert dry_run(parse_arguments(None, flags(**keys)))["sets"]["text"]["unusable"] == []


def test_a_dry_run_encodes_a_row_of_each_set_and_writes_nothing(place, tiny_dir):
    given = parse_arguments(None, arguments(place, tiny_dir, "dry", registry="bad"))
    described = dry_run(given)["sets"]
    assert (described["good"]["rows"], described["good"]["items"]) == (6, 6)
    assert described["good"]["first_row"]["frames"] > 2
    assert "none.mp4" in described["spoilt"]["first_row"]["problem"]
    assert not (place / "dry").exists()
