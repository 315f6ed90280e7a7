from __future__ import annotations

import json
import shutil
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from clips import write_clip, write_folder
from processes import run_program
from videochat_online.cli.main import COMMANDS, build_parser, main, normalise_flags
from videochat_online.model import load_network
from videochat_online.video import FrameTransform, open_video


def main_in_ascii() -> int:
    """The command line where stdout cannot show more, as with PYTHONIOENCODING=ascii."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    return main()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds, ten frames a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def chat(tiny_dir, capsys):
    """Run `chat --json` and give status, rows and stderr."""

    def run(*arguments, model=None):
        status = main(
            ["chat", "--model", str(model or tiny_dir()), "--max_new_tokens", "4", "--json", *map(str, arguments)]
        )
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def cut(path, destination, share=0.6):
    destination.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return destination


def write_mkv_clip(path):
    # mkv, since its index of frames is not at the end of the file: a cut file opens.
    return write_clip(path, num_frames=80)


class TestAnswers:
    def test_rows(self, chat, clip):
        status, rows, err = chat("--video", clip, "--fps", 2, "--ask", "1.2:What is it?", "3:And now?")
        assert (status, err) == (0, "")
        first, second = rows
        assert list(first) == ["asked_at_s", "question", "text", "frames_used", "num_visual_tokens"]
        assert (first["asked_at_s"], first["question"]) == (1.2, "What is it?")
        assert [frame["time_s"] for frame in first["frames_used"]] == [0.0, 0.5, 1.0]
        assert [frame["index"] for frame in first["frames_used"]] == [0, 1, 2]
        assert [frame["num_tokens"] for frame in first["frames_used"]] == [16, 1, 1]
        assert first["num_visual_tokens"] == 18
        assert [frame["time_s"] for frame in second["frames_used"]] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]

    def test_frames_are_made_ready_while_the_model_works(self, chat, clip, monkeypatch):
        resized, places = FrameTransform.resized, []

        def note(transform, pixels_THWC):
            places.append((threading.current_thread().name, pixels_THWC.shape[1:3] == (112, 112)))
            return resized(transform, pixels_THWC)

        monkeypatch.setattr(FrameTransform, "resized", note)
        chat("--video", clip, "--fps", 10, "--ask", "2:What?")
        assert {(name.startswith("ahead"), is_ready) for name, is_ready in places} == {(True, False), (False, True)}
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

    def test_questions_are_asked_in_time_order(self, chat, clip):
        _, rows, _ = chat("--video", clip, "--ask", "3:B?", "--ask", "1:A?")
        assert [row["question"] for row in rows] == ["A?", "B?"]

    def test_what_comes_later_does_not_matter(self, chat, clip, tmp_path):
        # The same first two seconds, nothing after them.
        short = write_clip(tmp_path / "short.mp4", num_frames=21)
        (_, long_rows, _), (_, short_rows, _) = (chat("--video", path, "--ask", "1.9:What?") for path in (clip, short))
        assert long_rows == short_rows

    def test_after_the_end_all_frames_answer(self, chat, clip):
        _, rows, err = chat("--video", clip, "--ask", "99:What?")
        assert [frame["time_s"] for frame in rows[0]["frames_used"]] == [0.0, 1.0, 2.0, 3.0]
        assert rows[0]["asked_at_s"] == 99.0
        assert rows[0]["late"] == "99 s is after the video's end, at 4.0 s"
        assert err == f"warning: {rows[0]['late']}\n"

    def test_only_what_is_well_after_the_end_is_late(self, chat, clip, tmp_path):
        _, rows, err = chat("--video", clip, "--ask", "0:04.9 What?", "5.1:What?")
        assert [row["asked_at_s"] for row in rows] == [4.9, 5.1]
        assert ["late" in row for row in rows] == [False, True]
        assert err.count("warning") == 1

    def test_questions_are_held_against_the_length_that_a_cut_file_should_have(self, chat, tmp_path):
        whole = write_mkv_clip(tmp_path / "whole.mkv")
        _, rows, err = chat("--video", cut(whole, tmp_path / "cut.mkv"), "--ask", "8.5:What?", "0:09.5 What?")
        assert ["late" in row for row in rows] == [False, True, False]
        assert rows[2]["warning"] in err

    def test_before_the_first_frame_is_an_error_of_that_question_only(self, chat, tmp_path):
        late = write_clip(tmp_path / "late.mkv", start_s=2.0)
        with open_video(late) as source:
            assert source.info.start_s == pytest.approx(2.0)
        status, rows, _ = chat("--video", late, "--ask", "1:Too early?", "3:What?")
        assert status == 0
        assert "1 s is before the first frame, which is at 2 s" in rows[0]["error"]
        assert "text" not in rows[0]
        assert rows[1]["frames_used"][0]["time_s"] == pytest.approx(2.0)
        status, rows, err = chat("--video", late, "--ask", "1:Too early?", "0:01:And this?")
        assert (status, [row["asked_at_s"] for row in rows[:2]]) == (2, [1.0, 1.0])
        assert err.splitlines()[-1].startswith("error: no question was answered; refused: 2, the first: 1 s is before")

    def test_frame_folder_in_natural_order(self, chat, tmp_path):
        folder = write_folder(tmp_path / "folder", num_frames=12)
        _, rows, _ = chat("--video", folder, "--source_fps", 4, "--fps", 2, "--ask", "9:What?", "--memory", "keep_all")
        assert [frame["time_s"] for frame in rows[0]["frames_used"]] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]

    def test_a_rate_above_the_video_s_shows_every_frame(self, chat, clip):
        for fps in ("1000", "1e12"):
            _, rows, _ = chat("--video", clip, "--fps", fps, "--memory", "keep_all", "--ask", "9:What?")
            assert len(rows[0]["frames_used"]) == 40

    def test_output_that_cannot_show_a_character(self, tiny_dir, clip):
        command = ["videochat-online", "chat", "--model", str(tiny_dir())]
        command += ["--video", str(clip), "--ask", "1:Où ça?", "--max_new_tokens", "2"]
        for more in ([], ["--json"]):
            done = run_program(main_in_ascii, [*command, *more])
            assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["question"] == "Où ça?"

    def test_memories(self, chat, clip):
        counts = {}
        for name, options in (
            ("pyramid", ["--capacities", "1", "1", "2", "--policy", "paper"]),
            ("window", ["--num_frames", "2"]),
            ("uniform", ["--num_frames", "3"]),
            ("keep_all", []),
            ("moviechat", ["--short_frames", "4", "--long_frames", "5", "--reading", "breakpoint"]),
            ("moviechat_plus", ["--short_frames", "4", "--long_frames", "6", "--merged_frames", "3"]),
            ("star", ["--newest_frames", "2", "--key_frames", "1", "--cluster_frames", "3", "--abstract_decay", "0"]),
            ("token_merging", ["--num_frames", "5"]),
            ("similarity_drop", ["--num_frames", "3", "--threshold", "1"]),
            ("event_merging", ["--recent_frames", "2", "--event_frames", "3", "--penalty_weights", "1", "0", "0.5"]),
        ):
            flags = [word.replace("--", "--memory.") for word in options]
            _, rows, _ = chat("--video", clip, "--fps", 10, "--memory", name, *flags, "--ask", "9:What?")
            counts[name] = [frame["num_tokens"] for frame in rows[0]["frames_used"]]
        assert sorted(counts["pyramid"], reverse=True) == [16, 4, 1, 1]
        assert counts["window"] == [16, 16]
        assert len(counts["uniform"]) <= 3
        assert len(counts["keep_all"]) == 40
        assert counts["moviechat"] == [1] * 9
        assert 1 <= len(counts["moviechat_plus"]) <= 6
        assert sorted(counts["star"], reverse=True) == [16, 16, 16, 4, 4, 1]
        assert counts["token_merging"] == [4] * 5
        assert counts["similarity_drop"] == [16] * 3
        assert counts["event_merging"] == [4, 4, 4, 16, 16]

    def test_strategies(self, chat, clip):
        plain = ("--video", clip, "--fps", 2, "--ask", "9:What?")
        status, rows, _ = chat(
            *plain, "--strategy", "retrieval", "--strategy.retrieved_frames", 2, "--memory", "window"
        )
        assert (status, len(rows[0]["frames_used"]), rows[0]["num_visual_tokens"]) == (0, 2, 32)
        status, rows, _ = chat(*plain, "--strategy", "chain_of_shot")
        assert (status, rows[0]["frames_used"]) == (0, chat(*plain)[1][0]["frames_used"])

    def test_images(self, chat, tmp_path):
        for number, width in enumerate((100, 300)):
            noise = np.random.default_rng(number).integers(0, 256, (100, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{number}.png")
        status, rows, _ = chat("--image", tmp_path / "0.png", tmp_path / "1.png", "--ask", "What?", "12:30 or later?")
        assert status == 0
        assert [row["question"] for row in rows] == ["What?", "12:30 or later?"]
        assert [image["num_tokens"] for image in rows[0]["images"]][1] == 64
        assert rows[0]["num_visual_tokens"] == sum(image["num_tokens"] for image in rows[0]["images"])

    def test_readable(self, tiny_dir, clip, capsys):
        assert main(["chat", "--model", str(tiny_dir()), "--video", str(clip), "--ask", "1:What is it?"]) == 0
        assert "[1 s] What is it?" in capsys.readouterr().out


class TestDamage:
    def test_truncated(self, chat, tmp_path):
        whole = write_mkv_clip(tmp_path / "whole.mkv")
        status, rows, err = chat("--video", cut(whole, tmp_path / "cut.mkv"), "--ask", "1:What?")
        assert status == 0
        assert rows[0]["text"] is not None
        if len(rows) > 1:  # mkv declares no count of frames: then nothing can be said
            assert rows[1].keys() == {"warning", "decoded", "declared"}

    def test_broken_image_in_a_folder(self, chat, tmp_path):
        folder = write_folder(tmp_path / "folder")
        (folder / "frame3.png").write_bytes(b"not an image")
        status, rows, err = chat("--video", folder, "--ask", "6:What?")
        assert status == 0
        assert [frame["time_s"] for frame in rows[0]["frames_used"]] == [0.0, 1.0, 3.0, 4.0, 5.0]
        assert rows[1]["decoded"] == 5
        assert rows[1]["declared"] == 6
        assert err.startswith("warning: ")
        assert len(err.splitlines()) == 1


class TestBadInput:
    """Exit status 2 and one line that names the thing and what was expected."""

    def check(self, result, *words):
        status, rows, err = result
        assert status == 2
        assert rows == []
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        for word in words:
            assert word in err

    def test_videos(self, chat, tmp_path):
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "text.mp4").write_text("hello " * 100)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "notes.txt").write_text("x")
        for name in ("absent.mp4", "empty.mp4", "text.mp4", "folder"):
            self.check(chat("--video", tmp_path / name, "--ask", "1:What?"), name, "expected")

    @pytest.mark.parametrize(
        "question",
        [
            "-1:What?",
            "-1e-3:What?",
            "\udcff:What?",
            "1:\udcff",
            "-inf:What?",
            "nan:What?",
            "inf:What?",
            "What?",
            "1:",
            "x:What?",
            "0:75 What?",
            "1:05",
        ],
    )
    def test_questions(self, chat, clip, question):
        self.check(chat("--video", clip, f"--ask={question}"), "--ask: expected")
        self.check(chat("--video", clip, "--ask", question), "--ask: expected")

    def test_flags(self, chat, clip):
        ask = ("--video", clip, "--ask", "1:What?")
        self.check(chat(*ask, "--fps", "0"), "--fps: expected a rate above 0")
        self.check(chat(*ask, "--fps", "nan"), "--fps")
        self.check(chat(*ask, "--template", "alpaca"), "alpaca", "phi3-chat")
        self.check(chat(*ask, "--memory", "elephant"), "elephant", "pyramid")
        self.check(chat(*ask, "--memory", "window", "--capacities", "1"), "window", "capacities")
        self.check(chat(*ask, "--capacities", "1", "2"), "capacities")
        self.check(chat(*ask, "--memory.policy", "own"), "--memory.policy: expected one of reference, paper, got 'own'")
        self.check(chat(*ask, "--policy", "paper"), "--policy: expected --memory.policy in its place")
        self.check(chat(*ask, "--temperature", "-1"), "temperature")
        self.check(chat(*ask, "--seed", str(2**70)), "seed: expected a number of at most 9,223,372,036,854,775,807")
        self.check(chat("--video", "a" * 5000, "--ask", "1:What?"), "a name too long")
        self.check(chat(*ask, "--backend", "vlc"), "vlc", "pyav")
        self.check(chat(*ask, "--strategy", "", model="absent"), "unknown strategy ''")
        self.check(chat(*ask, "--strategy", "guess", model="absent"), "strategy 'guess'", "'direct', 'retrieval'")
        self.check(
            chat(*ask, "--strategy.retrieved_frames", "2", model="absent"),
            "an option of strategy direct, which has none",
        )

    def test_models(self, chat, clip, tiny_dir, tmp_path):
        ask = ("--video", clip, "--ask", "1:What?")
        self.check(chat(*ask, model=tmp_path / "absent"), "absent", "expected a model directory")
        for name, change in (
            ("missing", lambda s: {k: v for k, v in s.items() if k != "projector.linear_1.weight"}),
            ("renamed", lambda s: {k.replace("projector.linear_1", "projector.line"): v for k, v in s.items()}),
        ):
            shutil.copytree(tiny_dir(), tmp_path / name)
            path = tmp_path / name / "model.safetensors"
            save_file(change(load_file(path)), path, metadata={"format": "pt"})
            self.check(chat(*ask, model=tmp_path / name), name, "missing projector.linear_1.")

    def test_images(self, chat, tmp_path):
        (tmp_path / "x.png").write_text("x")
        self.check(chat("--image", tmp_path / "x.png", "--ask", "What?"), "x.png")
        self.check(chat("--image", tmp_path / "absent.png", "--ask", "What?"), "absent.png")
        for flags in ("--strategy retrieval", "--memory window", "--memory.policy paper", "--capacities 1", "--fps 2"):
            name, value = flags.split()
            named = name.replace("--capacities", "--memory.capacities")
            self.check(chat("--image", "x.png", name, value), f"{named}: expected a video")

    def test_a_memory_is_made_before_weights_are_read(self, chat, clip, tiny_dir, tmp_path):
        shutil.copy(tiny_dir() / "config.json", tmp_path)
        ask = ("--video", clip, "--ask", "1:What?")
        self.check(chat(*ask, "--capacities", "1", "2", model=tmp_path), "one capacity, one grid and one interval for")

    def test_unknown_flags_and_commands(self, capsys):
        for arguments in (["chat", "--model", "x", "--video", "y", "--colour"], ["sing"], ["chat"], []):
            with pytest.raises(SystemExit) as exit_:
                main(arguments)
            assert exit_.value.code == 2
            assert len(capsys.readouterr().err.splitlines()) == 1

    def test_debug_shows_where(self, tiny_dir, tmp_path):
        # A process of its own: pytest has its own hands on logging.
        command = ["videochat-online", "chat", "--model", str(tiny_dir())]
        command += ["--video", str(tmp_path / "absent.mp4"), "--ask", "1:What?"]
        plain = run_program(main, command)
        assert (plain.returncode, plain.stdout) == (2, "")
        assert "Traceback" not in plain.stderr
        traced = run_program(main, [*command, "--debug"])
        assert traced.returncode == 2
        assert "Traceback" in traced.stderr
        assert traced.stderr.splitlines()[-1] == plain.stderr.strip()

    def test_a_failure_of_the_program_is_status_1(self, chat, clip, monkeypatch):
        def fail(*_):
            raise RuntimeError("the model\nexploded")

        monkeypatch.setattr("videochat_online.streaming.generate.generate_ids", fail)
        status, _, err = chat("--video", clip, "--ask", "1:What?")
        assert status == 1
        assert "RuntimeError" in err
        assert "the model exploded" in err


def test_both_spellings_of_flags():
    assert normalise_flags(["--max-new-tokens=3", "--ask", "1:a-b", "-x", "--"]) == [
        "--max_new_tokens=3",
        "--ask",
        "1:a-b",
        "-x",
        "--",
    ]


def test_every_command_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            build_parser(command).parse_args([command, "--help"])
        assert exit_.value.code == 0
        help_text = capsys.readouterr().out
        assert f"videochat-online {command}" in help_text
        assert "--debug" in help_text


class TestConvert:
    def test_there_and_back(self, tiny_dir, tmp_path, capsys):
        assert main(["convert", str(tiny_dir()), str(tmp_path / "original"), "--format", "original"]) == 0
        assert "359" not in capsys.readouterr().err
        config = json.loads((tmp_path / "original" / "config.json").read_text())
        assert config["llm_config"]["architectures"] == ["Phi3ForCausalLM"]
        assert "mlp1.0.weight" in load_file(tmp_path / "original" / "model.safetensors")
        assert main(["convert", str(tmp_path / "original"), str(tmp_path / "native"), "--format", "native"]) == 0
        first, second = (load_file(path / "model.safetensors") for path in (tiny_dir(), tmp_path / "native"))
        assert first.keys() == second.keys()
        assert all((first[key] == second[key]).all() for key in first)
        assert (tmp_path / "native" / "tokenizer.json").is_file()

    def test_nothing_is_overwritten(self, tiny_dir, tmp_path, capsys):
        (tmp_path / "notes.txt").write_text("mine")
        assert main(["convert", str(tiny_dir()), str(tmp_path), "--format", "native"]) == 2
        assert "new or empty directory" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("layout", ["native", "hf"])
    def test_what_is_no_model_is_named_as_one(self, tmp_path, capsys, layout):
        assert main(["convert", str(tmp_path / "none"), str(tmp_path / "out"), "--format", layout]) == 2
        assert "none: expected a model directory with config.json, found nothing" in capsys.readouterr().err

    def test_without_a_tokenizer(self, tiny_dir, tmp_path):
        shutil.copytree(tiny_dir(), tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "*template*"))
        assert main(["convert", str(tmp_path / "bare"), str(tmp_path / "out"), "--format", "original"]) == 0
        assert load_network(tmp_path / "out").config.template == "phi3-chat"


class TestDoctor:
    def test_machine_and_sound_model(self, tiny_dir, capsys):
        assert main(["doctor", "--model", str(tiny_dir()), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["packages"]["torch"]
        assert report["video_decoders"]["pyav"]
        assert report["devices"][0].startswith("cpu")
        assert report["model"]["problem"] is None
        assert report["model"]["parameters"]["projector"] == 21120

    def test_broken_model(self, tiny_dir, tmp_path, capsys):
        shutil.copytree(tiny_dir(), tmp_path / "model")
        (tmp_path / "model" / "tokenizer.json").unlink()
        assert main(["doctor", "--model", str(tmp_path / "model")]) == 2
        out, err = capsys.readouterr()
        assert "tokenizer" in err
        assert "torch" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_given_in_full(command):
    """The beginning of a flag is none: it may be another one's, or of the next version."""
    # argparse has no public list of a parser's flags.
    parser = build_parser(command)._subparsers._group_actions[0].choices[command]
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        action.required = False
    for short in {flag[:-1] for flag in flags if len(flag) > 4} - flags:
        assert parser.parse_known_args([short])[1] == [short]
