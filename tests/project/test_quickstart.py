"""The quickstart: its commands are valid and fit together, a phase runs them, its claims can fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

import pretrain_tiny_model
import run_quickstart as quickstart
from comparison_sets import append, make_set
from quickstart_claims import ORDER_TITLE, PARTS, SAME_MODEL, Claim, claims, show_comparison
from quickstart_phases import LABELS, PRESET_FLAGS, Command, Phase, phases
from synthetic_sets import MANY_SEVERAL, TINY_SINGLE
from videochat_online.cli import evaluate as evaluate_command
from videochat_online.cli.main import build_parser, main, normalise_flags, parse
from videochat_online.data import load_registries
from videochat_online.errors import InputError
from videochat_online.evaluation import Comparison
from videochat_online.evaluation.compare.compare import ComparedRun, Figures
from videochat_online.evaluation.scoring.bootstrap import Difference, Score
from videochat_online.synthetic import PRESETS, make_streams, synthesize
from videochat_online.train import parse_arguments
from videochat_online.train.keys.parsing import read_config

ROOT = Path(__file__).resolve().parents[2]


def commands(output: Path, preset: str = "quickstart") -> dict[str, list[str]]:
    """Every command of the quickstart by its name."""
    every = phases(output, 3, from_scratch=True, preset=preset)
    found = {command.name: command.words for phase in every for command in phase.commands}
    assert len(found) == sum(len(phase.commands) for phase in every), "one log for each"
    return found


def evaluations(output: Path) -> dict[str, list[str]]:
    """Arguments that the evaluation scripts call `videochat-online` with."""
    found = {}
    with TemporaryDirectory() as programs:
        program = Path(programs) / "videochat-online"
        program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        program.chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        for name, words in commands(output).items():
            if "shell/eval/" in words[1]:
                done = subprocess.run(
                    words, cwd=ROOT, env={"PATH": path}, stdout=subprocess.PIPE, text=True, check=True
                )
                found[name] = done.stdout.split("\0")[:-1]
    return found


def trainings(output: Path, preset: str) -> dict[str, tuple[Path, list[str]]]:
    """Configuration and flags of each training run."""
    launcher = ["bash", "shell/online_4b/launch.sh"]
    found = {name: command[2:] for name, command in commands(output, preset).items() if command[:2] == launcher}
    return {name: (ROOT / config, flags) for name, (config, *flags) in found.items()}


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """A folder of the quickstart with data in it. Not to be written to."""
    folder = tmp_path_factory.mktemp("quickstart")
    synthesize(folder / "data", seed=0, preset=TINY_SINGLE)
    return folder


class TestCommands:
    def test_each_phase_goes_on_from_the_one_before(self, tmp_path):
        def names(from_scratch: bool, preset: str) -> list[tuple[str, list[str]]]:
            every = phases(tmp_path, 3, from_scratch=from_scratch, preset=preset)
            return [(phase.name, [command.name for command in phase.commands]) for phase in every]

        every = names(from_scratch=True, preset="quickstart")
        runs = ["pyramid", "fifo", "uniform", "recent", "recent_4", "blind", "sliding_window"]
        assert every == [
            ("streams", ["synthesize"]),
            ("pretraining", ["pretrain"]),
            *((name, [name]) for name in ("stage1", "stage2", "stage2_from_scratch")),
            ("evaluation", [*runs, "scratch"]),
        ]
        assert names(from_scratch=False, preset="full") == [*every[:4], ("evaluation", runs)]

    @pytest.mark.parametrize("preset", PRESET_FLAGS)
    def test_streams_and_pretraining(self, tmp_path, preset, monkeypatch):
        program, *arguments = commands(tmp_path, preset)["synthesize"]
        options = build_parser("synthesize").parse_args(arguments)
        assert (program, options.output, options.seed) == ("videochat-online", tmp_path / "data", 3)
        assert options.preset == preset in PRESETS
        given = []
        monkeypatch.setattr(pretrain_tiny_model, "pretrain", lambda *arguments: given.append(arguments) or 1.0)
        program, script, *arguments = commands(tmp_path, preset)["pretrain"]
        monkeypatch.setattr("sys.argv", [script, *arguments])
        assert pretrain_tiny_model.main() == 0
        assert (program, script) == ("python", "scripts/quickstart/pretrain_tiny_model.py")
        assert given[0][:3] == (tmp_path / "data", tmp_path / "base", 3)

    @pytest.mark.parametrize("preset", PRESET_FLAGS)
    def test_training_takes_every_flag(self, output, monkeypatch, preset):
        monkeypatch.chdir(ROOT)
        expected = {
            "stage1": ("stage1", "base", "stage1"),
            "stage2": ("stage2", "stage1", "stage2"),
            "stage2_from_scratch": ("stage2", "base", "scratch"),
        }
        assert trainings(output, preset).keys() == expected.keys()
        for name, (config, flags) in trainings(output, preset).items():
            stage, start, result = expected[name]
            arguments = parse_arguments(config, [*flags, "--deepspeed", ""])
            assert arguments.model.model_name_or_path == str(output / start)
            assert arguments.training.output_dir == str(output / result)
            assert arguments.training.seed == 3
            assert arguments.data.meta_path == str(output / "data" / "registries" / f"{stage}.json")
            assert len(load_registries(arguments.data.meta_path)) > 1
            keys = read_config(config)
            (processes,) = {phase.processes for phase in phases(output, 3, True, preset) if phase.name == name}
            assert processes == 2
            assert keys["global_batch_size"] % (keys["per_device_train_batch_size"] * processes) == 0
            assert keys["deepspeed"]

    def test_evaluation_takes_every_flag(self, output, capsys):
        assert evaluations(output).keys() == LABELS.keys()
        for name, arguments in evaluations(output).items():
            options = parse(normalise_flags(arguments), "evaluate")
            assert options.output == output / "runs" / name
            assert options.model == str(output / ("scratch" if name == "scratch" else "stage2"))
            assert main([*arguments, "--dry_run"]) == 0
            assert capsys.readouterr().out.startswith("5 videos, 70 questions; 0 videos missing, 0 rows unusable")

    def test_all_but_the_youngest_hold_as_many_tokens(self, output):
        budget = {}
        for name, arguments in evaluations(output).items():
            protocol = evaluate_command.evaluation_config(parse(normalise_flags(arguments), "evaluate")).protocol
            options = protocol.memory_options
            full = options.get("capacities") or (options.get("num_frames"), 0, 0)
            budget[name] = None if full[0] is None else full[0] * 16 + full[1] * 4 + full[2]
        assert budget.pop("recent_4") == 64
        for name in ("blind", "sliding_window"):
            budget.pop(name)
        assert set(budget.values()) == {96}

    def test_memories_are_those_that_were_trained_with(self, output):
        """All but recent 4 and the blind run."""
        compared = {}
        for name, arguments in evaluations(output).items():
            protocol = evaluate_command.evaluation_config(parse(normalise_flags(arguments), "evaluate")).protocol
            sizes = {key: protocol.memory_options.get(key) for key in ("capacities", "num_frames")}
            if name in ("pyramid", "fifo", "uniform", "recent"):
                compared[protocol.memory] = {key: size for key, size in sizes.items() if size is not None}
        entries = json.loads((output / "data" / "registries" / "stage2.json").read_text("utf-8")).values()
        trained = {entry["memory"]["name"]: dict(entry["memory"]) for entry in entries if "memory" in entry}
        for name, options in trained.items():
            assert options.pop("name") == name
        assert json.loads(json.dumps(compared)) == trained


def shell(name: str, text: str) -> Command:
    """A command of a phase whose result is a file of its name."""
    return Command(name, ["sh", "-c", text], name)


@pytest.fixture
def folder(tmp_path) -> Path:
    """An output folder."""
    return tmp_path / "output"


def said(log: Path) -> list[str]:
    """A log without its header lines, which say when."""
    text = log.read_text()
    assert re.match(r"# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} \$ ", text)
    return [line for line in text.splitlines() if line and not line.startswith("# ")]


def is_gone(file: Path) -> bool:
    """The process whose number is in a file ends within five seconds."""
    number, until = int(file.read_text()), time.monotonic() + 5
    while time.monotonic() < until:
        if not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def started(folder: Path, number: Path) -> subprocess.Popen:
    """A quickstart in a process of its own, whose command is running: the number of its process is in a file."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts/quickstart')!r}); import run_quickstart as script\n"
    code += "from quickstart_phases import Command, Phase\n"
    # After a second: a command is told to end only once the quickstart has noted that it runs.
    code += f"words = ['sh', '-c', 'sleep 1; echo $$ >{number}; exec sleep 60']\n"
    code += "script.phases = lambda *_: [Phase('a', [Command('a', words, 'a')])]; sys.exit(script.main())"
    process = subprocess.Popen([sys.executable, "-c", code, "--output", str(folder)], stdout=subprocess.DEVNULL)
    while not number.exists() or not number.read_text():
        time.sleep(0.05)
    return process


def launches(folder: Path) -> list[tuple[str, bool]]:
    """Phase of every launch that is kept, and whether it went to its end."""
    return [(one["phase"], one["finished"]) for one in json.loads((folder / "times.json").read_text())]


@pytest.fixture
def start(monkeypatch, folder):
    """The script with phases of its own; gives its exit status."""

    def run(*found: Phase | Command, holds: bool | BaseException = True, flags: tuple[str, ...] = ()) -> int:
        def show(*arguments, **options):
            if isinstance(holds, BaseException):
                raise holds
            return holds

        every = [one if isinstance(one, Phase) else Phase(one.name, [one]) for one in found]
        monkeypatch.setattr(quickstart, "phases", lambda *arguments: every)
        monkeypatch.setattr(quickstart, "show_comparison", show)
        monkeypatch.setattr("sys.argv", ["run_quickstart.py", "--output", str(folder), *flags])
        return quickstart.main()

    return run


class TestPhases:
    def test_the_same_command_leaves_out_what_stands(self, start, folder, capsys):
        """A result counts, nothing else: not that a command has begun, nor that it has ended well."""
        count = f"echo >>{folder}/count; "
        done = shell("a", f"{count}touch {folder}/a")
        assert start(done, shell("b", f"{count}touch {folder}/half; exit 4")) == 4
        assert start(done, shell("b", f"{count}touch {folder}/b")) == 0
        assert start(done, shell("b", f"{count}touch {folder}/b")) == 0
        assert (folder / "count").read_text() == "\n" * 3
        assert launches(folder) == [("a", True), ("b", False), ("b", True)]
        out = capsys.readouterr().out
        assert re.search(rf"^\$ sh -c .* >>{folder}/logs/a\.log\n-- a: \d+ s$", out, re.MULTILINE)
        assert out.count("-- a: done before\n") == 2
        assert all(one["seconds"] > 0 for one in json.loads((folder / "times.json").read_text()))
        (folder / "a").unlink()
        assert start(done, shell("b", "exit 1")) == 0
        assert launches(folder)[3:] == [("a", True)]

    def test_only_the_commands_without_results_run(self, start, folder):
        many = [shell(name, f"echo >>{folder}/{name}") for name in "abc"]
        assert start(Phase("many", many, at_once=2)) == 0
        (folder / "b").unlink()
        assert start(Phase("many", many, at_once=2)) == 0
        assert [(folder / name).read_text() for name in "abc"] == ["\n"] * 3

    def test_so_many_at_a_time(self, start, tmp_path):
        """The first two end only beside each other, the third only alone."""
        wait = f"touch {tmp_path}/{{}}; until [ -e {tmp_path}/{{}} ]; do sleep 0.05; done; rm {tmp_path}/{{}}"
        pair = [shell(name, wait.format(name, other, other)) for name, other in ("ab", "ba")]
        alone = shell("c", f"[ ! -e {tmp_path}/a ] && [ ! -e {tmp_path}/b ]")
        assert start(Phase("three", [*pair, alone], at_once=2)) == 0

    def test_a_failure_ends_the_others_and_shows_the_log(self, start, folder, tmp_path, capsys):
        commands = [
            shell("bad", f"until [ -s {tmp_path}/long ]; do sleep 0.05; done; seq 100; exit 7"),
            shell("long", f"echo $$ >{tmp_path}/long; exec sleep 60"),
            shell("never", f"touch {tmp_path}/never"),
        ]
        assert start(Phase("three", commands, at_once=2), shell("next", f"touch {tmp_path}/never")) == 7
        out, err = capsys.readouterr()
        assert re.match(r"error: bad ended with status 7; the end of \S+bad\.log:\n86\n", err)
        assert err.endswith("\n99\n100\n")
        assert "\nNext" not in out
        assert is_gone(tmp_path / "long")
        assert not (tmp_path / "never").exists()

    def test_a_log_goes_on_where_it_was(self, start, folder, capsys):
        for text in ("the first", "the second"):
            assert start(shell("echo", f"echo {text}")) == 0
        assert start(shell("echo", "echo the third; exit 1")) == 1
        assert said(folder / "logs" / "echo.log") == ["the first", "the second", "the third"]
        assert capsys.readouterr().err.endswith("echo.log:\nthe third\n")

    def test_the_surroundings_of_a_command(self, start, folder, monkeypatch):
        outer = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "a,b"}
        ours = {"OMP_NUM_THREADS": "64", "NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "b"}
        for name, value in (ours | outer).items():
            monkeypatch.setenv(name, value)
        code = "import os, json; print(json.dumps([os.getcwd(), dict(os.environ)]))"
        assert start(Phase("surroundings", [Command("python", [sys.executable, "-c", code], "x")], processes=2)) == 0
        working_folder, variables = json.loads(said(folder / "logs" / "python.log")[0])
        wanted = {"OMP_NUM_THREADS": "1", "GPUS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        wanted |= {"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        assert working_folder == str(ROOT)
        assert wanted.items() <= variables.items()
        assert outer.keys() & variables.keys() == set()
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

    def test_two_quickstarts_have_ports_of_their_own(self, monkeypatch):
        ports = set()
        for number in (101, 102):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            ports.add(quickstart.environment(2)["MASTER_PORT"])
        assert len(ports) == 2
        assert all(1024 < int(port) < 2**16 for port in ports)


class TestMain:
    def test_the_status(self, start, capsys):
        assert start(shell("a", "true")) == 0
        assert "\nNext" in capsys.readouterr().out
        assert start(shell("a", "true"), holds=False) == 1
        assert "\nNext" in capsys.readouterr().out
        assert start(shell("a", "kill -9 $$")) == 1

    @pytest.mark.parametrize(
        ("failure", "status", "said"),
        [
            (InputError("runs/fifo: expected an answer\nto each"), 2, "error: runs/fifo: expected an answer to each\n"),
            (PermissionError(13, "Permission denied", "x.png"), 2, "error: [Errno 13] Permission denied: 'x.png'\n"),
            (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
        ],
    )
    def test_a_comparison_that_fails(self, start, capsys, failure, status, said):
        assert start(holds=failure) == status
        out, err = capsys.readouterr()
        assert err == said
        assert "\nNext" not in out

    def test_an_interruption_ends_what_runs(self, start, capsys, folder, tmp_path):
        """Each command is told once, by SIGTERM, and waited for."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            pytest.skip("the tests were started with SIGINT ignored, as `nohup` and `&` do")

        def interrupt():
            while not all((tmp_path / name).exists() for name in "ab"):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        deaf = "trap '' INT; trap 'sleep 0.5; echo told; exit 1' TERM; echo $$ >{}; while true; do sleep 0.05; done"
        threading.Thread(target=interrupt, daemon=True).start()
        assert start(Phase("two", [shell(name, deaf.format(tmp_path / name)) for name in "ab"], at_once=2)) == 130
        assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
        assert all(said(folder / "logs" / f"{name}.log") == ["told"] for name in "ab")
        assert launches(folder) == [("two", False)]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_so_does_kill_and_a_closed_terminal(self, folder, tmp_path, number):
        process = started(folder, tmp_path / "number")
        process.send_signal(number)
        assert process.wait() == 130
        assert is_gone(tmp_path / "number")
        assert launches(folder) == [("a", False)]


class TestFolder:
    def refused(self, start, capsys, *flags: str) -> str:
        assert start(shell("a", "false"), flags=flags) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    def test_it_is_of_one_seed_and_preset(self, start, capsys, folder):
        assert start(flags=("--seed", "3")) == 0
        assert json.loads((folder / "quickstart.json").read_text()) == {"seed": 3, "preset": "quickstart"}
        assert start(flags=("--seed", "3", "--from_scratch")) == 0
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        capsys.readouterr()
        for flags in (("--seed", "4"), ("--seed", "3", "--preset", "full")):
            assert "'seed': 3, 'preset': 'quickstart'}; name another --output" in self.refused(start, capsys, *flags)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        (folder / "quickstart.json").write_text("{")
        assert "quickstart.json: expected seed and preset in JSON" in self.refused(start, capsys)

    def test_what_others_made_is_left_alone(self, start, capsys, folder):
        (folder / "logs").mkdir(parents=True)
        assert "found logs but no quickstart.json" in self.refused(start, capsys)
        assert [path.name for path in folder.iterdir()] == ["logs"]

    def test_where_nothing_can_be_written(self, start, capsys, tmp_path):
        (tmp_path / "output").write_text("a file")
        assert f"{tmp_path}/output: expected a folder, found a file" in self.refused(start, capsys)
        assert "Not a directory" in self.refused(start, capsys, "--output", f"{tmp_path}/output/below")
        assert "without a comma" in self.refused(start, capsys, "--output", f"{tmp_path}/a,b")
        seed = self.refused(start, capsys, "--output", f"{tmp_path}/c", "--seed", "-1")
        assert "from 0 to 4294967295, got -1" in seed
        assert [path.name for path in tmp_path.iterdir()] == ["output"]

    def test_links_are_followed(self, start, capsys, tmp_path):
        (tmp_path / "a,b").mkdir()
        (tmp_path / "output").symlink_to(tmp_path / "a,b")
        assert "without a comma" in self.refused(start, capsys)

    def test_one_that_began_a_moment_earlier_keeps_it(self, start, capsys, folder, monkeypatch):
        folder.mkdir()
        other = folder / "quickstart.json"
        text = '{"seed": 9, "preset": "quickstart"}'
        monkeypatch.setattr(quickstart.fcntl, "flock", lambda *_: other.write_text(text))
        assert "found {'seed': 9, " in self.refused(start, capsys)
        assert other.read_text() == text

    def test_one_at_a_time_and_what_a_killed_one_left_counts(self, start, capsys, folder, tmp_path):
        """A second quickstart is refused while the first is at work, and while a command of a killed one is."""
        first = started(folder, tmp_path / "number")
        try:
            words = f"{folder}: another quickstart, or a command that one left, is at work there"
            assert words in self.refused(start, capsys)
            first.kill()
            first.wait()
            assert words in self.refused(start, capsys)
        finally:
            first.kill()
            os.kill(int((tmp_path / "number").read_text()), signal.SIGKILL)
        assert is_gone(tmp_path / "number")
        assert start() == 0


def figures(accuracy: float) -> Figures:
    score = Score(accuracy=accuracy, low=accuracy, high=accuracy, num_questions=100)
    difference = Difference(0.0, 0.0, 0.0, 10)
    return Figures(score=score, difference=difference, chance=28.0, chance_standard_error=1.0)


def comparison(accuracies: dict[str, float]) -> Comparison:
    runs = tuple(
        ComparedRun(label=LABELS[name], folder=Path(name), visual_tokens_mean=96.0, overall=figures(value), groups={})
        for name, value in accuracies.items()
    )
    return Comparison(
        baseline=LABELS["pyramid"], num_questions=100, num_videos=10, where={}, protocol_differences=(), runs=runs
    )


AT_THE_BOUNDS = {
    "past": {"pyramid": 80.0, "fifo": 70.0, "recent": 40.0, "recent_4": 40.0, "blind": 25.0},
    "all": {"pyramid": 61.0, "fifo": 50.0, "recent": 50.0, "recent_4": 50.0, "blind": 31.0, "scratch": 61.0},
}


class TestClaims:
    def test_they_hold_at_their_bounds(self):
        found = claims(comparison(AT_THE_BOUNDS["all"]), comparison(AT_THE_BOUNDS["past"]))
        assert [claim.value for claim in found] == [80, 40, 40, 10, 30, 3, 0]
        assert all(claim.holds for claim in found)
        without = {name: value for name, value in AT_THE_BOUNDS["all"].items() if name != "scratch"}
        assert claims(comparison(without), comparison(AT_THE_BOUNDS["past"])) == found[:-1]

    @pytest.mark.parametrize(
        ("number", "past", "everywhere"),
        [
            (0, {"pyramid": 79.0, "fifo": 69.0, "recent": 39.0, "recent_4": 39.0}, {}),
            (1, {"recent": 40.5}, {}),
            (2, {"recent_4": 40.5}, {}),
            (3, {"fifo": 70.5}, {}),
            (4, {}, {"pyramid": 60.5, "scratch": 60.5}),
            (5, {}, {"blind": 31.5, "pyramid": 61.5, "scratch": 61.5}),
            (5, {}, {"blind": 24.5}),
            (6, {}, {"scratch": 61.5}),
        ],
    )
    def test_each_fails_on_its_own(self, number, past, everywhere):
        changed = comparison(AT_THE_BOUNDS["all"] | everywhere), comparison(AT_THE_BOUNDS["past"] | past)
        assert [place for place, claim in enumerate(claims(*changed)) if not claim.holds] == [number]

    def test_in_words(self):
        assert str(Claim("lead", 9.96, least=10)) == "FAILED lead: 9.96, expected at least 10"
        assert str(Claim("lead", 9.9999, least=10)) == "FAILED lead: 9.99, expected at least 10"
        assert str(Claim("lead", 70.1 - 30.1, least=40)) == "ok     lead: 40.00, expected at least 40"
        assert str(Claim("lead", 25.5, least=10)) == "ok     lead: 25.50, expected at least 10"
        assert str(Claim("distance", 2.5, most=3)) == "ok     distance: 2.50, expected at most 3"
        assert str(Claim("distance", 3.0001, most=3)) == "FAILED distance: 3.01, expected at most 3"

    def test_they_are_those_of_the_document(self):
        text = (
            (ROOT / "docs" / "quickstart.md").read_text("utf-8").partition("\n## The claims\n")[2].partition("\n## ")[0]
        )
        rows = re.findall(r"^\| (.+?) \| (at .+?) \|$", text, re.MULTILINE)
        found = claims(comparison(AT_THE_BOUNDS["all"]), comparison(AT_THE_BOUNDS["past"]))
        assert rows == [(claim.text, claim.bound) for claim in found]


def test_the_document_says_how_much_each_memory_is_trained_with(output):
    text = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([\d.]+) \|$", text, re.MULTILINE)
    entries = json.loads((output / "data" / "registries" / "stage2.json").read_text("utf-8"))
    found = [(name, entry["annotation"], entry["repeat_time"]) for name, entry in entries.items()]
    assert [(f"synthetic_{name}", f"../annotations/{file}.jsonl", float(share)) for name, file, share in rows] == found


def test_parts_of_the_larger_set_are_in_it():
    streams = islice(make_streams(MANY_SEVERAL, 0, "test"), 50)
    found = {(question.template, question.detail) for stream in streams for question in stream.questions}
    for where in PARTS["full"].values():
        assert where.keys() == {"template", "detail"}
        assert {(template, detail) for template in where["template"] for detail in where["detail"]} <= found
    assert PARTS.keys() == PRESET_FLAGS.keys()


SHARES = {"fifo": 0.4, "uniform": 0.6, "recent": 0.25, "recent_4": 0.25, "blind": 0.25, "scratch": 0.8}


@pytest.mark.parametrize(("pyramid", "holds"), [(0.97, True), (0.5, False)])
def test_tables_plot_and_claims_of_seven_runs(tmp_path, capsys, pyramid, holds):
    """The runs are as the commands would make them; only their answers are made up."""
    annotations = tmp_path / "data" / "annotations"
    annotations.mkdir(parents=True)
    (tmp_path / "data" / "videos" / "test").mkdir(parents=True)
    rows = json.loads(make_set(annotations, num_videos=60).read_text("utf-8"))
    for row in rows[::2]:
        for question in row["questions"]:
            question["template"] = question["template"].replace("first_shape", "first_place")
    (annotations / "ovbench_test.json").write_text(json.dumps(rows), "utf-8")
    for name, arguments in evaluations(tmp_path).items():
        config = evaluate_command.evaluation_config(parse(normalise_flags(arguments), "evaluate"))
        share = SHARES.get(name, pyramid)
        chance = {"where_now": 0.5, "first_shape": 0.25, "first_place": 0.25}

        def is_right(video, one, name=name, share=share, chance=chance):
            place = sum(map(ord, one.id + video)) * 0.6180339887 % 1
            return place < (chance[one.extra["template"]] if name == "blind" else share)

        append(config, is_right)
    # Once there is a run without stage 1 it is compared, whether it is asked for or not.
    assert show_comparison(tmp_path, preset="quickstart", with_scratch=pyramid > 0.9) is holds
    out = capsys.readouterr().out
    report = (tmp_path / "comparison.md").read_text("utf-8")
    assert all(f"| {LABELS[name]} | " in report for name in LABELS)
    for text in (out, report):
        assert text.count("ok     ") + text.count("FAILED ") == 7
        assert ("FAILED " in text) is not holds
        assert re.findall("^# .+$", text, re.MULTILINE) == ["# All questions", f"# {ORDER_TITLE}", "# Claims"]
        assert "Only questions with template = first_shape, first_place." in text
        assert "- pyramid, no stage 1: `model` is " in text
    assert (tmp_path / "accuracy_by_age.png").stat().st_size > 10_000
    assert set(SAME_MODEL) | {"sliding_window", "scratch"} == LABELS.keys()
    (tmp_path / "runs" / "scratch" / "metrics.json").unlink()
    show_comparison(tmp_path, preset="quickstart", with_scratch=False)
    assert LABELS["scratch"] not in (tmp_path / "comparison.md").read_text("utf-8")
    with pytest.raises(InputError, match="runs/scratch: the run is not finished"):
        show_comparison(tmp_path, preset="quickstart", with_scratch=True)
