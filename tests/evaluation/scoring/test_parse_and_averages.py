"""The answer parser on hard cases, and the figures against a slow re-statement."""

from __future__ import annotations

import random

import numpy as np
import pytest

from videochat_online.evaluation import compute_metrics, get_task, parse_answer
from videochat_online.evaluation.report.run_report import render
from videochat_online.evaluation.scoring.bootstrap import scores_by
from videochat_online.evaluation.scoring.metrics import age_bucket
from videochat_online.evaluation.scoring.parse import parse_reply, says

FOUR = ("walking to the left", "sitting", "a cup", "no")
TWO = ("Yes", "No")

# text, options, option meant
CASES = [
    # Letters alone, in any dress.
    ("A", FOUR, 0), ("b", FOUR, 1), ("(B)", FOUR, 1), ("(b)", FOUR, 1), ("B.", FOUR, 1), ("[B]", FOUR, 1),
    ("'B'", FOUR, 1), ("**B**", FOUR, 1), ("`B`", FOUR, 1), ("<B>", FOUR, 1), ("(B", FOUR, 1), ("B)", FOUR, 1),
    ("d)", FOUR, 3), (" C \n", FOUR, 2), ("\uff22", FOUR, 1), ("a", FOUR, 0),
    # Letter and text.
    ("(B) sitting", FOUR, 1), ("B. sitting", FOUR, 1), (" b. sitting", FOUR, 1), ("B sitting", FOUR, 1),
    ("B\nsitting", FOUR, 1), ("B - sitting", FOUR, 1), ("B: sitting", FOUR, 1), ("C, because", FOUR, 2),
    ("A walking to the left", FOUR, 0), ("(A)walking", FOUR, 0), ("A because of that", FOUR, 0),
    ("(B) walking to the left", FOUR, 1),
    # Cues.
    ("Answer: B", FOUR, 1), ("Best option:(B) sitting", FOUR, 1), ("The answer is (C) red", FOUR, 2),
    ("The best answer is C.", FOUR, 2), ("Option B", FOUR, 1), ("option a", FOUR, 0), ("Answer: **(B)**", FOUR, 1),
    ("The correct choice is b) sitting", FOUR, 1), ("(A) is wrong. The answer is (B).", FOUR, 1),
    ("not A, the answer is B", FOUR, 1), ("Best answer: A", FOUR, 0), ("I think D", FOUR, 3), ("答案是B", FOUR, 1),
    ("(A) because (B) is wrong", FOUR, 0), ("3.5 B", FOUR, 1),
    # The article is no option.
    ("a man is walking", FOUR, None), ("A man", FOUR, None), ("The answer is a man", FOUR, None),
    ("The option is A person sitting", FOUR, 0), ("there is a table", FOUR, None), ("It's a", FOUR, None),
    ("a cup", FOUR, 2), ("A cup", FOUR, 2), ("It is a cup.", FOUR, 2),
    # Said to be wrong, or repeated before the choice.
    ("A is wrong", FOUR, None), ("A is wrong, so B", FOUR, 1), ("(B) sitting is not right", FOUR, None),
    ("B isn't it", FOUR, None), ("A (not B)", FOUR, 0), ("A (it moves)", FOUR, 0), ("C was not seen; D", FOUR, 3),
    ("(A) Yes\n(B) No\nAnswer: B", TWO, 1), ("(A) Yes (B) No. The answer is (A).", TWO, 0),
    ("Best option: (A) Yes (B) No", TWO, None), ("(A) is right", FOUR, 0),
    # Option texts.
    ("Yes", TWO, 0), ("No.", TWO, 1), ("NO", TWO, 1), ("yes, it is", TWO, 0), ("walking to the left", FOUR, 0),
    ("The man is walking left", ("left", "walking left"), 1), ("3", ("2", "1", "0", "3"), 3), ("-5", ("5", "-5"), 1),
    ("[0.42, 0.49, 0.76, 0.93]", ("[0.98, 0.23, 1.00, 0.28]", "[0.42, 0.49, 0.76, 0.93]"), 1),
    ("11-12s", ("1-2s", "11-12s"), 1), ("read -> throw", ("throw -> read", "read -> throw"), 1),
    ("left-middle (2)", ("left-middle", "left-middle (2)"), 1), ("shake out well", ("x", "shake out well "), 1),
    # Nothing chosen, or too much.
    ("", FOUR, None), (" ", FOUR, None), (".", FOUR, None), ("E", FOUR, None), ("(F)", FOUR, None), ("C", TWO, None),
    ("A or B", FOUR, None), ("A/B", FOUR, None), ("Both A and B", FOUR, None), ("(A), (B)", FOUR, None),
    ("the answer is B or C", FOUR, None), ("B+C", FOUR, None), ("ABCD", FOUR, None), ("CAB", FOUR, None),
    ("a. b. c.", FOUR, None), ("(A) Yes\n(B) No", TWO, None), ("The answer Because", FOUR, None),
    ("The person at A. is B", FOUR, None), ("The answer is not A.", FOUR, None), ("It isn't B", FOUR, None),
    ("sitting or walking to the left", FOUR, None), ("I don't know", FOUR, None), ("None of the above", FOUR, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "meant"), CASES, ids=[repr(case[0]) for case in CASES])
def test_answers_are_read(text, options, meant):
    assert parse_answer(text, options) == meant


TYPES = ("PastMemory", "Hallucination", "SpatialPerception")
SOURCES = ("ava", "coin", "hirest", "tao", None)


def random_rows(seed, num_rows=200):
    rng = random.Random(seed)
    rows = []
    for number in range(num_rows):
        answer_type = rng.choice(TYPES)
        predicted = rng.choice((0, 1, 2, 3, None))
        rows.append(
            {
                "id": str(number),
                "video": f"v{rng.randrange(30)}",
                "dataset": rng.choice(SOURCES),
                "answer_type": answer_type,
                "sub_answer_type": f"{answer_type}-{rng.randrange(2)}",
                "options": ["w", "x", "y", "z"][: rng.choice((2, 4))],
                "predicted_index": predicted,
                "correct": predicted == 1,
                "extra": {"evidence_age_s": rng.choice((0, 2, 2.5, 8, 40, 900)), "detail": rng.choice("fc")},
            }
        )
    return rows


def percent(rows):
    return 100 * sum(row["correct"] for row in rows) / len(rows)


def guessing(rows):
    return 100 * float(np.mean([1 / len(row["options"]) for row in rows]))


def grouped(rows, key):
    found = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


GROUP = {"ava": "action", "coin": "event", "hirest": "event", "tao": "object", None: "other"}


@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_a_slow_restatement(seed):
    rows = random_rows(seed)
    metrics = compute_metrics(rows, get_task("ovbench"))
    cells = grouped(rows, lambda row: f"{row['answer_type']} / {GROUP[row['dataset']]}")
    assert metrics["cells"].keys() == cells.keys()
    for name, members in cells.items():
        assert metrics["cells"][name]["accuracy"] == pytest.approx(percent(members), abs=1e-3)
        assert metrics["cells"][name]["num_questions"] == len(members)
    mean = np.mean([percent(members) for members in cells.values()])
    assert metrics["accuracy"] == metrics["cell_average"]["accuracy"] == pytest.approx(mean, abs=1e-3)
    assert metrics["micro_average"]["accuracy"] == pytest.approx(percent(rows), abs=1e-3)
    rest = {name: members for name, members in cells.items() if name != "Hallucination / object"}
    without = metrics["without_object_existence"]
    assert without["left_out"] == ["Hallucination / object"]
    mean = np.mean([percent(members) for members in rest.values()])
    assert without["cell_average"]["accuracy"] == pytest.approx(mean, abs=1e-3)
    assert without["micro_average"]["accuracy"] == pytest.approx(percent(sum(rest.values(), [])), abs=1e-3)
    assert metrics["num_unparsed"] == sum(row["predicted_index"] is None for row in rows)
    assert metrics["micro_average"]["chance"] == pytest.approx(guessing(rows), abs=1e-3)
    # What stands beside a mean over cells is a mean over cells, too.
    mean = np.mean([guessing(members) for members in cells.values()])
    assert metrics["chance"] == metrics["cell_average"]["chance"] == pytest.approx(mean, abs=1e-3)
    assert abs(metrics["chance"] - metrics["micro_average"]["chance"]) > 0.01
    mean = np.mean([guessing(members) for members in rest.values()])
    assert without["cell_average"]["chance"] == pytest.approx(mean, abs=1e-3)
    for name, members in grouped(rows, lambda row: row["answer_type"]).items():
        assert metrics["answer_types"][name]["accuracy"] == pytest.approx(percent(members), abs=1e-3)
    for name, members in grouped(rows, lambda row: age_bucket(row["extra"]["evidence_age_s"])).items():
        assert metrics["by_evidence_age_s"][name]["accuracy"] == pytest.approx(percent(members), abs=1e-3)
    assert list(metrics["by_evidence_age_s"]) == ["0-2 s", "2-8 s", "32-128 s", "over 512 s"]
    assert sum(row["num_questions"] for row in metrics["by_evidence_age_s_and_detail"].values()) == len(rows)
    assert "by_template" not in metrics


def test_an_answer_that_says_nothing_is_wrong_and_counted():
    rows = [{**row, "predicted_index": None, "correct": False} for row in random_rows(0)[:50]]
    rows += [{**row, "predicted_index": 1, "correct": True} for row in random_rows(1)[:50]]
    metrics = compute_metrics(rows, get_task("ovbench"))
    assert metrics["micro_average"] == {**metrics["micro_average"], "accuracy": 50.0, "num_questions": 100}
    assert metrics["num_unparsed"] == 50


def everything(row):
    return "all"


def test_intervals_hold_the_truth_and_depend_on_videos():
    rng = random.Random(0)
    inside = 0
    for trial in range(40):
        rows = [
            {**row, "video": f"v{place}", "correct": rng.random() < 0.5}
            for place, row in enumerate(random_rows(trial, num_rows=120))
        ]
        score = scores_by(rows, everything, seed=trial)["all"]
        inside += score.low <= 50 <= score.high
    assert 34 <= inside <= 40
    # The same answers, but all questions of a video right or wrong together: far less is known.
    alone = scores_by(rows, everything)["all"]
    rows.sort(key=lambda row: row["correct"])
    together = [{**row, "video": f"v{place // 20}"} for place, row in enumerate(rows)]
    clustered = scores_by(together, everything)["all"]
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_figures_are_the_same_each_time():
    rows = random_rows(3)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert compute_metrics(rows, get_task("ovbench")) == compute_metrics(shuffled, get_task("ovbench"))


def test_no_answers():
    metrics = compute_metrics([], get_task("ovbench"))
    assert metrics["accuracy"] is None
    assert metrics["cells"] == {}


def test_a_report_needs_no_figures():
    head = {
        "task": "t",
        "blind": True,
        "causal": True,
        "setting": "streaming",
        "model": "m|n",
        "answer_by": "generation",
    }
    names = ("num_answered", "num_questions", "num_videos", "num_without_frames", "num_bad_videos")
    counts = dict.fromkeys((*names, "num_left_out", "num_not_finite"), 0) | {"notes": [], "conditions": {}}
    cost = dict.fromkeys(
        ("peak_memory_bytes", "num_frames_decoded", "num_frames_encoded", "frames_per_s", "first_token_s_p50",
         "first_token_s_p95", "visual_tokens_mean", "visual_tokens_max")
    )  # fmt: skip
    rest = {"protocol": {}, "cost": cost, "bad_videos": [], "damaged_videos": [], "bad_rows": ["x row 1: y"]}
    text = render({**head, **counts, **rest, **compute_metrics([], get_task("ovbench"))})
    assert "m\\|n" in text
    assert "- x row 1: y" in text
    assert "there are no questions" not in text
    # Of a part of the benchmark it says which part is missing.
    task = get_task("ovbench")
    cells = sorted(task.published_cells)
    rows = [
        {**row, "answer_type": kind, "dataset": {"action": "ava", "event": "coin", "object": "tao"}[group]}
        for row, (kind, group) in zip(random_rows(0), cells[:-2], strict=False)
    ]
    text = render({**head, **counts, **rest, **compute_metrics(rows, task)})
    names = ", ".join(" / ".join(cell) for cell in cells[-2:])
    assert f"Of mean of 14 of 16 cells there are no questions: {names}." in text


def test_each_kind_is_parsed_as_such():
    assert parse_reply("(B)", ["a cup", "a table"], "choice") == 1
    assert parse_reply("(B)", ("Yes", "No"), "yes_no") is None
    assert parse_reply("Yes, 3.", (), "open") is None


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("The score is 3.", "3", True), ("13", "3", False), ("SCORE 112!", "Score 112", True), ("a-b", "b a", False),
        ("40 - 15", "40-15", True), ("x", "->", False), ("go -> there", "->", True), ("", "3", False),
    ],
)  # fmt: skip
def test_says(text, wanted, found):
    assert says(text, wanted) is found
