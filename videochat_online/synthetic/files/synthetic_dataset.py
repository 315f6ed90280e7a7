"""A whole data set on disk: streams, annotations, registries. Can be interrupted and goes on where it stopped.

Layout of the folder:
    synthesis.json                seed, preset and version, written first: what the folder is to become
    videos/SPLIT/                 mp4 files, and folders of JPEG frames
    images/train/                 training images
    scenes/SPLIT/                 what happens in each stream; `scene_from_dict` reads it
    annotations/                  ovbench_val.json, ovbench_test.json; training rows
    registries/                   stage1.json, stage2.json, more.json; paths relative to the registry file
    vocabulary.json               all words
    manifest.json                 counts, written last: the folder is complete
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videochat_online import __version__
from videochat_online.errors import InputError
from videochat_online.runs.files import check_writable, read_object
from videochat_online.runs.progress import progress
from videochat_online.synthetic.files.annotations import LINES, TrainingRows, annotation_file, registries
from videochat_online.synthetic.files.preset_streams import FOLDER, VARIABLE, Stream, make_streams
from videochat_online.synthetic.files.question_rows import Row, json_document, ovbench_row, to_json_lines
from videochat_online.synthetic.files.video_files import write_bytes, write_folder, write_jpeg, write_video
from videochat_online.synthetic.files.vocabulary import WORD_PATTERN, vocabulary
from videochat_online.synthetic.presets import PRESETS, SPLITS, Preset
from videochat_online.synthetic.scene.even_draws import random_of
from videochat_online.synthetic.scene.render import Renderer

Counts = dict[str, dict[str, Any]]

SETTINGS_FILE, MANIFEST_FILE = "synthesis.json", "manifest.json"
FORMAT = 3
"""Raised whenever the same seed comes to give other bytes: a folder of before is then not taken for complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """What was generated.

    Attributes:
        output: the folder.
        was_complete: whether nothing had to be done.
        num_streams: streams by split.
        num_questions: benchmark questions by split.
        num_rows: rows of each training annotation.
    """

    output: Path
    was_complete: bool
    num_streams: dict[str, int]
    num_questions: dict[str, int]
    num_rows: dict[str, int]


def synthesize(output: Path | str, *, seed: int, preset: Preset | str, show_progress: bool = False) -> Synthesis:
    """Generate a data set, complete one that was interrupted, or find that it is complete.

    Args:
        output: a new or empty folder, or one of an earlier call with the same seed and preset.
        seed: everything follows from it, down to the last byte.
        preset: a name in `PRESETS`, or one of your own.
        show_progress: a bar on stderr, where that is a terminal.

    Raises:
        InputError: an unknown preset, a negative seed, or a folder that holds something else.
    """
    folder = Path(output)
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        preset = PRESETS[preset]
    if seed < 0:
        raise InputError(f"seed: expected an integer of at least 0, got {seed}")
    # Through JSON, so that it compares with what was read from a file.
    settings = json.loads(
        json.dumps({"seed": seed, "version": __version__, "format": FORMAT, "preset": asdict(preset)})
    )
    if _begin(folder, settings):
        manifest = read_object(folder / MANIFEST_FILE)
        try:
            totals = _totals(manifest["counts"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder / MANIFEST_FILE}: expected the counts of a complete folder ({error!r})"
            ) from error
        return Synthesis(output=folder, was_complete=True, **totals)
    counts = _write_all(folder, seed, preset, show_progress)
    # Last: it says that the folder is complete.
    write_bytes(folder / MANIFEST_FILE, json_document({**settings, "counts": counts}))
    return Synthesis(output=folder, was_complete=False, **_totals(counts))


def _begin(folder: Path, settings: Row) -> bool:
    """Whether the folder is complete already; a new one gets its settings file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to write to, found a file")
    if (folder / SETTINGS_FILE).is_file():
        found = read_object(folder / SETTINGS_FILE)
        if found != settings:
            keys = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            raise InputError(
                f"{folder}: expected an empty folder or one of the same run, found one with another {', '.join(keys)}"
            )
        is_complete = (folder / MANIFEST_FILE).is_file()
        if not is_complete:
            check_writable(folder)
        return is_complete
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: expected an empty folder or one of the same run, found something else in it")
    check_writable(folder)
    write_bytes(folder / SETTINGS_FILE, json_document(settings))
    return False


def _write_all(folder: Path, seed: int, preset: Preset, show_progress: bool) -> Counts:
    counts: Counts = {"streams": {}, "questions": {}, "rows": {}}
    training = TrainingRows(preset, seed)
    num_done, num_streams = 0, sum(kind.count for split in SPLITS for kind in preset.streams(split))
    with progress("streams", show=show_progress) as tell:
        for split in SPLITS:
            rows = []
            for stream in make_streams(preset, seed, split):
                _write_stream(folder, split, stream, preset)
                fps = stream.fps if stream.medium == FOLDER else None
                rows.append(ovbench_row(stream.file, stream.scene, stream.questions, fps))
                for image, time_s in training.add(stream) if split == "train" else ():
                    path = folder / "images" / "train" / image
                    if not path.exists():
                        write_jpeg(path, Renderer(stream.scene, preset.size_px).frame(time_s))
                num_done += 1
                tell(num_done, num_streams)
            counts["streams"][split] = len(rows)
            if split != "train":
                _write_new(folder / "annotations" / f"ovbench_{split}.json", json_document(rows))
                templates = Counter(question["template"] for row in rows for question in row["questions"])
                counts["questions"][split] = dict(sorted(templates.items()))
    counts["rows"] = _write_training(folder, training, preset)
    words = {"pattern": WORD_PATTERN, "words": vocabulary(preset.world)}
    _write_new(folder / "vocabulary.json", json_document(words))
    return counts


def _write_stream(folder: Path, split: str, stream: Stream, preset: Preset) -> None:
    """The video or folder of frames, then the scene; what is there is whole and stays."""
    path = folder / "videos" / split / stream.file
    scene_path = folder / "scenes" / split / f"{stream.scene.name}.json"
    if not path.exists():
        renderer = Renderer(stream.scene, preset.size_px)
        seconds, fps = stream.scene.duration_s, stream.fps
        if stream.medium == FOLDER:
            write_folder(path, renderer, seconds, fps)
        else:
            seed = f"{stream.scene.background_seed}/{stream.scene.name}"
            write_video(path, renderer, seconds, fps, seed=seed, is_variable=stream.medium == VARIABLE)
    _write_new(scene_path, to_json_lines([stream.scene.to_dict()]))


def _write_training(folder: Path, training: TrainingRows, preset: Preset) -> dict[str, int]:
    """Annotations and registries; returns the number of rows of each."""
    written = {name: rows for name, rows in training.rows.items() if rows}
    for name, rows in written.items():
        # Neighbours in a file would be cut from one stream.
        random_of("order", training.seed, name).shuffle(rows)
        content = to_json_lines(rows) if name in LINES else json_document(rows)
        _write_new(folder / "annotations" / annotation_file(name), content)
    for file, entries in registries(preset, list(written)).items():
        _write_new(folder / "registries" / file, json_document(entries))
    return {name: len(rows) for name, rows in sorted(written.items())}


def _write_new(path: Path, content: bytes) -> None:
    if not path.exists():
        write_bytes(path, content)


def _totals(counts: Counts) -> dict[str, Any]:
    questions = {split: sum(templates.values()) for split, templates in counts["questions"].items()}
    return {"num_streams": counts["streams"], "num_questions": questions, "num_rows": counts["rows"]}
