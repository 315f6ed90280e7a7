"""Golden checks of frame sampling, resizing and tiling.

Rows in which the reference is plainly wrong are excluded by what is wrong in the row itself, and our own value
is asserted in their place.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from golden.harness import Case
from golden.rows import sampled_places
from videochat_online.errors import InputError
from videochat_online.video import (
    FrameTransform,
    SampledFrames,
    choose_tile_grid,
    open_video,
    sample_clip,
    segment_centre_indices,
    sliding_window_indices,
    sliding_window_indices_at_times,
    streaming_indices,
    streaming_indices_at_times,
    tile_image,
)
from videochat_online.video.sampling_rules import interval_indices, sample_at_rate, sample_segments
from videochat_online.video.transforms import NORMALIZATIONS, resize_image

Row = dict[str, Any]

DRAWS = 4000
"""Seeds over which the support of random sampling is collected; the recorder says how many it used."""

NEVER = 1e-9
"""A choice that was missed by draws of this likelihood can never be drawn."""

AVA_START_S = 900.0
"""Seconds at which the sliding-window script takes movies to begin, of which AVA has clips."""


def check_train(case: Case) -> None:
    """Training: frame indices of a clip, the support of random draws, and the clip handling of the reader."""
    for i, row in enumerate(case.recorded):
        if "support_per_slot" in row:
            _check_support(case, f"row {i}", row)
        elif "n_frames" in row:
            _check_clip(case, f"row {i}", row)
        elif row.get("error"):
            case.exclude(f"row {i}: the reference raises {row['error']!r}; we raise InputError")
            case.exact(f"row {i}", _raises(lambda row=row: _train_indices(row)), True)
        else:
            _check_indices(case, f"row {i} {row['sample']} of {row['vlen']}", row)


def _raises(action: Callable[[], object]) -> bool:
    try:
        action()
    except InputError:
        return True
    return False


def _check_indices(case: Case, label: str, row: Row) -> None:
    expected = row["out"]
    if row.get("fix_start") is not None:
        edges = np.linspace(0, row["vlen"], min(row["num_frames"], row["vlen"]) + 1)[:-1]
        case.exact(f"{label}, restated", [int(edge) + row["fix_start"] for edge in edges], row["out"])
        expected = [min(index, row["vlen"] - 1) for index in row["out"]]
        if expected != row["out"]:
            case.exclude(f"{label}: the reference asks for a frame after the last one; ours takes the last")
    case.exact(label, _train_indices(row), expected)


def _train_indices(row: Row) -> list[int]:
    if row["sample"] == "middle":
        return sample_segments(row["vlen"], row["num_frames"], offset=row.get("fix_start"))
    rate = float(row["sample"].removeprefix("fps"))
    return sample_at_rate(row["vlen"], row["input_fps"], rate, max_num_frames=row["max_num_frames"])


def _check_support(case: Case, label: str, row: Row) -> None:
    """What the recorded draws and ours have met, against how likely each choice is."""
    slots = _likelihoods(row["vlen"], row["num_frames"])
    case.exact(f"{label} number of frames", len(row["support_per_slot"]), len(slots))
    drawn: list[set[int]] = [set() for _ in slots]
    for seed in range(DRAWS):
        indices = sample_segments(row["vlen"], row["num_frames"], rng=random.Random(seed))
        if len(indices) != len(slots):
            case.exact(f"{label} number of our frames", len(indices), len(slots))
            return
        for slot, index in zip(drawn, indices, strict=True):
            slot.add(index)
    said = re.search(r"(\d+) seeds", row.get("note", ""))
    for whose, supports, num_draws in (
        ("ours", drawn, DRAWS),
        ("recorded", row["support_per_slot"], int(said[1]) if said else 0),
    ):
        for i, (support, chances) in enumerate(zip(supports, slots, strict=True)):
            certain = [index for index, chance in chances.items() if (1 - chance) ** num_draws < NEVER]
            case.exact(f"{label} slot {i}, {whose}: impossible draws", sorted(set(support) - set(chances)), [])
            case.exact(f"{label} slot {i}, {whose}: missing draws", sorted(set(certain) - set(support)), [])


def _likelihoods(num_frames: int, num_wanted: int) -> list[dict[int, float]]:
    """Of each choice for each slot: uniform in a segment but its last frame.

    A random subset of all frames where that leaves nothing of one segment.
    """
    count = min(num_frames, num_wanted)
    edges = [int(edge) for edge in np.linspace(0, num_frames, count + 1)]
    segments = [range(start, stop - 1) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    if all(segments):
        return [{index: 1 / len(segment) for index in segment} for segment in segments]
    after, comb = num_frames - 1, math.comb
    chances = [
        {v: comb(v, slot) * comb(after - v, count - 1 - slot) / comb(num_frames, count) for v in range(num_frames)}
        for slot in range(count)
    ]
    return [{index: chance for index, chance in slot.items() if chance} for slot in chances]


def _check_clip(case: Case, label: str, row: Row) -> None:
    clip = None if row["clip"] is None else (float(row["clip"][0]), float(row["clip"][1]))
    num_frames, fps, method = row["n_frames"], row["fps"], row["sample"]

    def ours(clip_s: tuple[float, float] | None) -> SampledFrames:
        return sample_clip(num_frames, fps, method, max_num_frames=row["num_frames"], clip_s=clip_s)

    num_wanted = num_frames if clip is None else int((clip[1] - clip[0]) * fps)
    if num_wanted < 0:
        case.exclude(f"{label}: an inverted clip; we raise InputError")
        case.exact(label, _raises(lambda: ours(clip)), True)
    elif num_wanted > num_frames:
        case.exclude(f"{label}: a clip longer than the video begins before it; we sample the whole video")
        first = num_frames - num_wanted
        theirs = [first + place for place in sampled_places(num_wanted, fps, method, row["num_frames"])]
        case.exact(f"{label} indices, restated", theirs, row["indices"])
        case.exact(f"{label} times, restated", [round(place / fps, 1) for place in theirs], row["timestamps"])
        case.exact(f"{label} our indices", ours(clip), ours(None))
    elif row["error"] or not row["indices"]:
        # Nothing in it, or no centre of an interval: ours has one frame of the clip.
        first = 0 if clip is None else min(int(clip[0] * fps), num_frames - max(1, num_wanted))
        case.exclude(f"{label}: a clip without a frame, {row['error'] or 'which it takes none of'}; we take its middle")
        case.exact(f"{label} our indices", ours(clip).indices, (first + max(1, num_wanted) // 2,))
    else:
        case.exact(f"{label} indices", list(ours(clip).indices), row["indices"])
        case.exact(f"{label} times", list(ours(clip).times_s), row["timestamps"])


def check_eval(case: Case) -> None:
    """Evaluation settings: OVBench streaming and sliding window, MVBench, Video-MME, and real files."""
    for i, row in enumerate(case.recorded):
        label = f"row {i} {row.get('script', row.get('file'))}"
        if "file" in row:
            _check_real_file(case, label, row)
        elif "n_files" in row:
            _check_folder(case, label, row)
        elif "sample_fps" in row:
            _check_video(case, label, row)
        else:
            _check_segments(case, label, row)


def _check_folder(case: Case, label: str, row: Row) -> None:
    fps, sample_fps = row["video_fps"], row["sample_fps"]
    if "clip" in row:
        indices = streaming_indices(row["n_files"], fps, sample_fps, tuple(row["clip"]), tolerance_s=0.0)
        seconds = [round(i / fps, 2) for i in indices]
    else:
        indices = sliding_window_indices(
            row["n_files"],
            fps,
            sample_fps,
            row["timestamp"],
            window_s=row["window"],
            max_num_frames=row["max_num_frames"],
            tolerance_s=0.0,
        )
        seconds = [round(i / fps, 2) for i in indices]
    case.exact(f"{label} indices", indices, row["indices"])
    _close_seconds(case, label, seconds, row["sec"])


def _check_video(case: Case, label: str, row: Row) -> None:
    # The recorded decoder's times are float32, and the reference compares them as they are.
    starts_s = [float(np.float32(i / row["fps"])) for i in range(row["n_frames"])]
    ends_s = [float(np.float32((i + 1) / row["fps"])) for i in range(row["n_frames"])]
    if "clip" in row:
        rounding = "down" if row["script"] == "stream_multiturn" else "nearest"
        indices = streaming_indices_at_times(
            ends_s, row["fps"], row["sample_fps"], tuple(row["clip"]), rounding=rounding, tolerance_s=0.0
        )
        if row.get("error"):
            case.exclude(f"{label}: the script raises {row['error']!r} on a clip after the video; ours has no frame")
            case.exact(f"{label} our indices", indices, [])
            return
    else:
        # Rows whose path names AVA reach back to the movie's start; what does not end after it reaches back to its own.
        window_s = row["window"]
        if "AVA_Actions" in row["data_prefix"] and row["timestamp"] - window_s < AVA_START_S:
            window_s = None if ends_s[-1] < AVA_START_S else row["timestamp"] - AVA_START_S
        window = partial(
            sliding_window_indices_at_times,
            starts_s,
            ends_s,
            row["fps"],
            row["sample_fps"],
            row["timestamp"],
            max_num_frames=row["max_num_frames"],
            tolerance_s=0.0,
        )
        if window_s is not None and row["timestamp"] - window_s > ends_s[-1]:
            case.exclude(
                f"{label}: a window after the video's end makes the whole video the window; ours has the last frame, "
                "and the whole video only under --protocol reference"
            )
            case.exact(f"{label} our indices", window(window_s=window_s), [row["n_frames"] - 1])
            window_s = None
        indices = window(window_s=window_s)
    case.exact(f"{label} indices", indices, row["indices"])
    _close_seconds(case, label, [ends_s[i] for i in indices], row["sec"])


def _check_segments(case: Case, label: str, row: Row) -> None:
    bound = row.get("bound")
    indices = segment_centre_indices(
        row["max_frame"] + 1 if "max_frame" in row else row["n_frames"],
        row["fps"],
        num_segments=row["num_segments"],
        clip_s=None if bound is None else (bound[0], bound[1]),
        first_index=row.get("first_idx", 0),
    )
    case.exact(f"{label} indices", indices, row["indices"])
    if "sec" in row:
        ends_s = [float(np.float32((i + 1) / row["fps"])) for i in indices]
        _close_seconds(case, label, ends_s, row["sec"])
        case.exact(f"{label} length", round(row["n_frames"] / row["fps"], 1), row["length"])


def _check_real_file(case: Case, label: str, row: Row) -> None:
    atol = case.tolerance["sec_atol"]
    with open_video(case.root / row["file"]) as video:
        starts_s = video.frame_times_s()
        fps = video.info.average_fps or 0.0
    # As the recorded decoder gives them.
    starts_s, ends_s = (np.float32(times_s).tolist() for times_s in (starts_s, [*starts_s[1:], starts_s[-1] + 1 / fps]))
    frames = list(zip(starts_s, ends_s, strict=True))
    case.exact(f"{label} frames", len(frames), row["n"])
    case.close(f"{label} rate", fps, row["avg_fps"], atol=1e-6)
    case.close(f"{label} first times", frames[: len(row["first_timestamps"])], row["first_timestamps"], atol=atol)
    case.close(f"{label} last times", frames[-len(row["last_timestamps"]) :], row["last_timestamps"], atol=atol)
    single, sliding = row["single"], row["sliding"]
    indices = streaming_indices_at_times(ends_s, fps, single["sample_fps"], tuple(single["clip"]), tolerance_s=0.0)
    case.close(f"{label} streaming", [ends_s[i] for i in indices], single["sec"], atol=atol)
    window = sliding_window_indices_at_times(
        starts_s,
        ends_s,
        fps,
        sliding["sample_fps"],
        sliding["timestamp"],
        window_s=sliding["window"],
        max_num_frames=sliding["max_num_frames"],
        tolerance_s=0.0,
    )
    _close_seconds(case, f"{label} sliding window", [ends_s[i] for i in window], sliding["sec"])
    with open_video(case.root / row["file"]) as video:
        first = next(video.read(times_s=[video.frame_times_s()[indices[0]]]))
    mean_rgb = first.pixels_THWC[0].reshape(-1, 3).mean(axis=0)
    case.close(f"{label} mean colour", mean_rgb, row["mean_rgb_first"], atol=case.tolerance["mean_rgb_atol"])


def _close_seconds(case: Case, label: str, ours: list[float], recorded: list[Any]) -> None:
    """Labels printed with one decimal must print the same; numbers agree within the tolerance."""
    if any(isinstance(second, str) for second in recorded):
        case.exact(f"{label} labels", [f"{second:.1f}" for second in ours], recorded)
    else:
        case.close(f"{label} seconds", ours, recorded, atol=case.tolerance.get("sec_atol"))


def check_demo(case: Case) -> None:
    """The demo's frames: the reference never uses the last frame and divides by a step of 0."""
    for i, row in enumerate(case.recorded):
        label = f"row {i}"
        indices = interval_indices(row["n_frames"], row["fps"], row["frame_interval"])
        if row.get("error"):
            case.exclude(f"{label}: the reference raises {row['error']!r}; ours gives every frame")
            case.exact(f"{label} our indices", indices, list(range(row["n_frames"])))
            continue
        ours = [index / row["fps"] for index in indices]
        recorded = row["timestamps"]
        if indices[-1:] == [row["n_frames"] - 1] and len(recorded) == len(ours) - 1:
            case.exclude(f"{label}: the reference loses the video's last frame; the frames before it are compared")
            ours = ours[:-1]
        case.close(f"{label} times", ours, recorded)


def check_transform(case: Case) -> None:
    """Resizing (bicubic, exact in 8 bits), normalising, padding, and conversion of other modes."""
    image = _image(case)
    if "variants" in case.params:
        _check_variants(case, image)
        return
    size = int(case.params["input_size"])
    resized = np.asarray(resize_image(image, size, size))
    ours = FrameTransform(size=size).image(image)[0]
    mean, std = _statistics("imagenet")
    from_transform = torch.round((ours * std + mean) * 255).to(torch.uint8).permute(1, 2, 0)
    recorded = case.tensors["resized_uint8_hwc"]
    case.close("resized", from_transform.to(torch.int16), recorded.to(torch.int16), atol=case.tolerance["uint8_atol"])
    case.exact("resized digest", hashlib.sha256(resized.tobytes()).hexdigest(), case.recorded["sha256_uint8"])
    for name, tensor in case.tensors.items():
        if name.startswith("transform_strided"):
            stride = int(name.removeprefix("transform_strided"))
            case.close(name, ours[:, ::stride, ::stride], tensor, atol=case.tolerance["float_atol"])


def _check_variants(case: Case, image: Image.Image) -> None:
    rgba = image.convert("RGBA")
    rgba.putalpha(100)
    make = partial(FrameTransform, size=int(case.params.get("input_size", FrameTransform().size)))
    transform = make()
    variants: dict[str, Callable[[], torch.Tensor]] = {
        "pad2square": lambda: make(pad_square=True).image(image),
        "rgba": lambda: transform.image(rgba),
        "gray": lambda: transform.image(image.convert("L")),
        "clip_norm": lambda: make(normalization="clip").image(image),
        "siglip_norm": lambda: make(normalization="siglip").image(image),
    }
    stride = int(case.params["stride"])
    for name, recorded in case.tensors.items():
        ours = variants[name.removesuffix(f"_strided{stride}")]()[0, :, ::stride, ::stride]
        case.close(name, ours, recorded, atol=case.tolerance["float_atol"])


def check_tiles(case: Case) -> None:
    """Dynamic tiling: the grid, every tile's digest, and strided pixels."""
    size, stride = int(case.params["image_size"]), int(case.params["stride"])
    for row in case.recorded:
        image = _image(case, H=row["H"], W=row["W"])
        tiles = tile_image(
            image, min_tiles=row["min_num"], max_tiles=row["max_num"], size=size, thumbnail=row["use_thumbnail"]
        )
        pixels = [np.asarray(tile) for tile in tiles]
        digests = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in pixels]
        recorded = row["sha256"]
        grid = choose_tile_grid(row["W"], row["H"], min_tiles=row["min_num"], max_tiles=row["max_num"], size=size)
        case.exact(f"{row['key']} grid", list(grid), row["grid"])
        case.exact(f"{row['key']} tiles", len(tiles), row["n_tiles"])
        case.exact(f"{row['key']} digests", [d[: len(r)] for d, r in zip(digests, recorded, strict=False)], recorded)
        if row["key"] in case.tensors:
            strided = np.stack(pixels)[:, ::stride, ::stride].astype(np.int16)
            recorded_pixels = case.tensors[row["key"]].to(torch.int16)
            case.close(f"{row['key']} pixels", strided, recorded_pixels, atol=case.tolerance["uint8_atol"])


def _image(case: Case, **size: int) -> Image.Image:
    """The case's generated frame; the case may leave its size to each row."""
    frame = {**case.params["frame"], **size}
    frames = case.make_frames(
        seed=frame["seed"], T=1, H=frame["H"], W=frame["W"], scene_len=frame["scene_len"], start=frame["t"]
    )
    return Image.fromarray(frames[0])


def _statistics(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = NORMALIZATIONS[name]
    return torch.tensor(chosen.mean).view(3, 1, 1), torch.tensor(chosen.std).view(3, 1, 1)


CHECKS: dict[str, Callable[[Case], None]] = {
    "frame_sampling_train": check_train,
    "frame_sampling_eval": check_eval,
    "frame_sampling_demo": check_demo,
    "preprocess_transform": check_transform,
    "preprocess_tiles": check_tiles,
}
