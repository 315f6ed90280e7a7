from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from text_tokenizers import NAMED_TEMPLATES
from videochat_online.errors import InputError
from videochat_online.text import ChatTemplate, get_template
from videochat_online.text.questions import (
    OVBENCH_SYSTEM_MESSAGE,
    letter_question,
    multiple_choice_question,
    option_index,
    option_line,
    option_text,
    ovbench_question,
)
from videochat_online.text.templates import Piece, display_text
from videochat_online.types import Turn, Visual

TURNS = (Turn(("q1",), "a1"), Turn(("q2",)))


def rendered(name: str, turns: tuple[Turn, ...] = TURNS, **arguments: str) -> str:
    return display_text(get_template(name).render(turns, **{"system_message": "S", **arguments}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "phi3-chat",
            "<|system|>\nS<|end|><|user|>\nq1<|end|><|assistant|>\na1<|end|><|user|>\nq2<|end|><|assistant|>\n",
        ),
        (
            "internlm2-chat",
            "<|im_start|>system\nS<|im_end|><|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
        ),
        (
            "Hermes-2",
            "<|im_start|>system\nS<|im_end|><|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
        ),
        (
            "internvl2_5",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
            "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("internvl_zh", "S <human>: q1 <bot>: a1</s><human>: q2 <bot>:"),
    ],
)
def test_wording(name: str, expected: str) -> None:
    assert rendered(name) == expected


def test_every_template_is_found_under_its_name() -> None:
    assert [get_template(name).name for name in NAMED_TEMPLATES] == list(NAMED_TEMPLATES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vicuna", r"'vicuna'.*Hermes-2.*internvl2_5.*phi3-chat.*package\.module:Name"),
        ("no_such_module:TERSE", "expected a module no_such_module that can be imported"),
        ("videochat_online.text.templates:TERSE", "expected 'TERSE' in the module .*, found none"),
        ("videochat_online.text.templates:ChatTemplate", "expected a ChatTemplate, found <class"),
        (f"{__name__}:DERIVED", r"expected a ChatTemplate, found Derived\("),
        (None, "template none: expected a ChatTemplate"),
        ("own", "'own': expected a tokenizer"),
    ],
)
def test_what_is_no_template(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        get_template(name)
    assert "\n" not in str(raised.value)


class Derived(ChatTemplate):
    """Its strings do not say what it renders, and these alone are saved."""

    def render(self, *_: object, **__: object) -> tuple[Piece, ...]:
        return ()


DERIVED = Derived(**asdict(get_template("chatml")))


def test_a_module_with_a_broken_template_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_words.py").write_text(
        "from dataclasses import replace\nfrom videochat_online.text import get_template\n"
        "SHOUT = replace(get_template('chatml'), user_prefix=3, reply_end='')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"'broken_words:SHOUT': expected .*user_prefix.*reply_end") as raised:
        get_template("broken_words:SHOUT")
    assert "\n" not in str(raised.value)


def test_system_message_default_and_empty() -> None:
    template = get_template("phi3-chat")
    assert "InternVL" in display_text(template.render(TURNS))
    assert rendered("phi3-chat", system_message="").startswith("<|system|>\n<|end|><|user|>")


def test_last_reply_closes_the_prompt() -> None:
    assert rendered("phi3-chat", (Turn(("q",), "a"),)).endswith("<|assistant|>\na<|end|>")
    assert rendered("internvl2_5", (Turn(("q",), ""),)).endswith("assistant\n<|im_end|>\n"), "an empty reply is one"


def test_generation_prefix_follows_the_opening() -> None:
    assert rendered("phi3-chat", generation_prefix="Best option:(").endswith("<|assistant|>\nBest option:(")


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_only_replies_and_their_ends_are_supervised(name: str) -> None:
    template = get_template(name)
    pieces = template.render((Turn(("q1", Visual(4)), "a1"), Turn(("q2",), "a2")))
    supervised = [piece.segment for piece in pieces if piece.supervised]
    reply = [part for part in (template.reply_prefix, "a{}", template.reply_end) if part]
    assert supervised == [part.format(number) for number in (1, 2) for part in reply]


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_what_is_said_is_told_from_what_the_template_puts_there(name: str) -> None:
    turns = (Turn(("q1", Visual(4), "r1"), "a1"), Turn(("q2",)))
    pieces = get_template(name).render(turns, system_message="s", generation_prefix="p")
    assert [piece.segment for piece in pieces if piece.is_text] == ["s", "q1", "r1", "a1", "q2", "p"]


def test_display_text_counts_visual_tokens() -> None:
    text = rendered("phi3-chat", (Turn(("x", Visual(256), "y", Visual(16))),))
    assert "x<img><IMG_CONTEXT>*256</img>y<img><IMG_CONTEXT>*16</img><|end|>" in text


@pytest.mark.parametrize(
    ("turns", "arguments", "message"),
    [
        ((), {}, "at least one turn"),
        ((Turn(("q",)), Turn(("q",), "a")), {}, r"turn 1 of 2: expected a reply"),
        ((Turn(("q",), "a"),), {"generation_prefix": "B"}, r"prefix 'B'.*found 'a'"),
    ],
)
def test_turns_out_of_order(turns: tuple[Turn, ...], arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_template("phi3-chat").render(turns, **arguments)


OPTIONS = ("walking (left)", " two blanks", "")


def test_question_texts() -> None:
    lines = "(A) walking (left)\n(B)  two blanks\n(C)"
    assert ovbench_question("What?", OPTIONS, asked_at_s=12.5) == f"Question at 12.5s: What?\nOptions:\n{lines}"
    assert multiple_choice_question("What?", OPTIONS) == f"Question: What?\n{lines}"
    assert letter_question("Is it?", ["Yes", "No"]) == (
        "Is it?\nA. Yes\nB. No\nAnswer with the option's letter from the given choices directly."
    )
    assert OVBENCH_SYSTEM_MESSAGE.endswith("addresses the question.\n")


def test_options() -> None:
    assert option_text("B.  two blanks") == " two blanks"
    assert option_line(1, "x") == "(B) x"
    assert option_index(["red", "blue"], "blue") == 1
    with pytest.raises(InputError, match=r"'D\)x'"):
        option_text("D)x")
    with pytest.raises(InputError, match="'green'.*'red'"):
        option_index(["red", "blue"], "green")
    with pytest.raises(InputError, match="option number 27"):
        multiple_choice_question("q", ["x"] * 27)
