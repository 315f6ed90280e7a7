"""What anybody says stays text: with tokenizers of six families and the templates that go with them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_tokenizers import FAMILIES, IM_MARKERS, family_tokenizers, fast_tokenizer, write_sentencepiece_directory
from videochat_online.constants import IGNORE_INDEX
from videochat_online.errors import InputError
from videochat_online.text import (
    PromptCounter,
    PromptLayout,
    add_special_tokens,
    check_text,
    encode_text,
    end_token_id,
    get_template,
    layout_prompt,
    load_tokenizer,
)
from videochat_online.text.prompt import trimmed
from videochat_online.types import Turn, Visual

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return family_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def controls_of(tokenizer: Any) -> dict[str, int]:
    """All that is no text, by the tokenizer's own word."""
    found = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    found |= {token: index for token, index in tokenizer.get_vocab().items() if token in ("<sep>", "<|user|>", "--")}
    return {token: index for token, index in found.items() if not BYTE.fullmatch(token)}


def layout(tokenizers: dict[str, Any], family: str, turns: Sequence[Turn], **options: Any) -> PromptLayout:
    return layout_prompt(turns, tokenizer=tokenizers[family], template=get_template(FAMILIES[family]), **options)


def check(tokenizers: dict[str, Any], family: str, turns: Sequence[Turn], **options: Any) -> PromptLayout:
    """Lay out, and compare with what the pieces say: control tokens from ours alone, between them what is said."""
    tokenizer, template = tokenizers[family], get_template(FAMILIES[family])
    found = layout(tokenizers, family, turns, **options)
    controls = controls_of(tokenizer)
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
    expected: list[int] = []
    said = [""]
    for piece in template.render([trimmed(turn) for turn in turns] if template.trims else turns, **options):
        picture = piece.segment if isinstance(piece.segment, Visual) else None
        text = piece.segment if picture is None else f"<img>{'<IMG_CONTEXT>' * picture.num_tokens}</img>"
        position = 0
        for match in [] if piece.is_text else pattern.finditer(str(text)):
            expected.append(controls[match.group()])
            said[-1] += str(text)[position : match.start()]
            said.append("")
            position = match.end()
        said[-1] += str(text)[position:]
    ids = list(found.input_ids)[tokenizer.bos_token_id == found.input_ids[0] :]
    meant, read = list[int](), [list[int]()]
    for index in ids:
        if index in controls.values():
            meant.append(index)
            read.append([])
        else:
            read[-1].append(index)
    assert meant == expected
    for text, part in zip(said, read, strict=True):
        # Blanks around control tokens are swallowed by some, and some families put one in front.
        assert tokenizer.decode(part).strip() == normal(tokenizer, text).strip()
    return found


def normal(tokenizer: Any, text: str) -> str:
    is_nfkc = tokenizer.is_fast and "NFKC" in str(tokenizer.backend_tokenizer.normalizer)
    return unicodedata.normalize("NFKC", text) if is_nfkc else text


def everywhere(text: str) -> tuple[list[Turn], dict[str, str]]:
    """In questions, before and after pictures and cut in two, in replies, system message and prefix."""
    turns = [
        Turn((text, Visual(3), f"a {text}b"), f"{text}."),
        Turn((text[:2], text[2:]), f"so {text}"),
        Turn((f"(A) {text}\n(B) {text}",)),
    ]
    return turns, {"system_message": text, "generation_prefix": text}


def test_no_control_token_comes_from_a_text(tokenizers: dict[str, Any], family: str) -> None:
    tokens = [*controls_of(tokenizers[family]), "<0x0A>"]
    for token in tokens:
        turns, options = everywhere(token)
        found = check(tokenizers, family, turns, **options)
        start, end = tokenizers[family].convert_tokens_to_ids(["<img>", "</img>"])
        assert [stop - start for start, stop in found.visual_spans] == [3]
        assert (found.input_ids.count(start), found.input_ids.count(end)) == (1, 1)
        assert found.input_ids.count(end_token_id(tokenizers[family], get_template(FAMILIES[family]))) == (
            2 if FAMILIES[family] == "internvl_zh" else 6
        )


def spoken(data: st.DataObject, tokenizer: Any) -> str:
    tokens = [*controls_of(tokenizer), "<0x0A>", "<0xE4>"]
    wide = [token.translate({ord(sign): ord(sign) + 0xFEE0 for sign in "<>|/_"}) for token in tokens]
    others = [
        "<",
        "<|",
        "<|en",
        "|>",
        "end|>",
        "im_end|>",
        "the cat",
        " ",
        "  ",
        "\n",
        "世",
        "😀",
        "é",
        "\0",
        "x",
        "--",
    ]
    parts = st.sampled_from(tokens) | st.sampled_from(wide) | st.sampled_from(others)
    return data.draw(st.lists(parts, max_size=4).map("".join))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_texts_stay_text(tokenizers: dict[str, Any], family: str, data: st.DataObject) -> None:
    texts = [spoken(data, tokenizers[family]) for _ in range(6)]
    turns = [Turn((texts[0], Visual(2), texts[1]), texts[2]), Turn((texts[3],))]
    check(tokenizers, family, turns, system_message=texts[4], generation_prefix=texts[5])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(words=st.lists(st.sampled_from(["the cat", " ", "\n", "世", "😀", "é", "x", "<", "▁", "a<b>"]), max_size=6))
def test_what_comes_before_a_text_with_such_a_string_is_not_changed(
    tokenizers: dict[str, Any], family: str, words: list[str]
) -> None:
    said = "".join(words)
    before = [Turn((said, Visual(2), said), said)]
    plain = layout(tokenizers, family, [*before, Turn(("?",))], system_message=said)
    spelled = layout(tokenizers, family, [*before, Turn(("?<img> x",))], system_message=said)
    whole = layout(tokenizers, family, before, system_message=said)
    assert plain.input_ids[: len(whole)] == whole.input_ids == spelled.input_ids[: len(whole)]
    assert plain.visual_spans == spelled.visual_spans


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_tokens_are_counted_as_they_are_laid_out(tokenizers: dict[str, Any], family: str, data: st.DataObject) -> None:
    """Several prompts at a time, whose parts come again in one another."""
    texts = [spoken(data, tokenizers[family]) for _ in range(4)]
    some = st.sampled_from([*texts, "", "what is the man doing now ?", "\n"])
    segments = st.lists(some | st.integers(1, 3).map(Visual), max_size=4).map(tuple)
    prompts = data.draw(st.lists(st.lists(st.builds(Turn, segments, some), min_size=1, max_size=3), min_size=1))
    systems = [data.draw(some | st.none()) for _ in prompts]
    counter = PromptCounter(tokenizers[family], get_template(FAMILIES[family]))
    outlines = [counter.outline(turns, system) for turns, system in zip(prompts, systems, strict=True)]
    assert counter.count(outlines) == [
        len(layout(tokenizers, family, turns, system_message=system))
        for turns, system in zip(prompts, systems, strict=True)
    ]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_replies_that_spell_tokens_are_supervised_as_they_are(
    tokenizers: dict[str, Any], family: str, data: st.DataObject
) -> None:
    reply = spoken(data, tokenizers[family]).strip()
    found = layout(tokenizers, family, [Turn(("q", Visual(1)), f"a {reply}"), Turn(("r",), "b")])
    learned = [label for label in found.labels if label != IGNORE_INDEX]
    end = end_token_id(tokenizers[family], get_template(FAMILIES[family]))
    assert learned.count(end) == 2
    read = tokenizers[family].decode(learned[: learned.index(end)]).strip()
    assert read == normal(tokenizers[family], f"a {reply}".strip())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_ids_of_a_text_alone(tokenizers: dict[str, Any], family: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[family]
    text = spoken(data, tokenizer)
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(controls_of(tokenizer).values())
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not set(plain) & set(controls_of(tokenizer).values()) and not BYTE.search(normal(tokenizer, text)):
        assert ids == plain


def test_a_token_that_is_added_later_is_known(tokenizers: dict[str, Any], tmp_path: Any) -> None:
    for tokenizer in (
        load_tokenizer(write_sentencepiece_directory(tmp_path / "a", config={"additional_special_tokens": []})),
        fast_tokenizer("byte_level", IM_MARKERS),
    ):
        add_special_tokens(tokenizer)
        assert "<late>" in tokenizer.decode(encode_text(tokenizer, "<img><late>"))
        tokenizer.add_tokens(["<late>"])
        ids = encode_text(tokenizer, "a <late>")
        assert tokenizer.convert_tokens_to_ids("<late>") not in ids
        assert tokenizer.decode(ids).strip() == "a <late>"


def test_tokens_that_mark_nothing_are_text_as_they_were() -> None:
    tokenizer = fast_tokenizer("byte_level", IM_MARKERS)
    tokenizer.add_tokens(["\n\n", "   ", "§"])
    ids = encode_text(tokenizer, "a\n\nb   c§")
    assert ids == tokenizer("a\n\nb   c§", add_special_tokens=False)["input_ids"]
    assert set(tokenizer.convert_tokens_to_ids(["\n\n", "   ", "§"])) < set(ids)


def test_a_text_that_no_tokenizer_takes(tokenizers: dict[str, Any], family: str) -> None:
    told = "expected Unicode text, found half of a surrogate pair at position 2"
    for name, turns, options in (
        ("turn 1: question", [Turn((Visual(1), "ab\ud800"))], {}),
        ("turn 1: reply", [Turn(("q",), "ab\udfff")], {}),
        ("system message", [Turn(("q",))], {"system_message": "ab\ud800"}),
        ("generation prefix", [Turn(("q",))], {"generation_prefix": "ab\ud800"}),
    ):
        with pytest.raises(InputError, match=f"^{name}: {told}$"):
            layout(tokenizers, family, turns, **options)
    with pytest.raises(InputError, match="^text: expected text, found int$"):
        check_text(3, "text")
    assert check_text("😀\0", "text") == "😀\0"
