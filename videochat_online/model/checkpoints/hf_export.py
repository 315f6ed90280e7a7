"""A model in the layout of transformers' own InternVL, with all that its processor and its pipeline read.

Written, then read back by transformers alone and compared: the ids of dialogues and plain texts before, the logits of
a picture after (`check_export`). What cannot be said in that layout is refused (`hf_layout.hf_config`).

Shape legend: `S` pixels a side, `L` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from videochat_online.constants import IMAGE_CONTEXT_TOKEN, IMAGE_END_TOKEN, IMAGE_START_TOKEN, SPECIAL_TOKENS
from videochat_online.errors import CheckpointError
from videochat_online.model.checkpoints.checkpoint import plain_state, write_state
from videochat_online.model.checkpoints.hf_layout import hf_config, to_hf_state
from videochat_online.model.checkpoints.strict_loading import raise_on_difference
from videochat_online.model.configuration import VideoChatOnlineConfig
from videochat_online.runs.files import read_object, write_json
from videochat_online.text import (
    ChatTemplate,
    SentencePieceTokenizer,
    layout_prompt,
    stop_token_ids,
    stored_template,
    token_id,
    visual_token_id,
)
from videochat_online.text.chat_jinja import jinja_template
from videochat_online.text.tokenizer_json import PLAIN_TEXTS, as_saved, check_texts, compare_ids, fast_copy
from videochat_online.types import Segment, Turn, Visual
from videochat_online.video.transforms import find_normalization

PROCESSOR_CLASS = "InternVLProcessor"
VIDEO_TOKEN = "<video>"
# Control tokens that no prompt of the family holds come first.
_STAND_INS = ("<quad>", "</quad>", *SPECIAL_TOKENS[5:])
_NAMED = {"start_image_token": IMAGE_START_TOKEN, "end_image_token": IMAGE_END_TOKEN}
_NAMED |= {"context_image_token": IMAGE_CONTEXT_TOKEN}
# Of a tokenizer_config.json: which class reads it, and what would change the ids of tokenizer.json.
_DROPPED: tuple[str, ...] = ("auto_map", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
_DROPPED += ("chat_template", "backend", "is_local", "local_files_only")


@dataclass(frozen=True)
class TextSide:
    """What other programs need to write a prompt.

    Attributes:
        tokenizer: reads and writes `tokenizer.json`.
        template: ours.
        chat_template: source of `chat_template.jinja`, the same in jinja.
        named_tokens: the tokens of pictures, by the names under which the processor asks for them.
    """

    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    chat_template: str
    named_tokens: dict[str, str]


def export_hf(network: PreTrainedModel, text: TextSide, directory: str | Path) -> None:
    """Write weights, configuration, tokenizer, chat template, processor and generation settings.

    Args:
        network: network with plain weights.
        text: result of `text_side`.
        directory: folder, which is created; nothing in it is removed.

    Raises:
        CheckpointError: the layout cannot say what the model is.
    """
    directory, config = Path(directory), network.config
    image_token_id = text.tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT_TOKEN)
    entries = hf_config(config, image_token_id)
    write_state(to_hf_state(plain_state(network)), entries, directory)
    text.tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    written = read_object(path)
    others = written.pop("extra_special_tokens", None)
    tokens = {key: value for key, value in written.items() if key not in _DROPPED} | text.named_tokens
    tokens |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": PROCESSOR_CLASS}
    tokens |= {"extra_special_tokens": text.named_tokens} | ({"additional_special_tokens": others} if others else {})
    write_json(path, tokens)
    (directory / "chat_template.jinja").write_text(text.chat_template, encoding="utf-8")
    processor = {"processor_class": PROCESSOR_CLASS, "image_seq_length": entries["image_seq_length"]}
    write_json(directory / "processor_config.json", processor)
    write_json(directory / "preprocessor_config.json", _image_processor(config))
    video_processor = {"video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False}
    write_json(directory / "video_preprocessor_config.json", _pixels(config) | video_processor)
    write_json(directory / "generation_config.json", _generation(text.tokenizer, text.template))
    check_texts(text.tokenizer, AutoTokenizer.from_pretrained(directory))


def _pixels(config: VideoChatOnlineConfig) -> dict[str, Any]:
    statistics = find_normalization("imagenet")
    return {
        "processor_class": PROCESSOR_CLASS,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 3,  # bicubic, as Pillow numbers it
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(statistics.mean),
        "image_std": list(statistics.std),
    }


def _image_processor(config: VideoChatOnlineConfig) -> dict[str, Any]:
    is_tiled = config.dynamic_image_size
    return _pixels(config) | {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        # The processor cuts tiles whatever this says: one at most is none.
        "crop_to_patches": is_tiled,
        "min_patches": config.min_dynamic_patch if is_tiled else 1,
        "max_patches": config.max_dynamic_patch if is_tiled else 1,
    }


def _generation(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> dict[str, Any]:
    """Stop where our sessions do: at the template's end of a reply, which need not be the tokenizer's end of a text."""
    end, *others = stop_token_ids(tokenizer, template)
    pad, ends = tokenizer.pad_token_id, [end, *others] if others else end
    entries = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": end if pad is None else pad,
    }
    return {key: value for key, value in entries.items() if value is not None}


def text_side(tokenizer: PreTrainedTokenizerBase, config: VideoChatOnlineConfig) -> TextSide:
    """Tokenizer and chat template as other programs read them, compared with ours on texts of all kinds.

    Raises:
        CheckpointError: ids differ; a token of pictures is missing; no token can stand for a video.
    """
    visual_token_id(tokenizer)
    template = stored_template(config.template, tokenizer)
    copy = fast_copy(tokenizer) if isinstance(tokenizer, SentencePieceTokenizer) else tokenizer
    if not isinstance(copy, PreTrainedTokenizerFast):
        raise CheckpointError(f"tokenizer: expected one that writes tokenizer.json, found {type(copy).__name__}")
    theirs = as_saved(copy)
    check_texts(tokenizer, theirs)
    video_token = _video_token(theirs, config.text_config.vocab_size, template)
    system = template.default_system_message if config.system_message is None else config.system_message
    problems = []
    for start in _starts(theirs):
        source = jinja_template(template, system_message=system, start=start, video_token=video_token)
        try:
            _check_dialogues(tokenizer, template, system, theirs, source)
        except CheckpointError as error:
            problems.append(error)
        else:
            return TextSide(theirs, template, source, _NAMED | {"video_token": video_token})
    raise problems[0]


def _starts(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What may stand before a dialogue: the token that begins a text, and the lone blank that sentencepiece puts there.

    Written by the chat template, as programs do not add the token to what a template has laid out.
    """
    ids = tokenizer("x")["input_ids"]
    begins = tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""
    yield from (f"{begins}{blank}" for blank in ("", " "))


def _video_token(tokenizer: PreTrainedTokenizerFast, vocab_size: int, template: ChatTemplate) -> str:
    """The token that stands for a video until the processor writes its frames; it is never embedded.

    Where the embeddings have no row for one more, a control token that the family's prompts do not hold.
    """
    if token_id(tokenizer, VIDEO_TOKEN) is not None or max(tokenizer.get_vocab().values()) + 1 < vocab_size:
        return VIDEO_TOKEN
    wording = repr(template)
    for token in _STAND_INS:
        if token_id(tokenizer, token) is not None and token not in wording:
            return token
    raise CheckpointError(
        f"tokenizer: expected a token for videos, which transformers' processor asks for: {VIDEO_TOKEN}, a row of the"
        f" embeddings that is free for it, or one of {', '.join(_STAND_INS)}"
    )


def _dialogues() -> Iterator[list[Turn]]:
    for text in PLAIN_TEXTS:
        yield [Turn((text,))]
    yield [Turn(("What is this?",), "A cat."), Turn((" And  that?\n",), " A dog. "), Turn(("你好",))]
    yield [Turn((Visual(4), "\n", "What is this?"), "A cat."), Turn(("And now?",))]
    yield [Turn(("Image-1: ", Visual(4), "\n", "Image-2: ", Visual(4), "\n", "Which one?"))]


def _check_dialogues(
    ours: PreTrainedTokenizerBase, template: ChatTemplate, system: str, theirs: PreTrainedTokenizerFast, source: str
) -> None:
    """Lay out dialogues by our template and by its copy in jinja; a CheckpointError names the first that differs."""
    for turns in _dialogues():
        for given in (None, "You are terse.") if template.takes_system else (None,):
            layout = layout_prompt(
                turns, tokenizer=ours, template=template, system_message=system if given is None else given
            )
            messages = [] if given is None else [{"role": "system", "content": given}]
            messages += [message for turn in turns for message in _messages(turn)]
            text = theirs.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=turns[-1].assistant is None
            )
            picture = f"{IMAGE_START_TOKEN}{IMAGE_CONTEXT_TOKEN * 4}{IMAGE_END_TOKEN}"
            text = text.replace(IMAGE_CONTEXT_TOKEN, picture)
            begins = theirs.bos_token is not None and text.startswith(theirs.bos_token)
            found = theirs(text, add_special_tokens=not begins)["input_ids"]
            compare_ids(text, layout.input_ids, found)


def _messages(turn: Turn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": _parts(turn.user)}]
    if turn.assistant is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.assistant}]})
    return messages


def _parts(segments: Sequence[Segment]) -> list[dict[str, str]] | str:
    if all(isinstance(segment, str) for segment in segments):
        return "".join(str(segment) for segment in segments)
    return [
        {"type": "image"} if isinstance(segment, Visual) else {"type": "text", "text": str(segment)}
        for segment in segments
        if not (isinstance(segment, str) and (segment == "\n" or segment.startswith("Image-")))  # the template's own
    ]


@torch.inference_mode()
def probe_logits(network: PreTrainedModel, config: VideoChatOnlineConfig) -> Tensor:
    """Logits [L, words] of one made-up picture among made-up words: they go through every weight.

    Args:
        network: ours, or transformers' own InternVL of the same weights; its configuration knows <IMG_CONTEXT>.
        config: ours.
    """
    image_token_id = network.config.image_token_id
    generator = torch.Generator().manual_seed(0)
    size, num_visual = config.image_size, config.grid[0] * config.grid[1]
    pixels_1CSS = torch.randn(1, 3, size, size, generator=generator)
    words = torch.randint(config.text_config.vocab_size, (24,), generator=generator)
    words[words == image_token_id] = 0 if image_token_id else 1
    visual = torch.full((num_visual,), image_token_id)
    ids_1L = torch.cat((words[:8], visual, words[8:]))[None]
    output = network(
        input_ids=ids_1L.to(network.device),
        pixel_values=pixels_1CSS.to(network.device, network.dtype),
        attention_mask=torch.ones_like(ids_1L).to(network.device),
        use_cache=False,
    )
    return output.logits[0].float().cpu()


def check_export(directory: str | Path, expected: Tensor, config: VideoChatOnlineConfig, dtype: torch.dtype) -> float:
    """Read an export by transformers alone, and compare the logits.

    Args:
        directory: directory that `export_hf` wrote.
        expected: `probe_logits` of the network that was exported.
        config: its configuration.
        dtype: dtype of its weights.

    Returns:
        The largest difference.

    Raises:
        CheckpointError: it cannot be read, tensors are missing or left over, or logits differ by more than rounding.
    """
    network, report = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=dtype, output_loading_info=True, attn_implementation="sdpa"
    )
    raise_on_difference("transformers' own class does not read the export", report)
    found = probe_logits(network.eval(), config)
    gap = float((found - expected).abs().max())
    allowed = 32 * torch.finfo(dtype).eps * max(1.0, float(expected.abs().max()))
    if not gap <= allowed:
        raise CheckpointError(
            f"transformers' InternVL answers otherwise: logits differ by up to {gap:.3g}, expected at most"
            f" {allowed:.3g}; it does not compute what this language model does around its layers"
        )
    return gap
