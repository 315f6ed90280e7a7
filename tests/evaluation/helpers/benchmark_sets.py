"""Small sets in the layouts of OVO-Bench and StreamingBench: clips of a moving square with questions of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clips import write_clip
from evaluation_sets import make_config, write_set
from videochat_online.evaluation import get_task


def ovo_choice(number, task, realtime, gt=0, video="COIN/a.mp4", **more):
    """A backward or real-time row."""
    fields = {"question": f"Question {number}?", "options": ["red", "blue", "none"], "answer": "as one says", "gt": gt}
    return {"id": number, "task": task, "video": video, "realtime": realtime, **fields, **more}


def ovo_forward(number, task, tests, video="COIN/a.mp4", **more):
    """A forward row; its tests are (time, right answer) or (time, right answer, step)."""
    key = "count" if task == "REC" else "type"
    test_info = [{"realtime": test[0], key: test[1], **({"step": test[2]} if task == "SSR" else {})} for test in tests]
    fields = {
        "REC": {"activity": "long jump", "start_times": [0], "end_times": [2]},
        "SSR": {"tutorial": "Cook", "all_steps": ["cut", "fry"], "start_time": [0, 3], "end_time": [2, 5]},
        "CRR": {"question": "What is next?", "answer": "Rain.", "ask_time": 1, "clue_time": 3},
    }[task]
    return {"id": number, "task": task, "video": video, **fields, "test_info": test_info, **more}


def ovo_rows():
    """Rows of all groups about two videos."""
    return [
        ovo_choice(0, "EPM", 2.5, 1),
        ovo_choice(1, "OCR", 4),
        ovo_choice(2, "HLD", 1.25, 2, video="Ego4D/clips/b.mp4"),
        ovo_forward(3, "REC", [(2, 1), (5, 3)]),
        ovo_forward(4, "SSR", [(4, 1, "fry"), (1, 0, "fry")]),
        ovo_forward(5, "CRR", [(1, 0), (4, 1)], video="Ego4D/clips/b.mp4"),
    ]


def ovo_set(root: Path) -> Path:
    """`ovo_rows` with their clips, 6 s at 10 fps, below `root / media`."""
    for name in ("COIN/a.mp4", "Ego4D/clips/b.mp4"):
        (root / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(root / "media" / name, num_frames=60)
    return write_set(root / "ovo.json", ovo_rows())


def streaming_row(name, *questions):
    """A row of any of the four files."""
    row = {"time": "[0:00:00 - 0:00:10]", "questions": list(questions), "video_categories": "games"}
    return {**row, "video_path": f"./videos/{name}"}


def streaming_choice(time_stamp, task_type="Counting", answer="A", **more):
    """A question with options."""
    options = ["A. one", "B. two", "C. three", "D. four"]
    fields = {"question": "How many?", "time_stamp": time_stamp, "answer": answer, "options": options}
    return {"task_type": task_type, **fields, "required_ability": "working memory", **more}


def streaming_proactive(time_stamp, due, output="3", **more):
    """A question that is polled."""
    times = {"time_stamp": time_stamp, "ground_truth_time_stamp": due}
    question = f'When there are three, output "{output}".'
    return {"task_type": "Proactive Output", "question": question, **times, "ground_truth_output": output, **more}


def streaming_files():
    """Rows of the four files by name."""
    sequential = "Sequential Question Answering"
    return {
        "real": [streaming_row("sample_1_real.mp4", streaming_choice("00:00:02"), streaming_choice("0:00:04"))],
        "omni": [streaming_row("sample_1_omni.mp4", streaming_choice("00:00:03", "Emotion Recognition", "C"))],
        "sqa": [
            [
                streaming_row("sample_1_sqa.mp4", streaming_choice("00:00:01", sequential, question="Who is it?")),
                streaming_row("sample_1_sqa.mp4", streaming_choice("00:00:05", sequential, "B", question="And now?")),
            ]
        ],
        "proactive": [
            streaming_row("sample_1_proactive.mp4", streaming_proactive("00:00:01", "00:00:03")),
            streaming_row("sample_1_proactive.mp4", streaming_proactive("00:00:02", "00:00:02", "blue")),
        ],
    }


def streaming_set(root: Path) -> tuple[Path, ...]:
    """`streaming_files` with their clips, 8 s at 10 fps, below `root / media`."""
    (root / "media").mkdir(parents=True)
    for name in ("real", "omni", "sqa", "proactive"):
        write_clip(root / "media" / f"sample_1_{name}.mp4", num_frames=80)
    return tuple(write_set(root / f"questions_{name}.json", rows) for name, rows in streaming_files().items())


def benchmark_config(task_name, root, output, *, setting="streaming", **changes):
    """A configuration for a set that is made below `root`, unless it is there."""
    task = get_task(task_name)
    if not (root / "media").exists():
        {"ovobench": ovo_set, "streamingbench": streaming_set}[task_name](root)
    names = ["ovo.json"] if task_name == "ovobench" else [f"questions_{name}.json" for name in streaming_files()]
    paths = tuple(root / name for name in names)
    options = {"of_task": task.settings, **changes.pop("protocol", {})}
    config = make_config(paths[0], output, setting=setting, protocol=options, task=task, **changes)
    return replace(config, annotations=paths)
