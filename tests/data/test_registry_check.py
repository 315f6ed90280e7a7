"""`doctor --registry`: every planted fault is found, by set and row, and good rows are counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import write_clip
from train_cases import dialogue, flags, mixed_rows, online_rows, tiny_encoder, write_media, write_registry
from videochat_online.cli.doctor import doctor_registry
from videochat_online.cli.main import main
from videochat_online.data import SampleEncoder, TrainingDataset, load_registries
from videochat_online.data.batches.registry_check import inspect_sets
from videochat_online.data.batches.training_dataset import SkippedSample
from videochat_online.model import load_model, network_loading
from videochat_online.train import parse_arguments, train

FAULTS = [
    ({"video": "clip.mp4"}, "expected conversations, QA, image_bboxes, messages or prompt/response, found video"),
    ({"video": "none.mp4", "conversations": dialogue("a", "b")}, "none.mp4"),
    ({"video": "cut.mp4", "conversations": dialogue("a", "b")}, "cut.mp4"),
    ({"video": "clip.mp4", "conversations": dialogue("a", "b", "c", "d", times=(2.0, 1.0))}, "timestamps: expected at"),
    ({"video": "clip.mp4", "conversations": dialogue("a", "b", times=(60.0,))}, "expected a time within the video"),
    ({"video": "clip.mp4", "start": 3, "end": 2, "QA": [{"q": "a", "a": "b"}]}, "clip: expected 0 <= start <= end"),
    ({"video": "clip.mp4", "clip": [9, 19], "QA": [{"q": "a", "a": "b"}]}, "clip: expected an end within the video"),
    ({"image": "image0.png", "conversations": dialogue("<image><image>", "b")}, "expected <image> 1 times"),
    ({"image": "clip.mp4", "conversations": dialogue("a", "b")}, "clip.mp4"),
    (
        {
            "video": ".",
            "all_image_files": ["image0.png"],
            "image_bboxes": [{"timestamp": 0.0, "bbox": [0.5, 0.5, 0.9, -0.1]}],
            "query_template": "Follow <bbox>.",
        },
        "image_bboxes 0: expected a box within 0 to 1",
    ),
    (["no object"], "expected a JSON object, found list"),
    ({"video": "empty.mp4", "conversations": dialogue("a", "b")}, "empty.mp4"),
    ({"video": "nothing", "conversations": dialogue("a", "b")}, "nothing: expected"),
    ({"video": "clip.mp4", "conversations": dialogue("caf\xe9", "b")}, "found a row that is not JSON"),
    (
        {"conversations": dialogue("a\ud800", "b")},
        "human: expected Unicode text, without halves of surrogate pairs, found",
    ),
    ({"conversations": dialogue("a", "b" * 1_000_001)}, "gpt: expected a text of at most 1,000,000 characters"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspection")
    media = write_media(folder / "media")
    whole = (media / "clip.mp4").read_bytes()
    (media / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (media / "nothing").mkdir()
    with av.open(str(media / "empty.mp4"), "w") as container:  # a video without a frame
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
    path = write_registry(folder, media, good=mixed_rows(), spoilt=[*(row for row, _ in FAULTS), *online_rows(2)])
    rows = folder / "spoilt.json"
    rows.write_bytes(rows.read_bytes().replace(b"caf\\u00e9", b"caf\xe9"))  # as latin-1 has it
    return path


@pytest.mark.parametrize("num_processes", [0, 2])
def test_every_fault_is_found_and_nothing_else(tiny_model, registry, num_processes):
    told = []
    found = inspect_sets(
        load_registries(str(registry)),
        tiny_encoder(tiny_model),
        num_processes=num_processes,
        on_row=lambda *progress: told.append(progress),
    )
    assert told[-1] == (8 + len(FAULTS) + 2,) * 2
    good, spoilt = found["good"], found["spoilt"]
    assert (good.rows, good.inspected, good.problems) == (8, 8, [])
    assert good.kinds == {"online": 3, "image": 2, "video": 2, "text": 1}
    assert [row for row, _ in spoilt.problems] == list(range(len(FAULTS)))
    for (_, reason), (_, expected) in zip(spoilt.problems, FAULTS, strict=True):
        assert expected in reason
    assert spoilt.kinds == {"online": 2}


def test_training_skips_what_is_found(tiny_model, registry):
    encoder = tiny_encoder(tiny_model)
    data = TrainingDataset(load_registries(str(registry)), encoder)
    skipped = [item for item in map(data.__getitem__, range(len(data))) if isinstance(item, SkippedSample)]
    found = inspect_sets(load_registries(str(registry)), encoder)["spoilt"].problems
    assert [(item.set_name, item.row, item.reason) for item in skipped] == [("spoilt", *problem) for problem in found]


def test_rows_that_spell_tokens_are_good_ones_for_both(tiny_model, registry, tmp_path):
    tokens = [str(token) for token in tiny_model.tokenizer.added_tokens_decoder.values()]
    system = [{"from": "system", "value": " ".join(tokens)}]
    rows = [
        row
        for token in tokens
        for row in (
            {"conversations": [*system, *dialogue(f"What is {token}?", token)]},
            {"image": "image0.png", "conversations": dialogue(f"<image>\n{token}<img></img>", f"a{token}")},
            {"video": "clip.mp4", "conversations": dialogue(token, token, f"{token}?", token, times=(1.0, 1.0))},
        )
    ]
    entries = load_registries(str(write_registry(tmp_path, registry.parent / "media", spelled=rows)))
    encoder = tiny_encoder(tiny_model)
    assert inspect_sets(entries, encoder)["spelled"].problems == []
    data = TrainingDataset(entries, encoder)
    context, end = tiny_model.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<|end|>"])
    for number, row in enumerate(rows):
        example = data[number]
        num_turns = len(row["conversations"]) // 2
        assert example.input_ids.count(end) == 1 + 2 * num_turns
        num_visual = sum((4 // ratio) ** 2 for ratio in example.pool_ratios)
        assert example.input_ids.count(context) == num_visual
        assert example.labels.count(end) == num_turns


def test_a_run_trains_on_the_rest_and_lists_the_same_rows(tiny_dir, registry, tmp_path):
    annotations = {path: path.read_bytes() for path in registry.parent.glob("*.json")}
    paths = {"output_dir": tmp_path / "run", "model_name_or_path": tiny_dir("phi3"), "meta_path": registry}
    limits = {"max_num_frame": 64, "num_train_epochs": 2, "max_steps": -1, "max_bad_fraction": 0.9}
    report = train(parse_arguments(None, flags(**paths | limits)))
    found = inspect_sets(load_registries(str(registry)), tiny_encoder(load_model(tiny_dir("phi3"), device="cpu")))
    assert [(row.set_name, row.row, row.reason) for row in report.skipped] == [
        ("spoilt", *problem) for problem in found["spoilt"].problems
    ]
    assert len(report.skipped) == len(FAULTS)
    assert report.losses[-1]["epoch"] == 2.0
    learned = [entry["loss"] for entry in report.losses if entry["loss"]]
    assert learned[-1] < learned[0] - 1
    assert {path: path.read_bytes() for path in registry.parent.glob("*.json")} == annotations


def test_odd_media_are_told_and_stop_nobody(tiny_dir, registry, tmp_path, capsys):
    media = tmp_path / "media"
    media.mkdir()
    part = write_clip(media / "part.ts").read_bytes()
    (media / "joined.ts").write_bytes(part * 2)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(media / "deep.png")
    pictures = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 99)]
    pictures[0].save(media / "moving.webp", save_all=True, append_images=pictures[1:], lossless=True)
    names = {"video": "joined.ts", "image": "deep.png"}
    rows = [{key: name, "conversations": dialogue("What is it?", "It.")} for key, name in names.items()]
    rows += [{"image": "moving.webp", "conversations": dialogue("What is it?", "It.")}]
    path = write_registry(tmp_path, media, odd=rows)
    report = tmp_path / "report.json"
    assert main(["doctor", "--registry", str(path), "--model", str(tiny_dir("phi3")), "--report", str(report)]) == 0
    notes = {note["row"]: note["note"] for note in json.loads(report.read_text())["odd"]["notes"]}
    assert "the clock jumps from" in notes[0]
    assert "divided by 257" in notes[1]
    assert "only the first picture" in notes[2]
    assert f"odd row 1: warning: {notes[1]}" in capsys.readouterr().out


def test_pictures_are_counted(tiny_model, registry):
    entries = load_registries(str(registry))
    encoder = tiny_encoder(tiny_model)
    data = TrainingDataset(entries[:1], encoder)
    assert inspect_sets(entries[:1], encoder)["good"].num_pictures == sum(
        len(data[number].pool_ratios) for number in range(8)
    )


def test_some_rows_of_each_set(tiny_model, registry):
    found = inspect_sets(load_registries(str(registry)), tiny_encoder(tiny_model), max_rows=3)
    assert [inspection.inspected for inspection in found.values()] == [3, 3]
    again = inspect_sets(load_registries(str(registry)), tiny_encoder(tiny_model), max_rows=3, seed=1)
    assert found["spoilt"].problems != again["spoilt"].problems


def test_the_command(tiny_dir, registry, tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ["doctor", "--registry", str(registry), "--model", str(tiny_dir()), "--processes", "0"]
    assert main([*flags, "--report", str(report)]) == 2
    out, err = capsys.readouterr()
    assert err == f"error: {len(FAULTS)} of {8 + len(FAULTS) + 2} rows cannot be used\n"
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["good", "8", "8", "0"]
    assert lines[2].split()[:4] == ["spoilt", str(len(FAULTS) + 2), str(len(FAULTS) + 2), str(len(FAULTS))]
    assert lines[3].startswith("spoilt row 0: expected conversations")
    assert lines[-1] == f"spoilt: and {len(FAULTS) - 5} more; --report FILE.json lists all"
    content = json.loads(report.read_text())
    assert [problem["row"] for problem in content["spoilt"]["problems"]] == list(range(len(FAULTS)))
    assert main([*flags, "--json", "--max_rows", "1"]) in (0, 2)
    assert set(json.loads(capsys.readouterr().out)) == {"good", "spoilt"}


def test_a_fault_of_the_program_is_a_problem_of_its_row(tiny_model, registry, monkeypatch):
    read = SampleEncoder.read

    def read_no_texts(self, sample, *arguments, **options):
        return {}["x"] if sample.kind == "text" else read(self, sample, *arguments, **options)

    monkeypatch.setattr(SampleEncoder, "read", read_no_texts)
    good = inspect_sets(load_registries(str(registry))[:1], tiny_encoder(tiny_model))["good"]
    assert good.problems == [(5, "a fault of the program: KeyError: 'x'")]


def test_a_set_without_a_usable_row_and_names_that_are_not_utf8(registry, tiny_dir, tmp_path, capsys):
    row = {"image": "caf\udce9.png", "conversations": dialogue("a", "b")}
    lost = write_registry(tmp_path, registry.parent / "media", lost=[row] * 2)
    flags = ["doctor", "--registry", str(lost), "--model", str(tiny_dir()), "--processes", "0"]
    assert main([*flags, "--report", str(tmp_path / "report.json")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "lost: expected rows that can be used, found none among 2"
    assert "caf\\udce9.png: expected an image" in lines[3]
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "caf\udce9.png" in found["lost"]["problems"][0]["reason"]


def test_a_report_that_cannot_be_written_is_said_before_a_row_is_read(registry, tmp_path, monkeypatch, capsys):
    flags = ["doctor", "--registry", str(registry), "--processes", "0", "--max_rows", "1", "--report"]
    with monkeypatch.context() as patch:
        patch.setattr(doctor_registry, "inspect_sets", lambda *_, **__: pytest.fail("rows were read"))
        assert main([*flags, str(tmp_path)]) == 2
        assert "--report: expected a file that can be written" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # the disk is full: what was found is shown all the same
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert main([*flags, str(tmp_path / "new.json")]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[0] == "good"
    assert "new.json (No space left)" in err
    assert not (tmp_path / "new.json").exists()


def test_a_model_of_the_hub(registry, tiny_dir, monkeypatch, capsys):
    """Only its texts are downloaded: frames are as large as its configuration says."""
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns is not None))
        return str(tiny_dir())

    monkeypatch.setattr(network_loading, "snapshot_download", download)
    flags = ["doctor", "--registry", str(registry), "--processes", "0", "--max_rows", "1"]
    assert main([*flags, "--model", "owner/name"]) in (0, 2)
    assert asked == [("owner/name", True)]
    assert capsys.readouterr().out.startswith("set ")


def test_a_file_of_another_layout_or_a_folder_that_is_missing_stops_its_own_set_only(
    registry, tiny_dir, tmp_path, capsys
):
    rows = [row | {"id": number, "source": "x"} for number, row in enumerate(mixed_rows())]
    path = write_registry(tmp_path, registry.parent / "media", table=[], good=rows, gone=rows, empty=rows)
    (tmp_path / "table.json").write_text("video,question\n")
    content = json.loads(path.read_text())
    content["gone"]["data_root"], content["empty"]["annotation"] = "none", "none.json"
    path.write_text(json.dumps(content))
    command = ["doctor", "--registry", str(path), "--model", str(tiny_dir()), "--processes", "0"]
    assert main([*command, "--report", str(tmp_path / "report.json")]) == 2
    out, err = capsys.readouterr()
    assert "table: " in out
    assert "table.json: expected rows, found none in the first 1" in out
    assert "gone: data_root: expected a folder, found none at" in out
    assert "empty: annotation: expected a file, found none at" in out
    assert "good: warning: keys that are not read: id (8), source (8)" in out
    assert err == "error: table, gone, empty: expected sets that can be read\n"
    found = json.loads((tmp_path / "report.json").read_text())
    assert [(one["inspected"], one["problem"] is None) for one in found.values()] == [(0, False), (8, True)] + [
        (0, False)
    ] * 2
    assert found["good"]["unread_keys"] == {"id": 8, "source": 8}
    told = train(parse_arguments(None, run_flags(tmp_path, tiny_dir, registry, rows)))
    assert told.unread_keys == {"good": {"id": 8, "source": 8}}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["unread_keys"] == told.unread_keys


def run_flags(place, tiny_dir, registry, rows) -> list[str]:
    alone = write_registry(place / "alone", registry.parent / "media", good=rows)
    paths = {"output_dir": place / "run", "model_name_or_path": tiny_dir("phi3"), "meta_path": alone}
    return flags(**paths, max_steps=1)


def test_good_sets_pass(registry, tiny_dir, tmp_path, capsys):
    good = write_registry(tmp_path, registry.parent / "media", good=mixed_rows())
    assert main(["doctor", "--registry", str(good), "--model", str(tiny_dir()), "--processes", "0"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_rows", "0"], "--max_rows: expected at least 1, got 0"),
        (["--processes", "-1"], "--processes: expected 0 or more, got -1"),
        (["--report", "none/report.json"], "--report: expected a file in a folder that is there, got none/report.json"),
        (["--sampling_method", "all"], "sampling_method: expected fpsN"),
        (["--model", "none"], "none: expected a model directory with config.json, found nothing"),
        (["--registry", ""], "meta_path: expected the path of a registry, found ''"),
        (["--registry", "none.json"], "none.json: expected a registry, found no readable file"),
    ],
)
def test_wrong_flags(registry, capsys, flags, message):
    assert main(["doctor", "--registry", str(registry), "--processes", "0", *flags]) == 2
    assert message in capsys.readouterr().err
