"""The quickstart: its commands are valid and fit together, a phase runs them, its claims can fail."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import pretrain_tiny_model
import quickstart_processes
import run_quickstart as quickstart
from comparison_sets import append, make_set
from quickstart_claims import ORDER_TITLE, PARTS, SAME_MODEL, Claim, claims, show_comparison
from quickstart_phases import LABELS, PRESET_FLAGS, Phase, phases
from quickstart_processes import FailedCommandError, run_phase
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
    found = {name: command for phase in every for name, command in phase.commands.items()}
    assert len(found) == sum(len(phase.commands) for phase in every), "one log for each"
    return found


def evaluations(output: Path) -> dict[str, list[str]]:
    """Arguments of `videochat-online` that the evaluation scripts end up with."""
    found = {}
    for name, (program, script, *flags) in commands(output).items():
        if "shell/eval/" in script:
            words = re.search(r'^arguments=\((.+) "\$@"\)$', (ROOT / script).read_text("utf-8"), re.MULTILINE)
            assert words is not None
            assert program == "bash"
            found[name] = [*shlex.split(words[1]), *flags]
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
        every = [
            (phase.name, list(phase.commands)) for phase in phases(tmp_path, 3, from_scratch=True, preset="quickstart")
        ]
        runs = ["pyramid", "fifo", "uniform", "recent", "recent_4", "blind", "sliding_window"]
        assert every == [
            ("streams", ["synthesize"]),
            ("pretraining", ["pretrain"]),
            *((name, [name]) for name in ("stage1", "stage2", "stage2_from_scratch")),
            ("evaluation", [*runs, "scratch"]),
        ]
        fewer = [(phase.name, list(phase.commands)) for phase in phases(tmp_path, 3, from_scratch=False, preset="full")]
        assert fewer == [*every[:4], ("evaluation", runs)]

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
            (processes,) = {phase.processes for phase in phases(output, 3, True, preset) if name in phase.commands}
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
            protocol = evaluate_command._config(parse(normalise_flags(arguments), "evaluate")).protocol
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
            protocol = evaluate_command._config(parse(normalise_flags(arguments), "evaluate")).protocol
            sizes = {key: protocol.memory_options.get(key) for key in ("capacities", "num_frames")}
            if name in ("pyramid", "fifo", "uniform", "recent"):
                compared[protocol.memory] = {key: size for key, size in sizes.items() if size is not None}
        entries = json.loads((output / "data" / "registries" / "stage2.json").read_text("utf-8")).values()
        trained = {entry["memory"]["name"]: dict(entry["memory"]) for entry in entries if "memory" in entry}
        for name, options in trained.items():
            assert options.pop("name") == name
        assert json.loads(json.dumps(compared)) == trained


@pytest.fixture
def folder(tmp_path) -> Path:
    """An output folder that is claimed."""
    folder = tmp_path / "output"
    (folder / "logs").mkdir(parents=True)
    return folder


@pytest.fixture
def logs(folder) -> Path:
    return folder / "logs"


@pytest.fixture(autouse=True)
def kept_handlers():
    """Handlers as they are at the start of a program, and afterwards as before."""
    handlers = {number: signal.getsignal(number) for number in quickstart_processes.INTERRUPTIONS}
    for number in handlers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def quiet() -> Console:
    return quickstart.make_console(io.StringIO())


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


class TestRunPhase:
    def test_time_and_memory(self, folder, monkeypatch):
        monkeypatch.setattr(quickstart_processes, "SECONDS_BETWEEN_MEASUREMENTS", 0.1)
        hold = "import time; held = bytearray(50_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(1.5)"
        console = quiet()
        little = run_phase(Phase("short", {"sleep": ["sleep", "0.3"]}), folder, console)
        much = run_phase(Phase("held", {"python": [sys.executable, "-c", hold]}), folder, console)
        assert 0.3 < little.seconds < 5
        assert 1.5 < much.seconds < 15
        assert little.memory_bytes > 0
        assert much.memory_bytes - little.memory_bytes > 40e6
        assert "$ sleep 0.3\n" in console.file.getvalue()

    def test_times_of_every_launch_are_kept(self, folder):
        sleep = Phase("both", {"sleep": ["sleep", "0.3"]})
        first = run_phase(sleep, folder, quiet())
        with pytest.raises(FailedCommandError):
            run_phase(Phase("bad", {"bad": shell("exit 1")}), folder, quiet())
        second = run_phase(sleep, folder, quiet())
        assert not first.resumed
        assert second.resumed
        times = json.loads((folder / "times.json").read_text())
        kept = [(launch["phase"], launch["resumed"], launch["finished"]) for launch in times]
        assert kept == [("both", False, True), ("bad", False, False), ("both", True, True)]
        assert times[0]["seconds"] == first.seconds
        assert times[1]["seconds"] > 0

    def test_the_memory_of_all_processes_counts(self, tmp_path):
        before = quickstart_processes.used_memory()
        code = "held = b'x' * 80_000_000; print(flush=True); input()"
        with psutil.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as child:
            child.stdout.readline()
            assert quickstart_processes.used_memory() - before > 80_000_000
            child.communicate(b"\n")

    def test_so_many_at_a_time(self, folder, tmp_path):
        steps = {
            str(number): shell(f"date +%s.%N >{tmp_path}/{number}; sleep 0.5; date +%s.%N >>{tmp_path}/{number}")
            for number in range(4)
        }
        run_phase(Phase("many", steps, at_once=2), folder, quiet())
        ranges = [tuple(map(float, (tmp_path / name).read_text().split())) for name in steps]
        together = [sum(begun <= start < ended for begun, ended in ranges) for start, _ in ranges]
        assert max(together) == 2

    def test_a_failure_ends_the_others_and_shows_the_log(self, folder, tmp_path):
        steps = {
            "long": shell(f"echo $$ >{tmp_path}/parent; sleep 60 & echo $! >{tmp_path}/child; wait"),
            "bad": shell(f"while [ ! -s {tmp_path}/child ]; do sleep 0.05; done; seq 100; exit 7"),
            "never": shell(f"touch {tmp_path}/never"),
        }
        with pytest.raises(
            FailedCommandError, match=r"^bad ended with status 7; the end of \S+bad\.log:\n86\n"
        ) as caught:
            run_phase(Phase("three", steps, at_once=2), folder, quiet())
        assert str(caught.value).endswith("\n99\n100")
        assert caught.value.status == 7
        assert is_gone(tmp_path / "parent")
        assert is_gone(tmp_path / "child")
        assert not (tmp_path / "never").exists()

    def test_two_failures_at_once_are_one(self, folder):
        with pytest.raises(FailedCommandError, match="ended with status 5"):
            run_phase(Phase("two", dict.fromkeys("ab", shell("exit 5")), at_once=2), folder, quiet())

    def test_a_log_goes_on_where_it_was(self, folder):
        for text in ("the first", "the second"):
            run_phase(Phase("echo", {"echo": ["echo", text]}), folder, quiet())
        log = folder / "logs" / "echo.log"
        assert said(log) == ["the first", "the second"]
        assert log.read_text().splitlines()[3].endswith("$ echo 'the second'")
        with pytest.raises(FailedCommandError) as caught:
            run_phase(Phase("echo", {"echo": shell("echo the third; exit 1")}), folder, quiet())
        assert str(caught.value).endswith("echo.log:\nthe third")

    def test_the_surroundings_of_a_command(self, folder, monkeypatch):
        outer = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "a,b"}
        for name, value in (
            {"OMP_NUM_THREADS": "64", "NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "b"} | outer
        ).items():
            monkeypatch.setenv(name, value)
        code = "import os, json; print(json.dumps([os.getcwd(), dict(os.environ)]))"
        run_phase(Phase("surroundings", {"python": [sys.executable, "-c", code]}, processes=2), folder, quiet())
        place, variables = json.loads(said(folder / "logs" / "python.log")[0])
        wanted = {"OMP_NUM_THREADS": "1", "GPUS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        wanted |= {"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        assert place == str(ROOT)
        assert wanted.items() <= variables.items()
        assert outer.keys() & variables.keys() == set()
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

    def test_two_quickstarts_have_ports_of_their_own(self, monkeypatch):
        ports = set()
        for number in (101, 102):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            ports.add(quickstart_processes._variables(2)["MASTER_PORT"])
        assert len(ports) == 2
        assert all(1024 < int(port) < 2**16 for port in ports)

    @pytest.mark.parametrize("is_terminal", [False, True])
    def test_what_commands_say_is_shown_as_it_is(self, folder, monkeypatch, is_terminal):
        monkeypatch.setattr(quickstart_processes, "SECONDS_BETWEEN_LINES", 0.1)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        console = quiet()
        assert console.is_terminal is is_terminal
        text = "[red] 1/2 [/nonsense] :smile: [x]"
        command = [sys.executable, "-c", f"import time; print({text!r}, flush=True); time.sleep(1)", "p" * 200]
        run_phase(Phase("odd", {"odd": command}), folder, console)
        shown = console.file.getvalue()
        assert f"odd: {text}" in shown
        assert "p" * 200 in shown

    def test_what_does_not_end_is_killed_and_nobody_waits_for_another(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(quickstart_processes, "SECONDS_TO_END", 1.0)
        deaf = (
            "import os, signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "code, name, *others = sys.argv[1:]\n"
            "for other in others: subprocess.Popen([sys.executable, '-c', code, code, other], start_new_session=True)\n"
            "open(name, 'w').write(str(os.getpid()))\n"
            "time.sleep(60)"
        )
        # One has a child in a session of its own, as torchrun has.
        steps = {
            name: [sys.executable, "-c", deaf, deaf, str(tmp_path / name), *others]
            for name, others in {"parent": [str(tmp_path / "child")], "other": [], "third": []}.items()
        }
        ready = " && ".join(f"[ -s {tmp_path}/{name} ]" for name in ("parent", "other", "third", "child"))
        steps["bad"] = shell(f"until {ready}; do sleep 0.05; done; exit 7")
        with pytest.raises(FailedCommandError):
            run_phase(Phase("deaf", steps, at_once=4), folder, quiet())
        gone = time.monotonic()
        assert all(is_gone(tmp_path / name) for name in ("parent", "other", "third", "child"))
        (launch,) = json.loads((folder / "times.json").read_text())
        assert launch["seconds"] < 20
        assert time.monotonic() - gone < 5

    def test_news_are_the_latest_progress(self, logs):
        log = logs / "x.log"
        for text, news in (
            ("", "starts"),
            ("loading\n", "loading"),
            ("  0%|   | 1/20\r 10%|   | 2/20\rnoise\n", "10%|   | 2/20"),
            ("{'loss': '2.5'}\nnoise\n", "{'loss': '2.5'}"),
        ):
            log.write_text("99/99 of an earlier launch\n" + text)
            assert quickstart_processes._last_news(quickstart_processes.Command(None, log, since=27)) == news


@pytest.fixture
def start(monkeypatch, tmp_path):
    """The script with phases of its own; gives its exit status."""

    def run(*commands: list[str], holds: bool | Exception = True, flags: tuple[str, ...] = ()) -> int:
        def show(*arguments, **options):
            if isinstance(holds, BaseException):
                raise holds
            return holds

        found = [Phase(str(number), {str(number): command}) for number, command in enumerate(commands)]
        monkeypatch.setattr(quickstart, "phases", lambda *arguments: found)
        monkeypatch.setattr(quickstart, "show_comparison", show)
        monkeypatch.setattr("sys.argv", ["quickstart.py", "--output", str(tmp_path / "output"), *flags])
        return quickstart.main()

    return run


class TestMain:
    def test_the_status(self, start, capsys, tmp_path):
        assert start(["true"], ["true"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"\n0 +\d+ s   \d\.\d GiB\n1 +\d+ s .*\ncomparison .*\ntogether .*GiB\n\nNext", out)
        assert re.search(r"^-- 1: \d s   \d\.\d GiB of memory in the highest sample$", out, re.MULTILINE)
        assert "   memory, highest sample\n" in out
        assert "resumed" not in out
        assert start(["true"], holds=False) == 1
        out = capsys.readouterr().out
        assert re.search(r"\n0 .* GiB   resumed\ncomparison .* GiB\n", out)
        assert "resumed: its last launch only; " in out
        assert "\nNext" in out
        assert start(shell("echo what happened; exit 4"), shell(f"touch {tmp_path}/next")) == 4
        out, err = capsys.readouterr()
        assert err.startswith("error: 0 ended with status 4; the end of ")
        assert err.endswith("what happened\n")
        assert "\nNext" not in out
        assert not (tmp_path / "next").exists()
        assert start(shell("kill -9 $$")) == 1

    @pytest.mark.parametrize(
        ("failure", "status", "said"),
        [
            (InputError("runs/fifo: expected an answer\nto each"), 2, "error: runs/fifo: expected an answer to each\n"),
            (PermissionError(13, "Permission denied", "x.png"), 2, "error: [Errno 13] Permission denied: 'x.png'\n"),
            (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
        ],
    )
    def test_a_comparison_that_fails(self, start, capsys, failure, status, said):
        assert start(["true"], holds=failure) == status
        out, err = capsys.readouterr()
        assert err == said
        assert "\nNext" not in out

    @pytest.mark.parametrize("number", quickstart_processes.INTERRUPTIONS)
    def test_an_interruption_ends_what_runs(self, start, capsys, tmp_path, number):
        def interrupt():
            while not (tmp_path / "number").exists():
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt, daemon=True).start()
        assert start(shell(f"echo $$ >{tmp_path}/number; sleep 60")) == 130
        out, err = capsys.readouterr()
        assert "the same command goes on from here" in err
        assert "\nNext" not in out
        assert is_gone(tmp_path / "number")

    def test_a_second_interruption_leaves_nothing_behind(self, start, tmp_path, monkeypatch):
        """Each command takes a second to end; meanwhile come more signals."""
        code = (
            "import os, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(1)))\n"
            "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
        )
        names = ("a", "b")
        many = Phase("two", {name: [sys.executable, "-c", code, f"{tmp_path}/{name}"] for name in names}, at_once=2)

        def interrupt():
            while not all((tmp_path / name).exists() for name in names):
                time.sleep(0.05)
            for number in (*quickstart_processes.INTERRUPTIONS, signal.SIGINT):
                time.sleep(0.2)
                os.kill(os.getpid(), number)

        threading.Thread(target=interrupt, daemon=True).start()
        original = quickstart.run_phase
        monkeypatch.setattr(quickstart, "run_phase", lambda _, *rest: original(many, *rest))
        assert start(["true"]) == 130
        assert all(is_gone(tmp_path / name) for name in names)

    def test_what_is_to_be_ignored_stays_ignored(self, start):
        """As under nohup."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert start(["true"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class TestFolder:
    def refused(self, start, capsys, *flags: str) -> str:
        assert start(["false"], flags=flags) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"error: [^\n]+\n", err)
        return err

    def test_it_is_of_one_seed_and_preset(self, start, capsys, folder):
        (folder / "logs").rmdir()
        assert start(["true"], flags=("--seed", "3")) == 0
        assert json.loads((folder / "quickstart.json").read_text()) == {"seed": 3, "preset": "quickstart"}
        assert start(["true"], flags=("--seed", "3", "--from_scratch")) == 0
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        capsys.readouterr()
        for flags in (("--seed", "4"), ("--seed", "3", "--preset", "full")):
            assert "'seed': 3, 'preset': 'quickstart'}; name another --output" in self.refused(start, capsys, *flags)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        (folder / "quickstart.json").write_text("{")
        assert "quickstart.json: expected seed and preset in JSON" in self.refused(start, capsys)

    def test_what_others_made_is_left_alone(self, start, capsys, folder):
        """`folder` has `logs` in it, but no `quickstart.json`."""
        assert "found logs but no quickstart.json" in self.refused(start, capsys)
        assert [path.name for path in folder.iterdir()] == ["logs"]

    def test_where_nothing_can_be_written(self, start, capsys, tmp_path):
        (tmp_path / "output").write_text("a file")
        assert f"{tmp_path}/output: expected a folder, found a file" in self.refused(start, capsys)
        assert "Not a directory" in self.refused(start, capsys, "--output", f"{tmp_path}/output/below")
        assert "without a comma" in self.refused(start, capsys, "--output", f"{tmp_path}/a,b")
        assert "from 0 to 4294967295, got -1" in self.refused(
            start, capsys, "--output", f"{tmp_path}/c", "--seed", "-1"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["output"]

    def test_links_are_followed(self, start, capsys, tmp_path):
        (tmp_path / "a,b").mkdir()
        (tmp_path / "output").symlink_to(tmp_path / "a,b")
        assert "without a comma" in self.refused(start, capsys)

    def test_one_quickstart_at_a_time(self, start, capsys, tmp_path, folder):
        (folder / "logs").rmdir()
        again = "import run_quickstart as script; script.phases = lambda *_: []; sys.exit(script.main())"
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT / 'scripts/quickstart')!r}); {again}",
        ]
        assert start([*command, "--output", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert err.endswith(
            f"0.log:\nerror: {folder}: another quickstart, or a command that one left, is at work there\n"
        )
        assert "Traceback" not in err

    def test_one_that_began_a_moment_earlier_keeps_it(self, start, capsys, folder, monkeypatch):
        (folder / "logs").rmdir()
        other = folder / "quickstart.json"
        text = '{"seed": 9, "preset": "quickstart"}'
        monkeypatch.setattr(quickstart.fcntl, "flock", lambda *_: other.write_text(text))
        assert "found {'seed': 9, " in self.refused(start, capsys)
        assert other.read_text() == text

    def test_what_a_killed_quickstart_leaves_holds_the_folder(self, start, capsys, folder):
        (folder / "logs").rmdir()
        with quickstart.claimed(folder, {"seed": 0, "preset": "quickstart"}):
            left = quickstart_processes._start(["sleep", "60"], folder / "logs" / "left.log", 1).process
        try:
            assert "is at work there" in self.refused(start, capsys)
        finally:
            left.kill()
            left.wait()
        assert start(["true"]) == 0


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
        config = evaluate_command._config(parse(normalise_flags(arguments), "evaluate"))
        share = SHARES.get(name, pyramid)
        chance = {"where_now": 0.5, "first_shape": 0.25, "first_place": 0.25}

        def is_right(video, one, name=name, share=share, chance=chance):
            place = sum(map(ord, one.id + video)) * 0.6180339887 % 1
            return place < (chance[one.extra["template"]] if name == "blind" else share)

        append(config, is_right)
    # Once there is a run without stage 1 it is compared, whether it is asked for or not.
    assert show_comparison(tmp_path / "runs", tmp_path, preset="quickstart", with_scratch=pyramid > 0.9) is holds
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
    show_comparison(tmp_path / "runs", tmp_path, preset="quickstart", with_scratch=False)
    assert LABELS["scratch"] not in (tmp_path / "comparison.md").read_text("utf-8")
    with pytest.raises(InputError, match="runs/scratch: the run is not finished"):
        show_comparison(tmp_path / "runs", tmp_path, preset="quickstart", with_scratch=True)
