"""Training rows of a whole data set, by annotation file, and the registries that name them.

Knows which rows a world has; how one looks is `rows`, how clips are cut is `clips`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from videochat_online.synthetic.files.preset_streams import Stream
from videochat_online.synthetic.files.question_rows import Row, offline_row, online_row, pair_of, turn_at
from videochat_online.synthetic.files.training_clips import ClipCutter
from videochat_online.synthetic.presets import Preset
from videochat_online.synthetic.questions.open_questions import OpenQuestions

IMAGES, DIALOGUES, RECALLS = "images", "dialogues", "recalls"
STREAM_CLIPS, STREAM_DIALOGUES = "stream_clips", "stream_dialogues"
LINES = (IMAGES, DIALOGUES, RECALLS, STREAM_DIALOGUES)
"""Annotations written as JSON lines; the others are JSON lists, as their originals are."""


STAGE1_REPEATS = {IMAGES: 0.3, "clips_of_2": 0.25, "clips_of_6": 1.5, "clips_of_8": 1.5}
DIALOGUE_REPEATS = 0.4
MEMORY_REPEATS = (
    ({"name": "pyramid", "capacities": [4, 4, 16]}, 0.4),
    ({"name": "fifo", "capacities": [4, 4, 16]}, 0.1),
    ({"name": "window", "num_frames": 6}, 0.1),
    ({"name": "uniform", "num_frames": 6}, 0.1),
)
"""Memories of 96 tokens where a full-size frame has 16, and how often each is trained with. One that is compared
without having been trained with would lose for that."""


class TrainingRows:
    """Collects the training rows of all training streams, in order."""

    def __init__(self, preset: Preset, seed: int) -> None:
        self.rows: defaultdict[str, list[Row]] = defaultdict(list)
        self.seed = seed
        self._preset = preset
        cutter: type[ClipCutter] | type[OpenQuestions] = ClipCutter if preset.world == "single" else OpenQuestions
        self._cutters = {
            name: cutter(seed, name) for name in (IMAGES, DIALOGUES, RECALLS, *(kind.name for kind in preset.clips))
        }
        self._num_streams = sum(kind.count for kind in preset.train)
        self._num_done = 0

    def add(self, stream: Stream) -> list[tuple[str, float]]:
        """Rows of one stream. Returns the images they need: (file name, time in the stream)."""
        self._num_done += 1
        for kind in self._preset.clips:
            self.rows[kind.name] += self._cutters[kind.name].offline_rows(stream.scene, stream.file, kind)
        count = self._preset.dialogues_per_stream
        self.rows[DIALOGUES] += self._cutters[DIALOGUES].online_rows(stream.scene, stream.file, count)
        self.rows[RECALLS] += self._cutters[RECALLS].recall_rows(stream.scene, stream.file, count)
        self.rows[STREAM_CLIPS] += _stream_clips(stream)
        if stream.questions:
            self.rows[STREAM_DIALOGUES].append(_stream_dialogue(stream))
        num_images = round(self._preset.num_images * self._num_done / self._num_streams)
        names = [f"{number:05d}.jpg" for number in range(len(self.rows[IMAGES]), num_images)]
        images = list(self._cutters[IMAGES].image_rows(stream.scene, names))
        self.rows[IMAGES] += [row for _, row in images]
        return [(row["image"], time_s) for time_s, row in images]


def registries(preset: Preset, names: list[str]) -> dict[str, dict[str, Row]]:
    """Registry file name -> entries, of the annotations there are; paths are relative to the registry file.

    The first stage goes from images to longer and longer clips, in the order of its entries.
    """
    first = (IMAGES, *(kind.name for kind in preset.clips))
    stages = {"stage1": {name: _entry(name) | {"repeat_time": STAGE1_REPEATS.get(name, 1)} for name in first}}
    stages["stage2"] = {DIALOGUES: _entry(DIALOGUES) | {"repeat_time": DIALOGUE_REPEATS}}
    for memory, repeat_time in MEMORY_REPEATS:
        entry = _entry(RECALLS) | {"repeat_time": repeat_time, "memory": memory}
        stages["stage2"][f"{RECALLS}_{memory['name']}"] = entry
    stages["more"] = {name: _entry(name) for name in (STREAM_CLIPS, STREAM_DIALOGUES)}
    files = {annotation_file(name) for name in names}
    return {
        f"{stage}.json": {
            f"synthetic_{name}": entry
            for name, entry in entries.items()
            if entry["annotation"].rpartition("/")[2] in files
        }
        for stage, entries in stages.items()
    }


def annotation_file(name: str) -> str:
    """File name of an annotation."""
    return f"{name}.jsonl" if name in LINES else f"{name}.json"


def _entry(name: str) -> Row:
    return {
        "annotation": f"../annotations/{annotation_file(name)}",
        "data_root": "../images/train" if name == IMAGES else "../videos/train",
        "data_augment": False,
        "repeat_time": 1,
    }


def _stream_clips(stream: Stream) -> Iterator[Row]:
    """For each time of asking, the stream up to it with what is asked then."""
    for time_s in sorted({question.asked_at_s for question in stream.questions}):
        asked = [question for question in stream.questions if question.asked_at_s == time_s]
        pairs = [pair_of(question.text, question.answer, question.options) for question in asked]
        yield offline_row(stream.file, 0, time_s, pairs)


def _stream_dialogue(stream: Stream) -> Row:
    """All questions of a stream, each at its time."""
    turns = [turn_at(q.text, q.answer, q.asked_at_s, q.options) for q in stream.questions]
    return online_row(stream.file, 0, stream.scene.duration_s, turns)
