"""Several processes, the shell scripts, and the registries that ship."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from train_cases import flags, launch_by_torchrun, mixed_rows, write_media, write_registry
from videochat_online.cli.main import main
from videochat_online.data import load_registries, parse_row
from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.train import distributed, parse_arguments, train
from videochat_online.train.folder.training_folder import TrainingFolder
from videochat_online.train.keys.parsing import read_config

ROOT = Path(__file__).resolve().parents[2]
STAGES = [ROOT / f"shell/online_4b/videochat_online_4b_stage{stage}_ft.sh" for stage in (1, 2)]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, tiny_dir, monkeypatch):
    # DeepSpeed would compile something here, or wait for somebody who was killed while compiling.
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    registry = write_registry(tmp_path / "registry", write_media(tmp_path / "media"), mixed=mixed_rows())
    keys = {"model_name_or_path": tiny_dir("phi3"), "meta_path": registry, "max_steps": 3}
    one = train(parse_arguments(None, flags(**keys, output_dir=tmp_path / "one", per_device_train_batch_size=8)))
    # One row at a time: in some micro-batches one process has a text and no frame, the other a video.
    plan = ROOT / "configs/deepspeed/zero2.json"
    done = launch_by_torchrun(
        flags(
            **keys,
            output_dir=tmp_path / "two",
            per_device_train_batch_size=1,
            global_batch_size=8,
            deepspeed=plan,
        ),
        processes=2,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 3
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    for ours, theirs in zip(two["losses"], one.losses, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4
    load_model(tmp_path / "two", device="cpu")


@pytest.fixture
def torchrun(tmp_path, monkeypatch):
    """A torchrun that writes down how it was called, and exits with status 3; the package's own command, too."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("torchrun", "videochat-online", "python"):
        planned = '${PLANNED_PROCESSES:+"$PLANNED_PROCESSES processes"}'
        (programs / name).write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\n" "$PWD" {planned} "$@" >"{tmp_path}/called"\nexit 3\n'
        )
        (programs / name).chmod(0o755)
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("GPUS", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)

    def call(script: Path, *arguments: str, **variables: str) -> list[str]:
        environment = os.environ | {"PATH": f"{programs}:/usr/bin:/bin"} | variables
        done = subprocess.run(["bash", script, *arguments], env=environment, cwd=tmp_path, capture_output=True)
        assert done.returncode == 3, done.stderr  # the status of what it runs
        return (tmp_path / "called").read_text().splitlines()

    return call


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_script_launches_its_config_and_passes_arguments_on(torchrun, tmp_path, stage):
    folder, *called = torchrun(STAGES[stage - 1], "--seed", "3", "--run_name", "two words", GPUS="4")
    assert folder == str(tmp_path)  # relative paths among the arguments are the caller's
    assert " ".join(called[:14]) == (
        "--nnodes 1 --nproc_per_node 4 --rdzv_backend c10d --rdzv_id 29500 --rdzv_endpoint 127.0.0.1:29500"
        " --rdzv_conf is_host=1 --local_addr 127.0.0.1"
    )
    assert called[14:] == [
        *("-m", "videochat_online.cli.main", "train", "--config", f"{ROOT}/configs/train/stage{stage}.yaml"),
        *("--config_root", str(ROOT)),
        *("--seed", "3", "--run_name", "two words"),
    ]


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_needs_no_launcher_whose_traceback_would_hide_an_error(torchrun, flag):
    called = torchrun(STAGES[0], flag, GPUS="4", NNODES="2")
    config = f"{ROOT}/configs/train/stage1.yaml"
    assert called[1:] == ["8 processes", "train", "--config", config, "--config_root", str(ROOT), flag]


def test_several_nodes_by_hand_and_by_slurm(torchrun):
    by_hand = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234", "GPUS": "8"}
    called = " ".join(torchrun(STAGES[0], **by_hand))
    wanted = (
        "nodes.py 2 1 node7:1235 torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id 1234"
        " --rdzv_endpoint node7:1234 --rdzv_conf is_host=0"
    )
    assert f"{wanted} -m" in called
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "41234"}
    called = " ".join(torchrun(STAGES[0], **slurm, SLURMD_NODENAME="node8", MASTER_ADDR="node7"))
    wanted = wanted.replace("1235", "21235").replace("1234", "21234").replace("2121235", "21235")
    assert f"{wanted} --local_addr node8 -m" in called


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Starts nodes.py as one of two nodes, named a and b; what it says goes to a file of that name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    begun = []

    def start(rank: int, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        waits = {"NODES_JOIN_S": "60", "NODES_END_S": "0", "NODES_SILENCE_S": "60"} | variables
        name = "ab"[rank]
        with (tmp_path / name).open("wb") as said:
            call = [sys.executable, ROOT / "shell/online_4b/nodes.py", "2", str(rank), place, *command]
            environment = {"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": name} | waits
            begun.append(subprocess.Popen(call, env=environment, stderr=said, cwd=tmp_path))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def test_nodes_start_together_and_keep_the_status(node, tmp_path):
    other = node(1, "sh", "-c", "exit 3")
    first = node(0, "sh", "-c", "exit 0")
    assert [first.wait(60), other.wait(60)] == [0, 3]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["", ""]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_dies_is_named_and_ends_the_run(node, tmp_path, number):
    """At once where its connection ends, after a while without a sign where it just falls silent."""
    other = node(1, "sh", "-c", "touch there; sleep 60")
    first = node(0, "sleep", "60", NODES_SILENCE_S="1" if number == signal.SIGSTOP else "60")
    while not (tmp_path / "there").exists():
        time.sleep(0.02)
    os.kill(other.pid, number)
    assert first.wait(60) != 0
    reason = "its connection was closed" if number == signal.SIGKILL else "no sign of it for 1 s"
    assert f"error: node 1 (b): {reason}; that node is gone and this run ends" in (tmp_path / "a").read_text()


def test_a_command_whose_node_is_gone_is_told_once_and_then_killed(node, tmp_path):
    """torchrun, told twice, leaves its workers behind."""
    other = node(1, "sh", "-c", "touch there; sleep 60")
    first = node(0, "sh", "-c", "trap 'echo told >>told' TERM; while :; do sleep 0.1; done", NODES_KILL_S="2.5")
    while not (tmp_path / "there").exists():
        time.sleep(0.02)
    other.kill()
    assert first.wait(60) == 128 + signal.SIGKILL
    assert (tmp_path / "told").read_text() == "told\n"


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "NONE"])
def test_a_process_ends_with_the_launcher_that_started_it(monkeypatch, launcher):
    """One that was started by hand does not: its shell may be left."""
    monkeypatch.setenv(launcher, "1")
    ours, theirs = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            # What `init` starts under a launcher, without torch.distributed.
            distributed._end_with_launcher()
            os.write(theirs, b"%d" % os.getpid())
        time.sleep(60)
        os._exit(0)
    os.close(theirs)
    child = int(os.read(ours, 100))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    is_gone = bool(select.select([ours], [], [], 10 if launcher != "NONE" else 0.5)[0])  # its end of the pipe is closed
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.close(ours)
    assert is_gone == (launcher != "NONE")


def test_a_node_that_does_not_come_is_named(node, tmp_path):
    assert node(0, "sleep", "60", NODES_JOIN_S="0.3").wait(60) == 1
    said = (tmp_path / "a").read_text()
    assert "1 of 2 nodes are there after 0 s: 0 (a); missing: 1" in said
    assert node(1, "sleep", "60", NODES_JOIN_S="0.3").wait(60) == 1
    assert re.search(r"error: node 0 at 127.0.0.1:\d+ did not come for 0.3 s", (tmp_path / "b").read_text())


def test_a_name_that_stands_for_the_machine_itself_is_said(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(distributed.socket, "gethostbyname", lambda name: "127.0.1.1")
    arguments = parse_arguments(None, flags(output_dir=tmp_path, model_name_or_path="m", meta_path="r"))
    distributed.join(arguments.training)
    assert caplog.text == ""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    distributed.join(arguments.training)
    assert "stands for 127.0.1.1, where other nodes do not reach it: name its network interface in" in caplog.text
    caplog.clear()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    distributed.join(arguments.training)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("script", "config", "processes"),
    [
        ("shell/online_4b/videochat_online_4b_lora_24gb.sh", "configs/train/stage2_lora.yaml", "1"),
        ("shell/tiny/train_cpu.sh", "configs/train/tiny_stage1.yaml", "2"),
    ],
)
def test_smaller_set_ups(torchrun, script, config, processes):
    called = torchrun(ROOT / script, "--seed", "3")
    assert " ".join(called[1:5]) == f"--nnodes 1 --nproc_per_node {processes}"
    assert called[-6:] == ["--config", f"{ROOT}/{config}", "--config_root", str(ROOT), "--seed", "3"]


@pytest.fixture
def slurm(tmp_path):
    """Starts a copy of the job's script, as Slurm does; `srun` does what `body` says, calls are written down."""
    programs, spool = tmp_path / "bin", tmp_path / "spool"
    programs.mkdir()
    spool.mkdir()
    job = spool / "slurm_script"
    job.write_text((ROOT / "shell/slurm/train.sh").read_text())
    script = tmp_path / "stage.sh"
    script.write_text(f'printf "%s\\n" "$PWD" "$@" >>"{tmp_path}/called"\n')

    def start(*arguments: str, body: str = 'shift; exec "$@"', **variables: str) -> subprocess.Popen[str]:
        for name, text in (("srun", body), ("scontrol", f'echo "$@" >>"{tmp_path}/called"')):
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (programs / name).chmod(0o755)
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "VIRTUAL_ENV": "somewhere"} | variables
        return subprocess.Popen(
            ["bash", job, *arguments], env=environment, cwd=spool, stderr=subprocess.PIPE, text=True
        )

    return start


def test_slurm_starts_a_script_on_each_node(slurm, tmp_path):
    place = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    assert slurm("stage.sh", "--run_name", "two words", **place).wait() == 0
    assert (tmp_path / "called").read_text().splitlines() == [str(tmp_path), "--run_name", "two words"]
    assert slurm("stage.sh", body="exit 5", **place).wait() == 5
    wrong = slurm("none.sh", **place)
    assert "no script 'none.sh'" in wrong.communicate()[1]
    assert wrong.returncode == 2
    by_hand = slurm("stage.sh")
    assert "start this with sbatch" in by_hand.communicate()[1]
    assert by_hand.returncode != 0


@pytest.mark.parametrize(
    ("number", "status", "calls"),
    [(signal.SIGUSR1, 1, ["requeue 7"]), (signal.SIGUSR1, 0, []), (signal.SIGTERM, 1, [])],
)
def test_slurm_asks_a_run_to_end_and_queues_it_again(slurm, tmp_path, number, status, calls):
    """Not one that is finished, and not one that Slurm ends and queues again by itself."""
    (tmp_path / ".save-7").touch()  # of the job's start before
    wait = 'touch started; while ! grep -q stop "$SAVE_FILE" 2>>none; do sleep 0.05; done'
    job = slurm("stage.sh", body=f"{wait}; exit {status}", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="7")
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    job.send_signal(number)
    assert job.wait(60) == status
    called = tmp_path / "called"
    assert (called.read_text().splitlines() if called.exists() else []) == calls
    assert not (tmp_path / ".save-7").exists()


def test_slurm_shares_a_benchmark_out_over_an_array(tmp_path):
    (tmp_path / "script.sh").write_text(f'printf "%s\\n" "$PWD" "$@" >"{tmp_path}/called"\nexit 3\n')
    job = tmp_path / "slurm_script"
    job.write_text((ROOT / "shell/slurm/evaluate.sh").read_text())
    environment = {"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "VIRTUAL_ENV": "somewhere"}
    done = subprocess.run(["bash", job, "script.sh", "--output", "two words"], env=environment)
    assert done.returncode == 3
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [str(tmp_path), "--output", "two words", "--shard", "slurm"]
    wrong = subprocess.run(["bash", job, "none.sh"], env=environment, capture_output=True, text=True)
    assert (wrong.returncode, "found no script 'none.sh'" in wrong.stderr) == (2, True)


def test_relative_paths_of_a_script_are_the_callers_and_those_of_its_config_the_repositorys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "repository"
    for place in ("anno/a.json", "anno/b.json", "plan.json", "outputs/before/config.json"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("{}")
    keys = {"meta_path": "anno/a.json, anno/b.json", "deepspeed": "plan.json", "output_dir": "out"}
    (root / "one.yaml").write_text(json.dumps(keys | {"model_name_or_path": "outputs/before"}))
    (root / "two.yaml").write_text(json.dumps(keys | {"model_name_or_path": "OpenGVLab/InternVL2-4B"}))
    unset = ["--deepspeed", ""]
    one = parse_arguments(root / "one.yaml", unset, root)
    assert one.model.model_name_or_path == str(root / "outputs/before")
    assert one.data.meta_path == f"{root}/anno/a.json,{root}/anno/b.json"
    assert one.training.output_dir == str(root / "out")
    assert parse_arguments(root / "two.yaml", unset, root).model.model_name_or_path == "OpenGVLab/InternVL2-4B"
    mine = parse_arguments(root / "one.yaml", [*unset, "--model_name_or_path", "runs/s1", "--output_dir", "o"], root)
    assert (mine.model.model_name_or_path, mine.training.output_dir) == ("runs/s1", "o")
    (root / "one.yaml").write_text(json.dumps(keys | {"deepspeed": "none.json"}))
    with pytest.raises(InputError, match=r"deepspeed: expected a JSON file, found none at .*repository/none.json"):
        parse_arguments(root / "one.yaml", ["--model_name_or_path", "m"], root)


def test_the_same_place_is_the_same_run_from_whatever_folder(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "one")
    TrainingFolder(tmp_path / "run", {"meta_path": "a.json"}).open({}, {}, None)
    for folder, path in (("one", "a.json"), ("two", "../one/a.json"), ("two", f"{tmp_path}/one/a.json")):
        monkeypatch.chdir(tmp_path / folder)
        TrainingFolder(tmp_path / "run", {"meta_path": path}).check({})
    with pytest.raises(InputError, match='meta_path was "a.json", now "../two/a.json"'):
        TrainingFolder(tmp_path / "run", {"meta_path": "../two/a.json"}).check({})


@pytest.mark.parametrize("config", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_have_known_keys(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    keys = read_config(config)
    arguments = parse_arguments(config, ["--deepspeed", "", "--bf16", "False"])
    assert keys["conv_style" if "4b" in keys["output_dir"] else "seed"] is not None
    assert arguments.training.output_dir == keys["output_dir"]
    assert Path(keys["deepspeed"]).is_file()


@pytest.mark.parametrize("given", [[], ["none.yaml"], ["--dry_run"]])
def test_a_launch_without_a_config_says_so_in_a_line(given):
    launch = ["bash", str(ROOT / "shell/online_4b/launch.sh"), *given]
    ended = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: expected launch.sh CONFIG and keys, found no file '{''.join(given)}'\n"


def test_the_subcommand(capsys, tmp_path):
    assert main(["train", "--keys"]) == 0
    assert "max_num_frame: 64  # Most frames of a video." in capsys.readouterr().out.splitlines()
    config = str(ROOT / "configs/train/tiny_stage1.yaml")
    assert main(["train", "--config", config, "--frezze-llm", "True"]) == 2
    message = "error: command line: unknown key frezze_llm; did you mean freeze_llm? (videochat-online train --keys"
    assert capsys.readouterr().err == f"{message} lists all)\n"
    assert main(["train", "--config", config, "--output_dir", str(tmp_path), "--meta_path", "none.json"]) == 2
    assert "none.json: expected a registry" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "num_sets"), [("online", 11), ("videochat2", 24), ("multimage", 1), ("image", 26)])
def test_the_shipped_registries_load_where_the_data_is(tmp_path, monkeypatch, name, num_sets):
    path = ROOT / "anno_data" / f"finetune_{name}.json"
    monkeypatch.setenv("ANNO_ROOT", str(tmp_path / "annotations"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    for entry in json.loads(path.read_text()).values():
        annotation = Path(entry["annotation"].replace("${ANNO_ROOT}", str(tmp_path / "annotations")))
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text("[]")
        Path(entry["data_root"].replace("${DATA_ROOT}", str(tmp_path / "data"))).mkdir(parents=True, exist_ok=True)
    assert len(load_registries(str(path))) == num_sets


def test_examples_of_rows_in_the_registries_readme_are_valid(tmp_path):
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "anno_data" / "README.md").read_text(), re.DOTALL)
    rows = [
        row
        for row in map(json.loads, blocks)
        if not any("annotation" in set(one) for one in row.values() if isinstance(one, dict))
    ]
    kinds = [parse_row(row, tmp_path).kind for row in rows]
    assert kinds == ["image", "video", "online", "tracking", "video", "video", "online"]
