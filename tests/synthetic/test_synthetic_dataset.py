"""A whole data set on disk: every byte follows from the seed, interrupted runs go on, rows agree with scenes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic_sets import TINY_SEVERAL, TINY_SINGLE
from videochat_online import __version__
from videochat_online.cli import synthesize as command
from videochat_online.data import load_registries
from videochat_online.errors import InputError
from videochat_online.runs import progress
from videochat_online.synthetic import PRESETS, ClipKind, StreamKind, scene_from_dict, synthesize
from videochat_online.synthetic.files import synthetic_dataset, video_files
from videochat_online.synthetic.files.annotations import TrainingRows
from videochat_online.synthetic.files.preset_streams import make_streams
from videochat_online.synthetic.files.video_files import write_jpeg
from videochat_online.synthetic.files.vocabulary import vocabulary, words_in
from videochat_online.synthetic.oracle import params_of
from videochat_online.synthetic.questions.facts_several import latest
from videochat_online.synthetic.questions.open_questions import OpenQuestions
from videochat_online.synthetic.questions.question_templates import TEMPLATES, answer_of
from videochat_online.synthetic.scene.episodes import BUILDERS
from videochat_online.synthetic.scene.one_shape import CORE
from videochat_online.synthetic.scene.words import PATTERNS, SEVERAL_COLOURS, SEVERAL_SHAPES, cell_name

ROOT = Path(__file__).resolve().parents[2]
TINY = {"single": TINY_SINGLE, "several": TINY_SEVERAL}


@pytest.fixture(scope="module", params=TINY)
def preset(request):
    return TINY[request.param]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A complete data set of each world, in the folder of its name. Not to be written to."""
    folder = tmp_path_factory.mktemp("both")
    for world, preset in TINY.items():
        assert not synthesize(folder / world, seed=7, preset=preset).was_complete
    return folder


@pytest.fixture(scope="module")
def made(preset, both) -> Path:
    return both / preset.world


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path):
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def scene_of(folder: Path, split: str, video: str):
    return scene_from_dict(read(folder / "scenes" / split / f"{video.removesuffix('.mp4')}.json"))


def training_rows(folder: Path):
    """(name, row) of every training annotation."""
    for path in sorted((folder / "annotations").iterdir()):
        if not path.name.startswith("ovbench"):
            yield from ((path.name.partition(".")[0], row) for row in read(path))


def test_the_same_seed_gives_the_same_bytes(both, tmp_path):
    """In another process, with another order of hashes."""
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers'); import synthetic_sets as sets\n"
        "from videochat_online.synthetic import synthesize\n"
        "for preset in (sets.TINY_SINGLE, sets.TINY_SEVERAL):\n"
        "    synthesize(f'{sys.argv[1]}/{preset.world}', seed=7, preset=preset)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], cwd=ROOT, env=environment, check=True)
    assert content(both) == content(tmp_path / "there")


def test_another_seed_gives_another_set(preset, made, tmp_path):
    synthesize(tmp_path / "other", seed=8, preset=preset)
    ours, other = content(made), content(tmp_path / "other")
    same = {path for path in ours if other.get(path) == ours[path]}
    assert {path for path in same if not path.startswith("registries/")} == {"vocabulary.json"}


def test_a_complete_folder_is_left_alone(preset, made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = synthesize(made, seed=7, preset=preset)
    assert again.was_complete
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert again.num_streams == {"train": 3, "val": 1, "test": sum(kind.count for kind in preset.test)}


@pytest.mark.parametrize("function", ["write_video", "write_folder", "write_jpeg", "_write_training"])
def test_an_interrupted_run_goes_on(preset, made, tmp_path, monkeypatch, function):
    """Broken off in the middle of any kind of file; what is whole already is not written again."""
    original, calls = getattr(synthetic_dataset, function), []

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) == (1 if function == "_write_training" else 2):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_dataset, function, broken)
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "set", seed=7, preset=preset)
    assert not (tmp_path / "set" / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert not synthesize(tmp_path / "set", seed=7, preset=preset).was_complete
    assert content(tmp_path / "set") == content(made)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_folder_that_breaks_off_is_not_taken_for_whole(preset, made, tmp_path, monkeypatch):
    calls = []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write_jpeg(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(video_files, "write_jpeg", broken)  # of folders; training images are written by another name
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "set", seed=7, preset=preset)
    assert len(list(tmp_path.rglob("*.partial/*.jpg"))) == 4
    synthesize(tmp_path / "set", seed=7, preset=preset)
    assert content(tmp_path / "set") == content(made)


def test_a_file_that_breaks_off_is_not_taken_for_whole(made, tmp_path, monkeypatch):
    def broken_replace(source, target):
        raise OSError("disk full")

    path = tmp_path / "clip.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken_replace)
        with pytest.raises(OSError, match="disk full"):
            synthetic_dataset.write_bytes(path, b"content")
    assert not path.exists()
    synthetic_dataset.write_bytes(path, b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_folders_of_other_runs_are_refused(made, preset, tmp_path):
    with pytest.raises(InputError, match="found one with another seed"):
        synthesize(made, seed=8, preset=preset)
    with pytest.raises(InputError, match="found one with another preset"):
        synthesize(made, seed=7, preset=replace(preset, num_images=1))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="found something else in it"):
        synthesize(tmp_path, seed=7, preset=preset)
    with pytest.raises(InputError, match="expected a folder to write to, found a file"):
        synthesize(tmp_path / "notes.txt", seed=7, preset=preset)
    (tmp_path / "notes.txt").rename(tmp_path / "synthesis.json")
    with pytest.raises(InputError, match=r"synthesis\.json: expected a JSON object, found no JSON"):
        synthesize(tmp_path, seed=7, preset=preset)
    (tmp_path / "synthesis.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object, found list"):
        synthesize(tmp_path, seed=7, preset=preset)
    assert [path.name for path in tmp_path.iterdir()] == ["synthesis.json"]


def test_bad_seeds_and_presets(tmp_path):
    with pytest.raises(InputError, match="seed: expected an integer of at least 0, got -1"):
        synthesize(tmp_path / "set", seed=-1, preset="quickstart")
    with pytest.raises(InputError, match="preset: expected one of quickstart, full, got 'huge'"):
        synthesize(tmp_path / "set", seed=0, preset="huge")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_counts(made, preset):
    manifest = read(made / "manifest.json")
    assert (manifest["seed"], manifest["version"]) == (7, __version__)
    assert manifest["counts"]["rows"] == dict(sorted(Counter(name for name, _ in training_rows(made)).items()))
    for split in ("val", "test"):
        rows = read(made / "annotations" / f"ovbench_{split}.json")
        asked = Counter(question["template"] for row in rows for question in row["questions"])
        assert manifest["counts"]["questions"][split] == asked
        assert manifest["counts"]["streams"][split] == len(rows)


def test_benchmark_rows_are_in_the_nested_layout(made):
    for split in ("val", "test"):
        for row in read(made / "annotations" / f"ovbench_{split}.json"):
            path = made / "videos" / split / row["video_id"]
            assert path.is_dir() if "fps" in row else path.is_file()
            assert row["clip"] == [0.0, scene_of(made, split, row["video_id"]).duration_s]
            times_s = [question["middle_frame_timestamp"] for question in row["questions"]]
            assert times_s == sorted(times_s)
            for question in row["questions"]:
                assert [option[:3] for option in question["options"]] == ["A. ", "B. ", "C. ", "D. "][
                    : len(question["options"])
                ]
                assert len(set(question["options"])) == len(question["options"])
                assert question["detail"] in ("fine", "coarse")


def check_pair(scene, time_s, question, answer):
    """A question in words has the answer that the scene gives."""
    lines = question.split("\n")
    assert lines[-1] in ("Answer:", "Only give the best option.")
    asked = lines[0].partition(": ")[2]
    if len(lines) == 2:
        check_open_pair(scene, time_s, asked, answer)
        return
    assert lines[1] == "Options:"
    options = [line.partition(") ")[2] for line in lines[2:-1]]
    for template in TEMPLATES:
        try:
            params = params_of(template, asked)
        except InputError:
            continue
        if TEMPLATES[template].text.count("{") == len(params) and answer.partition(") ")[2] in options:
            found = answer_of(scene, template, time_s, params, options)
            assert lines[2:-1][options.index(found)] == answer
            return
    raise AssertionError(f"no template asks {asked!r}")


def check_open_pair(clip, time_s, asked, answer):
    """A question without options has the answer that the scene gives, and what it is about has been seen."""
    (template,) = (name for name in BUILDERS if asks(name, asked))
    params = params_of(template, asked)
    names = [clip.entities[entity].name for entity in clip.until(time_s).spans]
    assert answer_of(clip, template, time_s, params, names) == answer
    if template == "next_cell":
        return
    assert clip.is_quiet(time_s - 1, time_s)
    if template in ("still_shaking", "how_long_shaking", "action_order"):
        assert all(event.start_s != time_s for event in clip.events_of(latest(clip, params)))


def asks(template, text):
    try:
        return len(params_of(template, text)) == TEMPLATES[template].text.count("{")
    except InputError:
        return False


def test_training_rows_are_true(made):
    num_checked = Counter()
    for name, row in training_rows(made):
        if "QA" in row:
            clip = scene_of(made, "train", row["video"]).between(row["start"], row["end"])
            for pair in row["QA"]:
                if pair["q"].startswith("Question"):
                    check_pair(clip, row["end"] - row["start"], pair["q"], pair["a"])
                    num_checked[name] += 1
        elif "clip" in row:
            assert row["need_reset_timestamp"]
            assert (made / "videos" / "train" / row["video"]).is_file()
            clip = scene_of(made, "train", row["video"]).between(*row["clip"])
            humans, answers = row["conversations"][::2], row["conversations"][1::2]
            times_s = [turn["timestamps"] for turn in humans]
            assert times_s == sorted(times_s)
            for human, answer in zip(humans, answers, strict=True):
                assert (human["from"], answer["from"]) == ("human", "gpt")
                assert human["value"].startswith(f"Question at {human['timestamps']}s: ")
                check_pair(clip, human["timestamps"], human["value"], answer["value"])
                num_checked[name] += 1
        else:
            assert (made / "images" / "train" / row["image"]).is_file()
            assert row["conversations"][0]["value"].startswith("<image>\n")
            assert sum(turn["value"].count("<image>") for turn in row["conversations"]) == 1
            num_checked[name] += 1
    assert set(num_checked) == set(read(made / "manifest.json")["counts"]["rows"])


def test_clips_are_quiet_where_they_begin_and_end(made, preset):
    for name, row in training_rows(made):
        if name not in (*(kind.name for kind in preset.clips), "dialogues", "recalls"):
            continue
        scene = scene_of(made, "train", row["video"])
        start_s, end_s = row.get("clip") or (row["start"], row["end"])
        assert 0 <= start_s < end_s <= scene.duration_s
        assert scene.is_quiet(start_s, start_s + 1)
        questions = [pair["q"] for pair in row.get("QA", ())] + [t["value"] for t in row.get("conversations", ())]
        if not any("be in one second" in question for question in questions):
            assert scene.between(start_s, end_s).is_quiet(end_s - start_s - 1, end_s - start_s)


def test_recalls_ask_everything_at_the_end_of_a_clip(made, preset):
    rows = [row for name, row in training_rows(made) if name == "recalls"]
    assert len(rows) == (9 if preset.world == "single" else 12)
    for row in rows:
        humans = row["conversations"][::2]
        assert {turn["timestamps"] for turn in humans} == {row["clip"][1] - row["clip"][0]}
        asked = [turn["value"].partition(": ")[2].split("\n")[0] for turn in humans]
        assert len(set(asked)) == len(asked)
        if preset.world == "single":
            assert sorted(asked) == sorted(TEMPLATES[template].text for template in CORE)
        else:
            # What is answered about a thing would help with the next question about it.
            named = re.findall(rf"(?:{'|'.join(SEVERAL_COLOURS)}) (?:{'|'.join(SEVERAL_SHAPES)})", " ".join(asked))
            assert len(set(named)) == len(named) > 0


def test_every_memory_that_the_quickstart_compares_is_trained_with(made):
    entries = load_registries(str(made / "registries" / "stage2.json"))
    names = {entry.memory.name for entry in entries if entry.memory}
    assert names == {"pyramid", "fifo", "window", "uniform"}


def test_a_folder_of_an_older_generator_is_not_taken_for_complete(tmp_path, monkeypatch):
    preset = replace(TINY_SINGLE, train=(), val=(), test=(StreamKind(seconds=48, count=1),), num_images=0)
    synthesize(tmp_path / "set", seed=0, preset=preset)
    monkeypatch.setattr(synthetic_dataset, "FORMAT", synthetic_dataset.FORMAT + 1)
    with pytest.raises(InputError, match="found one with another format"):
        synthesize(tmp_path / "set", seed=0, preset=preset)


@pytest.mark.parametrize("content", ["{}", '{"counts": []}', '{"counts": {"streams": {}, "questions": {"val": 3}}}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    preset = replace(TINY_SINGLE, train=(), val=(), test=(StreamKind(seconds=48, count=1),), num_images=0)
    synthesize(tmp_path / "set", seed=0, preset=preset)
    (tmp_path / "set" / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="manifest.json: expected the counts of a complete folder"):
        synthesize(tmp_path / "set", seed=0, preset=preset)


def test_progress_is_told_in_lines_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    preset = replace(TINY_SINGLE, train=(), val=(), test=(StreamKind(seconds=48, count=2),), num_images=0)
    synthesize(tmp_path / "set", seed=0, preset=preset, show_progress=True)
    first, second = capsys.readouterr().err.splitlines()
    assert (first.startswith("1/2 streams, "), first.endswith(" s left"), second) == (True, True, "2/2 streams")
    synthesize(tmp_path / "quiet", seed=0, preset=preset)
    assert capsys.readouterr().err == ""


def test_captions_name_what_rests_on_the_screen():
    stream = next(make_streams(TINY_SEVERAL, 0, "train"))
    rows = list(OpenQuestions(0, "images").image_rows(stream.scene, [f"{number}.jpg" for number in range(40)]))
    assert len({time_s for time_s, _ in rows}) > 5
    for time_s, row in rows:
        said = row["conversations"][1]["value"].split(", ")
        expected = []
        for seen in stream.scene.state_at(time_s):
            entity = stream.scene.entities[seen.entity]
            expected.append(
                f"{entity.colour} {entity.shape} {entity.pattern} row {seen.row + 1:g} column {seen.column + 1:g}"
            )
            assert not seen.is_flashing
            assert seen.action is None
        assert sorted(said) == sorted(expected)
        assert said == sorted(said, key=lambda shape: shape[-14:])
        assert {word for shape in said for word in words_in(shape)} <= set(vocabulary("several"))


def test_some_dialogues_are_in_the_words_of_the_sliding_window():
    preset = replace(TINY_SINGLE, train=(StreamKind(seconds=48, count=30),), dialogues_per_stream=10)
    training = TrainingRows(preset, 0)
    for stream in make_streams(preset, 0, "train"):
        training.add(stream)
    endings = [
        {turn["value"].rpartition("\n")[2] for turn in row["conversations"][::2]} for row in training.rows["dialogues"]
    ]
    assert all(len(found) == 1 for found in endings)
    num_window = sum(found == {"Only give the best option."} for found in endings)
    assert abs(num_window - 75) < 3 * (300 * 0.25 * 0.75) ** 0.5


def test_training_answers_are_balanced():
    """On many clips: each answer as often as any other, and what was first says nothing about what is now."""
    preset = replace(
        TINY_SINGLE,
        train=(StreamKind(seconds=48, count=60),),
        clips=(ClipKind(name="clips_of_8", min_s=3, max_s=8, per_stream=8),),
        dialogues_per_stream=6,
    )
    training = TrainingRows(preset, 0)
    for stream in make_streams(preset, 0, "train"):
        training.add(stream)
    answers, pairs = Counter(), Counter()
    for row in training.rows["clips_of_8"]:
        of = {pair["q"].split("\n")[0]: pair["a"] for pair in row["QA"] if pair["q"].startswith("Question")}
        answers.update(of.items())
        for first, now in (("first_shape", "shape_now"), ("first_place", "where_now")):
            pairs[first, of[f"Question: {TEMPLATES[first].text}"], of[f"Question: {TEMPLATES[now].text}"]] += 1
    assert len(answers) == 16
    assert all(abs(count - 120) <= 6 for count in answers.values()), answers
    assert len(pairs) == 32
    assert all(abs(count - 30) <= 4 for count in pairs.values()), pairs
    turns = Counter(
        (turn["value"].partition(": ")[2].split("\n")[0], answer["value"])
        for row in training.rows["dialogues"]
        for turn, answer in zip(row["conversations"][::2], row["conversations"][1::2], strict=True)
    )
    assert len(turns) == 4 * len(CORE)
    mean = sum(turns.values()) / len(turns)
    assert all(abs(count - mean) < 4 * mean**0.5 for count in turns.values()), turns


@pytest.fixture(scope="module")
def many_open_questions():
    """(set, scene, start, time, question, answer) of many training rows."""
    preset = replace(TINY_SEVERAL, train=(StreamKind(seconds=24, count=150, num_questions=2),))
    training, scenes, found = TrainingRows(preset, 0), {}, []
    for stream in make_streams(preset, 0, "train"):
        training.add(stream)
        scenes[stream.file] = stream.scene
    for name in ("clips_of_4", "clips_of_24", "dialogues", "recalls"):
        for row in training.rows[name]:
            pairs = [(row["end"] - row["start"], pair["q"], pair["a"]) for pair in row.get("QA", ())]
            turns = iter(row.get("conversations", ()))
            pairs += [
                (turn["timestamps"], turn["value"], answer["value"]) for turn, answer in zip(turns, turns, strict=True)
            ]
            start_s, end_s = row.get("clip") or (row["start"], row["end"])
            for time_s, question, answer in pairs:
                asked = question.partition(": ")[2].split("\n")[0]
                found.append((name, scenes[row["video"]], start_s, end_s, time_s, asked, answer))
    return found


def test_open_questions_are_true(many_open_questions):
    """Also of what comes after the clip."""
    num_next = 0
    for _, scene, start_s, end_s, time_s, asked, answer in many_open_questions:
        check_open_pair(scene.between(start_s, end_s), time_s, asked, answer)
        if asks("next_cell", asked):
            num_next += 1
            params = params_of("next_cell", asked)
            cell = scene.cell_at(latest(scene.until(start_s + time_s), params), start_s + time_s + 1)
            assert cell_name(cell, 4) == answer
    assert num_next > 50


def test_open_questions_cover_all_templates_and_favour_no_answer(many_open_questions):
    """No answer is more than two of three; of closed answers that any scene can have, each comes as often."""
    answers = defaultdict(Counter)
    for name, *_, asked, answer in many_open_questions:
        if name == "clips_of_24":
            (template,) = (template for template in BUILDERS if asks(template, asked))
            answers[template][answer] += 1
    assert set(answers) == set(BUILDERS)
    for template, found in answers.items():
        assert max(found.values()) <= 2 * (found.total() - max(found.values())) + 10, (template, found)
    for template, options in (("pattern_now", PATTERNS), ("pattern_was", PATTERNS), ("still_there", ("Yes", "No"))):
        assert set(answers[template]) == set(options)
        spread = max(answers[template].values()) - min(answers[template].values())
        assert spread < 0.1 * answers[template].total() / len(options), answers[template]


def test_clips_of_every_length_are_cut(many_open_questions):
    lengths = {(name, end_s - start_s) for name, _, start_s, end_s, *_ in many_open_questions}
    assert {length for name, length in lengths if name == "clips_of_4"} == {1, 2, 3, 4}
    assert {length for name, length in lengths if name == "clips_of_24"} >= set(range(5, 24))


def test_presets_without_open_rows(tmp_path):
    """None where none are asked for; a clip that no stream can have is refused, not looked for for ever."""
    clips = (ClipKind(name="clips_of_24", min_s=5, max_s=24, per_stream=0),)
    preset = replace(TINY_SEVERAL, clips=clips, dialogues_per_stream=0, num_images=0)
    training = TrainingRows(preset, 0)
    for stream in make_streams(preset, 0, "train"):
        training.add(stream)
    assert {name for name, rows in training.rows.items() if rows} == {"stream_clips", "stream_dialogues"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": (ClipKind(name="a", min_s=3, max_s=2, per_stream=1),)}, "clips: expected 1 <= min_s <= max_s"),
        ({"clips": (ClipKind(name="a", min_s=0, max_s=2, per_stream=1),)}, "clips: expected 1 <= min_s"),
        ({"clips": (ClipKind(name="a", min_s=24, max_s=24, per_stream=1),)}, "min_s below the 24 s of the shortest"),
        ({"clips": (ClipKind(name="a", min_s=1, max_s=2, per_stream=-1),)}, "per_stream of at least 0"),
        (
            {"test": (StreamKind(seconds=12, count=1, num_questions=1),)},
            "expected streams of at least 24 s to ask about",
        ),
    ],
)
def test_presets_that_cannot_be_made(change, message):
    with pytest.raises(InputError, match=message):
        replace(TINY_SEVERAL, **change)


def test_longer_streams_give_more_training_rows():
    preset = replace(TINY_SEVERAL, train=(StreamKind(seconds=240, count=1, num_questions=12),))
    training = TrainingRows(preset, 0)
    training.add(next(make_streams(preset, 0, "train")))
    lengths = [row["clip"][1] - row["clip"][0] for row in training.rows["recalls"]]
    assert len(lengths) == 10 * preset.dialogues_per_stream
    assert max(lengths) > 100
    assert max(row["clip"][1] - row["clip"][0] for row in training.rows["dialogues"]) <= 24


def test_registries_lead_to_everything(made, preset):
    named = set()
    for path in (made / "registries").iterdir():
        assert len(load_registries(str(path))) == len(read(path))
        for entry in read(path).values():
            assert set(entry) - {"memory"} == {"annotation", "data_root", "data_augment", "repeat_time"}
            annotation = (path.parent / entry["annotation"]).resolve()
            root = path.parent / entry["data_root"]
            for row in read(annotation):
                assert (root / (row.get("video") or row["image"])).is_file()
            named.add(annotation.name)
    written = {path.name for path in (made / "annotations").iterdir() if not path.name.startswith("ovbench")}
    assert named == written
    assert {path.name for path in (made / "registries").iterdir()} == {"stage1.json", "stage2.json", "more.json"}


def test_every_word_is_in_the_vocabulary(made):
    words = read(made / "vocabulary.json")["words"]
    assert words == sorted(set(words))
    texts = []
    for _, row in training_rows(made):
        texts += [text for pair in row.get("QA", ()) for text in (pair["q"], pair["a"])]
        texts += [turn["value"].removeprefix("<image>\n") for turn in row.get("conversations", ())]
    for split in ("val", "test"):
        for row in read(made / "annotations" / f"ovbench_{split}.json"):
            texts += [text for q in row["questions"] for text in (q["question"], *q["options"])]
    used = {word for text in texts for word in words_in(text)}
    assert used <= set(words)
    assert len(words) < 200


def test_the_command(made, preset, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(PRESETS, preset.name, preset)
    parser = ArgumentParser()
    command.add_arguments(parser)
    arguments = ["--output", str(tmp_path / "set"), "--seed", "7", "--preset", preset.name]
    assert command.run(parser.parse_args([*arguments, "--json"])) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["output"] == str(tmp_path / "set")
    assert not row["was_complete"]
    assert row["streams"]["train"] == 3
    assert content(tmp_path / "set") == content(made)
    assert command.run(parser.parse_args(arguments)) == 0
    out = capsys.readouterr().out
    assert "(complete already, left alone)" in out
    assert "streams: train 3, val 1, test" in out
