"""Golden checks of the text layer: token ids, prompts, labels.

Where the reference is wrong (labels of several turns masked away, texts of options lost, a text taken for a control
token) the row is excluded with the reason, and our own value is compared with one computed another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from golden.harness import Case
from videochat_online.constants import IGNORE_INDEX
from videochat_online.errors import InputError
from videochat_online.text.control_tokens import encode_with_offsets
from videochat_online.text.prompt import PromptLayout, layout_prompt, split_placeholders
from videochat_online.text.questions import (
    letter_question,
    multiple_choice_question,
    option_index,
    option_line,
    option_text,
    ovbench_question,
)
from videochat_online.text.templates import ChatTemplate, get_template
from videochat_online.text.tokenizer import load_tokenizer
from videochat_online.types import Turn


@cache
def tokenizer_of(root: Path, name: str) -> Any:
    """A recorded tokenizer, loaded once."""
    return load_tokenizer(root / "tokenizers" / name)


def unrolled(runs: Sequence[Sequence[int]]) -> list[int]:
    """The ids of a run-length encoding `[[id, count], ...]`."""
    return [value for value, count in runs for _ in range(count)]


def check_tokenizer(case: Case) -> None:
    """Ids of probes and the text they decode to."""
    for number, row in enumerate(case.recorded):
        tokenizer = tokenizer_of(case.root, row["tokenizer"])
        label = f"row {number} ({row['tokenizer']}, {row['text']!r})"
        case.exact(f"{label} ids", tokenizer(row["text"])["input_ids"], row["ids"])
        case.exact(f"{label} ids with offsets", encode_with_offsets(tokenizer, row["text"])[0], row["ids"])
        case.exact(f"{label} decoded", tokenizer.decode(row["ids"], skip_special_tokens=True), row["decoded"])


def check_prompt(case: Case) -> None:
    """Rendered dialogues, or the wording of benchmark questions, whichever a row holds."""
    for number, row in enumerate(case.recorded):
        if "turns" in row:
            _check_dialogue(case, f"row {number} ({row['template']})", row)
        elif "lmms_text" in row:
            doc = row["doc"]
            case.exact(f"row {number} lmms", letter_question(doc["question"], doc["candidates"]), row["lmms_text"])
        else:
            _check_question(case, f"row {number}", row)


def _check_dialogue(case: Case, label: str, row: dict[str, Any]) -> None:
    template = get_template(row["template"])
    # The reference opens generation for an empty reply too; here an empty reply is a reply.
    turns = [Turn(user=(user,), assistant=reply or None) for user, reply in row["turns"]]
    pieces = template.render(turns, system_message=row["system"])
    case.exact(f"{label} prompt", "".join(str(piece.segment) for piece in pieces), row["prompt"])
    case.exact(f"{label} default system message", template.default_system_message, row["default_system"])
    case.exact(f"{label} separator", template.reply_suffix + template.reply_end + template.after_reply, row["sep"])
    # A stop string is recorded, too (`stop_str`). The reference's chat never reads it, and our templates have none.


def _check_question(case: Case, label: str, row: dict[str, Any]) -> None:
    data = row["data"]
    if "options" in data:
        options = [_option(case, label, option) for option in data["options"]]
        chosen = ord(data["answer"]) - ord("A")
    else:
        options = data["candidates"]
        chosen = _chosen(case, label, options, data["answer"])
    answer = option_line(chosen, options[chosen]) if chosen >= 0 else None
    question = data["question"]
    for key, recorded in row.items():
        if key == "data":
            continue
        if key == "ovbench":
            ours = ovbench_question(question, options, asked_at_s=data["middle_frame_timestamp"])
        else:
            ours = multiple_choice_question(question, options)
        case.exact(f"{label} {key} question", ours, recorded[0])
        if answer is not None:
            case.exact(f"{label} {key} answer", answer, recorded[1])


def _option(case: Case, label: str, option: str) -> str:
    try:
        return option_text(option)
    except InputError as error:
        case.exact(f"{label} malformed option {option!r}", " " in option, False)
        case.exclude(f"{label}: {error}; the rest of the row is compared with an empty text in its place")
        return ""


def _chosen(case: Case, label: str, options: Sequence[str], answer: str) -> int:
    try:
        return option_index(options, answer)
    except InputError as error:
        case.exact(f"{label} answer outside the options", answer in options, False)
        case.exclude(f"{label}: {error}; the reference writes '(@)' for its letter")
        return -1


def check_training_tokenisation(case: Case) -> None:
    """Ids and labels of training rows, cut or padded as the row asks."""
    for number, row in enumerate(case.recorded):
        label = f"row {number} ({row['function']}, {row['tokenizer']}, {row['model_max_length']})"
        tokenizer = tokenizer_of(case.root, row["tokenizer"])
        template = get_template(row["template"])
        turns, dropped = _turns(row)
        layout = layout_prompt(turns, tokenizer=tokenizer, template=template)
        own = labels_of_prefixes(turns, layout, tokenizer, template)
        case.exact(f"{label} labels computed from prefixes", list(layout.labels), own)
        if row["error"]:
            case.exclude(f"{label}: the reference raises {row['error']}")
            continue
        spelled = _spelled_tokens(row, tokenizer)
        if spelled:
            case.exclude(f"{label}: the reference takes the text {spelled[0]} for the token; ours spells it")
            _check_spelled(case, label, row, layout, tokenizer, spelled)
            continue
        if dropped and row["function"] == "preprocess_internvl2_5":
            case.exclude(f"{label}: the reference trains on a reply before the first question, we drop it")
            continue
        _check_row(case, label, row, layout, tokenizer)


def _check_row(case: Case, label: str, row: dict[str, Any], layout: PromptLayout, tokenizer: Any) -> None:
    """Compare ids and labels after the cut or the padding that the recorded row went through."""
    ids, labels = unrolled(row["input_ids_rle"]), unrolled(row["labels_rle"])
    limit = row["model_max_length"]
    padding = 0 if row["group_by_length"] else max(0, limit - len(layout))
    case.exact(f"{label} recorded length", len(ids), row["n"])
    repeated = [place for place, index in enumerate(ids) if place and index == tokenizer.bos_token_id]
    if repeated and layout.input_ids.count(tokenizer.bos_token_id) == 1:
        case.exclude(f"{label}: the reference puts <s> before each part; compared without the later ones")
        ids = [index for place, index in enumerate(ids) if place not in repeated]
        labels = [index for place, index in enumerate(labels) if place not in repeated]
        limit -= len(repeated)
    case.exact(f"{label} ids", list(layout.input_ids[:limit]) + [tokenizer.pad_token_id] * padding, ids)
    _check_labels(case, label, row, list(layout.labels[:limit]) + [IGNORE_INDEX] * padding, labels, ids)


def _spelled_tokens(row: dict[str, Any], tokenizer: Any) -> list[str]:
    """Tokens of the vocabulary that stand in the texts of a row."""
    texts = [sentence["value"] for sentence in row["conversation"]]
    tokens = map(str, tokenizer.added_tokens_decoder.values())
    return [token for token in tokens if any(token in text for text in texts)]


def _check_spelled(
    case: Case, label: str, row: dict[str, Any], layout: PromptLayout, tokenizer: Any, spelled: list[str]
) -> None:
    """What is read is the same, but for blanks around tokens, and the tokens that are text are not among ours."""
    pad, limit = tokenizer.pad_token_id, row["model_max_length"]
    recorded = [index for index in unrolled(row["input_ids_rle"]) if index != pad]
    ours = [index for index in layout.input_ids[:limit] if index != pad]
    read, expected = ("".join(tokenizer.decode(ids).split()) for ids in (ours, recorded))
    is_cut = limit < len(layout)
    case.exact(f"{label} text", read, expected[: len(read)] if is_cut else expected)
    texts = [sentence["value"] for sentence in row["conversation"]]
    for token in [] if is_cut else spelled:
        index, num_spelled = tokenizer.convert_tokens_to_ids(token), sum(text.count(token) for text in texts)
        case.exact(f"{label} {token} of the template", ours.count(index), recorded.count(index) - num_spelled)


def _turns(row: dict[str, Any]) -> tuple[list[Turn], bool]:
    """Turns of a recorded conversation; True where a reply before the first question was dropped."""
    # One of the recorded functions trims every text: the data loader's business, not the layout's.
    trims = row["function"] == "preprocess_internlm"
    texts = [
        (sentence["from"], sentence["value"].strip() if trims else sentence["value"])
        for sentence in row["conversation"]
    ]
    dropped = texts[0][0] == "gpt"
    texts = texts[dropped:]
    counts = list(row["num_image_token_list"])
    turns = []
    for (_, user), (_, reply) in zip(texts[::2], texts[1::2], strict=True):
        num_pictures = 0 if row["text_only"] else user.count("<image>")
        segments = split_placeholders(user, counts[:num_pictures])
        counts = counts[num_pictures:]
        turns.append(Turn(user=segments, assistant=reply))
    return turns, dropped


def labels_of_prefixes(
    turns: Sequence[Turn], layout: PromptLayout, tokenizer: Any, template: ChatTemplate
) -> list[int]:
    """Labels without offsets: a reply is what the ids gain from the prompt before it to that with it.

    Raises:
        InputError: the prompt before a reply is no prefix of the whole prompt.
    """
    labels = [IGNORE_INDEX] * len(layout)
    for number, turn in enumerate(turns):
        before = layout_prompt(
            [*turns[:number], Turn(user=turn.user)], tokenizer=tokenizer, template=template
        ).input_ids
        upto = layout_prompt(turns[: number + 1], tokenizer=tokenizer, template=template).input_ids
        end = tokenizer.convert_tokens_to_ids(template.reply_end)
        stop = len(upto) - upto[::-1].index(end)
        last, given = len(before) - 1, layout.input_ids[: len(before)]
        # A token may begin in the prompt and end in the reply ("\nA"): it comes before what is learned.
        whole = given == before or (given[:last] == before[:last] and _extends(tokenizer, given[last], before[last]))
        if not whole or layout.input_ids[:stop] != upto[:stop]:
            raise InputError(f"turn {number + 1}: the prompt before the reply is no prefix of the whole prompt")
        labels[len(before) : stop] = layout.input_ids[len(before) : stop]
    return labels


def _extends(tokenizer: Any, longer: int, shorter: int) -> bool:
    """Whether one token's text is another's and more."""
    texts = [tokenizer.decode([index]) for index in (shorter, longer)]
    return bool(texts[0]) and texts[1].startswith(texts[0]) and len(texts[1]) > len(texts[0])


def _check_labels(
    case: Case, label: str, row: dict[str, Any], ours: list[int], recorded: list[int], ids: list[int]
) -> None:
    if row["mismatch_warning"] and ours != recorded:
        case.exact(f"{label} recorded labels are all masked", set(recorded), {IGNORE_INDEX})
        case.exclude(f"{label}: the reference counts the tokens of a turn wrongly and masks the whole row")
    elif ours != recorded and _one_more_after_each_reply(ours, recorded, ids):
        case.exclude(f"{label}: the reference also trains on the '▁' of the line break after the end token")
    else:
        case.exact(f"{label} labels", ours, recorded)


def _one_more_after_each_reply(ours: list[int], recorded: list[int], ids: list[int]) -> bool:
    """Whether `recorded` supervises what `ours` does and exactly one token after each reply."""
    longer = [
        ids[place] if label == IGNORE_INDEX and place and ours[place - 1] != IGNORE_INDEX else label
        for place, label in enumerate(ours)
    ]
    return longer == recorded


CHECKS: dict[str, Callable[[Case], None]] = {
    "tokenizer": check_tokenizer,
    "prompt": check_prompt,
    "training_tokenisation": check_training_tokenisation,
}
