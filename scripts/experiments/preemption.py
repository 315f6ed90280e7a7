"""Ends training at random moments, by SIGTERM to any process or by the file SAVE, and goes on with the same command.

    python scripts/experiments/preemption.py [--times 20] [--max_steps 12] [--processes 1 2] [--seed 0]

Shows that the losses are then, bit for bit, those of a run that was left alone, that no checkpoint is half written, and
that a run which was ended is not taken for finished. A tiny model in fp32 on the CPU; with two processes DeepSpeed's
ZeRO-2. One row for each time, and exit status 1 where a row is not as it should be. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from videochat_online.testing import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]

PLAN = ROOT / "configs" / "deepspeed" / "zero2.json"
NUM_ROWS = 10
HEADER = ("processes", "how", "asked after", "ended after", "exit", "status", "checkpoints", "half", "losses")


def write_inputs(folder: Path) -> None:
    """A tiny model, and a registry of dialogues in text."""
    make_tiny_model(folder / "model")
    rows = [
        {"conversations": [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"{n} it is. " * n}]}
        for n in range(1, NUM_ROWS + 1)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "registry.json").write_text(json.dumps({"rows": {"annotation": "rows.json", "data_root": "."}}))


def command(folder: Path, name: str, num_processes: int, max_steps: int) -> list[str]:
    """Of a run in `folder`; noise of the language model's own makes losses depend on random numbers."""
    keys = {
        "model_name_or_path": folder / "model",
        "meta_path": folder / "registry.json",
        "output_dir": folder / name,
        "max_steps": max_steps,
        "per_device_train_batch_size": 1,
        "drop_path_rate": 0.5,
        "lr_scheduler_type": "cosine",
        "learning_rate": 1e-3,
        "save_steps": 5,
        "save_total_limit": 2,
        "disable_tqdm": True,
    }
    if num_processes > 1:
        keys["deepspeed"] = PLAN
    return ["train", *(str(part) for key, value in keys.items() for part in (f"--{key}", value))]


def work(arguments: list[str], variables: dict[str, str], log: Path) -> None:
    """One process of a launch, its output in a file."""
    os.environ.update(variables)
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    from videochat_online.cli.main import main

    sys.argv = ["videochat-online", *arguments]
    sys.exit(main(arguments))


def start(arguments: list[str], count: int, log: Path) -> list[BaseProcess]:
    """A launch of so many processes, each forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "videochat_online.cli.train"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(count):
        own = {"OMP_NUM_THREADS": "1"}
        if count > 1:
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            own |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = context.Process(target=work, args=(arguments, own, log))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[BaseProcess]) -> int:
    """Wait for a launch; the first exit status that is not 0."""
    for process in processes:
        process.join()
    return next((process.exitcode for process in processes if process.exitcode), 0) or 0


def num_logged(log: Path) -> int:
    """Steps that a launch has logged so far."""
    return log.read_text(errors="replace").count("'loss':") if log.exists() else 0


def interrupt(folder: Path, name: str, num_processes: int, max_steps: int, draw: random.Random) -> dict[str, Any]:
    """Begin a run, end it at a random moment, and look at what it leaves."""
    how, after, log = draw.choice(["SIGTERM", "SAVE"]), draw.randrange(max_steps), folder / f"{name}.log"
    processes = start(command(folder, name, num_processes, max_steps), num_processes, log)
    is_begun = (folder / name / "run.json").exists  # before that it ends as any program does
    while (num_logged(log) < after or not is_begun()) and any(process.is_alive() for process in processes):
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.2))
    victim = draw.choice(processes)
    if how == "SAVE":
        (folder / name / "SAVE").write_text("stop")
    elif victim.is_alive() and victim.pid:
        os.kill(victim.pid, signal.SIGTERM)
    status = finish(processes)
    report = json.loads((folder / name / "report.json").read_text())
    checkpoints = list((folder / name).glob("checkpoint-*"))
    return {
        "how": how,
        "asked after": after,
        "ended after": report["steps"],
        "exit": status,
        "status": report["status"],
        "checkpoints": len(checkpoints),
        "half": sum(not (path / "complete.json").is_file() for path in checkpoints),
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--max_steps", type=int, default=12)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, num_bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder)
        print("| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER), sep="\n")
        for count in options.processes:

            def losses(name: str) -> list[float]:
                report = json.loads((folder / name / "report.json").read_text())
                return [entry["loss"] for entry in report["losses"]]

            whole = f"whole{count}"
            if finish(start(command(folder, whole, count, options.max_steps), count, folder / f"{whole}.log")):
                sys.exit((folder / f"{whole}.log").read_text())
            for number in range(options.times):
                name = f"run{count}_{number}"
                found = {"processes": count} | interrupt(folder, name, count, options.max_steps, draw)
                status = finish(start(command(folder, name, count, options.max_steps), count, folder / f"{name}.log"))
                found["losses"] = "equal" if status == 0 and losses(name) == losses(whole) else "DIFFERENT"
                expected = (3, "ended early") if found["ended after"] < options.max_steps else (0, "finished")
                is_good = (found["exit"], found["status"]) == expected and not found["half"]
                num_bad += found["losses"] != "equal" or not is_good
                print("| " + " | ".join(str(found[key]) for key in HEADER) + " |", flush=True)
    print(f"{num_bad} of {options.times * len(options.processes)} not as they should be")
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
