"""In what type the gradients of a step's micro-batches are summed, and what a run that was begun another way does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gradient_accumulation import accumulation_error, without_accumulation
from processes import run_program
from train_cases import flags, launch, losses, mixed_rows, write_media, write_registry
from videochat_online.errors import InputError
from videochat_online.train import dry_run, parse_arguments, train
from videochat_online.train.folder.training_folder import TrainingFolder
from videochat_online.train.keys.deepspeed_plan import deciding_keys, resolve_plan

PLANS = Path(__file__).resolve().parents[3] / "configs" / "deepspeed"


def plan(name: str) -> dict:
    return json.loads((PLANS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sums")
    return write_registry(folder, write_media(folder / "media"), mixed=mixed_rows())


@pytest.fixture
def given(tiny_dir, registry, tmp_path):
    def arguments(name: str, **keys):
        paths = {"model_name_or_path": tiny_dir("phi3"), "meta_path": registry, "output_dir": tmp_path / name}
        one_by_one = {"per_device_train_batch_size": 1, "global_batch_size": 8, "bf16": True}
        return flags(**paths | one_by_one | keys)

    return arguments


def write_error():
    """In a process of its own: DeepSpeed leaves a group of processes behind, and what comes after would join it."""
    sys.stdout.write(str(accumulation_error(json.loads(sys.argv[0]), 32)))
    return 0


def error_of(content):
    done = run_program(write_error, [json.dumps(content)])
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.split()[-1])


def launched(command, processes=1):
    """The report of a run in processes of its own."""
    done = launch(command, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((Path(command[command.index("--output_dir") + 1]) / "report.json").read_text())


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_one_gpu", "zero3"])
def test_the_shipped_plans_lose_nothing_of_many_micro_batches(name):
    assert error_of(plan(name)) < 1e-5


def test_without_the_key_much_is_lost():
    assert error_of(without_accumulation(plan("zero2"))) > 2e-3


def test_every_shipped_plan_sums_in_float32(given, monkeypatch):
    for path in PLANS.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["data_types"] == {"grad_accum_dtype": "fp32"}, path.name
        arguments = parse_arguments(None, given("none"))
        monkeypatch.setattr(arguments.training, "deepspeed", content)
        resolved = resolve_plan(arguments.training, 3072)
        assert (resolved.weights, resolved.accumulation) == (2, 4)
        assert resolved.zero.reduce_bucket_size <= 2e8


@pytest.mark.slow
def test_a_step_of_eight_is_eight_times_none_of_them_divided_again(given):
    """ZeRO-1 with sums in float32 divides what the engine gave by the number of micro-batches, if it gets that back."""
    whole = train(parse_arguments(None, given("plain", max_steps=1)))
    for across in (True, False):
        keys = {"deepspeed": PLANS / "zero1.json", "max_steps": 1, "average_tokens_across_devices": across}
        ours = launched(given(f"zero1_{across}", **keys))
        assert ours["losses"][0]["grad_norm"] == pytest.approx(whole.losses[0]["grad_norm"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_train_as_one_does_in_bfloat16(given, stage):
    keys = {"deepspeed": PLANS / f"zero{stage}.json", "max_steps": 2}
    one, two = launched(given("one", **keys)), launched(given("two", **keys), processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
    norms = [[entry["grad_norm"] for entry in report] for report in (two["losses"], one["losses"])]
    assert norms[0] == pytest.approx(norms[1], rel=5e-3)
    assert len({round(loss, 2) for loss in losses(one)}) == 2


def test_a_plan_that_sums_in_bfloat16_is_told_what_it_loses(given, caplog, monkeypatch):
    lossy = json.dumps(without_accumulation(plan("zero2")))
    for text, warned in ((lossy, True), (json.dumps(plan("zero2")), False)):
        caplog.clear()
        found = dry_run(parse_arguments(None, given("none", deepspeed=text)))["estimate"]
        told = [remark for remark in found["remarks"] if "8 micro-batches of a step are summed in half" in remark]
        assert bool(told) == warned
        assert [record.getMessage() for record in caplog.records if record.getMessage() in told] == told
    one_at_once = given("none", deepspeed=lossy, global_batch_size=1)
    assert dry_run(parse_arguments(None, one_at_once))["estimate"]["remarks"] == []


def test_a_run_does_not_go_on_with_another_plan_in_the_same_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(without_accumulation(plan("zero1"))))
    TrainingFolder(tmp_path / "run", {"deepspeed": str(path)}).open({}, {}, None)
    path.write_text(json.dumps(plan("zero1")))
    with pytest.raises(InputError, match=r'deepspeed.data_types.grad_accum_dtype was null, now "fp32"'):
        TrainingFolder(tmp_path / "run", {"deepspeed": str(path)}).check({})
    other = without_accumulation(plan("zero1"))
    other["zero_optimization"] |= {"reduce_bucket_size": 7, "overlap_comm": False}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    TrainingFolder(tmp_path / "run", {"deepspeed": str(path)}).check({})


def test_what_a_plan_decides():
    assert deciding_keys(None) == {}
    keys = deciding_keys(PLANS / "zero3_offload.json")
    assert keys["deepspeed.zero_optimization.stage"] == 3
    assert keys["deepspeed.zero_optimization.offload_param.device"] == "cpu"
    assert keys == deciding_keys(json.dumps(plan("zero3_offload")))
    assert not any(key.endswith(("bucket_size", "pin_memory", "overlap_comm")) for key in keys)
