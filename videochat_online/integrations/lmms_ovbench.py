"""OVBench as a task of lmms-eval: what `configs/lmms_eval/ovbench/ovbench.yaml` calls.

Each question comes with a clip of its own, cut to what the streaming setting shows before it: no model can look
ahead, and any model that takes a video file can be asked. The options stand as lmms-eval's other tasks have them;
answers are read and averaged as in `videochat-online evaluate`. Where the set is, environment variables say:

OVBENCH_ANNOTATIONS  its annotation files, of any layout, with ":" between them (as in PATH)
OVBENCH_ROOT         the videos are somewhere below it
OVBENCH_CLIPS        folder in which clips are kept for the next run; without it a process holds the newest few hundred
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation.benchmark import EvalQuestion, EvalVideo
from videochat_online.evaluation.media.locate import MediaLibrary
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.protocol import PROTOCOLS
from videochat_online.evaluation.scoring.metrics import compute_metrics
from videochat_online.evaluation.scoring.parse import parse_answer
from videochat_online.evaluation.tasks import get_task
from videochat_online.runs.files import PARTIAL, written_whole
from videochat_online.runs.row_file import Row
from videochat_online.text.questions import letter_question

TASK = get_task("ovbench")
PROTOCOL = PROTOCOLS["streaming"]
AVERAGES = ("cell_average", "micro_average", "cell_average_without_object_existence")

Doc = Mapping[str, Any]


def read_questions(placeholder: Any) -> Any:
    """The questions as a data set of lmms-eval, in place of the file that its configuration has to name.

    Raises:
        InputError: a variable that is not set, annotations that cannot be used, or videos that are missing.
    """
    from datasets import Dataset

    return Dataset.from_list(question_rows(os.environ))


def question_rows(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each question, in the order of the files' videos and their times.

    Raises:
        InputError: a variable that is not set, annotations that cannot be used, or videos that are missing.
    """
    for name in ("OVBENCH_ANNOTATIONS", "OVBENCH_ROOT"):
        if not environment.get(name):
            raise InputError(f"{name}: expected the environment variable to say where OVBench is, found it not set")
    content = TASK.read([Path(part) for part in environment["OVBENCH_ANNOTATIONS"].split(os.pathsep) if part])
    if content.problems:
        raise InputError(f"{len(content.problems)} questions cannot be used; the first: {content.problems[0]}")
    library = MediaLibrary(Path(environment["OVBENCH_ROOT"]))
    rows, missing = [], []
    for video in content.videos:
        try:
            path = library.find(video)
        except VideoError as error:
            missing.append(str(error))
            continue
        rows += [_row(question, video, str(path.resolve())) for question in video.questions]
    if missing:
        raise InputError(f"{len(missing)} of {len(content.videos)} videos are missing; the first: {missing[0]}")
    return rows


def _row(question: EvalQuestion, video: EvalVideo, path: str) -> dict[str, Any]:
    return {
        "id": question.id,
        "video": video.name,
        "path": path,
        "start_s": video.clip_s[0],
        "end_s": min(video.clip_s[1], question.time_s),
        "time_s": question.time_s,
        "fps": video.fps,
        "dataset": question.dataset,
        "question": question.question,
        "options": list(question.options),
        "answer_index": question.answer_index,
        "answer": question.options[question.answer_index],
        "answer_type": question.answer_type,
        "sub_answer_type": question.sub_answer_type,
    }


def doc_to_visual(doc: Doc) -> list[str]:
    """Path of the question's clip; it is cut if it is not there yet.

    Raises:
        VideoError: the video cannot be read, or nothing of it comes before the question.
    """
    key = "\n".join(map(str, (doc["path"], doc["fps"], doc["start_s"], doc["end_s"], PROTOCOL.fps)))
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.mp4"
    return [str(_clips(os.environ.get("OVBENCH_CLIPS")).get(name, lambda path: cut_clip(doc, path)))]


@lru_cache
def _clips(folder: str | None) -> ClipStore:
    """One for the process."""
    return ClipStore(Path(folder) if folder else None)


def cut_clip(doc: Doc, path: Path) -> None:
    """Write the frames that the streaming setting shows before a question to a file.

    Raises:
        VideoError: a video that cannot be read, or of which nothing comes before the question.
    """
    start_s, end_s = doc["start_s"], doc["end_s"]
    if end_s < start_s:
        raise VideoError(f"{doc['path']}: expected a question after {start_s} s, where its clip starts; got {end_s} s")
    nothing = EvalQuestion(
        id="", time_s=end_s, question="", options=(), answer_index=0, answer_type="", sub_answer_type=""
    )
    video = EvalVideo(
        name=doc["video"],
        id=doc["video"],
        clip_s=(start_s, end_s),
        fps=doc["fps"],
        dataset=doc["dataset"],
        questions=(nothing,),
    )
    with VideoFrames(Path(doc["path"]), video, PROTOCOL) as frames:
        indices = frames.streaming_indices()
        if not indices:
            raise VideoError(f"{doc['path']}: no frame starts at or before the question at {end_s} s")
        shown = ((frame.time_s, frame.pixels_HWC) for group in frames.read(indices) for frame in group)
        write_clip(path, shown, fps=min(PROTOCOL.fps, doc["fps"] or PROTOCOL.fps))


def doc_to_text(doc: Doc) -> str:
    """Question, options with letters, and the request for a letter."""
    return letter_question(doc["question"], doc["options"])


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """The answer's row for each average, and 100 or 0 for its cell."""
    option = parse_answer(results[0], doc["options"])
    correct = option == doc["answer_index"]
    row = {**doc, "text": results[0], "predicted_index": option, "correct": correct}
    cell = f"{doc['answer_type']}_{TASK.group(doc['dataset'])}"
    # lmms-eval adds a standard error over questions where it finds a score: right for this average alone.
    return {**dict.fromkeys(AVERAGES, row), "micro_average": {**row, "score": correct}, cell: 100.0 * correct}


def cell_average(rows: Sequence[Row]) -> float:
    """The published average: the mean over cells, in percent."""
    return float(compute_metrics(rows, TASK)["accuracy"])


def micro_average(rows: Sequence[Row]) -> float:
    """Every answer counts the same, in percent."""
    return float(compute_metrics(rows, TASK)["micro_average"]["accuracy"])


def cell_average_without_object_existence(rows: Sequence[Row]) -> float:
    """The mean over the other cells; where that cell was not asked, over all."""
    metrics = compute_metrics(rows, TASK)
    return float(metrics.get("without_object_existence", metrics)["cell_average"]["accuracy"])


TICKS = 90_000
"""A second in units of the file: rates such as 30000/1001 come out exact."""
NUM_HELD = 256
"""Clips in a folder of its own: more than any model asks for in one batch."""


class ClipStore:
    """Where clips lie. Threads may share one.

    Args:
        folder: holds every clip for the next run; without it, the newest in a folder that goes with this object.
        num_held: number of the newest clips that are held.
    """

    def __init__(self, folder: Path | None = None, *, num_held: int = NUM_HELD) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="clips_")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._num_held, self._lock = num_held, threading.Lock()

    def get(self, name: str, write: Callable[[Path], object]) -> Path:
        """Path of a clip; `write` is called with it where it is not there."""
        path = self.folder / name
        if not path.exists():
            write(path)
            if self._temporary is not None:
                self._drop_old()
        return path

    def _drop_old(self) -> None:
        with self._lock:
            clips = [path for path in self.folder.iterdir() if not path.name.endswith(PARTIAL)]
            for old in sorted(clips, key=lambda path: path.stat().st_mtime_ns)[: -self._num_held]:
                old.unlink()


def write_clip(path: Path, frames: Iterable[tuple[float, npt.NDArray[np.uint8]]], *, fps: float) -> int:
    """Write frames to an mp4 file (H.264, no loss that is seen); an odd last row or column is left out.

    The file appears when it is whole, so that several may write the same one at the same time.

    Args:
        path: file to be written.
        frames: start of each in seconds, ascending, and its pixels, RGB uint8 [H, W, 3], all of the first one's size.
        fps: their rate, as the file declares it.

    Returns:
        Number of frames.

    Raises:
        VideoError: no frames, or frames of several sizes.
    """
    num_frames, first_s, size = 0, 0.0, (0, 0)
    with written_whole(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18", "preset": "veryfast"}
        )
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        for time_s, pixels_HWC in frames:
            height, width = (side - side % 2 for side in pixels_HWC.shape[:2])
            if num_frames == 0:
                first_s, size = time_s, (height, width)
                stream.height, stream.width = size
            elif size != (height, width):
                raise VideoError(f"{path.name}: expected frames of one size, found {size} and {(height, width)}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_HWC[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = round((time_s - first_s) * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
            num_frames += 1
        if num_frames == 0:
            raise VideoError(f"{path.name}: expected frames to write, got none")
        container.mux(stream.encode(None))
    return num_frames
