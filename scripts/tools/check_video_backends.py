"""Whether the fast video backends give the frames of the default one, for what ffmpeg can write on this machine.

Writes a short video for each container and codec, whose frames show their number; asks for 24 seeded random times, one
after another. Right: the default backend's frame, by number and by pixels. Refused: an error that names pyav. Anything
else is wrong, and makes the exit status 1. Prints a Markdown table, "right / refused / wrong":

    | mkv | hevc, mjpeg, prores | 24 / 0 / 0 | 24 / 0 / 0 |

A backend that is not installed refuses everything. Needs ffmpeg.

With `--time VIDEO ...` it measures instead: seconds to open and to read one frame a second, the best of three tries,
and their sum over the default backend's:

    | match.mp4 | decord | 0.42 | 0.97 | 1.31 |
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from videochat_online.errors import VideoError
from videochat_online.video import open_video

WIDTH, HEIGHT, NUM_FRAMES, FPS, NUM_BITS, NUM_TIMES = 160, 120, 100, 10, 7, 24
MAX_DIFFERENCE = 4
"""Levels of 255 in any pixel: what rounding of colours may change."""

CONTAINERS = ("mp4", "mov", "mkv", "webm", "ts", "mpg", "avi", "wmv", "flv", "gif")
CODECS = {
    "h264": "libx264 -g 12 -bf 3 -pix_fmt yuv420p",
    "h264, open GOP": "libx264 -g 12 -bf 3 -pix_fmt yuv420p -x264-params open-gop=1:b-adapt=0:scenecut=0",
    "h264, one key frame": "libx264 -g 1000 -bf 3 -pix_fmt yuv420p",
    "h264, intra refresh": "libx264 -g 12 -bf 0 -pix_fmt yuv420p -x264-params intra-refresh=1",
    "h264, interlaced": "libx264 -g 12 -bf 2 -pix_fmt yuv420p -flags +ildct+ilme",
    "h264, 10 bits": "libx264 -g 12 -bf 3 -pix_fmt yuv420p10le",
    "hevc": "libx265 -x265-params log-level=error:keyint=12:open-gop=0 -pix_fmt yuv420p",
    "hevc, open GOP": "libx265 -x265-params log-level=error:keyint=12:open-gop=1 -pix_fmt yuv420p",
    "mpeg2": "mpeg2video -g 12 -bf 2 -q:v 4",
    "mpeg4": "mpeg4 -g 12 -bf 2 -q:v 4",
    "vp8": "libvpx -g 12 -b:v 1M",
    "vp9": "libvpx-vp9 -g 12 -b:v 1M -cpu-used 8",
    "av1": "libaom-av1 -g 12 -b:v 1M -cpu-used 8",
    "wmv2": "wmv2 -g 12 -q:v 4",
    "prores": "prores_ks",
    "mjpeg": "mjpeg -q:v 3 -pix_fmt yuvj420p",
    "gif": "gif",
}


def draw(number: int) -> np.ndarray:
    """uint8 [H,W,3]: above, the number in binary as bars, lowest bit left; below, a pattern that moves."""
    bits = [235 if (number >> bit) & 1 else 20 for bit in range(NUM_BITS)]
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[: HEIGHT // 2] = np.array(bits)[np.arange(WIDTH) * NUM_BITS // WIDTH][None, :, None]
    rows, columns = np.mgrid[HEIGHT // 2 : HEIGHT, :WIDTH]
    picture[HEIGHT // 2 :] = np.stack([columns + 5 * number, 2 * rows - 3 * number, rows + columns], axis=-1) % 256
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that a frame shows."""
    middles = [(2 * bit + 1) * picture.shape[1] // (2 * NUM_BITS) for bit in range(NUM_BITS)]
    return sum(1 << bit for bit, column in enumerate(middles) if picture[picture.shape[0] // 4, column].mean() > 127)


def write(path: Path, options: str, raw: bytes) -> bool:
    """Whether ffmpeg can write this codec into this container."""
    source = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r {FPS} -i -"
    command = ["ffmpeg", "-v", "error", "-y", *source.split(), "-c:v", *options.split(), str(path)]
    try:
        return subprocess.run(command, input=raw, stderr=subprocess.DEVNULL, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def compare(path: Path, backend: str, times_s: Sequence[float]) -> tuple[int, int, int]:
    """Of frames at these times: right, refused, wrong."""
    try:
        other = open_video(path, backend=backend)
    except VideoError as error:
        return (0, len(times_s), 0) if "pyav" in str(error) else (0, 0, len(times_s))
    right = refused = 0
    with open_video(path) as default, other:
        for time_s in times_s:
            expected = next(default.read(times_s=[time_s]))
            try:
                found = next(other.read(times_s=[time_s]))
            except VideoError as error:
                refused += "pyav" in str(error)
                continue
            pictures = expected.pixels_THWC[0], found.pixels_THWC[0]
            is_same = expected.times_s == found.times_s and pictures[0].shape == pictures[1].shape
            is_same = is_same and read_number(pictures[0]) == read_number(pictures[1])
            right += is_same and np.abs(np.subtract(*pictures, dtype=np.int16)).max() <= MAX_DIFFERENCE
    return right, refused, len(times_s) - right - refused


def measure(path: Path, backends: Sequence[str]) -> None:
    """Print what opening and reading cost with each backend that is installed."""
    default_s = 0.0
    for backend in ("pyav", *backends):
        tries = []
        for _ in range(3):
            started_s = time.perf_counter()
            try:
                with open_video(path, backend=backend) as video:
                    opened_s = time.perf_counter()
                    for _chunk in video.read(fps=1):
                        pass
            except VideoError as error:
                print(f"| {path.name} | {backend} | {error} | | |")
                break
            tries.append((time.perf_counter() - started_s, opened_s - started_s))
        else:
            total_s, open_s = min(tries)
            default_s = default_s or total_s
            cells = (f"{number:.2f}" for number in (open_s, total_s - open_s, total_s / default_s))
            print(f"| {path.name} | {backend} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, compare, print; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["decord", "torchcodec"], metavar="NAME")
    parser.add_argument("--containers", nargs="+", default=list(CONTAINERS), metavar="NAME")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", nargs="+", type=Path, default=[], metavar="VIDEO", help="measure on these instead")
    options = parser.parse_args(arguments)
    if options.time:
        print("| Video | Backend | Opening, s | Reading, s | Whole over pyav |\n|---|---|---|---|---|")
        for path in options.time:
            measure(path, options.backends)
        return 0
    if shutil.which("ffmpeg") is None:
        parser.error("expected ffmpeg on the path, found none")
    raw = b"".join(draw(number).tobytes() for number in range(NUM_FRAMES))
    generator, num_wrong = random.Random(options.seed), 0
    print("|".join(["", " Container ", " Codec ", *(f" {name} " for name in options.backends), ""]))
    print("|".join(["", *["---"] * (2 + len(options.backends)), ""]))
    with tempfile.TemporaryDirectory() as folder:
        for container in options.containers:
            rows: dict[tuple[tuple[int, int, int], ...], list[str]] = {}
            for codec in options.codecs:
                path = Path(folder) / f"{codec.replace(', ', '_').replace(' ', '_')}.{container}"
                if not write(path, CODECS[codec], raw):
                    continue
                try:
                    with open_video(path) as video:
                        first_s = video.info.start_s
                except VideoError:  # ffmpeg writes it, nobody reads it
                    continue
                times_s = [first_s + generator.uniform(0, NUM_FRAMES / FPS) for _ in range(NUM_TIMES)]
                counts = tuple(compare(path, backend, times_s) for backend in options.backends)
                num_wrong += sum(wrong for _, _, wrong in counts)
                rows.setdefault(counts, []).append(codec)
            for counts, codecs in rows.items():
                cells = (" / ".join(map(str, count)) for count in counts)
                print(f"| {container} | {'; '.join(codecs)} | {' | '.join(cells)} |", flush=True)
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
