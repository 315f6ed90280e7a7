"""Many viewers at once, and one for a long time: does the demo mix, fail, slow down or grow?

    python scripts/benchmarks/benchmark_demo.py --model outputs/tiny_model [--streams 10] [--minutes 5] [--hours 1]

The first part starts `videochat-online demo` in a process of its own and lets each client send pictures of its own
colour, ask, and look at what is remembered: other questions or another colour than its own count as mixed. The second
part puts that many hours of frames, one a second, through one stream as fast as they can be processed, and compares
every ten minutes of it.

Prints one JSON object:
    {"hardware": ..., "streams": {"num_streams": 10, "seconds": ..., "num_errors": 0, "num_mixed": 0,
     "num_questions": ..., "first_token_s_p50": ..., "first_token_s_p95": ..., "num_frames_in": ...,
     "num_frames_dropped": ..., "rss_mb_after_a_minute": ..., "rss_mb_at_the_end": ..., "exit_status": 0},
     "hours": [{"minute": 10, "rss_mb": ..., "push_ms": ..., "first_token_ms": ..., "visual_tokens": ...}, ...]}
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from videochat_online.client import StreamClient
from videochat_online.errors import InputError
from videochat_online.model import load_model
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import GenerationSettings

FRAMES_PER_S, SECONDS_BETWEEN_QUESTIONS = 4.0, 7.0
ANSWER = {"max_new_tokens": 16, "min_new_tokens": 16}


def picture_of(number: int, num_streams: int, step: int) -> np.ndarray:
    """A picture in the stream's own colour, uint8 [H, W, 3], with a bar that moves."""
    hue = np.array([[[round(255 * number / num_streams), 200, 200]]], dtype=np.uint8)
    colour = np.asarray(Image.fromarray(hue, mode="HSV").convert("RGB"))[0, 0]
    pixels_HWC = np.broadcast_to(colour, (120, 160, 3)).copy()
    pixels_HWC[:, (5 * step) % 150 : (5 * step) % 150 + 6] = 255
    return pixels_HWC


class Viewer(threading.Thread):
    """One client: sends, asks, looks."""

    def __init__(self, url: str, number: int, num_streams: int, until_s: float) -> None:
        super().__init__(daemon=True)
        self.url, self.number, self.num_streams, self.until_s = url, number, num_streams, until_s
        self.errors: list[str] = []
        self.num_mixed = self.num_in = self.num_dropped = 0
        self.first_token_s: list[float] = []

    def run(self) -> None:
        """Send pictures until it is over."""
        try:
            with StreamClient(self.url).open(fps=FRAMES_PER_S, generation=ANSWER) as stream:
                asking = threading.Thread(target=self._ask, args=(stream,), daemon=True)
                asking.start()
                start, step = time.monotonic(), 0
                while time.monotonic() < self.until_s:
                    stream.push(picture_of(self.number, self.num_streams, step), time_s=step / FRAMES_PER_S)
                    step += 1
                    time.sleep(max(0.0, start + step / FRAMES_PER_S - time.monotonic()))
                asking.join(60)
                status = stream.status()
                self.num_in, self.num_dropped = status.num_frames_in, status.num_frames_dropped
        except Exception as error:  # counted and reported
            self.errors.append(f"viewer {self.number}: {type(error).__name__}: {error}")

    def _ask(self, stream) -> None:
        asked: list[str] = []
        try:
            time.sleep(2)
            while time.monotonic() < self.until_s - 5:
                question = f"What does viewer {self.number} see now, number {len(asked)}?"
                answer = stream.ask(question)
                asked.append(question)
                if answer.state != "answered":
                    self.errors.append(f"viewer {self.number}: {answer.error}")
                if answer.first_token_s is not None:
                    self.first_token_s.append(answer.first_token_s)
                described = stream.describe()
                self.num_mixed += [row["question"] for row in described["answers"]] != asked
                self._look(stream.id, described)
                if len(asked) % 5 == 0:
                    stream.forget_dialogue()
                    asked.clear()
                time.sleep(SECONDS_BETWEEN_QUESTIONS)
        except Exception as error:  # counted and reported
            self.errors.append(f"viewer {self.number} asking: {type(error).__name__}: {error}")

    def _look(self, name: str, described: dict) -> None:
        """The pictures of remembered frames have to be of this viewer's colour."""
        own = picture_of(self.number, self.num_streams, 0)[60, 100].astype(int)
        for frame in described["memory"]["remembered"][-3:]:
            reply = httpx.get(f"{self.url}page/streams/{name}/remembered/{frame['index']}.jpg", timeout=30)
            if reply.status_code == 404:
                continue  # it was forgotten meanwhile
            middle = np.median(np.asarray(Image.open(io.BytesIO(reply.content))), axis=(0, 1)).astype(int)
            self.num_mixed += bool(np.abs(middle - own).max() > 12)


def many_viewers(model: Path, num_streams: int, minutes: float) -> dict:
    """The first part."""
    command = [sys.executable, "-m", "videochat_online.cli.main", "demo", "--model", str(model), "--port", "0"]
    server = subprocess.Popen([*command, "--max_streams", str(num_streams)], stdout=subprocess.PIPE, text=True)
    try:
        line = next((line for line in server.stdout if "http://" in line), None)
        if line is None:
            raise InputError(f"the server did not start: exit status {server.wait()}")
        url = next(word for word in line.split() if word.startswith("http://"))
        process, start = psutil.Process(server.pid), time.monotonic()
        viewers = [Viewer(url, number, num_streams, start + 60 * minutes) for number in range(num_streams)]
        for viewer in viewers:
            viewer.start()
        rss_mb = {}
        while any(viewer.is_alive() for viewer in viewers):
            rss_mb[time.monotonic() - start] = process.memory_info().rss / 2**20
            time.sleep(1)
        seconds = time.monotonic() - start
    finally:
        server.terminate()
        status = server.wait(30)
    first = sorted(value for viewer in viewers for value in viewer.first_token_s)
    errors = [error for viewer in viewers for error in viewer.errors]
    running = {at_s: value for at_s, value in rss_mb.items() if at_s < 60 * minutes}
    early = [value for at_s, value in running.items() if 50 <= at_s <= 70] or [next(iter(running.values()))]
    return {
        "num_streams": num_streams,
        "seconds": round(seconds, 1),
        "num_errors": len(errors),
        "errors": errors[:5],
        "num_mixed": sum(viewer.num_mixed for viewer in viewers),
        "num_questions": len(first),
        "first_token_s_p50": round(statistics.median(first), 4) if first else None,
        "first_token_s_p95": round(first[int(0.95 * (len(first) - 1))], 4) if first else None,
        "num_frames_in": sum(viewer.num_in for viewer in viewers),
        "num_frames_dropped": sum(viewer.num_dropped for viewer in viewers),
        "rss_mb_after_a_minute": round(statistics.median(early), 1),
        "rss_mb_at_the_end": round(statistics.median(list(running.values())[-10:]), 1),
        "exit_status": status,
    }


def long_stream(model: Path, hours: float) -> list[dict]:
    """The second part."""
    stream = LiveStream(
        load_model(model, device="cpu"), StreamOptions(generation=GenerationSettings(**ANSWER)), ModelGate()
    )
    process, rows, costs = psutil.Process(), [], []
    for second in range(round(3600 * hours)):
        pixels_HWC = picture_of(second % 7, 7, second)
        start = time.perf_counter()
        stream.receive(pixels_HWC, float(second))
        if not stream.drain(60):
            raise InputError("the stream takes more than a minute for a frame")
        costs.append(time.perf_counter() - start)
        if second % 600 == 599:
            first = []
            for _ in range(5):
                answer = stream.ask("What is happening?")
                answer.wait(60)
                first.append(answer.first_token_s or 0)
                stream.forget_dialogue()
            rows.append({
                "minute": (second + 1) // 60,
                "rss_mb": round(process.memory_info().rss / 2**20, 1),
                "push_ms": round(1000 * statistics.median(costs), 3),
                "first_token_ms": round(1000 * statistics.median(first), 1),
                "visual_tokens": stream.status().num_tokens,
            })  # fmt: skip
            costs.clear()
    stream.close()
    return rows


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/tiny_model"))
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5.0, help="0 leaves the first part out")
    parser.add_argument("--hours", type=float, default=1.0, help="0 leaves the second part out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    result = {"hardware": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"}
    if options.minutes > 0:
        result["streams"] = many_viewers(options.model, options.streams, options.minutes)
    if options.hours > 0:
        result["hours"] = long_stream(options.model, options.hours)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
