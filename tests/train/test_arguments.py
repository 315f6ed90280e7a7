from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from videochat_online.errors import InputError
from videochat_online.train import parse_arguments
from videochat_online.train.folder.training_folder import resolved_keys
from videochat_online.train.keys.parsing import GONE, KINDS, describe_keys, read_config
from videochat_online.video import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"output_dir": "out", "model_name_or_path": "model", "meta_path": "registry.json"}


def config(path: Path, text: str = "", **keys: object) -> Path:
    path.write_text(yaml.safe_dump(NEEDED | keys) + text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = config(tmp_path / "c.yaml", learning_rate=1e-4, max_num_frame=16)
    arguments = parse_arguments(path, ["--max_num_frame", "8"])
    assert arguments.data.max_num_frame == 8
    assert arguments.training.learning_rate == 1e-4
    assert arguments.data.sampling_method == "fps1"
    assert parse_arguments(path).data.max_num_frame == 16


def test_both_spellings_of_a_key(tmp_path):
    path = config(tmp_path / "c.yaml", **{"max-num-frame": 16})
    assert parse_arguments(path).data.max_num_frame == 16
    for flag in ("--max-num-frame", "--max_num_frame"):
        assert parse_arguments(path, [flag, "4"]).data.max_num_frame == 4
        assert parse_arguments(path, [f"{flag}=4"]).data.max_num_frame == 4


def test_objects(tmp_path):
    path = config(tmp_path / "c.yaml", liger_kernel_config={"rope": False})
    assert parse_arguments(path).training.liger_kernel_config == {"rope": False}
    given = parse_arguments(path, ["--liger_kernel_config", '{"swiglu": true}'])
    assert given.training.liger_kernel_config == {"swiglu": True}
    with pytest.raises(InputError, match=r"liger_kernel_config: expected a JSON object, found .\[1\]"):
        parse_arguments(config(tmp_path / "d.yaml", "liger_kernel_config: '[1]'"))


def test_values_get_the_type_of_their_key(tmp_path):
    text = "learning_rate: 1e-4\nwarmup_steps: .03\nbf16: 'false'\nfreeze_llm: yes\nmax_num_frame: '12'\n"
    text += "reverse_memory_sample_ratio: [4, 2, 1]\nuse_thumbnail: true\ndata_seed:\ndrop_path_rate: 0\n"
    text += "lr_scheduler_kwargs: {min_lr: 0.1}\n"
    assert isinstance(yaml.safe_load(text)["learning_rate"], str)  # what makes the conversion needed
    arguments = parse_arguments(config(tmp_path / "c.yaml", text))
    assert (arguments.training.learning_rate, arguments.training.warmup_steps) == (1e-4, 0.03)
    assert (arguments.training.bf16, arguments.training.data_seed) == (False, None)
    assert (arguments.model.freeze_llm, arguments.model.drop_path_rate) == (True, 0.0)
    assert (arguments.data.max_num_frame, arguments.data.use_thumbnail) == (12, True)
    assert arguments.data.reverse_memory_sample_ratio == [4, 2, 1]
    assert arguments.training.lr_scheduler_kwargs == {"min_lr": 0.1}
    assert parse_arguments(None, flags("--freeze_llm")).model.freeze_llm is True


def flags(*more: str) -> list[str]:
    return [part for key, value in NEEDED.items() for part in (f"--{key}", value)] + list(more)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("frezze_llm", True, "unknown key frezze_llm; did you mean freeze_llm"),
        ("learning_rte", 1, "unknown key learning_rte; did you mean learning_rate"),
        ("qqqq", 1, r"unknown key qqqq \(videochat-online train --keys lists all\)"),
        ("warmup_ratio", 0.03, "warmup_ratio does not exist any more: write warmup_steps takes a number below 1"),
        ("group_by_length", True, "write train_sampling_strategy group_by_length"),
        ("evaluation_strategy", "no", "evaluation_strategy does not exist any more: write eval_strategy"),
        ("overwrite_output_dir", True, "overwrite_output_dir does not exist any more: write nothing: a run resumes"),
        ("max_num_frame", "many", "max_num_frame: expected int, found 'many'"),
        ("max_num_frame", [1, 2], r"max_num_frame: expected one value, found the list \[1, 2\]"),
        ("reverse_memory_sample_ratio", ["a"], "reverse_memory_sample_ratio: expected int, found 'a'"),
        ("bf16", "perhaps", "bf16: expected true or false, found 'perhaps'"),
        ("max_num_frame", 0, "max_num_frame: expected a number of at least 1, found 0"),
        ("seed", 2**32, "seed: expected a number below 4,294,967,296, found 4294967296"),
        ("video_backend", "vhs", "video_backend: expected one of auto, pyav, decord, torchcodec, found 'vhs'"),
        ("model_dtype", "int8", "model_dtype: expected one of auto, float32, bfloat16, found 'int8'"),
    ],
)
def test_a_bad_key_or_value_is_named_wherever_it_stands(tmp_path, key, value, message):
    path = config(tmp_path / "c.yaml", **{key: value})
    with pytest.raises(InputError, match=f"c.yaml: {message}" if "expected" in message else message):
        parse_arguments(path)
    if not isinstance(value, list):
        with pytest.raises(InputError, match=key):
            parse_arguments(None, flags(f"--{key}", str(value)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_bad_fraction", "1.5"], "max_bad_fraction: expected a number of at most 1, found 1.5"),
        (["--deepspeed", "none.json"], "deepspeed: expected a JSON file, found none at none.json"),
        (["--deepspeed", '{"a":' * 20_000], 'deepspeed: expected a JSON object, found \'{"a":'),
        (
            ["--global_batch_size", "9"],
            "global_batch_size: expected a multiple of 8, 8 on each of 1 processes, found 9",
        ),
        (["--meta_path="], "meta_path: expected registries of training sets, found none: give --meta_path"),
        (["--report_to", "wandbb"], r"report_to: expected one that is installed \(.*wandb\), found wandbb"),
        (["--lr_scheduler_type", "none"], "lr_scheduler_type.* invalid choice"),
        (["stray.yaml"], "expected --key value, or --config FILE, found 'stray.yaml'"),
        (["--confg", "c.yaml"], "unknown key confg; did you mean config?"),
        (["--dryrun"], "unknown key dryrun; did you mean dry_run?"),
    ],
)
def test_values_that_do_not_fit(more, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(None, flags(*more))


@pytest.mark.parametrize("missing", NEEDED)
def test_what_a_run_cannot_do_without(tmp_path, missing):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in NEEDED.items() if key != missing}))
    with pytest.raises(InputError, match=f"{missing}: expected"):
        parse_arguments(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "expected `key: value` lines, found list"), ("a: [\n", "expected YAML"), ("", "found NoneType")],
)
def test_a_file_that_is_no_config(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="expected a config file, found no readable file"):
        read_config(tmp_path / "none.yaml")


def test_the_global_batch_sets_the_accumulation():
    training = parse_arguments(None, flags("--global_batch_size", "32", "--per_device_train_batch_size", "4")).training
    assert training.gradient_accumulation_steps == 8


def test_resolved_keys_survive_yaml_and_hold_no_secret():
    keys = resolved_keys(parse_arguments(None, flags("--hub_token", "secret", "--learning_rate", "1e-4")))
    assert yaml.safe_load(yaml.safe_dump(keys)) == keys
    assert "secret" not in json.dumps(keys)
    assert (keys["learning_rate"], keys["max_num_frame"], keys["save_strategy"]) == (1e-4, 64, "steps")


def test_the_list_of_keys():
    lines = describe_keys().splitlines()
    assert "max_num_frame: 64  # Most frames of a video." in lines
    assert any(line.startswith("learning_rate: 5e-05  # ") for line in lines)
    assert all(line.startswith("[") or "  # " in line for line in lines)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    keys = read_config(path)
    assert {"output_dir", "model_name_or_path", "meta_path"} <= keys.keys()
    assert "deepspeed" not in keys or Path(keys["deepspeed"]).is_file()
    arguments = parse_arguments(path, ["--deepspeed=", "--bf16", "false"])
    assert arguments.training.deepspeed is None


def test_stage_two_starts_from_the_result_of_stage_one():
    for prefix in ("", "tiny_"):
        first, second = (read_config(ROOT / f"configs/train/{prefix}stage{stage}.yaml") for stage in (1, 2))
        assert second["model_name_or_path"] == first["output_dir"] != second["output_dir"]


def test_the_published_numbers():
    for stage in (1, 2):
        arguments = read_config(ROOT / f"configs/train/stage{stage}.yaml")
        wanted = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "weight_decay": 0.05}
        wanted |= {"global_batch_size": 1024, "num_train_epochs": 1, "bf16": True, "max_seq_length": 32768}
        wanted |= {"max_num_frame": 64, "sampling_method": "fps1", "freeze_backbone": True, "drop_path_rate": 0.1}
        wanted |= {"activation_checkpointing": True, "train_sampling_strategy": "group_by_length"}
        wanted |= {"dynamic_image_size": True, "max_dynamic_patch": 12, "use_thumbnail": True}
        assert {key: arguments[key] for key in wanted} == wanted
        assert not arguments.get("freeze_llm")
        assert not arguments.get("freeze_mlp")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.name)
def test_deepspeed_knows_every_key_of_its_shipped_configs(path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    plan = json.loads(path.read_text(encoding="utf-8"))
    values = {key: value for key, value in plan["zero_optimization"].items() if value != "auto"}
    assert DeepSpeedZeroConfig(**values).stage == int(path.stem[4])


def test_keys_of_the_original_are_keys_or_say_what_stands_for_them():
    document = (ROOT / "docs" / "from_the_original.md").read_text("utf-8")
    table = document.split("## Keys of training")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    known = set(re.findall(r"(?m)^(\w+): ", describe_keys()))
    same = {key for there, here in rows if here.startswith("the same") for key in re.findall(r"--(\w+)", there)}
    gone = {key for there, here in rows if not here.startswith("the same") for key in re.findall(r"--(\w+)", there)}
    assert len(same) > 20
    assert same - known == set()
    assert gone - known - set(GONE) == set()


def test_the_video_backends_of_a_key_are_those_that_there_are():
    assert get_args(KINDS["video_backend"]) == ("auto", *BACKENDS)
