"""What the quickstart does: its phases, and the commands of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PYRAMID = ("--capacities", "4", "4", "16")
STREAMING: dict[str, tuple[str, ...]] = {
    "pyramid": PYRAMID,
    "fifo": ("--memory", "fifo", *PYRAMID),
    "uniform": ("--memory", "uniform", "--memory.num_frames", "6"),
    "recent": ("--memory", "window", "--memory.num_frames", "6"),
    "recent_4": ("--memory", "window", "--memory.num_frames", "4"),
    "blind": ("--blind",),
}
"""Pyramid, FIFO pyramid and six full-size frames hold 96 visual tokens each. Four are an ablation: not trained for."""
LABELS = {
    "pyramid": "pyramid 4/4/16",
    "fifo": "FIFO pyramid 4/4/16",
    "uniform": "uniform 6",
    "recent": "recent 6",
    "recent_4": "recent 4",
    "blind": "blind",
    "sliding_window": "sliding window 32 s",
    "scratch": "pyramid, no stage 1",
}
PRESET_FLAGS: dict[str, dict[str, list[str]]] = {
    "quickstart": {"pretrain": [], "stage1": [], "stage2": [], "evaluation": ["--answer_by", "likelihood"]},
    "full": {
        "pretrain": ["--steps", "1500"],
        "stage1": ["--max_num_frame", "24"],
        "stage2": ["--max_num_frame", "240"],
        # The tiny models have seen no other system message than their own.
        "evaluation": ["--answer_by", "text_likelihood", "--system_message", "checkpoint"],
    },
}
"""Flags that a preset's commands have beside the configs.

Each evaluation chooses among the options: one that was not trained for a kind of question then guesses, as it should.
Where the options are shuffled it chooses by their texts, since a tiny model does not learn in an hour which letter
stands before which text.
"""


@dataclass(frozen=True)
class Command:
    """Words of a command, and the file below the output folder that it writes last, whole or not at all."""

    name: str
    words: list[str]
    result: str


@dataclass(frozen=True)
class Phase:
    """Commands that are run `at_once` at a time, each as so many processes."""

    name: str
    commands: list[Command]
    at_once: int = 1
    processes: int = 1


def phases(output: Path, seed: int, from_scratch: bool, preset: str) -> list[Phase]:
    """Everything there is to do, in order."""
    data, seeds, more = output / "data", ["--seed", str(seed)], PRESET_FLAGS[preset]

    def stage(name: str, number: int, start: str, result: str) -> Phase:
        paths = {"model_name_or_path": output / start, "output_dir": output / result}
        paths["meta_path"] = data / "registries" / f"stage{number}.json"
        flags = [str(word) for key, path in paths.items() for word in (f"--{key}", path)]
        config = f"configs/train/tiny_stage{number}.yaml"
        words = ["bash", "shell/online_4b/launch.sh", config, *flags, *seeds, *more[f"stage{number}"]]
        return Phase(name, [Command(name, words, f"{result}/README.md")], processes=2)  # the card of a finished run

    def benchmark(setting: str, name: str, *flags: str, model: str = "stage2") -> Command:
        run = ["--model", str(output / model), "--output", str(output / "runs" / name), "--fps", "1"]
        where = ["--annotations", str(data / "annotations/ovbench_test.json"), "--data-root", str(data / "videos/test")]
        words = ["bash", f"shell/eval/online_bench_{setting}.sh", *run, *where, *more["evaluation"], *flags]
        return Command(name, words, f"runs/{name}/report.md")

    runs = [benchmark("stream", name, *flags) for name, flags in STREAMING.items()]
    runs.append(benchmark("sliding_window", "sliding_window"))
    pretrain = ["python", "scripts/quickstart/pretrain_tiny_model.py", str(data), str(output / "base"), *seeds]
    pretrain += more["pretrain"]
    synthesize = ["videochat-online", "synthesize", "--output", str(data), "--preset", preset, *seeds]
    training = [stage("stage1", 1, "base", "stage1"), stage("stage2", 2, "stage1", "stage2")]
    if from_scratch:
        # Its name, and so its log, is not that of its evaluation.
        training.append(stage("stage2_from_scratch", 2, "base", "scratch"))
        runs.append(benchmark("stream", "scratch", *PYRAMID, model="scratch"))
    return [
        Phase("streams", [Command("synthesize", synthesize, "data/manifest.json")]),
        Phase("pretraining", [Command("pretrain", pretrain, "base/pretraining.json")]),
        *training,
        Phase("evaluation", runs, at_once=2),
    ]
