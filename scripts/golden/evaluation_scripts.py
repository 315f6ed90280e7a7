"""Golden checks of whole evaluations: what the published scripts ask a model, and how they share out the work.

The scripts were recorded on an annotation file and its media with a scripted model: what it was asked and what it
answered. Ours reads the same file and media under `--protocol reference`, up to the prompt; the recorded answers
are parsed and scored. Questions are told apart by their words, since the order differs.
"""

from __future__ import annotations

import ast
import json
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videochat_online.evaluation import (
    EvalProtocol,
    EvalQuestion,
    EvalSet,
    EvalVideo,
    Shard,
    compute_metrics,
    get_task,
    parse_answer,
    resolve_protocol,
)
from videochat_online.evaluation.frames import Footage
from videochat_online.evaluation.media import MediaLibrary
from videochat_online.evaluation.plan import estimated_cost, share_of
from videochat_online.evaluation.viewers import View, make_viewer
from videochat_online.streaming import GenerationSettings
from videochat_online.text.questions import BEST_OPTION_PREFIX, SLIDING_WINDOW_SUFFIX

from .chat import model_of
from .harness import Case

Row = dict[str, Any]
TASK = get_task("ovbench")
_FRAME_LINE = re.compile(r"Frame\d+(?: at [\d.]+s)?: <image>")
_SENTENCE = re.compile(r"The video contains (\d+) frames sampled at ([\d., ]+) seconds\.")
_LETTER_AT_ONCE = re.compile(r"\(?[A-Z]\b")
_VISUAL = re.compile(r"<img><IMG_CONTEXT>\*\d+</img>")


@dataclass(frozen=True)
class Asked:
    """A question, and what ours asks the model."""

    video: EvalVideo
    question: EvalQuestion
    words: str
    view: View


def check_eval_script(case: Case) -> None:
    """Frames, their labels, words, order, generation settings and scores of a whole script."""
    content, (protocol, prefix) = _content(case), _protocol(case.params["script"], case.params["args"])
    asked = _ask(case, content, protocol, prefix)
    calls = {_words(call): call for call in case.recorded["calls"]}
    case.exact("number of calls", len(calls), len(case.recorded["calls"]))
    if not case.exact("questions", sorted(one.words for one in asked), sorted(calls)):
        return
    _check_order(case, asked)
    _check_sentences(case, asked, calls)
    expected = {words: _frame_lines(call) for words, call in calls.items()}
    for words, call in calls.items():
        case.exact(f"{words!r}: recorded frames", [call["n_frames"], call["num_patches"]], [len(expected[words])] * 2)
    if protocol.memory is not None:
        expected |= _instead_of_misplaced(case, asked, expected)
    if any(call["history"] for call in calls.values()):
        case.exclude(
            "history: the script puts earlier questions, each with its frames and answer, before a question; ours asks "
            "it on its own, with the same frames and words in one turn"
        )
    settings = GenerationSettings(max_new_tokens=protocol.max_new_tokens, min_new_tokens=protocol.min_new_tokens)
    generation = {
        "num_beams": 1,
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens,
        "do_sample": settings.temperature > 0,
    }
    for one in asked:
        call = calls[one.words]
        body = "\n".join([*expected[one.words], one.words])
        prompt = f"<|system|>\n{call['system_message']}<|end|><|user|>\n{body}<|end|><|assistant|>\n"
        ours = _VISUAL.sub("<image>", one.view.prompt.layout.text)
        case.exact(f"{one.question.id} prompt", ours, prompt + call["add_generation_prompt"])
        case.exact(f"{one.question.id} generation", generation, call["generation_config"])
    _check_scores(case, asked, calls)


def _content(case: Case) -> EvalSet:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotation.json"
        path.write_text(json.dumps(case.recorded["annotation"]), encoding="utf-8")
        content = TASK.load([path])
    case.exact("unusable rows", content.problems, ())
    return content


def _protocol(script: str, arguments: Row) -> tuple[EvalProtocol, str]:
    """The protocol of a script, and what it makes replies begin with."""
    frames: Row = {"protocol": "reference", "fps": float(arguments["fps"]), "with_times": arguments["time"]}
    if script == "sliding_window":
        limits = {"window_s": arguments["slide_window"], "max_frames": arguments["num_segments"]}
        return resolve_protocol("sliding_window", **frames, **limits), ""
    capacities = tuple(arguments[f"{tier}_memory_bank"] for tier in ("long", "mid", "short"))
    frames["memory_options"] = {"capacities": capacities}
    if script == "stream_single":
        return resolve_protocol("streaming", **frames), ""
    return resolve_protocol("streaming", suffix=SLIDING_WINDOW_SUFFIX, **frames), BEST_OPTION_PREFIX


def _ask(case: Case, content: EvalSet, protocol: EvalProtocol, prefix: str) -> list[Asked]:
    """As the runner does, without generating."""
    model = model_of(case.root, "phi3", "phi3")
    library, asked = MediaLibrary(case.root / case.params["data_root"]), []
    for video in content.videos:
        with Footage(library.find(video), video, protocol) as footage:
            viewer = make_viewer(model, footage, protocol, video.questions)
            for question in video.questions:
                viewer.watch_until(question)
                words = TASK.prompt(question) + protocol.suffix
                asked.append(Asked(video, question, words, viewer.prepare(question, words, prefix)))
    return asked


def _words(call: Row) -> str:
    """What is asked, without the lines of frames and the sentence about them."""
    lines = call["question"].split("\n")
    return "\n".join(line for line in lines if not (_FRAME_LINE.fullmatch(line) or _SENTENCE.fullmatch(line))).lstrip()


def _frame_lines(call: Row) -> list[str]:
    """Lines of all frames that the model has, those of earlier turns included."""
    if call["timestamps"] is not None:
        return list(call["timestamps"])
    texts = [*(text for text, _ in call["history"] or ()), call["question"]]
    return [line for text in texts for line in text.split("\n") if _FRAME_LINE.fullmatch(line)]


def _check_order(case: Case, asked: Sequence[Asked]) -> None:
    """The script shuffles, or follows the file; ours has the videos as in the file, and time within a video."""
    if [one.words for one in asked] != [_words(call) for call in case.recorded["calls"]]:
        case.exclude("order: the script's own; ours has the videos as in the file, their questions in order of time")
    rows = [fields for row in case.recorded["annotation"] for fields in row.get("questions", [row])]
    in_file = [f"Question at {row['middle_frame_timestamp']}s: {row['question']}\n" for row in rows]
    first: dict[str, int] = {}
    for one in asked:
        place = next(number for number, head in enumerate(in_file) if one.words.startswith(head))
        first[one.video.name] = min(first.get(one.video.name, place), place)
    expected = sorted(asked, key=lambda one: (first[one.video.name], one.question.time_s))
    case.exact("our order", [one.question.id for one in asked], [one.question.id for one in expected])


def _check_sentences(case: Case, asked: Sequence[Asked], calls: dict[str, Row]) -> None:
    """Without times at the frames some scripts give them in a sentence, which ours does not have."""
    last = {one.video.name: one for one in asked}
    found = {words: match for words, call in calls.items() if (match := _SENTENCE.search(call["question"]))}
    if found:
        case.exclude("no times: the script then says in a sentence when the frames were taken; ours says it nowhere")
    for one in asked:
        if one.words in found:
            # Of a stream the times of the whole clip, whatever the question sees of it.
            shown = (one if case.params["script"] == "sliding_window" else last[one.video.name]).view.frames
            times = ", ".join(f"{frame.time_s:.1f}" for frame in shown)
            case.exact(f"{one.question.id} times", [str(len(shown)), times], list(found[one.words].groups()))


def _instead_of_misplaced(case: Case, asked: Sequence[Asked], recorded: dict[str, list[str]]) -> dict[str, list[str]]:
    """Frames of questions that are not in order of time where the clip's end goes to the last of them.

    The script takes the last of the list for the last; ours takes the latest: it gets those frames, and the last
    of the list the ones up to its time.
    """
    instead: dict[str, list[str]] = {}
    for row, name in zip(case.recorded["annotation"], dict.fromkeys(one.video.name for one in asked), strict=True):
        times_s = [fields["middle_frame_timestamp"] for fields in row["questions"]]
        if times_s[-1] == max(times_s):
            continue
        of_time = {one.question.time_s: one for one in asked if one.video.name == name}
        listed, latest = of_time[times_s[-1]], of_time[max(times_s)]
        case.exclude(
            f"{listed.question.id}: last of its list, not the latest, so the script shows it the clip up to the end; "
            f"ours shows that to {latest.question.id}"
        )
        whole = recorded[listed.words]
        num_early = sum(frame.time_s <= listed.question.time_s for frame in latest.view.frames[:-1])
        instead |= {latest.words: whole, listed.words: whole[:num_early]}
    return instead


def _check_scores(case: Case, asked: Sequence[Asked], calls: dict[str, Row]) -> None:
    """The recorded answers, read and averaged by ours, against what the script printed."""
    rows = []
    for one in asked:
        question, call = one.question, calls[one.words]
        option = parse_answer(call["answer"], question.options)
        if call["add_generation_prompt"] and not _LETTER_AT_ONCE.match(call["answer"]):
            case.exclude(
                f"{call['answer']!r} after {call['add_generation_prompt']!r}: the script reads no letter in it"
            )
            case.exact(f"{call['answer']!r}, ours", option, ord(call["answer"][-1]) - ord("A"))
            option = None
        rows.append(
            {
                "video": one.video.name,
                "dataset": question.dataset,
                "answer_type": question.answer_type,
                "sub_answer_type": question.sub_answer_type,
                "options": question.options,
                "extra": {},
                "predicted_index": option,
                "correct": option == question.answer_index,
            }
        )
    metrics, printed = compute_metrics(rows, TASK), ast.literal_eval(case.recorded["printed_result"])
    case.exact("total", len(rows), printed.pop("total"))
    average = printed.pop("Avg")
    kinds, types = metrics["sub_answer_types"], metrics["answer_types"]
    scores = {key: kinds[f"{key[1]} / {TASK.group(None)}"] if isinstance(key, tuple) else types[key] for key in printed}
    for key, score in scores.items():
        case.close(f"accuracy of {key}", score["accuracy"], printed[key], atol=1e-3)
    if any(isinstance(key, tuple) for key in printed):
        case.exclude("average: the script's mean over kinds of question; ours is over cells of type and source")
        ours = sum(score["accuracy"] for score in scores.values()) / len(scores)
    else:
        ours = metrics["micro_average"]["accuracy"]
    case.close("average", ours, average, atol=1e-3)


def check_sharding(case: Case) -> None:
    """Every item in one share; equal items in shares of the recorded sizes, others by what they cost."""
    case.exclude(
        "the reference gives each process a run of places; ours gives each the videos that cost about as much, so that "
        "all end together"
    )
    protocol, draw = resolve_protocol("streaming"), random.Random(0)
    for row in case.recorded:
        label = f"{row['total']} over {row['world']}"
        runs = [slice(*place) if place else slice(0) for place in row["shards"]]
        sizes = [run.stop - (run.start or 0) for run in runs]
        equal = _shares(_videos([60.0] * row["total"]), protocol, row["world"])
        case.exact(f"{label}: sizes", [len(share) for share in equal], sizes)
        videos = _videos([draw.uniform(1.0, 600.0) for _ in range(row["total"])])
        shares = _shares(videos, protocol, row["world"])
        case.exact(f"{label}: each once", sorted(v.name for s in shares for v in s), sorted(v.name for v in videos))
        loads, recorded = (
            [sum(estimated_cost(video, protocol) for video in share) for share in split]
            for split in (shares, [videos[run] for run in runs])
        )
        largest = max(estimated_cost(video, protocol) for video in videos)
        case.exact(f"{label}: no share lags by more than one video", max(loads) - min(loads) <= largest, True)
        case.exact(f"{label}: done no later than in the recorded split", max(loads) <= max(recorded), True)


def _videos(lengths_s: Sequence[float]) -> list[EvalVideo]:
    """A question at the end of each video."""
    facts: Row = {"question": "?", "options": ("a", "b"), "answer_index": 0, "answer_type": "", "sub_answer_type": ""}
    return [
        EvalVideo(
            name=f"{number:03d}",
            id=f"{number:03d}",
            clip_s=(0.0, length_s),
            fps=None,
            dataset=None,
            questions=(EvalQuestion(id=str(number), time_s=length_s, **facts),),
        )
        for number, length_s in enumerate(lengths_s)
    ]


def _shares(videos: Sequence[EvalVideo], protocol: EvalProtocol, count: int) -> list[list[EvalVideo]]:
    return [share_of(videos, protocol, Shard(index, count)) for index in range(count)]


CHECKS: dict[str, Callable[[Case], None]] = {"eval_script": check_eval_script, "sharding": check_sharding}
