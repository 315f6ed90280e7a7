"""Golden checks of whole evaluations: what the published scripts ask a model, and how they share out the work.

The scripts were recorded on an annotation file and its media with a scripted model: what it was asked and what it
answered. Ours reads the same file and media under `--protocol reference`, up to the prompt; the recorded answers
are parsed and scored. Questions are told apart by what the annotation says of them, since the order differs.
"""

from __future__ import annotations

import ast
import json
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from videochat_online.errors import NoFrameError
from videochat_online.evaluation import (
    EvalProtocol,
    EvalQuestion,
    EvalSet,
    EvalVideo,
    Shard,
    compute_metrics,
    get_task,
    resolve_protocol,
)
from videochat_online.evaluation.media.locate import MediaLibrary
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.evaluation.run.contexts import QuestionContext, make_context
from videochat_online.evaluation.run.plan import estimated_cost, share_of
from videochat_online.model import VideoChatModel
from videochat_online.streaming import GenerationSettings
from videochat_online.text.questions import BEST_OPTION_PREFIX, SLIDING_WINDOW_SUFFIX
from videochat_online.types import Turn

from .answer_scoring import check_reading
from .chat import model_of, some_model
from .harness import Case
from .reference_parsers import first_capital, sign_after_paren, single_letter

Row = dict[str, Any]
TASK = get_task("ovbench")
_FRAME_LINE = re.compile(r"Frame\d+(?: at [\d.]+s)?: <image>")
_SENTENCE = re.compile(r"The video contains (\d+) frames sampled at ([\d., ]+) seconds\.")
_VISUAL = re.compile(r"<img><IMG_CONTEXT>\*\d+</img>")
_Key = tuple[Any, ...]

SHUFFLE_SEED = 42
"""Seed of the script that shuffles its rows."""


@dataclass(frozen=True)
class Asked:
    """A question, and what ours asks the model; no view where it has no frame."""

    video: EvalVideo
    question: EvalQuestion
    words: str
    view: QuestionContext | None


def check_eval_script(case: Case) -> None:
    """Frames, their labels, words, order, generation settings and scores of a whole script."""
    content, (protocol, prefix) = _content(case), _protocol(case.params["script"], case.params["args"])
    model = model_of(case.root, *some_model(case))
    asked = _in_their_order(case, _ask(case, model, content, protocol, prefix))
    if asked is None:
        return
    _check_order(case, content)
    calls = case.recorded["calls"]
    _check_sentences(case, asked, calls)
    expected = [_frame_lines(call) for call in calls]
    for one, call, lines in zip(asked, calls, expected, strict=True):
        case.exact(f"{one.question.id}: recorded frames", [call["n_frames"], call["num_patches"]], [len(lines)] * 2)
    if protocol.memory is not None:
        _replace_misplaced(case, asked, expected)
    if any(call["history"] for call in calls):
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
    for one, call, lines in zip(asked, calls, expected, strict=True):
        case.exact(f"{one.question.id} generation", generation, call["generation_config"])
        if one.view is None:
            case.exclude(f"{one.question.id}: before the first frame, the script asks without any; ours refuses")
            case.exact(f"{one.question.id} frames", lines, [])
            continue
        turn = Turn(("\n".join([*lines, one.words]),))
        pieces = model.template.render([turn], system_message=call["system_message"])
        prompt = "".join(str(piece.segment) for piece in pieces) + call["add_generation_prompt"]
        case.exact(f"{one.question.id} prompt", _VISUAL.sub("<image>", one.view.prompt.layout.text), prompt)
    _check_scores(case, asked)


def _content(case: Case) -> EvalSet:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotation.json"
        path.write_text(json.dumps(case.recorded["annotation"]), encoding="utf-8")
        content = TASK.read([path])
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
    frames["step_rounding"] = "down"
    return resolve_protocol("streaming", suffix=SLIDING_WINDOW_SUFFIX, **frames), BEST_OPTION_PREFIX


def _ask(
    case: Case, model: VideoChatModel, content: EvalSet, protocol: EvalProtocol, prefix: str
) -> dict[_Key, list[Asked]]:
    """As the runner does, without generating; by what the annotation says of a question."""
    library, asked = MediaLibrary(case.root / case.params["data_root"]), defaultdict(list)
    for video in content.videos:
        with VideoFrames(library.find(video), video, protocol) as video_frames:
            context = make_context(model, video_frames, protocol, video.questions)
            for question in video.questions:
                context.advance_to(question)
                words = TASK.prompt(question) + protocol.suffix
                try:
                    view = context.prepare(question, words, prefix)
                except NoFrameError:
                    view = None
                key = (video.id, video.fps, question.time_s, question.question, question.options, question.answer_index)
                asked[key].append(Asked(video, question, words, view))
    return asked


def _in_their_order(case: Case, asked: dict[_Key, list[Asked]]) -> list[Asked] | None:
    """Our questions as the script asks them: rows as in the file, or shuffled as one script does it."""
    rows = case.recorded["annotation"]
    shuffled = list(rows)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    theirs = [_words(call) for call in case.recorded["calls"]]
    for order in (rows, shuffled):
        left = {key: list(ones) for key, ones in asked.items()}
        ours = [left[_key(row, fields)].pop(0) for row in order for fields in row.get("questions", [row])]
        if [one.words for one in ours] == theirs or order is shuffled:
            break
    left_over = [one.question.id for ones in left.values() for one in ones]
    case.exact("questions that only ours has", left_over, [])
    return ours if case.exact("questions, in the script's order", [one.words for one in ours], theirs) else None


def _key(row: Row, fields: Row) -> _Key:
    """What the annotation says of a question, as ours reads it."""
    options = tuple(option[3:] for option in fields["options"])
    place, fps = ord(fields["answer"]) - ord("A"), row.get("fps")
    return (row["video_id"], fps, fields["middle_frame_timestamp"], fields["question"], options, place)


def _words(call: Row) -> str:
    """What is asked, without the lines of frames and the sentence about them."""
    lines = call["question"].split("\n")
    return "\n".join(line for line in lines if not (_FRAME_LINE.fullmatch(line) or _SENTENCE.fullmatch(line))).lstrip()


def _frame_lines(call: Row) -> list[str]:
    """Lines of all frames that the model has, those of earlier turns included.

    A question that comes after a later one has fewer frames than its history has lines.
    """
    if call["timestamps"] is not None:
        return list(call["timestamps"])
    texts = [*(text for text, _ in call["history"] or ()), call["question"]]
    lines = [line for text in texts for line in text.split("\n") if _FRAME_LINE.fullmatch(line)]
    return lines[: call["n_frames"]]


def _check_order(case: Case, content: EvalSet) -> None:
    """The script shuffles, or follows the file; ours has the videos as in the file, and time within a video."""
    case.exclude("order: the script's own; ours has the videos as in the file, their questions in order of time")
    names = [(row["video_id"], row.get("fps")) for row in case.recorded["annotation"]]
    ours = [(video.id, video.fps) for video in content.videos]
    case.exact("our order of videos", list(dict.fromkeys(ours)), list(dict.fromkeys(names)))
    for video in content.videos:
        times_s = [question.time_s for question in video.questions]
        case.exact(f"our order in {video.name}", times_s, sorted(times_s))


def _check_sentences(case: Case, asked: Sequence[Asked], calls: Sequence[Row]) -> None:
    """Without times at the frames some scripts give them in a sentence, which ours does not have."""
    last = {one.video.name: one for one in asked if one.question is one.video.questions[-1]}
    found = [_SENTENCE.search(call["question"]) for call in calls]
    if any(found):
        case.exclude("no times: the script then says in a sentence when the frames were taken; ours says it nowhere")
    for one, match in zip(asked, found, strict=True):
        if match is None:
            continue
        # Of a stream the times of the whole clip, whatever the question sees of it.
        view = (one if case.params["script"] == "sliding_window" else last[one.video.name]).view
        frames = () if view is None else view.frames
        times = ", ".join(f"{frame.time_s:.1f}" for frame in frames)
        case.exact(f"{one.question.id} times", [str(len(frames)), times], list(match.groups()))


def _replace_misplaced(case: Case, asked: Sequence[Asked], lines: list[list[str]]) -> None:
    """Frames of questions that are not in order of time where the clip's end goes to the last of them.

    The script takes the last of the list for the last; ours takes the latest: it gets those frames, and the last
    of the list the ones up to its time.
    """
    for video in dict.fromkeys(one.video.name for one in asked):
        places = [place for place, one in enumerate(asked) if one.video.name == video]
        listed, latest = places[-1], next(p for p in places if asked[p].question is asked[p].video.questions[-1])
        view = asked[latest].view
        if listed == latest or view is None:
            continue
        case.exclude(
            f"{asked[listed].question.id}: last of its list, not the latest, so the script shows it the clip up to the "
            f"end; ours shows that to {asked[latest].question.id}"
        )
        whole, time_s = lines[listed], asked[listed].question.time_s
        num_early = sum(frame.time_s <= time_s for frame in view.frames[:-1])
        lines[latest], lines[listed] = whole, whole[:num_early]


def _check_scores(case: Case, asked: Sequence[Asked]) -> None:
    """Readings of the recorded answers; and what the script made of its own, averaged by ours."""
    script, rows = case.params["script"], []
    read = {
        "sliding_window": first_capital,
        "stream_single": lambda text: single_letter(text)[0],
        "stream_multiturn": sign_after_paren,
    }[script]
    for one, call in zip(asked, case.recorded["calls"], strict=True):
        question, theirs = one.question, read(call["answer"])
        options, at_once = question.options, script == "stream_multiturn"
        check_reading(case, call["answer"], theirs, options, at_once=at_once)
        rows.append(
            {
                "video": one.video.name,
                "dataset": question.dataset,
                "answer_type": question.answer_type,
                "sub_answer_type": question.sub_answer_type,
                "options": options,
                "extra": {},
                "predicted_index": None if theirs is None else ascii_uppercase.index(theirs),
                "correct": theirs == ascii_uppercase[question.answer_index],
            }
        )
    if case.recorded.get("error"):
        case.exclude(f"scores: the script raises {case.recorded['error']}")
        return
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
        # Longest first is done within 4/3 of the best time there is (Graham 1969), so of the recorded split's, too.
        case.exact(f"{label}: done about as soon as the recorded split", max(loads) <= max(recorded) * 4 / 3, True)


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
