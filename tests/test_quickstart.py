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
from pathlib import Path

import psutil
import pytest
from rich.console import Console

import pretrain_tiny_model
import quickstart
from comparison_sets import append, make_set
from quickstart import FailedCommandError, Phase, phases, run_phase
from quickstart_claims import LABELS, SAME_MODEL, Claim, claims, show_comparison
from synthetic_sets import TINY_SINGLE
from videochat_online.cli import evaluate as evaluate_command
from videochat_online.cli.main import build_parser, main, normalise_flags, parse
from videochat_online.data import load_registries
from videochat_online.evaluation import Comparison
from videochat_online.evaluation.comparison import ComparedRun, Figures
from videochat_online.evaluation.metrics import Difference, Score
from videochat_online.synthetic import PRESETS, synthesize
from videochat_online.train import parse_arguments
from videochat_online.train.arguments import read_config

ROOT = Path(__file__).resolve().parents[1]


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

    @pytest.mark.parametrize("preset", quickstart.LONGER)
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
        assert (program, script) == ("python", "scripts/pretrain_tiny_model.py")
        assert given[0][:3] == (tmp_path / "data", tmp_path / "base", 3)

    @pytest.mark.parametrize("preset", quickstart.LONGER)
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


@pytest.fixture
def logs(tmp_path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def quiet() -> Console:
    return Console(file=io.StringIO())


def is_gone(file: Path) -> bool:
    """The process whose number is in a file ends within five seconds."""
    number, until = int(file.read_text()), time.monotonic() + 5
    while time.monotonic() < until:
        if not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


class TestRunPhase:
    def test_time_and_memory(self, logs):
        hold = "import time; held = bytearray(50_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.7)"
        console = quiet()
        little = run_phase(Phase("short", {"sleep": ["sleep", "0.3"]}), logs, console)
        much = run_phase(Phase("held", {"python": [sys.executable, "-c", hold]}), logs, console)
        assert 0.3 < little[0] < 5
        assert 0.7 < much[0] < 10
        assert little[1] > 0
        assert "$ sleep 0.3\n" in console.file.getvalue()

    def test_the_memory_of_all_processes_counts(self, tmp_path):
        before = quickstart._memory()
        code = "held = b'x' * 80_000_000; print(flush=True); input()"
        with psutil.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as child:
            child.stdout.readline()
            assert quickstart._memory() - before > 80_000_000
            child.communicate(b"\n")

    def test_so_many_at_a_time(self, logs, tmp_path):
        steps = {
            str(number): shell(f"date +%s.%N >{tmp_path}/{number}; sleep 0.5; date +%s.%N >>{tmp_path}/{number}")
            for number in range(4)
        }
        run_phase(Phase("many", steps, at_once=2), logs, quiet())
        ranges = [tuple(map(float, (tmp_path / name).read_text().split())) for name in steps]
        together = [sum(begun <= start < ended for begun, ended in ranges) for start, _ in ranges]
        assert max(together) == 2

    def test_a_failure_ends_the_others_and_shows_the_log(self, logs, tmp_path):
        steps = {
            "long": shell(f"echo $$ >{tmp_path}/parent; sleep 60 & echo $! >{tmp_path}/child; wait"),
            "bad": shell(f"while [ ! -s {tmp_path}/child ]; do sleep 0.05; done; seq 100; exit 7"),
            "never": shell(f"touch {tmp_path}/never"),
        }
        with pytest.raises(
            FailedCommandError, match=r"^bad ended with status 7; the end of \S+bad\.log:\n86\n"
        ) as caught:
            run_phase(Phase("three", steps, at_once=2), logs, quiet())
        assert str(caught.value).endswith("\n99\n100")
        assert caught.value.status == 7
        assert is_gone(tmp_path / "parent")
        assert is_gone(tmp_path / "child")
        assert not (tmp_path / "never").exists()

    def test_two_failures_at_once_are_one(self, logs):
        with pytest.raises(FailedCommandError, match="ended with status 5"):
            run_phase(Phase("two", dict.fromkeys("ab", shell("exit 5")), at_once=2), logs, quiet())

    def test_a_log_is_of_the_last_run(self, logs):
        for text in ("a long line of the first run", "short"):
            run_phase(Phase("echo", {"echo": ["echo", text]}), logs, quiet())
        assert (logs / "echo.log").read_text() == "short\n"

    def test_the_surroundings_of_a_command(self, logs, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "64")
        code = "import os, json; print(json.dumps([os.getcwd(), dict(os.environ)]))"
        run_phase(Phase("surroundings", {"python": [sys.executable, "-c", code]}, processes=2), logs, quiet())
        folder, variables = json.loads((logs / "python.log").read_text())
        wanted = {"OMP_NUM_THREADS": "1", "GPUS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        assert folder == str(ROOT)
        assert wanted.items() <= variables.items()
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

    def test_news_are_the_latest_progress(self, logs):
        log = logs / "x.log"
        for text, news in (
            ("", "starts"),
            ("loading\n", "loading"),
            ("  0%|   | 1/20\r 10%|   | 2/20\rnoise\n", "10%|   | 2/20"),
            ("{'loss': '2.5'}\nnoise\n", "{'loss': '2.5'}"),
        ):
            log.write_text(text)
            assert quickstart._last_news(log) == news


@pytest.fixture
def start(monkeypatch, tmp_path):
    """The script with phases of its own; gives its exit status."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*commands: list[str], holds: bool = True, flags: tuple[str, ...] = ()) -> int:
        found = [Phase(str(number), {str(number): command}) for number, command in enumerate(commands)]
        monkeypatch.setattr(quickstart, "phases", lambda *arguments: found)
        monkeypatch.setattr(quickstart, "show_comparison", lambda *arguments, **options: holds)
        monkeypatch.setattr("sys.argv", ["quickstart.py", "--output", str(tmp_path / "output"), *flags])
        return quickstart.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


class TestMain:
    def test_the_status(self, start, capsys, tmp_path):
        assert start(["true"], ["true"]) == 0
        assert re.search(r"\n0 +\d+ s   \d\.\d GiB\n1 +\d+ s ", capsys.readouterr().out)
        assert start(["true"], holds=False) == 1
        assert start(shell("echo what happened; exit 4"), shell(f"touch {tmp_path}/next")) == 4
        assert "error: 0 ended with status 4; the end of " in (out := capsys.readouterr().out)
        assert out.endswith("what happened\n")
        assert not (tmp_path / "next").exists()
        assert start(shell("kill -9 $$")) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_an_interruption_ends_what_runs(self, start, capsys, tmp_path, number):
        def interrupt():
            while not (tmp_path / "number").exists():
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt, daemon=True).start()
        assert start(shell(f"echo $$ >{tmp_path}/number; sleep 60")) == 130
        assert "the same command goes on from here" in capsys.readouterr().out
        assert is_gone(tmp_path / "number")


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
        assert str(Claim("lead", 9.96, least=10)) == "FAILED lead: 10.0, expected at least 10"
        assert str(Claim("distance", 2.5, most=3)) == "ok     distance: 2.5, expected at most 3"


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
    assert show_comparison(tmp_path / "runs", tmp_path, preset="quickstart", with_scratch=True) is holds
    out = capsys.readouterr().out
    report = (tmp_path / "comparison.md").read_text("utf-8")
    assert all(f"| {LABELS[name]} | " in report for name in LABELS)
    for text in (out, report):
        assert text.count("ok     ") + text.count("FAILED ") == 7
        assert ("FAILED " in text) is not holds
        assert "# How the stream began\n" in text
        assert "Only questions with template = first_shape, first_place." in text
        assert "- pyramid, no stage 1: `model` is " in text
    assert (tmp_path / "accuracy_by_age.png").stat().st_size > 10_000
    assert set(SAME_MODEL) | {"sliding_window", "scratch"} == LABELS.keys()
