"""OVBench for other models: clips that end with their question, our scores, and the task's configuration."""

from __future__ import annotations

import os
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from evaluation_sets import question, write_set
from video_files import draw_number, read_all, read_number, write_folder, write_video
from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation import compute_metrics, get_task
from videochat_online.integrations import lmms_ovbench as task
from videochat_online.integrations.lmms_ovbench import ClipStore, write_clip

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "lmms_eval" / "ovbench"


def lmms_row(**changes):
    """A question of the lmms layout."""
    fields = {"video": "clip.mp4", "start": 0.0, "end": 4.0, "middle_frame_timestamp": 4.0, "question": "What?"}
    answers = {"candidates": ["red", "blue"], "answer": "blue"}
    return {**fields, **answers, "answer_type": "PastMemory", "sub_answer_type": "PastMemory-1", **changes}


@pytest.fixture
def media(tmp_path):
    """A file at 10 fps, a folder of TAO at 4 fps and one of AVA; every frame shows its number."""
    (tmp_path / "media").mkdir()
    write_video(tmp_path / "media" / "cook.mp4", range(60))
    for name in ("street", "-film.1"):
        write_folder(tmp_path / "media" / name, [f"f{i}.png" for i in range(95, 119)])
    return tmp_path / "media"


@pytest.fixture
def environment(tmp_path, media):
    """A row about each."""
    rows = {"coin": ("cook.mp4", None), "tao": ("street", 4), "ava": ("-film.1", None)}
    files = [
        write_set(tmp_path / f"{name}.json", [lmms_row(video=video, **({"fps": fps} if fps else {}))])
        for name, (video, fps) in rows.items()
    ]
    return {"OVBENCH_ANNOTATIONS": os.pathsep.join(map(str, files)), "OVBENCH_ROOT": str(media)}


@pytest.fixture
def clip_of(tmp_path, monkeypatch):
    """Numbers of the frames of a question's clip, and their times."""
    monkeypatch.setenv("OVBENCH_CLIPS", str(tmp_path / "clips"))

    def clip(doc):
        (path,) = task.doc_to_visual(doc)
        assert Path(path).parent == tmp_path / "clips"
        frames, times_s = read_all(path)
        return [read_number(frame) for frame in frames], times_s

    return clip


def test_rows(environment, media):
    rows = task.question_rows(environment)
    assert [(row["dataset"], row["path"], row["fps"]) for row in rows] == [
        ("coin", str(media / "cook.mp4"), None),
        ("tao", str(media / "street"), 4.0),
        ("ava", str(media / "-film.1"), 1.0),  # the data set's own rate
    ]
    assert (rows[0]["options"], rows[0]["answer_index"], rows[0]["answer"]) == (["red", "blue"], 1, "blue")


def test_other_layouts_give_the_same_rows(environment, media, tmp_path):
    fields = {"video_id": "cook.mp4", "dataset": "coin", "clip": [0.0, 5.0]}
    nested = write_set(
        tmp_path / "nested.json", [{**fields, "questions": [question(4.0, "B", options=("A. red", "B. blue"))]}]
    )
    (row,) = task.question_rows({**environment, "OVBENCH_ANNOTATIONS": str(nested)})
    assert row == task.question_rows(environment)[0]


def test_a_clip_holds_what_comes_before_its_question(environment, clip_of):
    file, street, film = task.question_rows(environment)
    numbers, times_s = clip_of(file)
    assert numbers == list(range(41))  # 10 fps: every frame, up to the one that starts at 4 s
    assert times_s == pytest.approx([i / 10 for i in range(41)], abs=1e-3)
    assert clip_of(file | {"end_s": 2.05})[0] == list(range(21))
    assert clip_of(file | {"start_s": 1.0, "end_s": 2.0})[0] == list(range(10, 21))
    assert clip_of(street)[0] == list(range(17))
    assert clip_of(film) == ([0, 1, 2, 3, 4], pytest.approx([0, 1, 2, 3, 4], abs=1e-3))


def test_a_question_after_the_clip_sees_its_end_and_one_before_it_nothing(environment, media, tmp_path, clip_of):
    rows = [
        {"video_id": "cook.mp4", "dataset": "coin", "clip": [1.0, 2.0], "questions": [question(0.5), question(9.0)]}
    ]
    annotations = write_set(tmp_path / "nested.json", rows)
    before, after = task.question_rows({**environment, "OVBENCH_ANNOTATIONS": str(annotations)})
    assert clip_of(after)[0] == list(range(10, 21))
    with pytest.raises(VideoError, match=r"cook\.mp4: expected a question after 1\.0 s"):
        clip_of(before)


def test_a_clip_is_cut_once(environment, clip_of, tmp_path, monkeypatch):
    doc = task.question_rows(environment)[0]
    clip_of(doc)
    monkeypatch.setattr(task, "cut_clip", lambda doc, path: pytest.fail("cut again"))
    clip_of(doc)
    assert len(list((tmp_path / "clips").iterdir())) == 1


def test_without_a_folder_the_newest_are_held():
    store = ClipStore(num_held=2)
    (store.folder / ".x.mp4.partial").touch()
    for i, name in enumerate("abc"):
        path = store.get(name, Path.touch)
        os.utime(path, (i, i))
    assert sorted(path.name for path in store.folder.iterdir()) == [".x.mp4.partial", "b", "c"]
    folder = store.folder
    del store, path
    assert not folder.exists()


def test_writing_a_clip(tmp_path):
    odd = [(t / 4, np.pad(draw_number(t), ((0, 1), (0, 1), (0, 0)))) for t in range(3)]
    assert write_clip(tmp_path / "odd.mp4", odd, fps=4.0) == 3
    frames, times_s = read_all(tmp_path / "odd.mp4")
    assert [read_number(frame) for frame in frames] == [0, 1, 2]
    assert times_s == [0.0, 0.25, 0.5]
    # So many that the file has been begun when the size changes.
    changing = [*((t / 4, draw_number(t)) for t in range(120)), (30.0, draw_number(1, 2))]
    for frames, message in (([], "got none"), (changing, "expected frames of one size")):
        with pytest.raises(VideoError, match=message):
            write_clip(tmp_path / "bad.mp4", frames, fps=4.0)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"OVBENCH_ROOT": ""}, "OVBENCH_ROOT: expected the environment variable"),
        ({"OVBENCH_ANNOTATIONS": ""}, "OVBENCH_ANNOTATIONS: expected the environment variable"),
        ({"OVBENCH_ANNOTATIONS": "missing.json"}, "1 of 1 videos are missing; the first: none.mp4"),
        ({"OVBENCH_ANNOTATIONS": "unusable.json"}, "1 questions cannot be used; the first: unusable.json row 2: end"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(environment, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "missing.json", [lmms_row(video="none.mp4")])
    write_set(tmp_path / "unusable.json", [lmms_row(video="cook.mp4"), lmms_row(video="cook.mp4", end="late")])
    with pytest.raises(InputError, match=message):
        task.question_rows({**environment, **change})


def test_answers_are_read_and_averaged_as_in_our_own_evaluation(environment):
    doc = task.question_rows(environment)[0]
    assert task.doc_to_text(doc) == (
        "What?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    kinds = [("PastMemory", "coin", "B"), ("PastMemory", "hirest", "(A)"), ("PastMemory", "tao", "no idea")]
    kinds += [("Hallucination", "tao", "The answer is B."), ("PastMemory", "tao", "blue"), ("PastMemory", "ava", "b")]
    results = [
        task.process_results(doc | {"answer_type": kind, "dataset": dataset, "id": str(i)}, [text])
        for i, (kind, dataset, text) in enumerate(kinds)
    ]
    assert [result["cell_average"]["predicted_index"] for result in results] == [1, 0, None, 1, 1, 1]
    assert [result["micro_average"]["score"] for result in results] == [True, False, False, True, True, True]
    assert "score" not in results[0]["cell_average"]
    assert [list(result)[-1] for result in results[::3]] == ["PastMemory_event", "Hallucination_object"]
    assert [list(result.values())[-1] for result in results] == [100.0, 0.0, 0.0, 100.0, 100.0, 100.0]
    rows = [result["cell_average"] for result in results]
    assert task.cell_average(rows) == compute_metrics(rows, get_task("ovbench"))["accuracy"] == 75.0
    assert task.micro_average(rows) == pytest.approx(100 * 4 / 6, abs=1e-3)
    assert task.cell_average_without_object_existence(rows) == pytest.approx(100 * 2 / 3, abs=1e-3)
    assert task.cell_average_without_object_existence(rows[:2]) == task.cell_average(rows[:2]) == 50.0


class Loader(yaml.SafeLoader):
    """Reads `!function a.b` as lmms-eval does: the thing of that name."""


Loader.add_constructor("!function", lambda loader, node: pkgutil.resolve_name(loader.construct_scalar(node)))


def test_the_task_s_configuration():
    config = yaml.load((FOLDER / "ovbench.yaml").read_text("utf-8"), Loader)
    assert (config["task"], config["process_docs"]) == ("ovbench", task.read_questions)
    for name in ("doc_to_visual", "doc_to_text", "process_results"):
        assert config[name] is getattr(task, name)
    assert (FOLDER / config["dataset_kwargs"]["data_files"][config["test_split"]]).is_file()
    metrics = {metric["metric"]: metric["aggregation"] for metric in config["metric_list"]}
    assert {name: metrics.pop(name) for name in task.AVERAGES} == {name: getattr(task, name) for name in task.AVERAGES}
    assert len(metrics) == 16
    assert set(metrics.values()) == {"mean"}
    assert all(re.fullmatch(r"[A-Z]\w+_(action|event|object)", name) for name in metrics)


def test_the_configuration_has_every_cell_of_the_benchmark(shared_dir):
    config = yaml.load((FOLDER / "ovbench.yaml").read_text("utf-8"), Loader)
    ovbench = get_task("ovbench")
    content = ovbench.load(sorted((shared_dir / "ovbench").glob("*.json")))
    cells = {f"{question.answer_type}_{ovbench.group(question.dataset)}" for question in content.questions}
    assert cells == {metric["metric"] for metric in config["metric_list"]} - set(task.AVERAGES)
