"""What becomes of runs on a cluster: trained, preempted, requeued, a rank or a node killed, evaluated as an array.

    bash scripts/test_cluster.sh [SCENARIO]... [--keep DIR]      (which calls this file)

Each run is submitted with shell/slurm/*.sh as a user would, disturbed, and compared with the run that nobody disturbed:
the same losses at every step, one status, one log. Prints a table; status 1 where something differs. Ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from slurm_box import NODES, NoClusterError, SlurmBox, check_host
from videochat_online.testing import make_tiny_model

STEPS = 30
PATIENCE_S = 600
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY", "gone")
REQUEUE_S = 10
"""So long a job may look ended before it is queued again."""
NOTICE_S = 60
"""So long a node may be dead before the others say which."""


class ScenarioError(Exception):
    """What a scenario found in place of what was expected."""


def expect(holds: bool, expected: str, found: object) -> None:
    """ScenarioError where something does not hold."""
    if not holds:
        raise ScenarioError(f"expected {expected}, found {found}")


def wait_for(what: str, is_there: Callable[[], bool], seconds: float = PATIENCE_S) -> float:
    """Seconds until something is there."""
    start = time.monotonic()
    while not is_there():
        expect(time.monotonic() - start < seconds, f"{what} within {seconds:g} s", "nothing")
        time.sleep(0.2)
    return time.monotonic() - start


def slurm(*command: str) -> str:
    """What a command prints; ScenarioError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    expect(done.returncode == 0, f"{command[0]} to succeed", done.stderr.strip())
    return done.stdout.strip()


class Job:
    """A submitted job and its log."""

    def __init__(self, work: Path, name: str, script: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        self.log = work / f"{name}.log"
        submit = ("sbatch", "--parsable", f"--job-name={name}", f"--output={self.log}", "--cpus-per-task=2")
        self.id = slurm(*submit, "--gpus-per-node=1", *options, script, *arguments)

    @property
    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def state(self) -> str:
        """State of the job, as Slurm has it."""
        found = re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", "--oneliner", self.id))
        return found[1] if found else "gone"

    def wait_for_state(self, *states: str, seconds: float = PATIENCE_S) -> str:
        """The first of some states that it gets into; ScenarioError where it ends in another one."""
        expected, found, ended_at = " or ".join(states), "", None

        def is_there() -> bool:
            nonlocal found, ended_at
            found = self.state
            ended_at = (ended_at or time.monotonic()) if found in ENDED else None
            if ended_at is not None and time.monotonic() - ended_at > REQUEUE_S:
                expect(found in states, f"state {expected}", f"{found}: {self.text[-2000:]}")
            return found in states

        wait_for(f"job {self.id} to be {expected}", is_there, seconds)
        return found

    def complete(self) -> None:
        """Wait for its good end."""
        self.wait_for_state("COMPLETED")


class Cluster:
    """The folder of the scenarios, and what all of them use."""

    def __init__(self, work: Path, box: SlurmBox) -> None:
        self.work, self.box = work, box
        self.model = work / "model"
        self.registry = work / "registry.json"
        self.questions = work / "questions.json"
        self.losses: list[float] = []
        self.draw = random.Random(17)

    def prepare(self) -> None:
        """A tiny model, images with dialogues, folders of frames with questions."""
        make_tiny_model(self.model)
        media = self.work / "media"
        rows, sets = [], []
        for number in range(48):
            path = media / f"image{number}.png"
            write_noise(path, number)
            words = " ".join(["so"] * self.draw.randint(1, 20))
            turns = [("human", f"<image>\nWhat is it, {words}?"), ("gpt", f"Noise, {words}.")]
            rows.append({"image": path.name, "conversations": [{"from": who, "value": text} for who, text in turns]})
        for number in range(6):
            for frame in range(12):
                write_noise(media / f"stream{number}" / f"{frame}.png", 1000 + frame)
            questions = [
                {
                    "middle_frame_timestamp": at_s,
                    "question": "What is it?",
                    "options": ["A. red", "B. blue"],
                    "answer": "A",
                    "answer_type": "PastMemory",
                    "sub_answer_type": "PastMemory-1",
                }
                for at_s in (1.0, 2.0)
            ]
            sets.append({"video_id": f"stream{number}", "fps": 4.0, "clip": [0.0, 3.0], "questions": questions})
        (self.work / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        entry = {"annotation": "rows.json", "data_root": "media"}
        self.registry.write_text(json.dumps({"noise": entry}), encoding="utf-8")
        self.questions.write_text(json.dumps(sets), encoding="utf-8")

    def flags(self, name: str) -> list[str]:
        """The command line of a run."""
        keys = {
            "model_name_or_path": self.model,
            "meta_path": self.registry,
            "output_dir": self.work / name,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "global_batch_size": 16,
            "train_sampling_strategy": "random",
            "logging_steps": 1,
            "save_steps": 10,
            "save_total_limit": 2,
            "disable_tqdm": True,
        }
        return [str(part) for key, value in keys.items() for part in (f"--{key}", value)]

    def train(self, name: str, *options: str) -> Job:
        """Submit a run on both nodes."""
        flags = self.flags(name)
        script = ("shell/slurm/train.sh", "shell/tiny/train_cpu.sh")
        return Job(self.work, name, *script, *flags, options=("--nodes=2", *options))

    def power_on(self, node: str) -> None:
        """Wait until a node is there again."""
        self.box.power_on(node)
        wait_for(f"{node} to be there", lambda: node in self.box.idle())

    def steps_logged(self, job: Job) -> int:
        """Steps of all launches that are in the log."""
        return len(re.findall(r"'loss':", job.text))

    def wait_for_step(self, job: Job, step: int) -> None:
        """Until so many steps are in the log."""
        wait_for(f"step {step} of job {job.id}", lambda: self.steps_logged(job) >= step)

    def wait_for_restart(self, job: Job) -> None:
        """Until the job, which was requeued, is started again; Slurm would wait two minutes before it."""
        job.wait_for_state("PENDING")
        time.sleep(2)  # slurmd refuses a job that starts in the second in which it was ended
        slurm("scontrol", "update", f"JobId={job.id}", "StartTime=now")
        job.wait_for_state("RUNNING")

    def launches(self, name: str, count: int) -> str:
        """Where the launches of a run went on; the log has all of them."""
        launches = json.loads((self.work / name / "run.json").read_text(encoding="utf-8"))["launches"]
        expect(len(launches) == count, f"{count} launches", len(launches))
        text = (self.work / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        steps = len(re.findall(r"'loss':", text))
        expect(steps >= STEPS, f"a log of at least {STEPS} steps", f"{steps}: those of earlier launches are gone")
        return "went on after " + " and ".join(str(launch["resumed_from"]) for launch in launches[1:])

    def result(self, name: str) -> dict[str, object]:
        """The report of a run."""
        return json.loads((self.work / name / "report.json").read_text(encoding="utf-8"))

    def compare(self, name: str) -> str:
        """The losses of a run that was disturbed against those of the one that was not."""
        report = self.result(name)
        expect(report["status"] == "finished", "status finished", report["status"])
        found = [entry["loss"] for entry in report["losses"]]
        expect(len(found) == STEPS, f"{STEPS} losses", len(found))
        worst = max(abs(a - b) for a, b in zip(found, self.losses, strict=True))
        expect(found == self.losses, "the losses of the run alone", f"a difference of {worst:g}")
        halves = [folder.name for folder in (self.work / name).glob("checkpoint-*") if not complete(folder)]
        expect(not halves, "whole checkpoints", f"half ones: {halves}")
        return f"all {STEPS} losses equal"


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (checkpoint / "complete.json").is_file()


def write_noise(path: Path, seed: int) -> None:
    """An image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)


def alone(cluster: Cluster) -> str:
    """Train on two nodes, undisturbed."""
    job = cluster.train("alone")
    job.complete()
    report = cluster.result("alone")
    cluster.losses = [entry["loss"] for entry in report["losses"]]
    expect(len(cluster.losses) == STEPS, f"{STEPS} losses", len(cluster.losses))
    launches = json.loads((cluster.work / "alone/run.json").read_text(encoding="utf-8"))["launches"]
    expect([launch["processes"] for launch in launches] == [2], "one launch of 2 processes", launches)
    return f"{STEPS} steps on 2 nodes, loss {cluster.losses[0]:.3f} to {cluster.losses[-1]:.3f}"


def preempt(cluster: Cluster) -> str:
    """The signal that Slurm sends before a time limit, twice: before the first regular checkpoint, and later."""
    job = cluster.train("preempt")
    for step in (cluster.draw.randint(2, 7), cluster.draw.randint(14, STEPS - 8)):
        cluster.wait_for_step(job, step)
        slurm("scancel", "--batch", "--signal=USR1", job.id)
        cluster.wait_for_restart(job)
    job.complete()
    return f"{cluster.launches('preempt', 3)}; {cluster.compare('preempt')}"


def requeue(cluster: Cluster) -> str:
    """An administrator's requeue, after the first checkpoint: the job is ended without a warning."""
    job = cluster.train("requeue")
    cluster.wait_for_step(job, cluster.draw.randint(12, STEPS - 6))
    slurm("scontrol", "requeue", job.id)
    cluster.wait_for_restart(job)
    job.complete()
    return f"{cluster.launches('requeue', 2)}; {cluster.compare('requeue')}"


def rank(cluster: Cluster) -> str:
    """A rank of the second node is killed; the same command again."""
    job = cluster.train("rank", "--no-requeue")
    cluster.wait_for_step(job, cluster.draw.randint(12, STEPS - 6))
    killed = cluster.box.kill(NODES[1], r"cli\.main train")
    expect(killed > 0, "a rank to kill", "none")
    began = time.monotonic()
    job.wait_for_state("FAILED")
    seconds = time.monotonic() - began
    cluster.train("rank").complete()
    return f"job ended {seconds:.0f} s after the kill; submitted again: {cluster.compare('rank')}"


def node(cluster: Cluster) -> str:
    """A node loses its power; Slurm gives it up, and starts the run again when it is back."""
    job = cluster.train("node")
    cluster.wait_for_step(job, cluster.draw.randint(12, STEPS - 6))
    cluster.box.power_off(NODES[1])
    job.wait_for_state("PENDING", seconds=180)
    cluster.power_on(NODES[1])
    cluster.wait_for_restart(job)
    job.complete()
    return f"{cluster.launches('node', 2)}; {cluster.compare('node')}"


def by_hand(cluster: Cluster) -> str:
    """Two nodes without Slurm, one of which loses its power: the other one says which."""
    command = ["bash", "shell/tiny/train_cpu.sh", *cluster.flags("by_hand")]
    variables = {"NNODES": "2", "MASTER_ADDR": NODES[0], "MASTER_PORT": "29411"}
    logs = [cluster.work / f"by_hand-{node}.log" for node in NODES]
    processes = []
    for number, (name, log) in enumerate(zip(NODES, logs, strict=True)):
        environment = os.environ | variables | {"NODE_RANK": str(number)}
        with log.open("w") as file:
            there = cluster.box.on(name, *command)
            processes.append(subprocess.Popen(there, env=environment, stdout=file, stderr=subprocess.STDOUT))
    wait_for("step 12", lambda: len(re.findall(r"'loss':", logs[0].read_text(errors="replace"))) >= 12)
    cluster.box.power_off(NODES[1])

    def said() -> list[str]:
        lines = logs[0].read_text(errors="replace").splitlines()
        return [line.strip() for line in lines if NODES[1] in line and "error" in line]

    try:
        seconds = wait_for(f"a message that names {NODES[1]}", lambda: bool(said()), NOTICE_S)
        wait_for("the survivor's end", lambda: processes[0].poll() is not None)
    finally:
        for name in NODES:
            cluster.box.kill(name, r"cli\.main train")
        cluster.power_on(NODES[1])
    expect(processes[0].returncode != 0, "a status other than 0", 0)
    return f"{seconds:.0f} s after its end: {said()[0][:160]}"


def evaluate(cluster: Cluster) -> str:
    """An array of two tasks against one process."""
    arguments = ["--model", cluster.model, "--annotations", cluster.questions, "--data-root", cluster.work / "media"]
    script = "shell/eval/online_bench_stream.sh"
    flags = [str(argument) for argument in (*arguments, "--output", cluster.work / "array")]
    job = Job(cluster.work, "array-%a", "shell/slurm/evaluate.sh", script, *flags, options=("--array=0-1",))
    alone = [str(argument) for argument in (*arguments, "--output", cluster.work / "one")]
    subprocess.run(["bash", script, *alone], check=True, capture_output=True)
    wait_for("the array to end", lambda: not slurm("squeue", "--noheader", "--jobs", job.id))
    found, expected = (answers(cluster.work / name) for name in ("array", "one"))
    expect(found == expected and len(found) == 12, f"the {len(expected)} answers of one process", f"{len(found)}")
    return f"{len(found)} answers of two tasks equal those of one process"


def answers(folder: Path) -> dict[str, object]:
    """What was answered to each question of a run."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {f"{row.get('video')} {row.get('id', row.get('time_s'))}": row.get("reply") for row in rows}


SCENARIOS: dict[str, Callable[[Cluster], str]] = {
    "alone": alone,
    "preempt": preempt,
    "requeue": requeue,
    "rank": rank,
    "node": node,
    "by_hand": by_hand,
    "evaluate": evaluate,
}


def main() -> int:
    """Run the scenarios in order, print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder for runs and logs, which stay")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(f"expected scenarios of {', '.join(SCENARIOS)}, found {', '.join(sorted(unknown))}")
    names = ["alone", *(name for name in options.scenarios or SCENARIOS if name != "alone")]
    os.environ["GPUS"] = "1"
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vco-cluster-") as temporary:
        work = options.keep or Path(temporary) / "work"
        try:
            check_host()
            with SlurmBox(Path(temporary) / "slurm") as box:
                cluster = Cluster(work, box)
                cluster.prepare()
                for name in names:
                    failed += not report(name, cluster)
        except NoClusterError as error:
            print(f"cluster: skipped: {error}")
    return 1 if failed else 0


def report(name: str, cluster: Cluster) -> bool:
    """Run a scenario and print what came of it; whether all was as expected."""
    began, is_well = time.monotonic(), True
    try:
        found = SCENARIOS[name](cluster)
    except (ScenarioError, NoClusterError) as error:
        found, is_well = str(error), False
    word = "ok" if is_well else "FAILED"
    print(f"{name:<10} {word:<7} {time.monotonic() - began:4.0f} s  {found}", flush=True)
    return is_well


if __name__ == "__main__":
    sys.exit(main())
