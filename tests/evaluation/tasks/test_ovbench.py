"""Annotation files of OVBench in all their layouts, and finding their media."""

from __future__ import annotations

import json

import pytest

from evaluation_sets import noise, question, write_frames, write_set
from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation import EvalVideo, get_task
from videochat_online.evaluation.media.locate import MediaLibrary
from videochat_online.evaluation.tasks.ovbench import load_ovbench
from videochat_online.evaluation.tasks.reading import read_rows

LMMS = {"ava": (12, 280), "coin": (120, 394), "hirest": (90, 338), "tao": (65, 388)}
NESTED = {"action": (12, 280), "event": (210, 732), "object": (66, 394)}


def lmms_row(**changes):
    return {
        "video": "clip.mp4",
        "start": 0.0,
        "end": 4.0,
        "middle_frame_timestamp": 4.0,
        "question": "What?",
        "candidates": ["red", "blue"],
        "answer": "blue",
        "answer_type": "PastMemory",
        "sub_answer_type": "PastMemory-1",
        **changes,
    }


class TestPublishedFiles:
    @pytest.mark.parametrize("name", LMMS)
    def test_lmms(self, shared_dir, name):
        content = load_ovbench([shared_dir / "ovbench" / f"{name}.json"])
        assert (len(content.videos), len(content.questions), content.problems) == (*LMMS[name], ())
        assert {question.dataset for question in content.questions} == {name}

    @pytest.mark.parametrize("name", NESTED)
    @pytest.mark.parametrize("ending", ["", "_flat"])
    def test_nested_and_flat(self, shared_dir, name, ending):
        content = load_ovbench([shared_dir / "ovbench" / "nested" / f"ovbench_{name}{ending}.json"])
        assert (len(content.videos), len(content.questions), content.problems) == (*NESTED[name], ())

    def test_layouts_agree_on_every_question(self, shared_dir):
        folder = shared_dir / "ovbench"
        nested = load_ovbench([folder / "nested" / f"ovbench_{name}.json" for name in NESTED]).questions
        flat = load_ovbench([folder / "nested" / f"ovbench_{name}_flat.json" for name in NESTED]).questions
        lmms = load_ovbench([folder / f"{name}.json" for name in LMMS]).questions
        by_id = {question.id: question for question in nested}
        assert len(by_id) == len(nested) == 1406
        assert {question.id for question in flat} == by_id.keys()
        # One TAO video with 6 questions is not in the lmms sample.
        assert len(by_id.keys() - {question.id for question in lmms}) == 6
        for ours in (*flat, *lmms):
            other = by_id[ours.id]
            for field in ("time_s", "question", "options", "answer_index", "sub_answer_type", "dataset"):
                assert getattr(ours, field) == getattr(other, field), ours.id

    def test_ava_is_asked_at_the_end_of_its_clip(self, shared_dir):
        content = load_ovbench([shared_dir / "ovbench" / "ava.json"])
        first = content.videos[0]
        assert (first.id, first.fps, first.questions[0].time_s) == ("914yZXz-iRs", 1.0, 56.0)

    def test_sixteen_cells(self, shared_dir):
        task = get_task("ovbench")
        questions = load_ovbench([shared_dir / "ovbench" / f"{name}.json" for name in LMMS]).questions
        assert len({(question.answer_type, task.group(question.dataset)) for question in questions}) == 16

    @pytest.mark.parametrize("ending", ["", "_flat", "_lmms"])
    def test_mini(self, shared_dir, ending):
        content = load_ovbench([shared_dir / "videos" / f"ovbench_mini{ending}.json"])
        library = MediaLibrary(shared_dir / "videos")
        assert (len(content.videos), len(content.questions)) == (10, 43)
        assert all(library.find(video).exists() for video in content.videos)


class TestOddRows:
    def load(self, tmp_path, *rows):
        return load_ovbench([write_set(tmp_path / "rows.json", list(rows))])

    def test_they_are_taken_as_they_are(self, tmp_path):
        rows = [
            lmms_row(video="-R6zVQR-Npk.mp4"),
            lmms_row(video="b255cd6c-e5f99451", start=0.0, end=0.0),
            lmms_row(candidates=["Ja, natürlich ", "no", "是"], answer="Ja, natürlich "),
            lmms_row(question="Where is it [0.9, 0.9, 0.1, 0.1]?", candidates=["x" * 1024, "y", "z", "w"], answer="y"),
            lmms_row(question="And this, at the same time?"),
        ]
        content = self.load(tmp_path, *rows)
        assert content.problems == ()
        assert [video.id for video in content.videos] == ["-R6zVQR-Npk.mp4", "b255cd6c-e5f99451", "clip.mp4"]
        assert content.videos[1].questions[0].time_s == 0.0
        clip = content.videos[2].questions
        assert [question.answer_index for question in clip] == [0, 1, 1]
        assert clip[0].options[0] == "Ja, natürlich "
        assert len(clip[1].options[0]) == 1024
        assert len({question.id for question in clip}) == 3

    def test_the_same_question_twice_gets_two_ids(self, tmp_path):
        content = self.load(tmp_path, lmms_row(), lmms_row())
        first, second = content.questions
        assert second.id == f"{first.id}-2"

    def test_questions_come_in_time_order(self, tmp_path):
        row = {"video_id": "v", "questions": [question(5.0), question(1.0), question(3.0)]}
        assert [asked.time_s for asked in self.load(tmp_path, row).questions] == [1.0, 3.0, 5.0]

    def test_one_video_with_two_clips_is_two_streams(self, tmp_path):
        rows = [{"video_id": "v", "clip": clip, "questions": [question(2.0)]} for clip in ([0, 3], [1, 3])]
        assert [video.name for video in self.load(tmp_path, *rows).videos] == ["v", "v#2"]

    def test_other_fields_are_kept(self, tmp_path):
        row = {"video_id": "v", "questions": [question(2.0, evidence_age_s=1.5, detail="fine", template="where")]}
        (asked,) = self.load(tmp_path, row).questions
        assert asked.extra == {"evidence_age_s": 1.5, "detail": "fine", "template": "where"}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"answer": "green"}, "answer 'green'"),
            ({"candidates": ["red"]}, "candidates: expected at least 2 of them, found 1"),
            ({"candidates": ["red", 2]}, "candidates[1]: expected a text, found 2"),
            ({"end": -1.0}, "end: expected a number of at least 0, found -1.0"),
            ({"end": None}, "end: expected a number, found none"),
            ({"question": " "}, "question: expected a text"),
            ({"question": "a\udfff"}, "question: expected Unicode text, without halves of surrogate pairs, found"),
            ({"candidates": ["red", "a\ud800"], "answer": "red"}, "candidates[1]: expected Unicode text"),
            ({"answer_type": 3}, "answer_type: expected a text"),
            ({"fps": 0}, "fps: expected a number above 0"),
            ({"video": ""}, "video: expected a text, found ''"),
            ({"video": None}, "video_id or video: expected a name, found none"),
            ({"video": "a\ud800.mp4"}, "video: expected Unicode text"),
        ],
    )
    def test_a_bad_row_is_named_and_left_out(self, tmp_path, changes, words):
        content = self.load(tmp_path, lmms_row(), lmms_row(**changes))
        assert len(content.questions) == 1
        (problem,) = content.problems
        assert problem.startswith("rows.json row 2: ")
        assert words in problem

    @pytest.mark.parametrize(
        "changes", [{"options": ["red", "blue"]}, {"options": ["A.red", "B. blue"]}, {"answer": "C"}, {"answer": "AB"}]
    )
    def test_a_bad_nested_question_is_named(self, tmp_path, changes):
        row = {"video_id": "v", "questions": [question(1.0), {**question(2.0), **changes}]}
        content = self.load(tmp_path, row)
        assert len(content.questions) == 1
        assert content.problems[0].startswith("rows.json row 1 question 2: ")

    @pytest.mark.parametrize("text", ["{}", "[1]", "no json", "[]", json.dumps([{"video": "x"}])])
    def test_a_file_without_questions_is_an_error(self, tmp_path, text):
        (tmp_path / "set.json").write_text(text)
        with pytest.raises(InputError, match="set.json"):
            load_ovbench([tmp_path / "set.json"])

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(InputError, match="absent.json: expected a JSON list of rows"):
            load_ovbench([tmp_path / "absent.json"])


def video(name, dataset=None, hint=None):
    return EvalVideo(name=name, id=name, clip_s=(0.0, 9.0), fps=1.0, dataset=dataset, questions=(), hint=hint)


class TestMedia:
    @pytest.fixture
    def root(self, tmp_path):
        for path in ("COIN/-R6zVQR-Npk.mp4", "HiREST_videos/a.b.mp4", "dog.webm", "AVA/raw/twice.mkv", "x/y/same.mp4"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        for folder in ("cams/val/cam", "cams/test/cam", "z"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "cams/val/cam/0001.mp4").touch()
        (tmp_path / "cams/test/cam/0001.mp4").touch()
        (tmp_path / "z" / "same.mp4").touch()
        write_frames(tmp_path / "AVA" / "frames" / "twice", noise(1))
        write_frames(tmp_path / "TAO_frames" / "val" / "BDD" / "b255", noise(1))
        write_frames(tmp_path / "TAO_frames" / "val" / "YFCC" / "b255", noise(1))
        return tmp_path

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            (video("COIN/-R6zVQR-Npk.mp4"), "COIN/-R6zVQR-Npk.mp4"),
            (video("-R6zVQR-Npk.mp4"), "COIN/-R6zVQR-Npk.mp4"),
            (video("-R6zVQR-Npk"), "COIN/-R6zVQR-Npk.mp4"),
            (video("a.b.mp4"), "HiREST_videos/a.b.mp4"),
            (video("a.b"), "HiREST_videos/a.b.mp4"),
            (video("dog"), "dog.webm"),
            (video("twice"), "AVA/frames/twice"),
            (video("val/cam/0001"), "cams/val/cam/0001.mp4"),
            (video("test/cam/0001.mp4"), "cams/test/cam/0001.mp4"),
            (video("y/same.mp4"), "x/y/same.mp4"),
            (video("set/COIN/-R6zVQR-Npk"), "COIN/-R6zVQR-Npk.mp4"),
            (video("b255", hint="val/BDD/b255/frame0541.jpg"), "TAO_frames/val/BDD/b255"),
        ],
    )
    def test_found(self, root, asked, found):
        assert MediaLibrary(root).find(asked) == root / found

    @pytest.mark.parametrize("name", ["absent", "b255", "same.mp4", "R6zVQR-Npk"])
    def test_missing_and_ambiguous(self, root, name):
        with pytest.raises(VideoError, match=name):
            MediaLibrary(root).find(video(name))

    @pytest.mark.parametrize("name", ["train/cam/0001.mp4", "train/cam/0001", "w/same.mp4"])
    def test_a_video_of_other_folders_is_another(self, root, name):
        with pytest.raises(VideoError, match=rf"{name}: expected it in .* below {root}, found others: {root}/"):
            MediaLibrary(root).find(video(name))

    def test_the_dataset_decides(self, root):
        (root / "COIN" / "a.b.mp4").touch()
        assert MediaLibrary(root).find(video("a.b.mp4", dataset="hirest")).parent.name == "HiREST_videos"

    def test_no_root(self, tmp_path):
        with pytest.raises(InputError, match="expected the folder with the videos"):
            MediaLibrary(tmp_path / "absent")


def test_annotations_may_begin_with_the_mark_of_their_encoding(tmp_path):
    """As training takes them; some tools write two."""
    rows = [{"a": "caf\xe9"}]
    for marks in range(3):
        (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" * marks + json.dumps(rows, ensure_ascii=False).encode())
        assert read_rows(tmp_path / "rows.json") == rows
    (tmp_path / "rows.json").write_bytes(json.dumps(rows).encode("utf-16"))
    with pytest.raises(InputError, match=r"rows.json: expected a JSON list of rows, found no JSON"):
        read_rows(tmp_path / "rows.json")
