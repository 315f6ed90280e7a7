"""`doctor --annotations`: each planted fault of a benchmark is found, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from clips import write_clip
from evaluation_sets import noise, question, write_frames, write_set
from video_files import packet_spans, write_video
from videochat_online.cli.doctor import doctor_benchmark
from videochat_online.cli.main import main
from videochat_online.errors import InputError
from videochat_online.evaluation import get_task
from videochat_online.evaluation.check import benchmark_check
from videochat_online.evaluation.check.annotation_check import Finding
from videochat_online.evaluation.check.archives import check_archive, find_archives
from videochat_online.evaluation.check.benchmark_check import inspect_benchmark
from videochat_online.evaluation.check.video_check import check_media

FOLDER = {"fps": 4.0, "clip": [0.0, 6.0]}


def row(name, *questions, **more):
    """A row of the nested layout with a question at 3 s unless others are given."""
    return {"video_id": name, "questions": list(questions or [question(3.0)]), **more}


def break_file(path: Path, keep: float) -> None:
    """Leave the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def make_good(media: Path):
    """Odd but sound videos, in their rows."""
    write_clip(media / "-R6.b.mp4")
    write_frames(media / "frames" / "ava" / "movie", noise(4))
    write_frames(media / "frames" / "fine", noise(24))
    yield row("-R6.b", question(0.0), question(4.0), question(4.0, text="And?"), clip=[0.0, 4.0])
    yield row("movie", dataset="ava", clip=[0.0, 4.0])
    yield row("fine", question(5.5), question(6.0, text="Où?", options=("A. là ", "B. é")), **FOLDER)


def make_faults(media: Path):
    """Rows, each with the kind of its only fault and words of its reason."""
    (media / "text.mp4").write_text("no video")
    write_clip(media / "cut.mp4")
    break_file(media / "cut.mp4", 0.5)
    write_video(media / "short.mp4", range(40), container_options={"movflags": "faststart"})
    break_file(media / "short.mp4", 0.8)
    for name in ("clip", "late", "outside", "twice", "same", "box"):
        write_clip(media / f"{name}.mp4")
    for name, num_frames in (("hole", 24), ("torn", 24), ("norate", 8), ("few", 23), ("many", 49)):
        write_frames(media / "frames" / name, noise(num_frames))
    (media / "frames" / "hole" / "img99.png").write_bytes(b"")
    (media / "frames" / "torn" / "img118.png").write_bytes(b"torn")
    boxes = ("A. [0.1, 0.1, 0.2, 0.2]", "B. walk [0.5, 0.9, 0.6, 0.2]")
    yield row("absent"), "missing", "found none"
    yield row("packed"), "missing", "packed.zip holds it and has to be unpacked"
    yield row("text.mp4"), "unreadable", "text.mp4: expected a video file"
    yield row("cut.mp4"), "unreadable", "cut.mp4: expected a video file"
    yield row("short.mp4", question(3.9)), "damaged", "of 40 declared frames"
    yield row("hole", **FOLDER), "damaged", "img99.png (an empty or missing file)"
    yield row("torn", question(5.9), **FOLDER), "damaged", "img118.png (no known image format)"
    yield row("norate"), "no_fps", "expected a frame rate (fps)"
    yield row("few", **FOLDER), "few_frames", "expected 24 frames (4 a second until 6 s), found 23"
    yield row("many", **FOLDER), "many_frames", "expected 24 frames (4 a second until 6 s), found 49"
    yield row("late.mp4", question(5.1), question(4.9)), "late_question", "at 5.1 s: ends at 4.0 s"
    yield row("outside.mp4", question(0.5), clip=[1.0, 4.0]), "outside_clip", "within the clip, 1 to 4 s"
    yield row("twice.mp4", question(3.0), question(3.0)), "duplicate", "is there already"
    yield row("same.mp4", question(3.0, options=("A. Red", "B. red "))), "equal_options", "options that differ"
    yield row("box.mp4", question(3.0, options=boxes)), "inverted_box", "[0.5, 0.9, 0.6, 0.2]"


def make_archives(media: Path, folder: Path):
    """Intact ones and broken ones, by name, with words of what is wrong."""
    with zipfile.ZipFile(media / "packed.zip", "w") as archive:
        archive.writestr("videos/packed/img1.png", b"0" * 900)
    with zipfile.ZipFile(media / "spoilt.zip", "w") as archive:
        archive.writestr("other.mp4", b"0123456789" * 90)
    spoilt = (media / "spoilt.zip").read_bytes()
    (media / "spoilt.zip").write_bytes(spoilt.replace(b"0123456789", b"012345678x", 1))
    (media / "cut.zip").write_bytes((media / "packed.zip").read_bytes()[:-40])
    for name, mode in (("whole.tar", "w"), ("whole.tgz", "w:gz"), ("cut.tar.gz", "w:gz"), ("header.tar", "w")):
        with tarfile.open(media / name, mode) as tar:
            for path in sorted((folder / "fine").iterdir()):
                tar.add(path, arcname=f"fine/{path.name}")
    break_file(media / "cut.tar.gz", 0.9)
    with (media / "header.tar").open("r+b") as file, tarfile.open(media / "whole.tar") as tar:
        file.seek(tar.getmembers()[3].offset)
        file.write(b"\1" * 512)
    (media / "parts.zip.001").write_bytes(b"x")
    return {
        "spoilt.zip": "other.mp4 does not fit its checksum",
        "cut.zip": "not a zip file",
        "cut.tar.gz": "end-of-stream marker",
        "header.tar": "a broken header after ",
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A benchmark with one fault a video, and with broken archives; nothing may change it."""
    root = tmp_path_factory.mktemp("planted")
    media = root / "media"
    media.mkdir()
    good, faults = list(make_good(media)), list(make_faults(media))
    corrupt = make_archives(media, media / "frames")
    bad = row("clip.mp4", question(1.0), question(2.0, answer="C"))
    annotations = write_set(root / "set.json", [*good, *(rows for rows, _, _ in faults), bad])
    return annotations, media, faults, corrupt


def inspect(annotations, media, **options):
    return inspect_benchmark(get_task("ovbench"), [annotations], media, **options)


@pytest.fixture(scope="module")
def inspected(planted):
    """What is found with the options as they are."""
    return inspect(*planted[:2])


class TestPlantedFaults:
    @pytest.mark.parametrize("options", [{}, {"num_processes": 4, "decode_all": True}])
    def test_each_is_found_and_nothing_else(self, planted, options):
        annotations, media, faults, corrupt = planted
        told = []
        found = inspect(annotations, media, **options, on_done=lambda *progress: told.append(progress))
        by_name = {one.name: [(finding.kind, finding.reason) for finding in one.findings] for one in found.videos}
        expected = {rows["video_id"]: (kind, words) for rows, kind, words in faults}
        assert {name for name, reasons in by_name.items() if reasons} == expected.keys()
        for name, (kind, words) in expected.items():
            ((kind_found, reason),) = by_name[name]
            assert (name, kind_found) == (name, kind)
            # Decoding to the end says the same damage in other words.
            assert words in reason or options.get("decode_all"), reason
        assert found.num_bad_videos == len(faults) - 2  # two kinds are only notes
        assert [path.name for path in found.corrupt_archives] == sorted(corrupt)
        assert all(corrupt[path.name] in str(found.archives[path].problem) for path in found.corrupt_archives)
        assert found.archives[media / "parts.zip.001"].problem
        assert [line.split(":")[0] for line in found.bad_rows] == [f"set.json row {3 + len(faults) + 1} question 2"]
        assert told[-1] == (len(told),) * 2 == (len(found.videos) - 2 + 8,) * 2

    def test_facts(self, inspected):
        facts = {one.name: one.facts for one in inspected.videos}
        assert (facts["-R6.b"].num_frames, facts["-R6.b"].end_s) == (40, 4.0)
        assert (facts["few"].num_frames, facts["few"].end_s) == (23, 5.75)
        assert facts["absent"].num_frames is None

    @pytest.mark.skipif(sys.platform != "linux", reason="what is replaced here reaches forked processes only")
    def test_what_hangs_or_crashes_is_given_up(self, planted, monkeypatch):
        def check(path, *others):
            if path.name == "fine":
                time.sleep(600)
            if path.name == "movie":
                os.kill(os.getpid(), signal.SIGKILL)
            return check_media(path, *others)

        monkeypatch.setattr(benchmark_check, "check_media", check)
        found = inspect(*planted[:2], time_limit_s=5.0, num_processes=4)
        reasons = {one.name: one.findings for one in found.videos if one.name in ("fine", "movie", "-R6.b")}
        assert reasons == {
            "fine": [Finding("unreadable", f"{planted[1]}/frames/fine: no result within 5 s")],
            "movie": [
                Finding(
                    "unreadable",
                    f"{planted[1]}/frames/ava/movie: the process that read it ended with signal 9 (SIGKILL)",
                )
            ],
            "-R6.b": [],
        }

    def test_damage_in_the_middle_needs_all_of_it(self, tmp_path):
        """Both ends decode; what lies between them is only counted unless asked for."""
        media = tmp_path / "media"
        write_frames(media / "v", noise(60))
        (media / "v" / "img125.png").write_bytes(b"torn")
        path = write_video(media / "w.mp4", range(600))
        content, middle = path.read_bytes(), path.stat().st_size // 2
        path.write_bytes(content[:middle] + bytes(600) + content[middle + 600 :])
        rows = [row("v", question(60.0), fps=1.0), row("w", question(59.9))]
        annotations = write_set(tmp_path / "set.json", rows)
        assert inspect(annotations, media).is_sound
        found = inspect(annotations, media, decode_all=True).videos
        assert [[finding.kind for finding in one.findings] for one in found] == [["damaged"], ["damaged"]]

    @pytest.mark.parametrize("decode_all", [False, True])
    def test_damage_at_the_start_is_damage(self, tmp_path, decode_all):
        media = tmp_path / "media"
        (write_frames(media / "v", noise(8)) / "img95.png").write_bytes(b"torn")
        path = write_video(media / "w.mp4", range(40), container_options={"movflags": "faststart"})
        (start, size), *_ = packet_spans(path)
        content = path.read_bytes()
        path.write_bytes(content[:start] + bytes(size) + content[start + size :])
        annotations = write_set(tmp_path / "set.json", [row("v", question(1.5), fps=4.0), row("w")])
        found = inspect(annotations, media, decode_all=decode_all).videos
        assert [[finding.kind for finding in one.findings] for one in found] == [["damaged"], ["damaged"]]
        assert [one.facts.num_frames for one in found] == [8, 40]

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["0001", "0002", "0005"], "2 numbers are left out, the first between 0002.png and 0005.png"),
            (
                ["a_1", "a_3", "a_5", "a_9", "a_11", "a_19"],
                "4 numbers are left out, the first between a_5.png and a_9.png",
            ),
            (["8", "9", "10", "11"], None),
            (["33", "67", "100", "133", "167"], None),
            (["frame2_7b", "frame2_8b", "frame3_1b"], None),
            (["x", "1", "7"], None),
            (["1"], None),
        ],
    )
    def test_numbers_that_are_left_out(self, tmp_path, names, said):
        (tmp_path / "media" / "v").mkdir(parents=True)
        for name, pixels_HWC in zip(names, noise(len(names)), strict=True):
            Image.fromarray(pixels_HWC).save(tmp_path / "media" / "v" / f"{name}.png")
        fields = {"fps": 1.0, "clip": [0.0, float(len(names))]}
        annotations = write_set(tmp_path / "set.json", [row("v", question(0.5), **fields)])
        (found,) = inspect(annotations, tmp_path / "media").videos
        assert found.findings == ([] if said is None else [Finding("frame_gaps", said)])
        assert len(found.problems) == len(found.findings)


class TestArchives:
    def test_intact_ones_beside_whole_folders_are_no_matter(self, tmp_path):
        folder = write_frames(tmp_path / "fine", noise(24))
        (folder / "inside.zip").write_bytes(b"of no use here")
        for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tbz2", "w:bz2")):
            with tarfile.open(tmp_path / f"frames.{ending}", mode) as tar:
                tar.add(folder, arcname="fine")
        annotations = write_set(tmp_path / "set.json", [row("fine", **FOLDER)])
        found = inspect(annotations, tmp_path)
        assert found.is_sound
        assert len(found.archives) == 4
        break_file(tmp_path / "frames.tar.gz", 0.5)
        found = inspect(annotations, tmp_path)
        assert (found.is_sound, found.num_bad_videos) == (False, 0)
        assert found.corrupt_archives == [tmp_path / "frames.tar.gz"]

    @pytest.mark.parametrize("name", ["v.zip", "v.tar.gz", "all.tar"])
    def test_what_they_hold(self, tmp_path, name):
        folder = write_frames(tmp_path / "frames" / "v", noise(2))
        member = "all/v.mp4" if name == "all.tar" else "img1.png"
        path = tmp_path / name
        if name.endswith("zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(folder / "img95.png", member)
        else:
            with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
                tar.add(folder / "img95.png", arcname=member)
        assert check_archive(path, ["x/v", "w"]).held == ("x/v",)
        assert check_archive(path, ["w", "all.mp4"]).held == ()

    @pytest.mark.parametrize("part", [0.2, 0.7, 0.999])
    @pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
    def test_cut_off_anywhere(self, tmp_path, ending, part):
        folder, path = write_frames(tmp_path / "v", noise(8)), tmp_path / f"a.{ending}"
        if ending == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for file in folder.iterdir():
                    archive.write(file)
        else:
            with tarfile.open(path, f"w:{ending[4:]}") as tar:
                tar.add(folder)
                end = tar.offset
        assert check_archive(path, []).problem is None
        if ending == "tar":
            path.write_bytes(path.read_bytes()[: int(part * end)])  # not within the zeros at its end
        else:
            break_file(path, part)
        assert check_archive(path, []).is_corrupt

    def test_cut_off_between_two_members(self, tmp_path):
        """Nothing but the mark at its end is missing, or a file more."""
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(write_frames(tmp_path / "v", noise(2)))
            end = tar.offset
        path.write_bytes(path.read_bytes()[:end])
        assert check_archive(path, []).problem == f"breaks off after {end:,} bytes (unpacked)"

    def test_hidden_ones_and_those_of_frame_folders_are_left_out(self, tmp_path):
        skipped = (".b.zip", ".cache/c.zip", "frames/d.zip", "h.mp4")
        for name in ("a.zip", "more/e.TAR.GZ", "f.7z", "g.tar.part-aa", *skipped):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        found = [path.relative_to(tmp_path).as_posix() for path in find_archives(tmp_path, [tmp_path / "frames"])]
        assert found == ["a.zip", "f.7z", "g.tar.part-aa", "more/e.TAR.GZ"]


class TestCommand:
    @pytest.fixture
    def call(self, planted, capsys):
        def doctor(*more):
            flags = ["--annotations", planted[0], "--data-root", planted[1], "--processes", "2", *more]
            status = main(["doctor", *map(str, flags)])
            out, err = capsys.readouterr()
            return status, out, err

        return doctor

    def test_text_and_report(self, call, planted, tmp_path):
        status, out, err = call("--report", tmp_path / "report.json")
        problem = "13 of 19 videos have problems, 1 rows cannot be used, 4 archives are corrupt"
        assert (status, err) == (2, f"error: {problem}\n")
        lines = out.splitlines()
        assert "3 x damaged: a part does not decode, or the file breaks off" in lines
        assert "1 x inverted_box (only a note): a box that ends before it begins" in lines
        assert "    few: expected 24 frames (4 a second until 6 s), found 23" in lines
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["num_videos"], report["num_bad_rows"], report["num_corrupt_archives"]) == (19, 1, 4)
        assert report["findings"]["damaged"] == 3
        by_name = {one["video"]: one for one in report["videos"]}
        assert [one["kind"] for one in by_name["torn"]["problems"]] == ["damaged"]
        assert [one["kind"] for one in by_name["many"]["notes"]] == ["many_frames"]
        assert by_name["many"]["problems"] == []
        assert by_name["fine"] == {
            "video": "fine", "path": str(planted[1] / "frames" / "fine"), "num_questions": 2, "num_frames": 24,
            "end_s": 6.0, "problems": [], "notes": [],
        }  # fmt: skip

    def test_the_report_s_place_is_checked_first(self, planted, tmp_path, capsys, monkeypatch):
        """Not after hours; and what was there stays, and nothing is left behind."""
        monkeypatch.setattr(doctor_benchmark, "inspect_benchmark", lambda *_, **__: pytest.fail("files were read"))
        given = ["doctor", "--annotations", str(planted[0]), "--data_root", str(planted[1]), "--report"]
        for place in (tmp_path, tmp_path / "none" / "report.json"):
            assert main([*given, str(place)]) == 2
            assert "--report: expected a file" in capsys.readouterr().err
        (tmp_path / "old.json").write_text("{}")

        def stop(*_, **__):
            raise InputError("stopped")

        monkeypatch.setattr(doctor_benchmark, "inspect_benchmark", stop)
        for name in ("old.json", "new.json"):
            assert main([*given, str(tmp_path / name)]) == 2
            assert "stopped" in capsys.readouterr().err
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.json": "{}"}

    def test_json(self, call, inspected):
        status, out, _ = call("--json")
        assert (status, len(out.splitlines())) == (2, 1)
        assert json.loads(out) == inspected.as_dict()

    def test_in_this_process(self, call, planted, inspected, monkeypatch):
        monkeypatch.setattr(benchmark_check, "run_isolated", lambda *_, **__: pytest.fail("a process was started"))
        status, out, _ = call("--json", "--processes", "0")
        assert status == 2
        assert json.loads(out) == inspected.as_dict()
        monkeypatch.setattr(benchmark_check, "check_media", lambda *_: {}["x"])
        found = {finding.reason for one in inspect(*planted[:2], num_processes=0).videos for finding in one.findings}
        assert f"{planted[1] / 'clip.mp4'}: KeyError: 'x'" in found

    def test_a_sound_set_passes(self, tmp_path, capsys):
        (tmp_path / "media").mkdir()
        annotations = write_set(tmp_path / "set.json", list(make_good(tmp_path / "media")))
        assert main(["doctor", "--annotations", str(annotations), "--data-root", str(tmp_path / "media")]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (
            "3 videos, 6 questions: 0 videos with problems, 0 unusable rows, 0 corrupt archives\n", ""
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--processes", "-1"], "--processes: expected 0 or more, got -1"),
            (
                ["--processes", "0", "--time_limit_s", "9"],
                "--time_limit_s: expected --processes of 1 or more, which can be ended in time, got 0",
            ),
            (["--time_limit_s", "0"], "--time_limit_s: expected a time above 0, got 0"),
            (["--data_root", "none"], "none: expected the folder with the videos"),
            (["--annotations", "none.json"], "none.json: expected a JSON list of rows"),
            (["--report", "none/report.json"], "--report: expected a file in a folder that is there"),
            (["--report", "."], "--report: expected a file that can be written"),
            (["--registry", "x.json"], "expected --registry or --annotations, got both"),
        ],
    )
    def test_wrong_flags(self, tmp_path, capsys, flags, words):
        (tmp_path / "media").mkdir()
        annotations = write_set(tmp_path / "set.json", [row("absent")])
        given = ["doctor", "--annotations", annotations, "--data_root", tmp_path / "media", *flags]
        assert main(list(map(str, given))) == 2
        assert words in capsys.readouterr().err

    def test_a_task_that_there_is_not(self, capsys):
        assert main(["doctor", "--task", "none"]) == 2
        assert capsys.readouterr().err.startswith("error: unknown task 'none': expected one of ['ovbench', 'ovobench'")

    def test_a_data_root_is_needed(self, tmp_path, capsys):
        assert main(["doctor", "--annotations", str(write_set(tmp_path / "set.json", [row("v")]))]) == 2
        assert "--data_root: expected the folder with the videos, got none" in capsys.readouterr().err


def test_broken_annotations_are_an_error(tmp_path):
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(InputError, match="found no JSON"):
        inspect(tmp_path / "set.json", tmp_path)


class TestSharedClips:
    @pytest.mark.parametrize("layout", ["", "_flat", "_lmms"])
    def test_the_mini_set_is_sound(self, shared_dir, layout):
        videos = shared_dir / "videos"
        found = inspect(videos / f"ovbench_mini{layout}.json", videos, num_processes=2)
        assert {one.name: one.findings for one in found.videos if one.findings} == {}
        assert found.is_sound
        assert len(found.videos) == 10

    def test_broken_clips_are_found_and_odd_ones_pass(self, shared_dir, tmp_path):
        videos = shared_dir / "videos"
        names = [entry["file"] for entry in json.loads((videos / "index.json").read_text())]
        annotations = write_set(tmp_path / "set.json", [row(name, question(0.1), fps=10) for name in names])
        found = inspect(annotations, videos, num_processes=2, decode_all=True)
        assert {one.name: [finding.kind for finding in one.findings] for one in found.videos if one.findings} == {
            "bad_audio_only.mp4": ["unreadable"],
            "bad_corrupted.mp4": ["damaged"],
            "bad_truncated.mp4": ["damaged"],
        }
