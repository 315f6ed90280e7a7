"""The scripts that compare memories: equal budgets, tables that follow from answers, needles that are held or not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import compare_memories
import memory_mixture
import needle_in_a_haystack
from comparison_sets import make_run, make_set
from evaluation_sets import noise, write_frames
from haystacks import HAYSTACKS, QUESTION, drawn_needles, synthetic_haystack
from memory_budgets import BOUNDED, BUDGETS, options_at
from memory_costs import costs
from synthetic_sets import TINY_SINGLE
from videochat_online.cli.main import parse
from videochat_online.data import load_registries
from videochat_online.errors import InputError
from videochat_online.evaluation.report import run_report
from videochat_online.evaluation.run.answering import LETTER_PREFIX, answer_by_likelihood
from videochat_online.memory import MEMORIES, make_model_memory
from videochat_online.streaming import StreamingSession
from videochat_online.synthetic import synthesize
from videochat_online.text.questions import OVBENCH_SYSTEM_MESSAGE, STREAMING_SUFFIX, ovbench_question

GRID, INTERVALS = (4, 4), (8, 4, 1)
BUDGET_TOKENS = {(4, 4, 16): 96, (2, 2, 8): 48}
GROWTH = {
    "window": "num_frames",
    "uniform": "num_frames",
    "similarity_drop": "num_frames",
    "token_merging": "num_frames",
    "moviechat": "long_frames",
    "moviechat_plus": "long_frames",
    "star": "cluster_frames",
    "event_merging": "event_frames",
}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures_of_single_runs():
    """They take most of the time, and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "plot_run", lambda folder, rows: {})
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small synthetic set. Not to be written to."""
    return synthesize(tmp_path_factory.mktemp("synthetic") / "data", seed=0, preset=TINY_SINGLE).output


def compare_arguments(tiny_dir, data, output, *more):
    files = ["--annotations", str(data / "annotations/ovbench_test.json"), "--data_root", str(data / "videos/test")]
    return ["--model", str(tiny_dir()), *files, "--output", str(output), "--max_videos", "2", *more]


SMALL = ("--memories", "pyramid", "window", "--budgets", "1/1/4", "--cost_frames", "60")


@pytest.fixture(scope="module")
def compared(tiny_dir, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("compared")
    assert compare_memories.main(compare_arguments(tiny_dir, data, output, *SMALL)) == 0
    return output


@pytest.mark.parametrize("capacities", BUDGETS, ids=str)
@pytest.mark.parametrize("name", BOUNDED)
def test_no_memory_exceeds_the_budget_and_none_could_hold_a_frame_more(name, capacities):
    options = options_at(name, capacities)
    most = BUDGET_TOKENS[capacities]
    assert make_model_memory(name, GRID, INTERVALS, options).max_tokens <= most
    if name in GROWTH:
        larger = {**options, GROWTH[name]: options[GROWTH[name]] + 1}
        assert make_model_memory(name, GRID, INTERVALS, larger).max_tokens > most
    else:
        assert options["capacities"] == capacities
    assert set(BOUNDED) | {"keep_all"} == set(MEMORIES.built_in)


def age_of(row) -> str:
    age_s = row["extra"]["evidence_age_s"]
    for low, high in ((0, 2), (2, 8), (8, 32), (32, 128)):
        if age_s <= high:
            return f"{low}-{high} s"
    raise AssertionError(age_s)


def test_a_cell_is_the_share_of_right_answers_in_the_rows(compared):
    found_report = json.loads((compared / "compare.json").read_text("utf-8"))
    (table,) = found_report["tables"]
    assert (table["budget"], table["tokens"], table["baseline"]) == ("1/1/4", 16 + 4 + 4, "pyramid")
    assert [run["label"] for run in table["runs"]] == ["pyramid", "window", "keep_all", "blind"]
    assert [run.get("max_tokens") for run in table["runs"]] == [24, 16, None, None]
    asked = set()
    for run in table["runs"]:
        folder = run["label"] if run["label"] in ("keep_all", "blind") else f"{run['label']}_1_1_4"
        lines = (compared / "runs" / folder / "predictions.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        asked.add(frozenset(row["id"] for row in rows))
        cells = Counter((row["extra"]["detail"], age_of(row)) for row in rows)
        right = Counter((row["extra"]["detail"], age_of(row)) for row in rows if row["correct"])
        found = {(detail, age): cell for detail, ages in run["cells"].items() for age, cell in ages.items()}
        assert set(found) == set(cells)
        for key, cell in found.items():
            assert cell["num_questions"] == cells[key]
            assert cell["accuracy"] == pytest.approx(100 * right[key] / cells[key], abs=1e-3)
            assert cell["low"] <= cell["accuracy"] <= cell["high"]
        assert run["all"]["num_questions"] == len(rows) == table["num_questions"] == 28
    assert len(asked) == 1
    assert Image.open(compared / "compare.png").size[0] > 500


def test_details_are_told_apart(tmp_path):
    path = make_set(tmp_path)
    videos = json.loads(path.read_text("utf-8"))
    for number, video in enumerate(videos):
        for question in video["questions"]:
            question["detail"] = "fine" if number % 3 == 0 else "coarse"
    path.write_text(json.dumps(videos), encoding="utf-8")
    folders = {name: make_run(tmp_path, name, 0.5) for name in ("pyramid", "window")}
    everything, by_detail = compare_memories.compared(folders, {})
    assert everything.num_questions == 24 * 4
    assert list(by_detail) == ["coarse", "fine"]
    for detail, comparison in by_detail.items():
        for run in comparison.runs:
            rows = [json.loads(line) for line in (folders[run.label] / "predictions.jsonl").read_text().splitlines()]
            old = [row for row in rows if row["extra"]["detail"] == detail and row["extra"]["evidence_age_s"] == 20]
            assert len(old) == {"coarse": 16, "fine": 8}[detail]
            figures = run.groups["evidence_age_s"]["8-32 s"]
            assert figures.score.num_questions == len(old)
            assert figures.score.accuracy == pytest.approx(100 * np.mean([row["correct"] for row in old]))


def test_finished_runs_are_not_asked_again_and_questions_can_be_narrowed_down(compared, tiny_dir, data, capsys):
    before = {path: path.read_bytes() for path in compared.rglob("predictions.jsonl")}
    first = json.loads((compared / "compare.json").read_text("utf-8"))
    try:
        more = ("--where", "template=first_shape,first_place")
        assert compare_memories.main(compare_arguments(tiny_dir, data, compared, *SMALL, *more)) == 0
        again = json.loads((compared / "compare.json").read_text("utf-8"))
    finally:
        (compared / "compare.json").write_text(json.dumps(first), encoding="utf-8")
    assert len(before) == 4
    assert {path: path.read_bytes() for path in before} == before
    assert again["where"] == {"template": ["first_shape", "first_place"]}
    (table,) = again["tables"]
    assert table["num_questions"] == 12
    for run, earlier in zip(table["runs"], first["tables"][0]["runs"], strict=True):
        # Old evidence is asked for by these templates alone.
        assert run["cells"]["coarse"]["32-128 s"] == earlier["cells"]["coarse"]["32-128 s"]
    said = capsys.readouterr().out
    assert "Only questions with template = first_shape, first_place." in said
    assert "| window | 16 |" in said
    assert "| window | 1 " not in said.partition("| write |")[2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--memories", "pyramid", "keep_all"), "--memories: expected some that do not grow for ever, got 'keep_all'"),
        (("--memories", "window", "window"), "--memories: expected each once, got window window"),
        (("--budgets", "0/1/0"), "--budgets: 0/1/0 has no room for window: num_frames"),
        (("--cost_frames", "0"), "--cost_frames, --fps: expected numbers above 0, got 0, 1"),
        (("--where", "template"), "--where: expected KEY=VALUE"),
        (("--answer_by", "magic"), "magic"),
        (("--data_root", "nowhere"), "nowhere"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(tiny_dir, data, tmp_path, capsys, more, said):
    assert compare_memories.main(compare_arguments(tiny_dir, data, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err


def test_a_run_gets_the_flags_of_its_model_and_one_that_fails_gives_its_status(tiny_dir, data, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(compare_memories, "videochat_online", lambda words: calls.append(words) or 3)
    given = ("--dtype", "float32", "--attn-implementation", "eager", "--cache", "static")
    assert compare_memories.main(compare_arguments(tiny_dir, data, tmp_path, *given)) == 3
    (words,) = calls
    options = parse(words, "evaluate")
    assert (options.dtype, options.attn_implementation, options.cache) == ("float32", "eager", "static")
    assert (options.model, options.memory, options.fps) == (str(tiny_dir()), "keep_all", 1.0)
    assert (options.answer_by, options.max_videos) == ("likelihood", 2)


def test_a_budget_has_to_be_a_pyramid(tiny_dir, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        compare_memories.main(compare_arguments(tiny_dir, data, tmp_path, "--budgets", "4/x/16"))
    assert ended.value.code == 2
    assert "expected the capacities of a pyramid such as 4/4/16, got '4/x/16'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["evidence_age_s", "detail"])
def test_questions_have_to_say_how_old_their_evidence_is_and_how_fine(tmp_path, missing):
    path = make_set(tmp_path, num_videos=2)
    videos = json.loads(path.read_text("utf-8"))
    for question in (question for video in videos for question in video["questions"]):
        del question[missing]
    path.write_text(json.dumps(videos), encoding="utf-8")
    folders = {name: make_run(tmp_path, name, 0.5) for name in ("pyramid", "window")}
    with pytest.raises(InputError, match=f"expected questions that say their {missing}, found none"):
        compare_memories.compared(folders, {})


def test_costs_are_what_is_kept_of_what_was_seen():
    features_TCHW = torch.randn(7, 8, *GRID, generator=torch.Generator().manual_seed(0))
    make = {
        name: lambda name=name: make_model_memory(name, GRID, INTERVALS, options_at(name, (2, 2, 8)))
        for name in ("window", "uniform", "star")
    }
    found = costs(make, features_TCHW, 100)
    window = found["window"]
    assert (window["num_frames"], window["remembered_tokens"]) == (100, 3 * 16)
    features = 3 * 16 * 8 * 4  # fp32
    assert features < window["held_bytes"] < features + 1000
    assert window["bytes_per_frame_seen"] == pytest.approx(window["held_bytes"] / 100, abs=0.01)
    assert window["bytes_per_token"] == pytest.approx(window["held_bytes"] / 48, abs=0.01)
    assert (window["write_ratio"], window["read_ratio"]) == (1, 1)
    assert found["star"]["held_bytes"] > 2 * features, "a full-size frame for each cluster, beyond the budget"


def test_the_mixture_has_every_memory_at_every_budget(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory_mixture, "NUM_NEEDLES", 8)
    arguments = ["--data", str(data), "--output", str(tmp_path / "mix")]
    assert memory_mixture.main(arguments) == 0
    entries = load_registries(str(tmp_path / "mix" / "registry.json"))
    memories = Counter(
        (entry.name.partition("_")[0], entry.memory.name, str(sorted(entry.memory.options.items())))
        for entry in entries
        if entry.memory is not None
    )
    expected = [(name, options_at(name, capacities)) for name in BOUNDED for capacities in BUDGETS]
    expected.append(("keep_all", {}))
    as_json = [(name, json.loads(json.dumps(dict(options)))) for name, options in expected]
    assert memories == Counter(
        (kind, name, str(sorted(options.items()))) for kind in ("recalls", "needles") for name, options in as_json
    )
    assert len({entry.repeat_time for entry in entries if entry.memory is not None}) == 1, "no memory has a head start"
    rows = [json.loads(line) for line in (tmp_path / "mix" / "needles.jsonl").read_text("utf-8").splitlines()]
    assert Counter(row["conversations"][1]["value"] for row in rows) == {
        "(A) block": 2,
        "(B) dot": 2,
        "(C) bar": 2,
        "(D) pole": 2,
    }
    for row in rows:
        frames = sorted((tmp_path / "mix" / "haystacks" / row["video"]).iterdir(), key=lambda path: int(path.stem))
        assert row["clip"] == [0.0, len(frames)]
        white = [int((np.asarray(Image.open(path)).min(axis=2) > 225).sum()) > 40 for path in frames]
        assert 1 <= sum(white) <= 3
        assert sum(np.diff([False, *white, False])) in (0, 2), "shown once, without a break"
    first = {path: path.read_bytes() for path in (tmp_path / "mix").rglob("*") if path.is_file()}
    assert memory_mixture.main(arguments) == 0
    assert {path: path.read_bytes() for path in first} == first
    capsys.readouterr()
    assert memory_mixture.main(["--data", str(tmp_path), "--output", str(tmp_path / "other")]) == 2
    assert "expected the output of videochat-online synthesize" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", HAYSTACKS)
def test_no_shape_of_a_haystack_is_white(kind):
    haystack = synthetic_haystack(kind, 100, "seed")
    assert len(haystack) == {"static": 1, "busy": 64, "streams": 100}[kind]
    assert ((haystack.min(axis=3) > 225).sum(axis=(1, 2)) < 5).all()
    assert np.array_equal(haystack, synthetic_haystack(kind, 100, "seed"))
    assert all(((needle.pixels_HWC.min(axis=2) > 225).sum()) > 40 for needle in drawn_needles(8, "seed"))


def needle_arguments(tiny_dir, output, *more):
    return ["--model", str(tiny_dir()), "--output", str(output), "--lengths", "40", "90", "--needles", "4", *more]


def result_of(output):
    return json.loads((output / "needle.json").read_text("utf-8"))


def test_a_window_holds_the_needles_that_are_not_older_than_it(tiny_dir, tmp_path, capsys):
    more = ("--memory", "window", "--memory.num_frames", "6", "--shown", "2", "--depths", "0", "0.5", "0.95", "1")
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, tmp_path, *more)) == 0
    result = result_of(tmp_path)
    assert result["max_tokens"] == 96
    assert [(cell["length"], cell["depth"]) for cell in result["cells"]] == [
        (length, depth) for length in (40, 90) for depth in (0, 0.5, 0.95, 1)
    ]
    for cell in result["cells"]:
        # The last of its two frames is one of the six newest.
        first = round(cell["depth"] * (cell["length"] - 5))
        kept = [first + needle + 1 >= cell["length"] - 6 for needle in range(4)]
        assert (cell["first_place"], cell["num_kept"]) == (first, sum(kept))
        assert cell["tokens_a_frame"] == (16 if any(kept) else None)
        assert 0 <= cell["num_right"] <= cell["num_needles"] == 4
    assert {cell["num_kept"] for cell in result["cells"]} == {0, 2, 4}
    assert "| 1 | 100 / " in capsys.readouterr().out
    assert Image.open(tmp_path / "needle.png").size[0] >= 400


@pytest.mark.parametrize("memory", [("pyramid", {"capacities": (1, 1, 4)}), ("moviechat_plus", {"long_frames": 8})])
def test_a_question_has_the_prompt_of_a_session_that_watches_the_whole_stream(
    tiny_dir, tiny_model, tmp_path, memory, monkeypatch
):
    name, options = memory
    prompts = []

    def remember(model, prompt, *more):
        prompts.append(prompt)
        return answer_by_likelihood(model, prompt, *more)

    monkeypatch.setattr(needle_in_a_haystack, "answer_by_likelihood", remember)
    given = [str(word) for key, value in options.items() for word in (f"--memory.{key}", *np.atleast_1d(value))]
    more = ("--memory", name, *given, "--depths", "0.75", "--seed", "3", "--haystack", "busy")
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, tmp_path, *more)) == 0
    result = result_of(tmp_path)
    haystack, needles = synthetic_haystack("busy", 90, "haystack/3"), drawn_needles(4, "needle/3")
    kept, right = Counter(), Counter()
    for length in (40, 90):
        for number, needle in enumerate(needles):
            place = round(0.75 * (length - 4)) + number
            frames = haystack[np.arange(length) % 64].copy()
            frames[place] = needle.pixels_HWC
            session = StreamingSession(
                tiny_model,
                make_model_memory(name, GRID, INTERVALS, result["memory_options"]),
                system_message=OVBENCH_SYSTEM_MESSAGE,
            )
            session.push(frames, [float(index) for index in range(length)])
            kept[length] += place in [frame.index for frame in session.remembered()]
            text = ovbench_question(QUESTION, ["block", "dot", "bar", "pole"], asked_at_s=length - 1.0)
            prompt = session.prepare(text + STREAMING_SUFFIX, generation_prefix=LETTER_PREFIX).prompt
            found = prompts.pop(0)
            assert found.layout.input_ids == prompt.layout.input_ids
            torch.testing.assert_close(found.tokens.embeds_LD, prompt.tokens.embeds_LD, rtol=1e-4, atol=1e-4)
            right[length] += answer_by_likelihood(tiny_model, prompt, 4, session.settings).option == number
    assert not prompts
    assert [(cell["num_kept"], cell["num_right"]) for cell in result["cells"]] == [
        (kept[length], right[length]) for length in (40, 90)
    ]


def test_the_same_needles_give_the_same_result_and_are_drawn_beside_others(tiny_dir, tmp_path, capsys):
    once, again = tmp_path / "once", tmp_path / "again"
    more = ("--memory", "uniform", "--memory.num_frames", "4", "--answer_by", "text_likelihood", "--depths", "0.5")
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, once, *more)) == 0
    beside = ("--beside", str(once / "needle.json"))
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, again, *more, *beside)) == 0
    assert (again / "needle.json").read_bytes() == (once / "needle.json").read_bytes()
    widths = [Image.open(folder / "needle.png").size[0] for folder in (once, again)]
    assert widths[0] < widths[1]


def test_a_clip_and_pictures_of_ones_own(tiny_dir, tmp_path, capsys):
    clip = write_frames(tmp_path / "clip", noise(5))
    pictures = []
    for name, value in (("cat", 40), ("dog", 200)):
        pictures.append(str(tmp_path / f"{name}.png"))
        Image.fromarray(np.full((20, 50, 3), value, dtype=np.uint8)).save(pictures[-1])
    more = (
        "--video",
        str(clip),
        "--needle",
        *pictures,
        "--depths",
        "1",
        "--memory",
        "window",
        "--memory.num_frames",
        "4",
    )
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, tmp_path / "out", *more, "--answer_by", "nothing")) == 0
    result = result_of(tmp_path / "out")
    assert (result["haystack_frames"], result["options"]) == (5, ["cat", "dog"])
    assert result["question"] == "Which of these was shown?"
    assert [(cell["num_kept"], cell["num_right"]) for cell in result["cells"]] == [(4, None), (4, None)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--video", "no_such.mp4"), "no_such.mp4: expected a video file or a folder of frames, found no such file"),
        (("--lengths", "0"), "--lengths: expected at least the 4 frames of all needles, got 0"),
        (("--lengths", "50", "50"), "--lengths: expected each once, got 50 50"),
        (("--depths", "0", "1.5"), "--depths: expected numbers from 0 to 1, got [0.0, 1.5]"),
        (("--depths", "nan"), "--depths: expected numbers from 0 to 1, got [nan]"),
        (("--shown", "0"), "--shown: expected at least 1 frame, got 0"),
        (("--fps", "inf"), "--fps: expected a number above 0, got inf"),
        (("--needles", "6"), "--needles: expected a multiple of the 4 answers, got 6"),
        (("--needle", "a.png", "b.png"), "a.png: expected an image, found no such file"),
        (("--needle", "README.md", "LICENSE"), "README.md: expected a readable image"),
        (("--needle", "a/one.png", "b/one.png"), "--needle: expected two or more pictures of different names"),
        (("--answer_by", "magic"), "--answer_by: expected likelihood or text_likelihood or nothing, got magic"),
        (("--memory", "magic"), "unknown memory 'magic'"),
        (("--num_frames", "3"), "--num_frames: expected --memory.num_frames in its place"),
        (("--beside", "README.md"), "--beside: expected a needle.json, got README.md"),
        (("--model", "no_such_model"), "no_such_model"),
    ],
)
def test_a_search_that_cannot_be_made_says_why(tiny_dir, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert needle_in_a_haystack.main(needle_arguments(tiny_dir, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
