from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from check_golden import load_cases
from golden import text as golden_text
from text_tokenizers import IM_MARKERS, write_sentencepiece_directory
from videochat_online.constants import IGNORE_INDEX
from videochat_online.errors import CheckpointError, InputError
from videochat_online.testing import build_tiny_tokenizer
from videochat_online.text import (
    INTERNVL,
    PromptLayout,
    get_template,
    layout_prompt,
    load_tokenizer,
    split_placeholders,
    truncate_layout,
)
from videochat_online.text.prompt import trimmed
from videochat_online.types import FrameUse, Turn, Visual

KINDS = [
    ("phi3", "phi3-chat"),
    ("internlm2", "internlm2-chat"),
    ("internlm2", "internvl2_5"),
    ("internlm2", "internvl_zh"),
    ("tiny", "phi3-chat"),
    ("blank_in_front", "phi3-chat"),
]
TURNS = (
    Turn(("Frame1: ", Visual(5), "\nFrame2: ", Visual(1), "\nwhat is it?"), "a cat"),
    Turn(("and", Visual(3)), " 你好 "),
    Turn(("more?",), "no  more\n"),
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("tokenizers")
    config = {"tokenizer_class": "InternLM2Tokenizer"}
    # A normaliser that puts a token in front of each part of the text: the token has no characters of its own.
    blank_in_front = build_tiny_tokenizer()
    blank_in_front.backend_tokenizer.normalizer = normalizers.Prepend("_")
    return {
        "phi3": load_tokenizer(write_sentencepiece_directory(path / "phi3")),
        "internlm2": load_tokenizer(
            write_sentencepiece_directory(path / "internlm2", markers=IM_MARKERS, config=config)
        ),
        "tiny": build_tiny_tokenizer(),
        "blank_in_front": blank_in_front,
    }


def layout(
    tokenizers: dict[str, Any], turns: Any = TURNS, kind: tuple[str, str] = KINDS[0], **options: Any
) -> PromptLayout:
    return layout_prompt(turns, tokenizer=tokenizers[kind[0]], template=get_template(kind[1]), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_string(tokenizers: dict[str, Any], kind: tuple[str, str]) -> None:
    template = get_template(kind[1])
    pieces = template.render([trimmed(turn) for turn in TURNS] if template.trims else TURNS, system_message="S")
    text = "".join(
        f"<img>{'<IMG_CONTEXT>' * piece.segment.num_tokens}</img>"
        if isinstance(piece.segment, Visual)
        else piece.segment
        for piece in pieces
    )
    found = layout(tokenizers, kind=kind, system_message="S")
    assert list(found.input_ids) == tokenizers[kind[0]](text)["input_ids"]
    assert found.text.replace("<IMG_CONTEXT>*5", "<IMG_CONTEXT>" * 5).startswith(text[:40])


@pytest.mark.parametrize("kind", KINDS)
def test_visual_spans(tokenizers: dict[str, Any], kind: tuple[str, str]) -> None:
    found = layout(tokenizers, kind=kind)
    before, context, after = tokenizers[kind[0]].convert_tokens_to_ids(["<img>", "<IMG_CONTEXT>", "</img>"])
    assert [stop - start for start, stop in found.visual_spans] == [5, 1, 3]
    assert found.num_visual_tokens == 9 == found.input_ids.count(context)
    for start, stop in found.visual_spans:
        assert set(found.input_ids[start:stop]) == {context}
        assert (found.input_ids[start - 1], found.input_ids[stop]) == (before, after)


def labels_of_prefixes(tokenizers: dict[str, Any], turns: tuple[Turn, ...], kind: tuple[str, str]) -> list[int]:
    """A reply is what the ids gain from the prompt that asks for it to the prompt that holds it."""
    whole = layout(tokenizers, turns, kind).input_ids
    end = tokenizers[kind[0]].convert_tokens_to_ids(get_template(kind[1]).reply_end)
    labels = [IGNORE_INDEX] * len(whole)
    for number, turn in enumerate(turns):
        before = layout(tokenizers, (*turns[:number], Turn(turn.user)), kind).input_ids
        upto = layout(tokenizers, turns[: number + 1], kind).input_ids
        stop = len(upto) - upto[::-1].index(end)
        assert (whole[: len(before)], whole[:stop]) == (before, upto[:stop])
        labels[len(before) : stop] = whole[len(before) : stop]
    return labels


@pytest.mark.parametrize("kind", KINDS)
def test_every_reply_and_its_end_are_supervised(tokenizers: dict[str, Any], kind: tuple[str, str]) -> None:
    found = layout(tokenizers, kind=kind)
    assert list(found.labels) == labels_of_prefixes(tokenizers, TURNS, kind)
    tokens = tokenizers[kind[0]].convert_ids_to_tokens([label for label in found.labels if label != IGNORE_INDEX])
    assert tokens.count(get_template(kind[1]).reply_end) == 3
    assert found.num_supervised == len(tokens) > 6


REPLIES = st.lists(
    st.sampled_from([" ", "\n", "\n\n", "the cat", "世", "😀", "▁", "<|end|>", "<s>", "é", "<|user|>", "x"]), max_size=5
).map("".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(replies=st.lists(REPLIES, min_size=1, max_size=3))
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4], KINDS[5]])
def test_labels_of_any_replies(tokenizers: dict[str, Any], kind: tuple[str, str], replies: list[str]) -> None:
    turns = tuple(Turn(("q", Visual(2)), reply) for reply in replies)
    assert list(layout(tokenizers, turns, kind).labels) == labels_of_prefixes(tokenizers, turns, kind)


def test_what_follows_the_end_token_is_not_supervised(tokenizers: dict[str, Any]) -> None:
    found = layout(tokenizers, (Turn(("q",), "a"),), ("internlm2", "internvl2_5"))
    assert found.labels[-1] == IGNORE_INDEX
    supervised = [label for label in found.labels if label != IGNORE_INDEX]
    assert tokenizers["internlm2"].convert_ids_to_tokens(supervised)[-1] == "<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_for_generation_is_the_start_of_the_training_row(
    tokenizers: dict[str, Any], kind: tuple[str, str]
) -> None:
    asked = layout(tokenizers, (*TURNS[:1], Turn(TURNS[1].user)), kind)
    row = layout(tokenizers, TURNS, kind)
    assert row.input_ids[: len(asked)] == asked.input_ids
    assert row.labels[len(asked)] != IGNORE_INDEX
    assert asked.labels[-1] == IGNORE_INDEX


def test_generation_prefix(tokenizers: dict[str, Any]) -> None:
    found = layout(tokenizers, (Turn(("q",)),), generation_prefix="yes (")
    assert found.text.endswith("<|assistant|>\nyes (")
    assert tokenizers["phi3"].decode(found.input_ids).endswith("<|assistant|> yes (")
    assert found.num_supervised == 0


def test_a_placeholder_in_a_users_text_stays_text(tokenizers: dict[str, Any]) -> None:
    found = layout(tokenizers, (Turn(("what does <image> mean?",)),))
    assert found.visual_spans == ()
    assert "what does <image> mean?" in tokenizers["phi3"].decode(found.input_ids)


def test_what_cannot_be_laid_out(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="picture 2: expected at least one visual token, found 0"):
        layout(tokenizers, (Turn((Visual(1), Visual(0))),))
    with pytest.raises(InputError, match=r"'<\|im_end\|>' to be a token"):
        layout(tokenizers, kind=("phi3", "Hermes-2"))


def test_a_tokenizer_without_image_tokens(tmp_path: Path) -> None:
    directory = write_sentencepiece_directory(tmp_path)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    for token in config["added_tokens_decoder"].values():
        token["content"] = token["content"].replace("<IMG_CONTEXT>", "<other>")
    config["additional_special_tokens"] = []
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="found no <IMG_CONTEXT>"):
        layout({"phi3": load_tokenizer(directory)})


def test_a_tokenizer_that_splits_the_image_token(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # In the vocabulary, but not kept whole: it becomes a piece that no merge leads to.
    piece = "".join(state["model"]["merges"].pop())
    state["model"]["vocab"]["<IMG_CONTEXT>"] = state["model"]["vocab"].pop(piece)
    for token in state["added_tokens"]:
        token["content"] = token["content"].replace("<IMG_CONTEXT>", "<other>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="expected 3 times <IMG_CONTEXT>.*found 0"):
        layout({"tiny": load_tokenizer(tmp_path)}, kind=KINDS[4])


def test_truncation(tokenizers: dict[str, Any]) -> None:
    found = layout(tokenizers, (Turn((Visual(5), "q"), "the cat sat on the mat"),))
    (_, stop), first = found.visual_spans[0], found.num_supervised
    assert truncate_layout(found, len(found)) is found
    for room in (-1, 1):  # one token more than the limit loses its last one, one less nothing
        cut = truncate_layout(found, len(found) + room)
        assert (cut.input_ids, cut.labels) == (found.input_ids[: len(found) + room], found.labels[: len(found) + room])
    # Pictures may end with the limit; then what is supervised has to be before them.
    taught = layout(tokenizers, (Turn(("q",), "the cat"), Turn((Visual(5), "q"), "the mat")))
    (_, end) = taught.visual_spans[0]
    assert len(truncate_layout(taught, end)) == end
    with pytest.raises(InputError, match="tokens of 1 of 1 pictures"):
        truncate_layout(taught, end - 1)
    cut = truncate_layout(found, len(found) - 2)
    assert cut.input_ids == found.input_ids[:-2]
    assert cut.labels == found.labels[:-2]
    assert cut.visual_spans == found.visual_spans
    with pytest.raises(InputError, match=f"prompt of {len(found)} tokens: expected at most {stop}; .* none of {first}"):
        truncate_layout(found, stop)
    with pytest.raises(InputError, match=f"at most {stop - 1}; .* tokens of 1 of 1 pictures"):
        truncate_layout(found, stop - 1)


def test_placeholders() -> None:
    assert split_placeholders("a<image>b <image>", [5, 8]) == ("a", Visual(5), "b ", Visual(8))
    assert split_placeholders("plain", []) == ("plain",)
    assert split_placeholders("", []) == ()
    with pytest.raises(InputError, match="expected 1 times <image>.*found 2"):
        split_placeholders("<image><image>", [5])


def test_frame_lines() -> None:
    frames = [FrameUse(index=0, time_s=0.25, num_tokens=256), FrameUse(index=11, time_s=11, num_tokens=16)]
    assert INTERNVL.frames(frames, with_times=True) == (
        *("Frame1 at 0.2s: ", Visual(256), "\n"),
        *("Frame12 at 11.0s: ", Visual(16), "\n"),
    )
    assert INTERNVL.frames(frames[1:], with_times=False) == ("Frame12: ", Visual(16), "\n")
    assert INTERNVL.frames([], with_times=True) == ()


def test_a_turn_without_new_frames_starts_with_an_empty_line_where_frames_carry_times() -> None:
    assert INTERNVL.turn([], "What?", with_times=True) == ("\n", "What?")
    assert INTERNVL.turn([], "What?", with_times=False) == ("What?",)
    frames = [FrameUse(index=0, time_s=0.5, num_tokens=4)]
    assert INTERNVL.turn(frames, "What?", with_times=True) == ("Frame1 at 0.5s: ", Visual(4), "\n", "What?")


def test_turns_are_trimmed_for_the_checkpoints_that_were_trained_so(tokenizers: dict[str, Any]) -> None:
    turn = Turn(("\n", "  ", " \n", Visual(4), "\n", " What? ", "\n", ""), " That.\n")
    assert trimmed(turn) == Turn((Visual(4), "\n", " What?"), "That.")
    assert trimmed(Turn(("\n", " What? "))) == Turn(("What?",))
    assert trimmed(Turn(("\n", ""), " ")) == Turn((), "")
    found = layout(tokenizers, (turn,), ("internlm2", "internlm2-chat")).text
    assert found.endswith("user\n<img><IMG_CONTEXT>*4</img>\n What?<|im_end|><|im_start|>assistant\nThat.<|im_end|>")
    assert " What? \n<|im_end|>" in layout(tokenizers, (turn,), ("internlm2", "internvl2_5")).text


def test_recorded_cases(shared_dir: Path) -> None:
    cases = [case for case in load_cases(shared_dir / "golden") if case.entry["kind"] in golden_text.CHECKS]
    assert len(cases) == 4
    for case in cases:
        golden_text.CHECKS[case.entry["kind"]](case)
        assert case.failures == []
        assert case.num_compared > 20
