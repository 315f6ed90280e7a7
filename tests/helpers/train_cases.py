"""Small training sets, and a launcher of `videochat-online train` in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Trainer

from clips import write_clip, write_folder
from processes import run_program
from videochat_online.data import FrameSampling, PixelReader, SampleEncoder, Tiling
from videochat_online.memory import TokenSchedule
from videochat_online.model import VideoChatModel
from videochat_online.train import TrainReport
from videochat_online.video import normalize

ROOT = Path(__file__).resolve().parents[2]
_COMPUTE_LOSS = Trainer.compute_loss

KEYS: dict[str, object] = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "seed": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "sampling_method": "fps2",
    "max_num_frame": 6,
    "max_seq_length": 2000,
    "dynamic_image_size": False,
    "max_bad_fraction": 0,
}
"""Keys of a run that takes a second."""


def flags(**keys: object) -> list[str]:
    """The command line of KEYS, changed and extended by `keys`."""
    return [str(part) for key, value in (KEYS | keys).items() for part in (f"--{key}", value)]


def dialogue(*texts: str, times: Sequence[float] = ()) -> list[dict[str, Any]]:
    """Messages of human and gpt in turn; `times` of the human ones."""
    messages: list[dict[str, Any]] = [
        {"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)
    ]
    for message, time_s in zip(messages[::2], times, strict=False):
        message["timestamps"] = time_s
    return messages


def write_media(folder: Path) -> Path:
    """A clip of four seconds, a folder of six frames, three images."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / "clip.mp4")
    write_folder(folder / "frames")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{number}.png")
    return folder


def tiny_encoder(model: VideoChatModel, **changes: Any) -> SampleEncoder:
    """Of rows for a tiny model; two frames a second, images in one piece."""
    fields: dict[str, Any] = {
        "tokenizer": model.tokenizer,
        "template": model.template,
        "system_message": "Watch.",
        "reader": PixelReader(model.transform),
        "full_grid": (4, 4),
        "schedule": TokenSchedule((8, 4, 1)),
        "sampling": FrameSampling(method="fps2", max_num_frames=64),
        "tiling": Tiling(dynamic=False),
        "max_length": 2000,
    }
    return SampleEncoder(**(fields | changes))


def online_rows(count: int) -> list[dict[str, Any]]:
    """Rows of an online set that differ in text and times."""
    return [
        {
            "video": "clip.mp4",
            "conversations": dialogue(
                f"Where is the square in take {number}?",
                f"At the left {number}.",
                "And now?",
                "Further right.",
                times=(1.0 + number / 10, 3.0),
            ),
        }
        for number in range(count)
    ]


def mixed_rows() -> list[dict[str, Any]]:
    """One row of each kind that a mixture may hold."""
    return [
        *online_rows(3),
        {"image": "image0.png", "conversations": dialogue("<image>\nWhat is it?", "Noise.")},
        {"video": "frames", "QA": [{"i": "Look.", "q": "What moves?", "a": "A square."}]},
        {"conversations": dialogue("Hello.", "Good day.")},
        {"video": "clip.mp4", "clip": [1.0, 3.0], "conversations": dialogue("<video>\nWhat?", "A square.")},
        {"image": ["image1.png", "image2.png"], "conversations": dialogue("<image><image>\nSame?", "No.")},
    ]


def write_registry(folder: Path, media: Path, **sets: Sequence[Any]) -> Path:
    """A registry beside its annotation files, a set for each keyword."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(list(rows)), encoding="utf-8")
    entries = {name: {"annotation": f"{name}.json", "data_root": str(media)} for name in sets}
    path = folder / "registry.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def write_good_and_bad(folder: Path) -> Path:
    """Media, and two registries: `good`, and `bad`, whose second set has a bad row at each end."""
    media = write_media(folder / "media")
    write_registry(folder / "good", media, mixed=mixed_rows())
    missing = {"video": "none.mp4", "QA": [{"q": "a", "a": "b"}]}
    write_registry(folder / "bad", media, good=online_rows(6), spoilt=[missing, *online_rows(8), {"QA": 3}])
    return folder


def arguments(
    place: Path, tiny_dir: Callable[[str], Path], name: str, registry: str = "good", **keys: Any
) -> list[str]:
    """The command line of a run in a folder of `write_good_and_bad`."""
    paths = {"output_dir": place / name, "model_name_or_path": tiny_dir("phi3")}
    return flags(**paths | {"meta_path": place / registry / "registry.json"} | keys)


def normalised(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of the collator as the trainer gives it to the network."""
    return batch | {"pixel_values": normalize(batch["pixel_values"])}


def losses(report: TrainReport | dict[str, Any]) -> list[float]:
    """Of each logged step."""
    entries = report["losses"] if isinstance(report, dict) else report.losses
    return [entry["loss"] for entry in entries]


def state(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a result."""
    return load_file(folder / "model.safetensors")


def environment() -> dict[str, str]:
    """One thread a process, as several share two cores; this checkout before an installed one."""
    paths = (ROOT, ROOT / "tests/helpers", os.environ.get("PYTHONPATH", ""))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}


def launch(
    arguments: Sequence[object], *, processes: int = 1, kill_at_step: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`videochat-online train` in so many processes of one launch, to its end, or until it kills itself at the start
    of an optimizer step.
    """
    more = {} if kill_at_step is None else {"KILL_AT_STEP": str(kill_at_step)}
    return run_program(main, ["train", *map(str, arguments)], count=processes, **more, **variables)


def launch_by_torchrun(
    arguments: Sequence[object], *, processes: int, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """The same by the launcher that is documented, from a working folder."""
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, __file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
        timeout=240,
    )


def spoilt_loss(factor: float) -> Callable[..., Any]:
    """`Trainer.compute_loss` that multiplies the loss of a batch without pictures, by NaN for example."""

    def compute_loss(self: Trainer, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        pixels_TCSS = inputs["pixel_values"]
        is_text = torch.equal(pixels_TCSS, pixels_TCSS[..., :1, :1].expand_as(pixels_TCSS))  # of one colour
        loss = _COMPUTE_LOSS(self, model, inputs, *arguments, **options)
        return loss * factor if is_text else loss

    return compute_loss


def main() -> int:
    """The subcommand alone, with the errors of the command line."""
    from videochat_online.cli import train as subcommand
    from videochat_online.errors import InputError
    from videochat_online.train import run
    from videochat_online.train.folder import training_folder
    from videochat_online.train.loop.trainer import OnlineTrainer

    if "KILL_AT_STEP" in os.environ:

        class DyingTrainer(OnlineTrainer):
            def training_step(self, *arguments: Any, **options: Any) -> Any:
                if self.state.global_step == int(os.environ["KILL_AT_STEP"]):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().training_step(*arguments, **options)

        run.OnlineTrainer = DyingTrainer
    if "DO" in os.environ and os.environ.get("DO_ON_RANK", "0") == os.environ.get("RANK", "0"):

        class WatchedTrainer(OnlineTrainer):
            def training_step(self, *arguments: Any, **options: Any) -> Any:
                if self.state.global_step == int(os.environ["DO_AT_STEP"]):
                    exec(os.environ["DO"], {"os": os, "resource": resource, "signal": signal})
                return super().training_step(*arguments, **options)

        run.OnlineTrainer = WatchedTrainer
    if os.environ.get("RANK") == "1":
        sys.argv += os.environ.get("KEYS_OF_RANK_1", "").split()
    if "SEEN_WITHIN_S" in os.environ:
        training_folder.SEEN_WITHIN_S = float(os.environ["SEEN_WITHIN_S"])
    if "SPOIL_TEXTS_BY" in os.environ:
        Trainer.compute_loss = spoilt_loss(float(os.environ["SPOIL_TEXTS_BY"]))
    parser = argparse.ArgumentParser()
    subcommand.add_arguments(parser)
    options, options.rest = parser.parse_known_args()
    try:
        return subcommand.run(options)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
