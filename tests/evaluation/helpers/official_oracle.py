"""The official rules of three benchmarks, said once more and slowly: they read nothing but the exported files.

Written apart from the package: loops over characters and exact fractions, and none of its functions. Each function
gives `{script: {figure: percent}}`, for people rounded to four digits, as `compare --score official --json` has it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

GROUPS_OF_OVO = {
    "backward": ["EPM", "ASI", "HLD"],
    "realtime": ["OCR", "ACR", "ATR", "STU", "FPD", "OJR"],
    "forward": ["REC", "SSR", "CRR"],
}
OMNI = ["Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment"]
IN_CONTEXT = ["Misleading Context Understanding", "Anomaly Context Understanding", "Sequential Question Answering"]
PROACTIVE = "Proactive Output"


def shown(share):
    """Percent to four digits."""
    return round(float(100 * share), 4)


def share(hits):
    return Fraction(sum(map(bool, hits)), len(hits))


def mean(shares):
    return sum(shares, Fraction(0)) / len(shares)


def ovobench(folder: Path, model: str):
    """Of the folder that `score.py --result_dir DIR --model MODEL` walks."""
    hits = defaultdict(list)
    for path in sorted((folder / model).iterdir()):
        results = json.loads(path.read_text("utf-8"))
        for group in ("backward", "realtime"):
            for one in results[group]:
                said = one["response"]
                hits[one["task"]].append(said is not None and said.find(one["ground_truth"]) >= 0)
        for one in results["forward"]:
            for test in one["test_info"]:
                hits[one["task"]].append(_forward(one["task"], test))
    figures = {task: share(found) for task, found in hits.items()}
    of_groups = {}
    for group, tasks in GROUPS_OF_OVO.items():
        there = [figures[task] for task in tasks if task in figures]
        if there:
            of_groups[group] = mean(there)
    totals = {"total_of_tasks": mean(list(figures.values()))}
    if len(of_groups) == 3:
        totals["three_way_total"] = mean(list(of_groups.values()))
    return {"score.py": {name: shown(value) for name, value in {**figures, **of_groups, **totals}.items()}}


def _forward(task, test):
    said = test["response"]
    if said is None:
        return False
    if task == "REC":
        digits = ""
        for character in said:
            if character.isdecimal():
                digits += character
        return digits == str(test["count"])
    if said in ("Y", "N"):
        return (said == "Y") == (test["type"] == 1)
    return ("Yes" if test["type"] == 1 else "No") in said


def seconds(stamp: str) -> int:
    total = 0
    for part in stamp.split(":"):
        total = 60 * total + int(part)
    return total


def streamingbench(paths, model: str, published=()):
    """Of `TASK_output_MODEL.json` files; `published`: (video file, seconds) of the proactive questions that count."""
    hits, in_time, counted = defaultdict(list), [], []
    for path in paths:
        for row in _rows(json.loads(path.read_text("utf-8"))):
            for question in row["questions"]:
                if model not in question:
                    continue
                task, said = question["task_type"], question[model]
                if task != PROACTIVE:
                    hits[task].append(said[0] == question["answer"])
                    continue
                last = said["dialog_history"][-1]
                gap = last["time"] - seconds(question["ground_truth_time_stamp"])
                in_time.append(-2 <= gap <= 2)
                hits[task].append(in_time[-1] and last["content"].count(question["ground_truth_output"]) > 0)
                name = row["video_path"].rsplit("/", 1)[-1]
                counted.append((name, seconds(question["time_stamp"])) in published)
    figures = {task: share(found) for task, found in hits.items()}
    if in_time:
        figures[f"{PROACTIVE} by time"] = share(in_time)
    if not any(counted):
        counted = [True] * len(counted)
    _add_groups(figures, hits, [[a, b] for a, b, c in zip(hits[PROACTIVE], in_time, counted, strict=True) if c])
    return {"count.py": {name: shown(value) for name, value in figures.items()}}


def _rows(content):
    for entry in content:
        if isinstance(entry, list):
            yield from entry
        else:
            yield entry


def _add_groups(figures, hits, proactive):
    there = {task for task in hits if hits[task]}
    real = [task for task in there if task not in (*OMNI, *IN_CONTEXT, PROACTIVE)]
    groups = {}
    if len(real) == 10:
        groups["real_time"] = sum((hits[task] for task in real), [])
    if set(OMNI) <= there:
        groups["omni_source"] = sum((hits[task] for task in OMNI), [])
    if {*IN_CONTEXT, PROACTIVE} <= there:
        chosen = sum((hits[task] for task in IN_CONTEXT), [])
        for place, name in enumerate(("contextual", "contextual_by_time")):
            groups[name] = chosen + [both[place] for both in proactive]
    if len(groups) == 4:
        for ending in ("", "_by_time"):
            groups[f"overall{ending}"] = groups["real_time"] + groups["omni_source"] + groups[f"contextual{ending}"]
    figures |= {name: share(found) for name, found in groups.items()}


def letter_of_single(said: str) -> str:
    """What the single-question script compares."""
    stripped = said.strip()
    if stripped[:1].upper() in set("ABCDE") and stripped[1:2] == ".":
        rest = stripped[2:].lstrip()
        if rest and "\n" not in rest:
            return stripped[0].upper()
    said = said.replace("\n", " ").replace("\t", " ").strip()
    thousands = any(said[i].isdigit() and said[i + 1] == "," and said[i + 2].isdigit() for i in range(len(said) - 2))
    cleaned = ""
    for character in said:
        if character in ';/[]"{}()=+\\_-><@`,?!':
            beside_blank = f"{character} " in said or f" {character}" in said
            cleaned += "" if thousands or beside_blank else " "
        else:
            cleaned += character
    said, num_dropped = "", 0
    for place, character in enumerate(cleaned):
        if character == "." and not cleaned[place + 1 : place + 2].isdigit() and num_dropped < 32:
            num_dropped += 1
        else:
            said += character
    said = said.strip("'").strip().lower()
    word = ""
    for character in said + " ":
        if character.isalnum() or character == "_":
            word += character
        else:
            if word in ("a", "b", "c", "d", "e"):
                return word.upper()
            word = ""
    return said


def letter_of_window(said: str) -> str | None:
    """What the sliding window's script finds."""
    said = said.strip()
    for phrase in ("The best answer is", "The correct answer is", "The answer is", "The answer", "Answer:"):
        said = "".join(said.split(phrase)).strip()
    for character in said:
        if character in "ABCD":
            return character
    return None


def ovbench(folder: Path):
    """Of the rows that the script of the setting leaves."""
    if (folder / "ovbench.json").is_file():
        rows = json.loads((folder / "ovbench.json").read_text("utf-8"))
        kinds = defaultdict(list)
        types = defaultdict(list)
        for row in rows:
            right = letter_of_single(row["pred"]) == letter_of_single(row["gt"])
            assert right == bool(row["score"])
            kinds[row["task_type"], row["sub_task_type"]].append(right)
            types[row["task_type"]].append(right)
        figures = {"Avg": mean([share(found) for found in kinds.values()])}
        return {
            "stream_single": {k: shown(v) for k, v in {**figures, **{t: share(h) for t, h in types.items()}}.items()}
        }
    (path,) = folder.glob("ovbench_fps*_window*.json")
    types = defaultdict(list)
    for row in json.loads(path.read_text("utf-8")):
        types[row["task_type"]].append(row["pred"] == row["gt"])
    everything = [hit for found in types.values() for hit in found]
    figures = {"Avg": share(everything), **{kind: share(found) for kind, found in types.items()}}
    return {"sliding_window": {name: shown(value) for name, value in figures.items()}}
