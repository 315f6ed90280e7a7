from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import write_clip
from train_cases import dialogue, tiny_encoder, write_media
from videochat_online.constants import IGNORE_INDEX
from videochat_online.data import FrameSampling, PixelReader, SampleEncoder, Tiling, parse_row
from videochat_online.data.rows.sample import DialogueTurn
from videochat_online.data.samples.pixel_reader import PixelCache
from videochat_online.data.samples.sample_lengths import LengthCounter
from videochat_online.data.samples.sample_reader import SetOptions, check_reader
from videochat_online.data.samples.turn_layout import online_turns
from videochat_online.errors import InputError
from videochat_online.memory import TokenSchedule
from videochat_online.text import visual_token_id
from videochat_online.types import FrameUse, Turn, Visual
from videochat_online.video import open_video

SYSTEM = "Watch."


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("data") / "media")


@pytest.fixture
def encoder(tiny_model) -> SampleEncoder:
    return tiny_encoder(tiny_model, system_message=SYSTEM)


def written(encoder: SampleEncoder, example) -> str:
    """The prompt after the system message; visual tokens as `*n`, `~` at both ends of what is learned."""
    context, text, ids = visual_token_id(encoder.tokenizer), "", []
    pieces: list[tuple[str, bool]] = []
    for index, label in zip(example.input_ids, example.labels, strict=True):
        pieces.append((encoder.tokenizer.decode([index]), label != IGNORE_INDEX))
        assert label in (index, IGNORE_INDEX)
        ids.append(index)
    learned = count = 0
    for (piece, is_learned), index in zip(pieces, ids, strict=True):
        count = count + 1 if index == context else 0
        if count > 1:
            text = text[: text.rindex("*")]
        text += f"{'~' if is_learned != learned else ''}{f'*{count}' if count else piece}"
        learned = is_learned
    text += "~" if learned else ""
    head = f"<s><|system|>\n{SYSTEM}<|end|>".replace("\n", "")
    assert text.startswith(head)
    return text.removeprefix(head)


def encode(encoder: SampleEncoder, row: dict, media: Path, seed: int = 0):
    return encoder.encode(parse_row(row, media), random.Random(seed))


# The marker <|user|> swallows the line break after it, in this tokenizer as in Phi-3's.
U, A = "<|user|>", "<|end|><|assistant|>"


def test_text(encoder, media):
    example = encode(encoder, {"conversations": dialogue("Hello.", "Good day.", "So?", "Yes.")}, media)
    assert written(encoder, example) == f"{U}Hello.{A}~Good day.<|end|>~{U}So?{A}~Yes.<|end|>~"
    assert example.pixels_TSSC is None
    assert example.pool_ratios == ()


def test_image(encoder, media):
    row = {"image": "image0.png", "conversations": dialogue("What is it?", "Noise.", "Sure?", "Yes.")}
    example = encode(encoder, row, media)
    expected = f"{U}<img>*16</img>\nWhat is it?{A}~Noise.<|end|>~{U}Sure?{A}~Yes.<|end|>~"
    assert written(encoder, example) == expected
    assert example.pixels_TSSC.shape == (1, 112, 112, 3)
    row["conversations"] = dialogue("Here: <image>?", "Noise.", "Sure?", "Yes.")
    assert written(encoder, encode(encoder, row, media)).startswith(f"{U}Here: <img>*16</img>?{A}")


def test_images_are_placed_in_the_turns_that_show_them(encoder, media):
    row = {
        "image": ["image1.png", "image2.png"],
        "conversations": dialogue("<image>\nOne?", "Yes.", "<image>\nTwo?", "No."),
    }
    example = encode(encoder, row, media)
    expected = f"{U}<img>*16</img>\nOne?{A}~Yes.<|end|>~{U}<img>*16</img>\nTwo?{A}~No.<|end|>~"
    assert written(encoder, example) == expected
    reader = encoder.reader
    for place, name in enumerate(("image1.png", "image2.png")):
        pixels = reader.transform.resized(np.asarray(Image.open(media / name))[None])
        assert (example.pixels_TSSC[place] == pixels[0]).all()


def test_tiles(encoder, media, tmp_path):
    pixels = np.zeros((112, 336, 3), dtype=np.uint8)
    pixels[:, 112:224] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    tiled = replace(encoder, tiling=Tiling(max_tiles=6))
    example = encode(tiled, {"image": "wide.png", "conversations": dialogue("What?", "Stripes.")}, tmp_path)
    assert written(tiled, example).startswith(f"{U}<img>*64</img>\nWhat?")  # three tiles and the thumbnail
    assert example.pool_ratios == (1,) * 4
    means = example.pixels_TSSC.mean(axis=(1, 2, 3))
    assert means[1] > 250
    assert means[0] < 5
    pair = {"image": ["wide.png", "wide.png"], "conversations": dialogue("<image><image>", "Same.")}
    assert len(encode(tiled, pair, tmp_path).pool_ratios) == 8  # three tiles for each of two images
    few = replace(encoder, tiling=Tiling(max_tiles=2))
    assert len(encode(few, pair, tmp_path).pool_ratios) == 2


def test_video(encoder, media):
    row = {"video": "clip.mp4", "clip": [1.0, 3.0], "conversations": dialogue("<video>\nWhat?", "Red.", "Ok?", "Yes.")}
    example = encode(encoder, row, media)
    lines = "Frame1: <img>*16</img>\nFrame2: <img>*1</img>\nFrame3: <img>*1</img>\nFrame4: <img>*1</img>\n"
    assert written(encoder, example) == f"{U}{lines}What?{A}~Red.<|end|>~{U}Ok?{A}~Yes.<|end|>~"
    assert example.pool_ratios == (1, 4, 4, 4)
    without = encode(encoder, row | {"conversations": dialogue("What?", "Red.", "Ok?", "Yes.")}, media)
    assert without.input_ids == example.input_ids
    image = encode(encoder, row | {"conversations": dialogue("<image>\nWhat?", "Red.", "Ok?", "Yes.")}, media)
    assert image.input_ids == example.input_ids


def test_online_rows_get_the_frames_up_to_each_turn(encoder, media):
    turns = dialogue("<video>\nWhere?", "Left.", "And now?", "Here.", "Still?", "Yes.", times=(0.8, 0.9, 4.9))
    example = encode(encoder, {"video": "clip.mp4", "conversations": turns}, media)
    first = "Frame1 at 0.2s: <img>*16</img>\nFrame2 at 0.8s: <img>*1</img>\n"
    rest = "".join(f"Frame{n} at {t}s: <img>*{k}</img>\n" for n, t, k in ((3, 1.2, 1), (4, 1.8, 1), (5, 2.2, 4)))
    rest += "".join(f"Frame{n} at {t}s: <img>*1</img>\n" for n, t in ((6, 2.8), (7, 3.2), (8, 3.8)))
    assert written(encoder, example) == (
        # A turn without new frames starts with a line break, which the marker swallows.
        f"{U}{first}Where?{A}~Left.<|end|>~{U}And now?{A}~Here.<|end|>~{U}{rest}Still?{A}~Yes.<|end|>~"
    )
    assert example.pool_ratios == (1, 4, 4, 4, 2, 4, 4, 4)  # the last sampled frame, at 3.8 s, is among them


def test_frames_after_the_last_turn_are_left_out(encoder, media):
    example = encode(encoder, {"video": "clip.mp4", "conversations": dialogue("a", "b", times=(1.2,))}, media)
    assert len(example.pixels_TSSC) == 3
    early = {"video": "clip.mp4", "conversations": dialogue("a", "b", times=(0.0,))}
    with pytest.raises(InputError, match=r"expected a turn at 0.2 s, the first frame, or later, found none"):
        encode(encoder, early, media)


def test_times_count_from_the_clips_first_frame_where_they_are_reset(encoder, media):
    row = {"video": "clip.mp4", "clip": [2.0, 4.0], "conversations": dialogue("a", "b", times=(1.0,))}
    text = written(encoder, encode(encoder, row | {"need_reset_timestamp": True}, media))
    assert text.startswith(f"{U}Frame1 at 0.0s: <img>*16</img>\nFrame2 at 0.6s: <img>*1</img>\nFrame3 at 1.0s:")
    with pytest.raises(InputError, match=r"expected a turn at 2.2 s, the first frame"):
        encode(encoder, row, media)


def test_tracks(encoder, media):
    row = {
        "video": "frames",
        "all_image_files": [f"frame{number}.png" for number in range(1, 5)],
        "image_bboxes": [{"timestamp": float(t), "bbox": [t / 10, 0, 0.5, 1]} for t in range(4)],
        "query_template": {"value": "<video>\nFollow <bbox>."},
    }
    asked = random.Random(1).randint(0, 3)
    assert asked == 1
    example = encode(encoder, row, media, seed=1)
    assert written(encoder, example) == (
        f"{U}Frame1 at 0.0s: <img>*16</img>\nFrame2 at 1.0s: <img>*1</img>\nFollow [0.1, 0, 0.5, 1].{A}"
        "~At 0.0s, [0.0, 0, 0.5, 1]\nAt 1.0s, [0.1, 0, 0.5, 1]<|end|>~"
        f"{U}Frame3 at 2.0s: <img>*1</img>\n{A}~At 2.0s, [0.2, 0, 0.5, 1]<|end|>~"
        f"{U}Frame4 at 3.0s: <img>*1</img>\n{A}~At 3.0s, [0.3, 0, 0.5, 1]<|end|>~"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "image0.png", "conversations": dialogue("<image><image>", "b")}, "<image> 1 times, as images, fou"),
        ({"conversations": dialogue("<image>", "b")}, "expected 0 times <image>"),
        ({"video": "clip.mp4", "conversations": dialogue("<video><video>", "b")}, "expected one <video>"),
        ({"video": "clip.mp4", "conversations": dialogue("a", "b", "<image>", "d")}, "expected one <video>"),
        ({"video": "none.mp4", "conversations": dialogue("a", "b")}, "none.mp4: expected a video file"),
        ({"image": "none.png", "conversations": dialogue("a", "b")}, "none.png: expected an image"),
    ],
)
def test_rows_that_do_not_fit(encoder, media, row, message):
    with pytest.raises(InputError, match=message):
        encode(encoder, row, media)


def test_a_prompt_that_is_too_long_is_cut_only_in_its_text(encoder, media):
    row = {"video": "clip.mp4", "conversations": dialogue("What?", "Red and blue and green.")}
    whole = encode(encoder, row, media)
    cut = encode(replace(encoder, max_length=len(whole) - 2), row, media)
    assert cut.input_ids == whole.input_ids[:-2]
    assert len(cut.pool_ratios) == len(whole.pool_ratios)
    with pytest.raises(InputError, match="a cut would take tokens of"):
        encode(replace(encoder, max_length=40), row, media)


def test_broken_videos_are_refused_only_where_a_needed_frame_is_missing(encoder, tmp_path):
    whole = write_clip(tmp_path / "whole.mkv", num_frames=200)
    content = whole.read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    row = {"video": "half.mkv", "conversations": dialogue("a", "b")}
    with pytest.raises(InputError, match=r"half.mkv: a frame at 19.* s is needed; "):
        encode(encoder, row, tmp_path)
    assert encode(encoder, row | {"clip": [0.0, 1.0]}, tmp_path).pool_ratios
    assert encode(encoder, row | {"video": "whole.mkv"}, tmp_path).pool_ratios


def test_frames_are_those_that_the_labels_say(encoder, media):
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b", times=(4.9,))}
    example = encode(encoder, row, media)
    with open_video(media / "clip.mp4") as video:
        frames = np.concatenate([chunk.pixels_THWC for chunk in video.read()])
    # Every half second's middle at 10 frames a second: 2.5 and 7.5 are rounded to the even frame.
    chosen = [2, 8, 12, 18, 22, 28, 32, 38]
    assert np.array_equal(example.pixels_TSSC, encoder.reader.transform.resized(frames[chosen]))
    assert [f"at {index / 10:.1f}s" in written(encoder, example) for index in chosen] == [True] * 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"clip": [1.0, 5.1]}, r"clip: expected an end within the video, which has 4.0 s, found 5.1"),
        ({"start": 20, "end": 30}, r"clip: expected an end within the video, which has 4.0 s, found 30"),
        ({"time": 5.1}, r"turn 2: timestamps: expected a time within the video, which ends 4.0 s .*, found 5.1"),
        (
            {"time": 3.1, "clip": [2.0, 4.0], "need_reset_timestamp": True},
            "turn 2: timestamps: expected a time within the video, which ends 2.0 s after the clip's start, found 3.1",
        ),
    ],
)
def test_times_beyond_the_video_are_refused(encoder, media, row, message):
    """The four seconds would be shown for what came later."""
    times = (0.5, row["time"]) if "time" in row else ()
    fields = {key: value for key, value in row.items() if key != "time"}
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b", "c", "d", times=times)} | fields
    with pytest.raises(InputError, match=message):
        encode(encoder, row, media)
    assert encode(replace(encoder, max_overrun_s=30), row, media)


def test_times_may_be_rounded_beyond_the_end(encoder, media):
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b", times=(5.0,))}
    assert len(encode(encoder, row, media).pool_ratios) == 8
    assert encode(encoder, {"video": "clip.mp4", "clip": [1.0, 5.0], "conversations": dialogue("a", "b")}, media)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0.1, 0.2, 0.3, 1.01], [0, 0, 1, 1]], "image_bboxes 0: expected a box within 0 to 1, found"),
        ([[0, 0, 1, 1], [0.1, -0.2, 0.3, 0.4]], "image_bboxes 1: expected a box within 0 to 1, found"),
        ([[0, 0, 80, 60], [5, 5, 80, 61]], "image_bboxes 1: expected a box within 80 x 60 pixels, found"),
        ([[0, 0, 81, 60], [5, 5, 80, 60]], "image_bboxes 0: expected a box within 80 x 60 pixels, found"),
        ([[0, 0, 80, 60], [5, 5, 70, 50]], None),
    ],
)
def test_boxes_outside_their_image_are_refused(encoder, media, boxes, message):
    """Annotated in parts of the image or in pixels."""
    row = {
        "video": ".",
        "all_image_files": ["image0.png", "image1.png"],
        "image_bboxes": [{"timestamp": float(t), "bbox": box} for t, box in enumerate(boxes)],
        "query_template": "Follow <bbox>.",
    }
    if message is None:
        assert len(encode(encoder, row, media).pool_ratios) == 2
        return
    with pytest.raises(InputError, match=message):
        encode(encoder, row, media)


def test_a_turn_without_new_frames_starts_with_a_line_break():
    turns = online_turns(
        [DialogueTurn("first", "a", 1.0), DialogueTurn("<video>\nsecond", "b", 1.0)], [FrameUse(0, 0.5, 16)]
    )
    assert turns == (
        Turn(("Frame1 at 0.5s: ", Visual(16), "\n", "first"), "a"),
        Turn(("\n", "second"), "b"),
    )


def test_frames_of_a_folder(encoder, media):
    talk = dialogue("a", "b")
    all_frames = encode(encoder, {"video": "frames", "conversations": talk}, media)
    assert len(all_frames.pool_ratios) == 6
    assert len(encode(encoder, {"video": "frames", "fps": 2, "conversations": talk}, media).pool_ratios) == 6
    assert len(encode(encoder, {"video": "frames", "fps": 6, "conversations": talk}, media).pool_ratios) == 2
    few = replace(encoder, sampling=FrameSampling(method="middle", max_num_frames=3))
    assert len(encode(few, {"video": "frames", "conversations": talk}, media).pool_ratios) == 3


def test_random_sampling_follows_the_seed(encoder, media):
    drawing = replace(encoder, sampling=FrameSampling(method="rand", max_num_frames=4))
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b")}
    first, again, other = (encode(drawing, row, media, seed).pixels_TSSC for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_only_the_schedules_frames_are_kept(encoder, media):
    sparse = replace(encoder, schedule=TokenSchedule((4, 2)))
    example = encode(sparse, {"video": "clip.mp4", "conversations": dialogue("a", "b")}, media)
    assert example.pool_ratios == (1, 2, 1, 2)
    assert "Frame3: <img>*4</img>\nFrame5: <img>*16</img>\n" in written(sparse, example)


def test_augmentation_changes_pixels_and_nothing_else(encoder, media):
    sample = parse_row({"image": "image0.png", "conversations": dialogue("a", "b")}, media)
    plain = encoder.encode(sample, random.Random(0))
    degraded = encoder.encode(sample, random.Random(0), SetOptions(data_augment=True))
    assert degraded.input_ids == plain.input_ids
    difference = np.abs(degraded.pixels_TSSC - plain.pixels_TSSC.astype(float)).mean()
    assert 0 < difference < 60


def test_the_cache_gives_the_same_pixels_without_decoding(encoder, media, tmp_path):
    path = write_clip(tmp_path / "clip.mp4")
    cached = replace(encoder, reader=PixelReader(encoder.reader.transform, cache_mb=10))
    row = {"video": "clip.mp4", "conversations": dialogue("a", "b")}
    first = encode(cached, row, tmp_path)
    assert (first.pixels_TSSC == encode(encoder, row, tmp_path).pixels_TSSC).all()
    path.unlink()
    again = encode(cached, row, tmp_path)
    assert (again.pixels_TSSC == first.pixels_TSSC).all()
    with pytest.raises(InputError):
        encode(encoder, row, tmp_path)


def test_the_cache_is_bounded_and_forgets_what_was_not_used_longest():
    cache = PixelCache(250)
    pixels = np.zeros(100, dtype=np.uint8)
    for key in "abac":
        if cache.get(key) is None:
            cache.put(key, pixels)
    assert (cache.get("b"), cache.num_bytes) == (None, 200)
    assert cache.get("a") is not None
    cache.put("d", np.zeros(251, dtype=np.uint8))
    assert cache.get("d") is None


def test_the_length_of_a_clip_is_known_before_it_is_opened(encoder, media):
    video = {"video": "clip.mp4", "clip": [0.0, 4.0], "conversations": dialogue("What?", "Red.")}
    counter = LengthCounter(encoder)
    (found,) = counter.count([counter.outline(parse_row(video, media))])
    example = encode(encoder, video, media)
    assert (found.tokens, found.pictures) == (len(example), len(example.pool_ratios))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": FrameSampling(method="fps0")}, "expected fpsN .such as fps1., rand or middle, found 'fps0'"),
        ({"sampling": FrameSampling(method="all")}, "found 'all'"),
        ({"sampling": FrameSampling(max_num_frames=0)}, "max_num_frame: expected at least 1, found 0"),
        ({"schedule": TokenSchedule((16, 8, 4, 1))}, "cannot be halved 3 times"),
    ],
)
def test_settings_that_fit_no_row(encoder, change, message):
    with pytest.raises(InputError, match=message):
        check_reader(replace(encoder, **change))
