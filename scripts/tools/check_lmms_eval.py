"""Run lmms-eval end to end on generated tasks and compare with the package's own answers, for test_lmms_eval.sh.

Everything is made at run time: a tiny model with random weights, clips of noise, a task of questions about clips, one
about images, one of options to compare, documents of MVBench and VideoMME, and a set in OVBench's layout. Nothing is
downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

import videochat_online as vco
from videochat_online.integrations.lmms_ovbench import doc_to_visual, question_rows, write_clip
from videochat_online.integrations.offline import OFFLINE, OfflineAnswerer
from videochat_online.testing import make_tiny_model
from videochat_online.text.questions import letter_question

ROOT = Path(__file__).resolve().parents[2]
CAPACITIES = (2, 2, 3)
"""So small that clips of a few seconds fill every tier."""
NUM_NEW_TOKENS = 12
QUESTIONS = ((1.0, "red ", "PastMemory"), (2.0, "blue", "PastMemory"), (2.0, "red ", "Hallucination"))
"""Questions about each video of the set in OVBench's layout: when, the right answer, and the type."""

WATCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
"""System message of the released scripts."""
UTILS = """
from PIL import Image
from lmms_eval.tasks.mvbench.utils import mvbench_aggregate_results, mvbench_doc_to_text, mvbench_process_results

def visuals(doc):
    return [Image.open(path) if path.endswith(".png") else path for path in doc["paths"]]

def score(doc, results):
    return {"length": float(len(results[0]))}
"""
MVBENCH = f"""
output_type: generate_until
generation_kwargs: {{max_new_tokens: {NUM_NEW_TOKENS}, temperature: 0, do_sample: false}}
doc_to_target: answer
process_results: !function utils.mvbench_process_results
metric_list:
  - {{metric: mvbench_accuracy, aggregation: !function utils.mvbench_aggregate_results, higher_is_better: true}}
lmms_eval_specific_kwargs: {{default: {{sub_task: toy, post_prompt: "Only give the best option."}}}}
"""
GENERATION = f"""
output_type: generate_until
generation_kwargs: {{max_new_tokens: {NUM_NEW_TOKENS}, temperature: 0, do_sample: false}}
doc_to_target: question
process_results: !function utils.score
metric_list: [{{metric: length, aggregation: mean, higher_is_better: true}}]
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: options
doc_to_target: answer_index
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def noise(num_frames: int, seed: int) -> Iterator[np.ndarray]:
    """Coarse noise of one main colour, uint8 [48, 64, 3]: random weights answer differently about each."""
    draws = np.random.default_rng(seed)
    colour = draws.integers(0, 256, 3)
    for _ in range(num_frames):
        coarse = (draws.integers(0, 256, (6, 8, 3)) + 2 * colour) // 3
        yield coarse.astype(np.uint8).repeat(8, 0).repeat(8, 1)


def clip(path: Path, num_frames: int, fps: float, seed: int) -> str:
    """Write a clip of noise."""
    write_clip(path, ((t / fps, pixels) for t, pixels in enumerate(noise(num_frames, seed))), fps=fps)
    return str(path)


def folder(path: Path, num_frames: int, seed: int) -> None:
    """Write a folder of frames of noise."""
    path.mkdir(parents=True)
    for t, pixels in enumerate(noise(num_frames, seed)):
        Image.fromarray(pixels).save(path / f"frame{t}.png")


def write_tasks(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Media and tasks of lmms-eval in `work`; the rows of each task."""
    clips = [clip(work / f"clip{seed}.mp4", 33, 10.0, seed) for seed in range(3)]
    for seed in range(3):
        Image.fromarray(next(noise(1, seed))).save(work / f"image{seed}.png")
    (work / "broken.mp4").write_bytes(b"no video")
    questions = ("What happens?", "Where is the cup?")
    rows = {
        "toy_video": [{"paths": [path], "question": question} for path in clips for question in questions],
        "toy_image": [{"paths": [str(work / f"image{seed}.png")], "question": "What is it?"} for seed in range(3)],
        "toy_choice": [
            {"paths": [path], "question": "What is it?", "options": ["a cup", "the red table", "no"], "answer_index": i}
            for i, path in enumerate(clips)
        ],
        "toy_broken": [{"paths": [str(work / "broken.mp4")], "question": "What is it?"}],
    }
    rows["mvbench_toy"] = [
        {"paths": [path], "question": "What is it?", "candidates": ["a cup", "red ", "no"], "answer": "no"}
        for path in clips
    ]
    rows["toy_image"].append({"paths": [str(work / f"image{seed}.png") for seed in range(2)], "question": "Which?"})
    tasks = work / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    for name, documents in rows.items():
        (work / f"{name}.json").write_text(json.dumps(documents))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {work / name}.json}}}}\n"
        text = "!function utils.mvbench_doc_to_text" if name == "mvbench_toy" else "question"
        head += f"test_split: test\ndoc_to_visual: !function utils.visuals\ndoc_to_text: {text}\n"
        (tasks / f"{name}.yaml").write_text(head + {"toy_choice": CHOICE, "mvbench_toy": MVBENCH}.get(name, GENERATION))
    return rows


def write_ovbench(work: Path) -> list[Path]:
    """A set in OVBench's lmms layout, with videos of all its kinds; its annotation files."""
    media = work / "media"
    folder(media / "AVA" / "-ava.film", 12, seed=10)
    folder(media / "TAO" / "street", 24, seed=11)
    clip(media / "cooking.mp4", 60, 10.0, seed=12)
    clip(media / "craft.mp4", 60, 25.0, seed=13)
    videos = {"ava": ("-ava.film", 1), "tao": ("street", 4), "coin": ("cooking.mp4", None), "hirest": ("craft", None)}
    files = []
    for dataset, (name, fps) in videos.items():
        rows = [
            {
                "video": name, "start": 0.0, "end": end, "middle_frame_timestamp": end, "question": f"What at {end}?",
                "candidates": ["red ", "blue", "green"], "answer": answer, "answer_type": kind,
                "sub_answer_type": f"{kind}-1", **({} if fps is None else {"fps": fps}),
            }
            for end, answer, kind in QUESTIONS
        ]  # fmt: skip
        files.append(work / f"{dataset}.json")
        files[-1].write_text(json.dumps(rows))
    return files


def run(script: str, *arguments: str, expected: int = 0, **variables: str) -> str:
    """Run a script of shell/eval; what it printed."""
    command = ["bash", str(ROOT / "shell" / "eval" / script), *arguments]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, cwd=ROOT)
    said = done.stdout + done.stderr
    check((done.returncode == 0) == (expected == 0), f"{script} ends with {done.returncode}\n{said[-5000:]}")
    return said


def check(holds: bool, what: str) -> None:
    """Stop with status 1 where it does not hold."""
    if not holds:
        sys.exit(f"error: {what}")


def written(output: Path, task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of a task, and its rows by document."""
    (results,) = output.rglob("*_results.json")
    (samples,) = output.rglob(f"*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    return json.loads(results.read_text("utf-8"))["results"][task], sorted(rows, key=lambda row: row["doc_id"])


def own_answer(
    model: vco.VideoChatModel, path: str, question: str, system_message: str | None = None, **generation: int
) -> str:
    """A session of our own: about 4 frames a second of the whole file, a memory of the same size."""
    with vco.open_video(path) as source:
        rate = source.info.average_fps or 1.0
    frames = [frame for chunk in vco.read_video(path) for frame in chunk.pixels_THWC][:: max(1, round(rate / 4))]
    memory = vco.PyramidMemoryBank(
        capacities=CAPACITIES, full_grid=model.frames.grid, intervals=model.frames.memory_intervals
    )
    settings = vco.GenerationSettings(**{"max_new_tokens": NUM_NEW_TOKENS, **generation})
    session = vco.StreamingSession(model, memory, with_times=False, settings=settings, system_message=system_message)
    session.push(np.stack(frames), [float(i) for i in range(len(frames))])
    return session.ask(question).text


def check_tasks(model: vco.VideoChatModel, work: Path, model_args: str) -> None:
    """Our model on the toy tasks, with one process and with two."""
    documents = write_tasks(work)
    flags = ["--include_path", str(work / "tasks"), "--model_args", model_args, "--log_samples", "--output_path"]
    names = "toy_video,toy_image,toy_choice"
    run("lmms_eval.sh", names, *flags, str(work / "one"))
    run("lmms_eval.sh", names, *flags, str(work / "two"), GPUS="2")
    for name in names.split(","):
        figures, one = written(work / "one", name)
        figures_of_two, two = written(work / "two", name)
        said, said_by_two = ([row["filtered_resps"] for row in rows] for rows in (one, two))
        check(said == said_by_two, f"{name}: two processes answer {said_by_two}, one {said}")
        metric = "acc,none" if name == "toy_choice" else "length,none"
        check(figures[metric] == figures_of_two[metric], f"{name}: two processes score as one")
        print(f"ok: {name}: {len(one)} answers, {metric} {figures[metric]:g}; two processes agree")
    check_answers(model, documents, work / "one")
    output = run("lmms_eval.sh", "toy_broken", *flags, str(work / "broken"), expected=1)
    check("toy_broken, document 0" in output and "broken.mp4" in output, f"no error names the video\n{output[-2000:]}")
    print("ok: a broken video ends the run with an error that names it, and a status other than 0")


def check_published(model: vco.VideoChatModel, work: Path, model_args: str) -> None:
    """MVBench and VideoMME in the words of the released scripts, scored by lmms-eval; other tasks are refused."""
    from lmms_eval.tasks.mvbench.utils import mvbench_process_results
    from lmms_eval.tasks.videomme.utils import videomme_process_results

    from videochat_online.integrations.lmms_eval import VideoChatOnline

    def published_answer(path: str, question: str) -> str:
        return own_answer(model, path, f"{question}\nAnswer:  \n", WATCH, max_new_tokens=20, min_new_tokens=1)

    flags = ["--include_path", str(work / "tasks"), "--model_args", f"{model_args},protocol=reference"]
    flags += ["--log_samples", "--output_path"]
    run("lmms_eval.sh", "mvbench_toy", *flags, str(work / "published"))
    paths = [row["paths"][0] for row in json.loads((work / "mvbench_toy.json").read_text())]
    question = "Question: What is it?\n(A) a cup\n(B) red \n(C) no"
    expected = [published_answer(path, question) for path in paths]
    said = [row["filtered_resps"] for row in written(work / "published", "mvbench_toy")[1]]
    check(said == expected, f"mvbench_toy: expected {expected}, got {said}")
    print(f"ok: mvbench_toy: the {len(said)} answers are those to the published words, such as {said[0]!r}")
    doc = {"candidates": ["a cup", "red ", "no"], "answer": "red "}
    scores = [mvbench_process_results(doc, [text])["mvbench_accuracy"]["score"] for text in ("(B) red", "(C) no", "(B")]
    check(scores == [1, 0, 1], f"MVBench's replies are scored {scores}")
    film = {"question": "When?", "options": ["A. Noon.", "B. Never.", "C. C.", "D. At six."], "answer": "B"}
    film |= dict.fromkeys(("domain", "sub_category", "task_type", "question_id", "duration", "videoID"), "x")
    for letter in "ABCD":
        text = f"({letter}) {film['options']['ABCD'.index(letter)][3:]}"
        found = videomme_process_results(film, [text])["videomme_perception_score"]["pred_answer"]
        check(found == letter, f"VideoMME's {text!r} is read as {found!r}")
    print("ok: replies such as '(B) red' are read by the scores of MVBench and VideoMME")
    words = {"protocol": "reference", "capacities": "/".join(map(str, CAPACITIES))}
    asked = VideoChatOnline(str(work / "model"), device="cpu", **words)
    asked.task_dict = {"videomme": {"test": [film]}}
    request = SimpleNamespace(
        args=("not these words", {"max_new_tokens": 16}, lambda doc: paths[:1], 0, "videomme", "test")
    )
    (answer,) = asked.generate_until([request])
    expected = [published_answer(paths[0], "Question: When?\n(A) Noon.\n(B) Never.\n(C) C.\n(D) At six.")]
    check([answer] == expected, f"videomme: expected {expected}, got {answer!r}")
    print("ok: videomme: the answer is that to the published words")
    output = run("lmms_eval.sh", "toy_video", *flags, str(work / "refused"), expected=1)
    check("expected a task with published words, mvbench or videomme, got toy_video" in output, output[-2000:])
    print("ok: a task without published words is refused")


def check_answers(model: vco.VideoChatModel, documents: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """What lmms-eval wrote is what sessions, image chats and losses of our own say."""
    said = {name: [row["filtered_resps"] for row in written(output, name)[1]] for name in ("toy_video", "toy_image")}
    expected = [own_answer(model, row["paths"][0], row["question"]) for row in documents["toy_video"]]
    check(said["toy_video"] == expected, f"toy_video: expected {expected}, got {said['toy_video']}")
    check(len(set(expected)) > 1, f"toy_video: expected answers that differ, got {expected}")
    print(f"ok: toy_video: the {len(expected)} answers are those of a session of our own, such as {expected[0]!r}")
    settings, expected = vco.GenerationSettings(max_new_tokens=NUM_NEW_TOKENS), []
    for row in documents["toy_image"]:
        chat = vco.ImageChat(model, [vco.read_image(path) for path in row["paths"]], settings)
        expected.append(chat.ask(row["question"]))
    check(said["toy_image"] == expected, f"toy_image: expected {expected}, got {said['toy_image']}")
    print(f"ok: toy_image: the {len(expected)} answers are those of an image chat of our own")
    answerer = OfflineAnswerer(model, replace(OFFLINE, memory_options={"capacities": CAPACITIES}))
    num_right, rows = 0, documents["toy_choice"]
    for row in rows:
        losses = [loss for loss, _ in answerer.losses(row["question"], row["paths"], row["options"])]
        num_right += losses.index(min(losses)) == row["answer_index"]
    figures, _ = written(output, "toy_choice")
    check(figures["acc,none"] == num_right / len(rows), f"toy_choice: expected {num_right} right, got {figures}")
    print(f"ok: toy_choice: the option of the smallest loss is taken, {num_right} of {len(rows)} right")


def check_ovbench(model: vco.VideoChatModel, work: Path, model_args: str) -> None:
    """The OVBench task with a model that always says A, and with ours."""
    files = write_ovbench(work)
    variables = {
        "OVBENCH_ANNOTATIONS": os.pathsep.join(map(str, files)),
        "OVBENCH_ROOT": str(work / "media"),
        "OVBENCH_CLIPS": str(work / "cuts"),
    }
    flags = ["--log_samples", "--output_path"]
    run("ovbench_lmms_eval.sh", "dummy", "response=A,read_bytes=1", *flags, str(work / "dummy"), **variables)
    figures, rows = written(work / "dummy", "ovbench")
    # "A" is right for "red ": in each of three sources one of two memories, and the one existence question.
    for metric, expected in {
        "cell_average": 75.0, "micro_average": 200 / 3, "cell_average_without_object_existence": 70.0,
        "PastMemory_event": 50.0, "Hallucination_object": 100.0,
    }.items():  # fmt: skip
        check(abs(figures[f"{metric},none"] - expected) < 1e-2, f"{metric}: expected {expected}, got {figures}")
    print(f"ok: ovbench: a model that says A gets {figures['cell_average,none']:g} of {len(rows)} questions")
    generation = ["--gen_kwargs", f"max_new_tokens={NUM_NEW_TOKENS}"]
    run("ovbench_lmms_eval.sh", "videochat_online", model_args, *generation, *flags, str(work / "ours"), **variables)
    _, ours = written(work / "ours", "ovbench")
    os.environ |= variables
    for row, doc in zip(ours, question_rows(os.environ), strict=True):
        (path,) = doc_to_visual(doc)
        with vco.open_video(path) as source:
            last_s = source.frame_times_s()[-1]
        check(last_s <= doc["time_s"] < last_s + 1, f"{doc['id']}: the clip ends at {last_s} s")
        answer = own_answer(model, path, letter_question(doc["question"], doc["options"]))
        check(row["filtered_resps"] == answer, f"{doc['id']}: expected {answer!r}, got {row['filtered_resps']}")
    print(
        f"ok: ovbench: our {len(ours)} answers are those of a session that saw the clip; no clip shows what comes later"
    )


def main() -> int:
    """Run everything in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="lmms_eval_") as name:
        work = Path(name)
        os.environ["HF_HOME"] = str(work / "huggingface")
        make_tiny_model(work / "model")
        model = vco.load_model(work / "model", device="cpu")
        slashed = "/".join(map(str, CAPACITIES))
        model_args = f"pretrained={work / 'model'},capacities={slashed},device=cpu"
        check_tasks(model, work, model_args)
        check_published(model, work, model_args)
        check_ovbench(model, work, model_args)
    print("all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
