"""Chat templates of tokenizers, turned into fixed strings: transformers' own writing is the oracle."""

from __future__ import annotations

import copy
import json

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
    NO_SYSTEM,
    PHI3,
    WITH_DEFAULT,
    family_tokenizers,
    tokenizer_with,
)
from videochat_online.errors import CheckpointError, InputError
from videochat_online.text import (
    TEMPLATES,
    encode_with_offsets,
    get_template,
    layout_prompt,
    leave_ends_to_template,
    load_tokenizer,
    own_template,
)
from videochat_online.types import Turn

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
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    if system is not None and kind in NO_PLACE:
        with pytest.raises(InputError, match="expected no system message"):
            layout_prompt(turns, tokenizer=tokenizer, template=template, system_message=system)
        return
    if system is not None:
        messages.insert(0, {"role": "system", "content": system.strip() if kind.startswith("bos") else system})
        system = messages[0]["content"]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    layout = layout_prompt(turns, tokenizer=tokenizer, template=template, system_message=system)
    assert list(layout.input_ids) == expected


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
        (CHATML.replace("m['content']", "m['content'] | upper"), "Usertextum is there 0 times"),
        (CHATML.replace("m['content']", "m['content'] + m['content']"), "is there 2 times"),
        (CHATML.replace("<|im_end|>", "!"), "begins with no token of the tokenizer's own"),
        (CHATML.replace("m['content']", "m['content'] | replace('One', 'First')"), "where fixed strings give"),
        (CHATML.replace("m['role']", "(m['role'] if loop.first else 'more')"), "opened by"),
    ],
)
def test_templates_that_do_more_are_refused(chat_template, found):
    with pytest.raises(CheckpointError, match="expected") as error:
        own_template(tokenizer_with(chat_template, adds_bos=False))
    assert found in str(error.value)


def test_strings_in_a_configuration():
    template = own_template(KINDS["system in the first turn"])
    written = json.loads(json.dumps(template.to_config()))
    assert get_template(written) == get_template(written | {"stop_string": None}) == template  # as once written
    assert all(get_template(other.to_config()) == other for other in TEMPLATES.values())
    assert TEMPLATES["Hermes-2"].to_config() == "Hermes-2"
    for wrong in ({"name": "x"}, written | {"more": 1}, written | {"user_prefix": 3}, written | {"reply_end": ""}):
        with pytest.raises(InputError, match="chat template: expected"):
            get_template(wrong)


def test_what_a_tokenizer_puts_around_texts_is_left_to_the_template(tmp_path):
    """`apply_chat_template` writes what the template says and nothing else, and so do we: also from saved files."""
    on_bytes = tokenizer_with(None)
    first = on_bytes.backend_tokenizer.post_processor
    on_bytes.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), first])
    for name, tokenizer in (family_tokenizers(tmp_path) | {"on bytes": on_bytes}).items():
        places = [span for span in encode_with_offsets(tokenizer, "a cat")[1] if span != (0, 0)]
        for source in (LLAMA2, CHATML.replace("<|im_end|>", "</s>")):
            tokenizer.chat_template = source
            with pytest.raises(CheckpointError, match="fixed strings give"):
                own_template(tokenizer)
            apart = copy.deepcopy(tokenizer)
            leave_ends_to_template(apart)
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
    with pytest.raises(CheckpointError, match="and not from around replies"):
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
        assert (template.reply_end, template.prompt_start, template.takes_system) == ("<s>", "<s>" * (not adds), True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ raise_exception('no') }}",
        EACH + "{{ m['content'][0].text }}" + END,
        "{{ 1 / 0 }}",
    ],
)
def test_templates_that_fail(source):
    with pytest.raises(CheckpointError, match=r"^chat template of the tokenizer: expected fixed strings[^\n]*$"):
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
