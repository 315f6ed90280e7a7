"""Places that cannot be written, files that are broken or ask for too much: one line, and exit status 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from train_cases import flags, mixed_rows, write_media, write_registry
from videochat_online.cli import main as entry
from videochat_online.cli.main import main
from videochat_online.train import parse_arguments, train
from videochat_online.train.folder.training_folder import resolved_keys


def one_line(capsys: pytest.CaptureFixture[str], *wanted: str) -> None:
    """On stderr, with these words, and without a trace of Python."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 600
    for word in wanted:
        assert word in line


@pytest.mark.parametrize("place", ["/proc/none/out", "file/out", "file"])
@pytest.mark.parametrize(
    "command",
    [["convert", "MODEL", "OUT", "--format", "native"], ["convert", "MODEL", "OUT", "--format", "original"]]
    + [["synthesize", "--output", "OUT", "--seed", "0"], ["train", "--output_dir", "OUT"]],
    ids=lambda command: "_".join(command[::3]),
)
def test_a_folder_that_cannot_be_written_to(tmp_path, tiny_dir, capsys, monkeypatch, command, place):
    """Not even by root: below a file, and where the kernel keeps no files."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    names = {"OUT": place, "MODEL": str(tiny_dir())}
    command = [names.get(part, part) for part in command]
    if command[0] == "train":
        registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), mixed=mixed_rows())
        command += flags(model_name_or_path=tiny_dir(), meta_path=registry)
    assert main(command) == 2
    one_line(capsys, place.partition("/out")[0])
    assert Path("file").read_text() == ""


def test_a_place_that_turns_out_not_to_be_usable(capsys, monkeypatch):
    """Wherever it happens: a full disk is no fault of the program, a broken pipe to a service is."""

    def raise_it(number: int) -> Any:
        raise OSError(number, os.strerror(number), "place")

    ours = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)
    for number, status in (*((number, 2) for number in ours), (errno.ECONNRESET, 1)):
        monkeypatch.setattr(entry, "parse", lambda *_, number=number: raise_it(number))
        assert main(["doctor"]) == status
        assert (
            f"place: expected a place that can be read or written: {os.strerror(number)}" in (capsys.readouterr().err)
            or status == 1
        )


BROKEN = [
    b"",
    b"x",
    b"\x80\x04K",
    b"h\x65.",
    b"PK\x03\x04" + bytes(40),
    b"\x80\x02]q\x00(K\x01e.",
    b"\x80\x02ctorch\nTensor\n.",
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_pickle(tmp_path, tiny_dir, capsys, content):
    shutil.copytree(tiny_dir(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(content)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "native"]) == 2
    one_line(capsys, "pytorch_model.bin: expected")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "vocab_size", 10**12),
        ("text_config", "vocab_size", 10**7),
        ("text_config", "intermediate_size", 10**13),
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "num_key_value_heads", 0),
        ("text_config", "pad_token_id", 10**12),
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "hidden_size", 10**10),
        ("vision_config", "image_size", [28 * 10**7] * 2),
        (None, "image_size", 28 * 10**7),
    ],
)
def test_a_configuration_that_asks_for_terabytes(tmp_path, tiny_dir, capsys, part, key, value):
    shutil.copytree(tiny_dir(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (config[part] if part else config)[key] = value
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "native"]) == 2
    one_line(capsys, "model", "config.json" if part else "image_size")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000 + "]" * 5000,
        "max_steps: " + "[" * 30 + "]" * 30,
        "a: &a [1, 2]\nb: &b [*a, *a]\nseed: [*b, *b]",
        "lr_scheduler_kwargs: &a {x: *a}",
        "seed: 2026-13-45",
        "seed: !!python/object:os.system {}",
        "seed: " + "9" * 5000,
        "max_num_frame: 1000000000000",
        "per_device_train_batch_size: 1000000000000",
        "dataloader_num_workers: 1000000000",
        "use_llm_lora: 1000000000",
        "force_image_size: 280000000",
        "seed: caf\udce9",
    ],
)
def test_a_config_file_that_is_deep_odd_or_asks_for_too_much(tmp_path, capsys, text):
    (tmp_path / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    needed = ["--output_dir", "out", "--model_name_or_path", "model", "--meta_path", "registry.json"]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *needed, "--dry_run"]) == 2
    one_line(capsys)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "tokenizer_config.json"])
def test_a_deep_file_of_a_model(tmp_path, tiny_dir, capsys, name):
    shutil.copytree(tiny_dir(), tmp_path / "model")
    (tmp_path / "model" / name).write_text('{"a":' * 100_000)
    model = str(tmp_path / "model")
    assert main(["convert", model, str(tmp_path / "out"), "--format", "native", "--tokenizer", model]) == 2
    one_line(capsys, name)


def test_a_deep_value_on_the_command_line(capsys):
    deep = '{"a":' * 100_000
    assert main(["train", *flags(model_name_or_path="m", meta_path="r", output_dir="o", lr_scheduler_kwargs=deep)]) == 2
    one_line(capsys, "recursion")


def test_a_deep_registry_or_annotation(tmp_path, capsys):
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert main(["doctor", "--registry", str(deep)]) == 2
    one_line(capsys, "deep.json: expected a registry in JSON")
    assert main(["doctor", "--annotations", str(deep), "--data_root", str(tmp_path)]) == 2
    one_line(capsys, "deep.json: expected a JSON list of rows")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_dir) -> tuple[Path, list[str]]:
    """A folder with a run that has a checkpoint, and its command line."""
    place = tmp_path_factory.mktemp("places")
    registry = write_registry(place / "registry", write_media(place / "media"), mixed=mixed_rows())
    paths = {"model_name_or_path": tiny_dir(), "meta_path": registry, "output_dir": place / "run"}
    keys = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "max_num_frame": 2}
    command = flags(
        **paths | keys, report_to="tensorboard", lr_scheduler_kwargs="{}", accelerator_config='{"even_batches": false}'
    )
    before, here = os.umask(0o027), Path.cwd()
    try:
        os.chdir(place)
        command[command.index("--meta_path") + 1] = "registry/registry.json"
        train(parse_arguments(None, command))
    finally:
        os.umask(before)
        os.chdir(here)
    command[command.index("--meta_path") + 1] = str(registry)
    return place, command


def test_lab_mates_can_read_what_a_run_leaves(finished, tmp_path):
    place, _ = finished
    files = [path for path in (place / "run").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "optimizer.pt", "tokenizer.json", "report.json"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o777 != 0o640} == {}
    assert main(["convert", str(place / "run"), str(tmp_path / "out"), "--format", "original"]) == 0
    mode = (tmp_path / "out").stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {mode}


def test_the_config_of_a_run_can_be_used_again(finished, tmp_path, monkeypatch):
    place, command = finished
    monkeypatch.chdir(tmp_path)  # where the paths of the command line lead nowhere
    again = parse_arguments(place / "run" / "config.yaml", ["--output_dir", str(tmp_path / "again")])
    assert resolved_keys(again) == resolved_keys(parse_arguments(None, command)) | {
        "output_dir": str(tmp_path / "again")
    }
    written = (place / "run" / "config.yaml").read_text()
    assert not {"do_train", "hub_token"} & yaml.safe_load(written).keys()
    assert "(" not in written.replace(str(place), "")
    assert yaml.safe_load(written)["use_cpu"] is False  # nobody asked for it: the file may go where there is a GPU
    assert train(parse_arguments(place / "run" / "config.yaml")).finished  # the very run


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]
)
def test_a_checkpoint_with_a_broken_file(finished, tmp_path, capsys, name):
    place, command = finished
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    state = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    (tmp_path / "run/checkpoint-2/trainer_state.json").write_text(json.dumps(state | {"global_step": 1}))
    (tmp_path / "run/checkpoint-2" / name).write_bytes(b"h\x65.")
    changed = [*command, "--output_dir", str(tmp_path / "run"), "--report_to", "none"]
    assert main(["train", *changed]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "checkpoint-2: expected a checkpoint that can be read" in lines[0]
