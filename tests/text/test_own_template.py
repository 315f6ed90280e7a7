"""Chat templates of tokenizers, turned into fixed strings: transformers' own writing is the oracle."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from text_tokenizers import (
    CHATML,
    EACH,
    END,
    GEMMA,
    LLAMA2,
    LLAMA3,
    MARKERS,
    MISTRAL,
    NAMED_TEMPLATES,
    NO_SYSTEM,
    PHI3,
    WITH_DEFAULT,
    family_tokenizers,
    tokenizer_with,
)
from videochat_online.constants import IGNORE_INDEX
from videochat_online.errors import CheckpointError, InputError
from videochat_online.text import get_template, layout_prompt, load_tokenizer, stored_template
from videochat_online.text.chat_jinja import jinja_template
from videochat_online.text.control_tokens import encode_with_offsets
from videochat_online.text.own_template import own_template
from videochat_online.text.prompt import INTERNVL
from videochat_online.types import FrameUse, Turn, Visual

KINDS = {
    "chatml": tokenizer_with(CHATML, adds_bos=False),
    "chatml, bos opens each side": tokenizer_with(WITH_DEFAULT, bos="<|im_start|>", adds_bos=False),
    "a default system message": tokenizer_with(WITH_DEFAULT, adds_bos=False),
    "a dialogue's end": tokenizer_with(PHI3, adds_bos=False),
    "bos of the tokenizer": tokenizer_with(LLAMA3),
    "bos of the template": tokenizer_with(LLAMA3, adds_bos=False),
    "system in the first turn": tokenizer_with(GEMMA),
    "no system": tokenizer_with(NO_SYSTEM),
    "a blank before replies": tokenizer_with(MISTRAL),
    "blanks around replies": tokenizer_with(LLAMA2, adds_bos=False),
}
ROLES = ("user", "assistant")
NO_PLACE = ("no system", "a blank before replies", "blanks around replies")
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20).filter(
    lambda text: text.strip() and not any(marker in text for marker in MARKERS)
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), system=st.none() | TEXTS)
def test_as_transformers_writes_it(kind, texts, system):
    tokenizer, texts = KINDS[kind], texts[: (len(texts) - 1) // 2 * 2 + 1]  # the last one is the user's
    template = own_template(tokenizer)
    turns = [Turn((user,), reply) for user, reply in zip(texts[::2], [*texts[1::2], None], strict=True)]
    messages = [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(texts)]
    if system is not None and kind in NO_PLACE:
        with pytest.raises(InputError, match="expected no system message"):
            layout_prompt(turns, tokenizer=tokenizer, template=template, system_message=system)
        return
    if system is not None:
        messages.insert(0, {"role": "system", "content": system.strip() if kind.startswith("bos") else system})
        system = messages[0]["content"]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for one in (template, get_template("chatml")) if kind == "chatml" else (template,):
        layout = layout_prompt(turns, tokenizer=tokenizer, template=one, system_message=system)
        assert list(layout.input_ids) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_frames_stand_in_it_as_in_any_text(kind):
    tokenizer = KINDS[kind]
    frames = [FrameUse(0, 0.0, 3), FrameUse(1, 0.5, 2)]
    sides = [(*INTERNVL.frames(frames, with_times=True), "What is it?"), (Visual(4), "\n", "And now?")]
    written = [
        "".join(f"<img>{'<IMG_CONTEXT>' * one.num_tokens}</img>" if isinstance(one, Visual) else one for one in side)
        for side in sides
    ]
    messages = [{"role": "user", "content": written[0]}, {"role": "assistant", "content": "it is"}]
    messages.append({"role": "user", "content": written[1]})
    turns = [Turn(sides[0], "it is"), Turn(sides[1])]
    layout = layout_prompt(turns, tokenizer=tokenizer, template=own_template(tokenizer))
    assert list(layout.input_ids) == ids_of(tokenizer, messages)
    assert [stop - start for start, stop in layout.visual_spans] == [3, 2, 4]


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_ours_in_jinja_is_read_back(name):
    """A model in the layout of transformers brings a `chat_template` that we wrote."""
    template = get_template(name)
    tokenizer = tokenizer_with(
        jinja_template(template, system_message=template.default_system_message, start="", video_token="<video>"),
        adds_bos=False,
    )
    turns = [Turn((Visual(2), "\n", "What is it?"), "now"), Turn((" And (A) red\n(B) blue? ",), " it ")]
    for system in (None, "Be brief."):
        ours, theirs = (
            layout_prompt(turns, tokenizer=tokenizer, template=one, system_message=system)
            for one in (template, get_template("own", tokenizer))
        )
        assert (ours.input_ids, ours.labels) == (theirs.input_ids, theirs.labels)


def marking(user, opening, learned, after="''", start="''"):
    """A template that says which of its words the model has written."""
    said = f"{{{{ {opening} }}}}{{% generation %}}{{{{ {learned} }}}}{{% endgeneration %}}{{{{ {after} }}}}"
    side = f"{{% if m['role'] == 'assistant' %}}{said}{{% else %}}{{{{ {user} }}}}{{% endif %}}"
    return f"{{{{ {start} }}}}{EACH}{side}{END}{{% if add_generation_prompt %}}{{{{ {opening} }}}}{{% endif %}}"


MARKING = {
    "a line break after replies": marking(
        "'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'",
        "'<|im_start|>assistant\n'",
        "m['content'] + '<|im_end|>'",
        "'\n'",
    ),
    "blanks around replies": marking(
        "bos_token + '[INST] ' + m['content'] + ' [/INST]'", "''", "' ' + m['content'] + ' </s>'"
    ),
    "bos, and trimmed sides": marking(
        "'<|head|>' + m['role'] + '<|tail|>\n\n' + m['content'] | trim + '<|eot|>'",
        "'<|head|>assistant<|tail|>\n\n'",
        "m['content'] | trim + '<|eot|>'",
        start="bos_token",
    ),
}


@pytest.mark.parametrize("kind", MARKING)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_what_is_learned_is_what_the_template_marks(kind, texts):
    tokenizer = tokenizer_with(MARKING[kind], adds_bos=False)
    messages = [{"role": role, "content": text} for turn in texts for role, text in zip(ROLES, turn, strict=True)]
    marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    turns = [Turn((user,), reply) for user, reply in texts]
    layout = layout_prompt(turns, tokenizer=tokenizer, template=get_template("own", tokenizer))
    assert list(layout.input_ids) == marked["input_ids"]
    assert [int(label >= 0) for label in layout.labels] == marked["assistant_masks"]
    assert all(label in (IGNORE_INDEX, index) for label, index in zip(layout.labels, layout.input_ids, strict=True))


def test_replies_are_learned_with_their_end():
    for kind, tokenizer in KINDS.items():
        layout = layout_prompt([Turn(("It?",), "now")], tokenizer=tokenizer, template=own_template(tokenizer))
        learned = [label for label in layout.labels if label >= 0]
        around = {"a blank before replies": (" ", ""), "blanks around replies": (" ", " ")}.get(kind, ("", ""))
        assert tokenizer.decode(learned[:-1]) == "now".join(around)
        assert learned[-1] in [tokenizer.convert_tokens_to_ids(end) for end in MARKERS]


@pytest.mark.parametrize(
    ("chat_template", "found"),
    [
        (None, "found none"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "once, as it is, found Usertextum 0 times"),
        (CHATML.replace("m['content']", "m['content'] + m['content']"), "as it is, found Usertextum 2 times"),
        (CHATML.replace("<|im_end|>", "!"), "expected a special token of the tokenizer at the end of each reply"),
        (
            CHATML.replace("m['content']", "m['content'] | replace('One', 'First')"),
            "expected fixed strings around each side, as in",
        ),
        (
            CHATML.replace("m['role']", "(m['role'] if loop.first else 'more')"),
            "expected the same words before each reply",
        ),
    ],
)
def test_templates_that_do_more_are_refused(chat_template, found):
    with pytest.raises(CheckpointError, match="expected") as error:
        own_template(tokenizer_with(chat_template, adds_bos=False))
    assert found in str(error.value)


def test_strings_in_a_configuration():
    template = own_template(KINDS["system in the first turn"])
    written = json.loads(json.dumps(template.to_config()))
    assert stored_template(written) == template
    assert all(get_template(name).to_config() == name for name in NAMED_TEMPLATES)
    assert all(stored_template(name) == get_template(name) for name in NAMED_TEMPLATES)
    changed = replace(get_template("Hermes-2"), more_ends=("<s>",))
    assert stored_template(json.loads(json.dumps(changed.to_config()))) == changed
    for wrong, found in (
        ({"name": "x"}, "default_system_message: expected a text, found none"),
        (written | {"more": 1}, "unknown field 'more'"),
        (written | {"user_prefix": 3}, "user_prefix"),
        (written | {"reply_end": ""}, "reply_end"),
        (written | {"more_ends": [1]}, "more_ends[0]"),
        ("videochat_online.text.templates:CHATML", "expected one of phi3-chat,"),  # a checkpoint runs no code
        (["chatml"], "expected one of phi3-chat,"),
    ):
        with pytest.raises(InputError, match=r"^template in config\.json: expected [^\n]*$") as error:
            stored_template(wrong)
        assert found in str(error.value)


def test_what_a_tokenizer_puts_around_texts_is_left_to_the_template(tmp_path):
    """`apply_chat_template` writes what the template says and nothing else, and so do we: also from saved files."""
    on_bytes = tokenizer_with(None)
    first = on_bytes.backend_tokenizer.post_processor
    on_bytes.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), first])
    for name, tokenizer in (family_tokenizers(tmp_path) | {"on bytes": on_bytes}).items():
        places = [span for span in encode_with_offsets(tokenizer, "a cat")[1] if span != (0, 0)]
        for source in (LLAMA2, CHATML.replace("<|im_end|>", "</s>")):
            tokenizer.chat_template = source
            apart = copy.deepcopy(tokenizer)
            own_template(apart)
            apart.save_pretrained(tmp_path / "saved" / name)
            saved = load_tokenizer(tmp_path / "saved" / name)
            messages = [{"role": "user", "content": "What now ?"}, {"role": "assistant", "content": "The cat"}]
            messages.append({"role": "user", "content": "And ?"})
            turns = [Turn(("What now ?",), "The cat"), Turn(("And ?",))]
            for one in (apart, saved):
                layout = layout_prompt(turns, tokenizer=one, template=own_template(one))
                assert list(layout.input_ids) == ids_of(tokenizer, messages), name
                assert [span for span in encode_with_offsets(one, "a cat")[1] if span != (0, 0)] == places, name


REPLIES_ALONE = MISTRAL.replace("' ' + m['content']", "' ' + m['content'] | trim")


def ids_of(tokenizer, messages, source=None):
    return tokenizer.apply_chat_template(messages, chat_template=source, add_generation_prompt=True, return_dict=False)


def test_what_the_template_trims_is_trimmed():
    tokenizer = tokenizer_with(REPLIES_ALONE)
    template = own_template(tokenizer)
    assert (template.trims, template.trims_replies) == (False, True)
    turns = [Turn((" q\n",), "\n a "), Turn((" r",))]
    messages = [{"role": "user", "content": " q\n"}, {"role": "assistant", "content": "\n a "}]
    messages.append({"role": "user", "content": " r"})
    assert list(layout_prompt(turns, tokenizer=tokenizer, template=template).input_ids) == ids_of(tokenizer, messages)
    tokenizer = KINDS["bos of the template"]  # Llama 3 trims the system message, too
    messages.insert(0, {"role": "system", "content": " Be brief.\n"})
    layout = layout_prompt(turns, tokenizer=tokenizer, template=own_template(tokenizer), system_message=" Be brief.\n")
    assert list(layout.input_ids) == ids_of(tokenizer, messages)
    with pytest.raises(CheckpointError, match="expected blanks taken from around replies"):
        own_template(
            tokenizer_with(
                CHATML.replace("m['content']", "(m['content'] | trim if loop.index0 % 2 == 0 else m['content'])")
            )
        )


def test_the_first_token_may_end_replies_too():
    source = "{{ bos_token }}" + EACH + "{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    source += "{{ bos_token + '\n' if m['role'] == 'assistant' else '\n' }}" + END
    source += "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    for adds in (True, False):
        template = own_template(tokenizer_with(source, adds_bos=adds))
        assert (template.reply_end, template.prompt_start, template.takes_system) == ("<s>", "<s>", True)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        (EACH + "{{ m['content'][0].text }}" + END, "Usertextum 0 times"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_templates_that_fail(source, found):
    said = rf"^chat template of the tokenizer '': expected [^\n]*found {found}[^\n]*$"
    with pytest.raises(CheckpointError, match=said):
        own_template(tokenizer_with(source))


def test_what_fixed_strings_cannot_say_is_told(caplog):
    own_template(tokenizer_with(CHATML, adds_bos=False))
    assert not caplog.messages
    own_template(
        tokenizer_with(WITH_DEFAULT.replace("You help.", "Today is ' + strftime_now('%d %b %Y') + '."), adds_bos=False)
    )
    assert "writes the date" in caplog.text
    own_template(tokenizer_with(CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"), adds_bos=False))
    assert "leaves <think> ... </think> out" in caplog.text


def test_a_system_message_that_fits_one_turn_only():
    """The template's own stays, as a part of it."""
    many = "{% if messages | length > 3 and messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = tokenizer_with(many + WITH_DEFAULT, adds_bos=False)
    template = own_template(tokenizer)
    layout = layout_prompt([Turn(("It?",))], tokenizer=tokenizer, template=template)
    assert list(layout.input_ids) == ids_of(tokenizer, [{"role": "user", "content": "It?"}])
