"""A small folder of recorded numbers, made by hand or by slow rules of its own: other rows than the real one has.

The rules are those that the released code is known by (times, halves, floors); nothing here calls what is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoTokenizer

from clips import write_clip, write_folder
from videochat_online.text import get_template

FRAMES = """
import numpy as np, torch
def normalise(frames):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((frames / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
"""
NTSC = Fraction(30000, 1001)
SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
LETTERS = {
    "Option D, clearly.": "D", "It has to be (C).": "C", "c)": None, "perhaps B, perhaps C": "B", "A bird sings": "A",
    "a horse": None, "CAMEL": "C", "Deciding is hard: b": "D", "<think>B or so</think>The answer is (C)": "B",
    "\u7b54\u6848\u9009C": "C", "Answer: D": "D", "Best guess: A": "B", "": None,
    "Excluding B, E": "B", "I'd rule out C.": "C", "The B-roll shows E": "B", "Because it moves, b": "B",
}  # fmt: skip
"""First capital of A to D in each text, by hand."""
PRINTED = """
<<<  Subset instance:  3     Subset correct:  1     Subset accuracy:  33.333333333333336   >>>
<Task Spatial>   instance:3   correct:1   accuracy:33.33%
<Subtask Spatial-1>   instance:3   correct:1   accuracy:33.33%
"""
PAIRS = [
    ("(C) a bird", "Option C.", 1), ("(C) a bird", "c. flies", 1), ("(A) a bird", "it is a bird", 1),
    ("B", "D/B", 0), ("D", "[D]", 1), ("Yes", "yes!", 1), ("E", "e) none", 1),
]  # fmt: skip


def _subset(items: list[int], most: int) -> list[int]:
    return items if len(items) <= most else [items[place * (len(items) - 1) // (most - 1)] for place in range(most)]


def _clip_row(num_frames: int, fps: float, clip: list[float], method: str, most: int) -> dict:
    """A clip has as many whole frames as fit its length, and is moved back to end with the video."""
    count = int((clip[1] - clip[0]) * fps)
    first = min(int(clip[0] * fps), num_frames - count)
    if method == "middle":
        edges = [place * count // most for place in range(most + 1)]
        inside = [(start + stop - 1) // 2 for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    else:
        step = fps / float(method[3:])
        inside = _subset([round((n + 0.5) * step) for n in range(count) if round((n + 0.5) * step) < count], most)
    indices = [first + place for place in inside]
    return {"n_frames": num_frames, "fps": fps, "clip": clip, "sample": method, "num_frames": most,
            "indices": indices, "timestamps": [round(place / fps, 1) for place in indices], "error": None}  # fmt: skip


def _stream_row(script: str, num_frames: int, fps: float, sample_fps: int, clip: list[float]) -> dict:
    """Frames that end in the clip; one script rounds its step, the other rounds it down."""
    ends = [float(np.float32((i + 1) / fps)) for i in range(num_frames)]
    step = max(1, round(fps / sample_fps) if script == "stream_single" else int(fps // sample_fps))
    indices = [i for i, end in enumerate(ends) if clip[0] <= end <= clip[1]][::step]
    return {"script": script, "n_frames": num_frames, "fps": fps, "sample_fps": sample_fps, "clip": clip,
            "indices": indices, "sec": [ends[i] for i in indices]}  # fmt: skip


def _window_row(num_files: int, fps: float, sample_fps: int, time_s: float, window: float, most: int) -> dict:
    last = min(num_files - 1, int(time_s * fps))
    first, step = max(0, last - int(window * fps)), max(1, round(fps / sample_fps))
    indices = _subset(list(range(last, first - 1, -step))[::-1], most)
    return {"script": "sliding_window", "n_files": num_files, "video_fps": fps, "sample_fps": sample_fps,
            "max_num_frames": most, "timestamp": time_s, "window": window, "indices": indices,
            "sec": [f"{round(i / fps, 2):.1f}" for i in indices]}  # fmt: skip


def _track(tokenizer, root: Path) -> tuple[dict, dict]:
    """A track whose last two boxes are at one time, as printed: the last turn has no frame, theirs nor ours."""
    names = [f"frame{number}.png" for number in range(1, 6)]
    times, asked = [0.0, 0.4, 0.8, 1.16, 1.24], 1
    printed = [round(time, 1) for time in times]
    boxes = [[0.1, 0.1, 0.2, round(0.3 + place / 10, 1)] for place in range(5)]
    row = {
        "video": "track", "all_image_files": names,
        "image_bboxes": [{"timestamp": time, "bbox": box} for time, box in zip(times, boxes, strict=True)],
        "query_template": {"from": "human", "value": "<video>\nFollow <bbox>."},
    }  # fmt: skip
    lines = [f"Frame{place + 1} at {printed[place]}s: <image>" for place in range(4)]  # the last one is never used
    said = [f"At {time}s, {box}" for time, box in zip(printed, boxes, strict=True)]
    users = ["\n".join(lines[:2]) + f"\nFollow {boxes[asked]}.", lines[2] + "\n", lines[3] + "\n", "\n"]
    replies = ["\n".join(said[:2]), *said[2:]]
    text, spans = f"<|system|>\n{get_template('phi3-chat').default_system_message}<|end|>", []
    for user, reply in zip(users, replies, strict=True):
        # An empty human side loses its end token.
        text += f"<|user|>\n{user}" + "<|end|>" * bool(user.strip()) + "<|assistant|>\n"
        spans.append((len(text), len(text) + len(reply) + len("<|end|>")))
        text += f"{reply}<|end|>"
    counts = iter([256, 16, 16, 16])
    ids, labels = [], []
    pieces = text.split("<image>")
    encoded = tokenizer("<img></img>".join(pieces), return_offsets_mapping=True)
    shift = 0
    for index, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if index == tokenizer.convert_tokens_to_ids("</img>"):
            count = next(counts)
            ids += [tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")] * count
            labels += [-100] * count
            shift += len("<img></img>") - len("<image>")
        taught = any(first <= start - shift < stop for first, stop in spans)
        ids.append(index)
        labels.append(index if taught else -100)
    pixels = [Image.open(root / "track" / name).convert("RGB").resize((448, 448), Image.Resampling.BICUBIC)
              for name in names[:4]]  # fmt: skip
    scaled = (np.stack(pixels) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    asked_s = [0.4, 0.8, 1.2, 1.2]
    recorded = {
        "input_ids_rle": [[index, 1] for index in ids], "labels_rle": [[label, 1] for label in labels],
        "attention_ones": len(ids), "mismatch_warning": False, "num_patches": [4], "is_video": [1],
        "n": len(ids), "n_supervised": sum(label != -100 for label in labels), "image_flags": [1] * 4,
        "pixel_shape": [4, 3, 448, 448], "pixel_means": scaled.mean(axis=(1, 2)).tolist(), "error": None,
        "conversations_after": [
            message
            for user, reply, time_s in zip(users, replies, asked_s, strict=True)
            for message in ({"from": "human", "value": user, "timestamps": time_s}, {"from": "gpt", "value": reply})
        ],
    }  # fmt: skip
    return row, recorded


def _multiturn() -> dict:
    """What the multi-turn script asks about 2.5 s of 29.97 frames a second, by hand; it answers rightly once."""
    labels = [f"Frame{place + 1} at {time}s: <image>" for place, time in enumerate((0.5, 1.0, 1.4, 1.9, 2.4))]
    options = ["A. a red square", "B. a blue one"]
    questions = [
        {"middle_frame_timestamp": time, "question": "Which?", "answer": answer, "options": options,
         "answer_type": "Spatial", "sub_answer_type": "Spatial-1"} for time, answer in ((1.2, "B"), (2.0, "A"))
    ]  # fmt: skip
    calls, history = [], []
    for place, (shown, reply) in enumerate(((slice(0, 2), "B"), (slice(2, 5), "I think B"))):
        asked = f"Question at {questions[place]['middle_frame_timestamp']}s: Which?\nOptions:\n(A) a red square"
        text = "\n".join([*labels[shown], f"{asked}\n(B) a blue one\nOnly give the best option."])
        calls.append(
            {"question": text, "n_frames": shown.stop, "num_patches": shown.stop, "timestamps": None,
             "history": list(history) or None, "add_generation_prompt": "Best option:(", "system_message": SYSTEM,
             "generation_config": {"num_beams": 1, "max_new_tokens": 128, "min_new_tokens": 1, "do_sample": False},
             "answer": reply}
        )  # fmt: skip
        history.append([text, f"Best option:({reply}"])
    row = {"video_id": "v.mp4", "clip": [0.5, 2.5], "questions": questions}
    printed = {"Spatial": 50.0, "Avg": 50.0, "total": 2}
    return {"annotation": [row], "calls": calls, "printed_result": str(printed), "error": None}


def write_golden(root: Path, model: Path) -> Callable[[str], Path]:
    """Write the folder; gives the file of a case."""
    (root / "cases").mkdir(parents=True)
    (root / "frames.py").write_text(FRAMES)
    for kind in ("models", "tokenizers"):
        (root / kind).mkdir()
        (root / kind / "small").symlink_to(model)
    (root / "media").mkdir()
    write_clip(root / "media" / "v.mp4", num_frames=75, fps=NTSC)
    write_folder(root / "media" / "track", num_frames=5)
    row, track = _track(AutoTokenizer.from_pretrained(model), root / "media")
    settings = {"sampling_method": "fps1", "max_num_frame": 8, "num_image_token": 256, "dynamic_image_size": False,
                "use_thumbnail": False, "max_dynamic_patch": 1, "min_dynamic_patch": 1,
                "reverse_memory_sample_ratio": [8, 4, 1]}  # fmt: skip
    of_row = {"tokenizer": "small", "template": "phi3-chat", "sample": row, "random_seed": 1, "media_root": "media",
              "model_max_length": 4096, "settings": settings}  # fmt: skip
    arguments = {"time": True, "fps": 2, "short_memory_bank": 12, "mid_memory_bank": 4, "long_memory_bank": 4}
    doc = {"candidates": ["cat", "dog"], "answer": "dog", "answer_type": "Spatial", "sub_answer_type": "Spatial-1"}
    items = [
        {"doc": doc, "pred": pred, "result": {"pred_answer": pred, "gt_answer": "B", "score": score}}
        for pred, score in (("(b)", 1), ("the dog", 0), ("A cat", 0), ("", 0))
    ]  # fmt: skip
    cases = {
        "clips": ("frame_sampling_train", {}, [
            _clip_row(40, 23.976, [0.5, 9.5], "fps1", 3), _clip_row(40, 23.976, [0.5, 9.5], "middle", 4),
            _clip_row(77, 10.0, [6.7, 10.7], "middle", 8), _clip_row(77, 10.0, [6.7, 10.7], "fps1", 64),
            _clip_row(75, 29.97, [1.0, 3.0], "fps4", 5), _clip_row(75, 29.97, [2.0, 9.5], "fps2", 16),
        ]),
        "files": ("frame_sampling_eval", {}, [
            _stream_row("stream_multiturn", 75, 29.97, 2, [0.5, 2.5]), _window_row(64, 23.5, 3, 2.29, 1.7, 4),
            _stream_row("stream_single", 75, 29.97, 2, [0.5, 2.5]),
        ]),
        "track": ("dataset_sample", of_row, track),
        "letters": ("scoring", {}, [{"text": text, "out": out} for text, out in LETTERS.items()]),
        "pairs": ("scoring", {}, [{"gt": gt, "pred": pred, "score": score} for gt, pred, score in PAIRS]),
        "items": ("scoring", {}, {"items": items, "aggregate": 100 / 3, "printed": PRINTED}),
        "turns": ("eval_script", {"script": "stream_multiturn", "args": arguments, "data_root": "media"}, _multiturn()),
    }  # fmt: skip
    tolerance = {"pixel_means_atol": 0.05, "sec_atol": 1e-3}
    index = [{"name": name, "kind": kind, "files": [f"cases/{name}.json"], "params": params, "tolerance": tolerance}
             for name, (kind, params, _) in cases.items()]  # fmt: skip
    (root / "index.json").write_text(json.dumps({"cases": index}))
    for name, (_, _, recorded) in cases.items():
        (root / "cases" / f"{name}.json").write_text(json.dumps(recorded))
    return lambda name: root / "cases" / f"{name}.json"
