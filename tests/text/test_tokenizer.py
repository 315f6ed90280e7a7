from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from text_tokenizers import IM_MARKERS, PHI3_MARKERS, sentencepiece_model, write_sentencepiece_directory
from videochat_online.constants import SPECIAL_TOKENS
from videochat_online.errors import CheckpointError, InputError
from videochat_online.testing import build_tiny_tokenizer
from videochat_online.text import (
    SentencePieceTokenizer,
    add_special_tokens,
    end_token_id,
    get_template,
    load_tokenizer,
    token_id,
    visual_token_id,
)
from videochat_online.text.control_tokens import encode_with_offsets


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return load_tokenizer(write_sentencepiece_directory(tmp_path_factory.mktemp("phi3")))


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    config = {"tokenizer_class": "InternLM2Tokenizer", "legacy": None, "auto_map": {"AutoTokenizer": ["gone.X", None]}}
    return load_tokenizer(
        write_sentencepiece_directory(tmp_path_factory.mktemp("internlm2"), markers=IM_MARKERS, config=config)
    )


def restated_ids(text: str, tokenizer: SentencePieceTokenizer, *, dummy_prefix: bool) -> list[int]:
    """The algorithm of the pure-Python LlamaTokenizer of transformers 4, spelled out character by character.

    `dummy_prefix`: the old behaviour (`legacy=True`).
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model())
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    added = tokenizer.added_tokens_encoder
    if not text:
        return [1]
    if not dummy_prefix:
        text = "▁" + text.replace("▁", " ")
    parts, plain, place = [], "", 0
    while place < len(text):
        here = [token for token in added if text.startswith(token, place)]
        if not here:
            plain, place = plain + text[place], place + 1
            continue
        longest = max(here, key=len)
        parts += [plain, longest]
        plain, place = "", place + len(longest)
    parts.append(plain)
    for number, part in enumerate(parts[:-1]):
        if part in added and part in PHI3_MARKERS[1:]:
            parts[number + 1] = parts[number + 1].lstrip()
    tokens: list[str] = []
    for part in parts:
        tokens += [part] if part in added else processor.encode(part, out_type=str)
    if not dummy_prefix and len(tokens) > 1 and tokens[0] == "▁" and tokens[1] in tokenizer.all_special_tokens:
        tokens = tokens[1:]
    return [1] + [added.get(token, processor.piece_to_id(token)) for token in tokens]


FRAGMENTS = st.sampled_from(
    [*PHI3_MARKERS, *IM_MARKERS, *SPECIAL_TOKENS[:3], "<s>", "<unk>", "</s>", "<|user|", "<im", "g>"]
    + [" ", "  ", "    ", "\n", "\t", "\u00a0", "\u2003", "\x1c", "▁", "▁▁", "\x00"]
    + ["the cat", "Frame1", "世界", "你好", "😀", "é", "e\u0301", "ß", "<", "|>"]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=6), max_size=10).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_equals_the_tokenizer_of_training(phi3: SentencePieceTokenizer, text: str) -> None:
    expected = restated_ids(text, phi3, dummy_prefix=False)
    assert phi3(text)["input_ids"] == expected
    assert phi3.encode_with_offsets(text)[0] == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_equals_the_older_tokenizer(internlm2: SentencePieceTokenizer, text: str) -> None:
    expected = restated_ids(text, internlm2, dummy_prefix=True)
    assert internlm2(text)["input_ids"] == expected
    assert internlm2.encode_with_offsets(text)[0] == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_offsets_point_at_the_text_of_each_token(phi3: SentencePieceTokenizer, text: str) -> None:
    ids, offsets = phi3.encode_with_offsets(text)
    assert len(ids) == len(offsets)
    covered = 0
    for token, (start, stop) in zip(phi3.convert_ids_to_tokens(ids)[1:], offsets[1:], strict=True):
        assert covered <= start <= stop <= len(text)
        assert not text[covered:start].replace("▁", " ").strip(), (
            "only blanks that a marker swallows belong to no token"
        )
        covered = stop
        if token in phi3.added_tokens_encoder:
            assert text[start:stop] == token
        elif not token.startswith("<0x"):
            assert text[start:stop].replace(" ", "▁") in (token, token.removeprefix("▁"))
    assert not text[covered:].replace("▁", " ").strip()


def test_offsets_where_the_model_rewrites_the_text(tmp_path: Path) -> None:
    # Compatibility characters are decomposed and blanks trimmed: the places are still those of the text.
    options = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "model_type": "unigram"}
    tokenizer = load_tokenizer(write_sentencepiece_directory(tmp_path, **options, vocab_size=340))
    text = "the   ﬁ cat<|end|>\n dog"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer(text)["input_ids"] == ids
    places = dict(zip(tokenizer.convert_ids_to_tokens(ids), offsets, strict=True))
    assert places["<|end|>"] == (text.index("<|end|>"), text.index("\n"))
    assert offsets[-1][1] == len(text)
    starts = [start for start, _ in offsets]
    assert starts == sorted(starts)


def test_blank_after_bos(phi3: SentencePieceTokenizer) -> None:
    def tokens(text: str) -> list[str]:
        return phi3.convert_ids_to_tokens(phi3(text)["input_ids"])

    assert tokens("") == ["<s>"]
    assert tokens("<|user|>\n<|end|>") == ["<s>", "▁", "<|user|>", "<|end|>"], "chat markers are not special tokens"
    assert tokens("<img></img>") == ["<s>", "<img>", "</img>"], "image tokens are"
    assert "".join(tokens(" the")) == "<s>▁▁the"
    assert "".join(tokens("the<|end|>the")) == "<s>▁the<|end|>the"
    assert tokens("▁the") == tokens(" the")


def test_the_longer_of_two_markers_is_meant(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_directory(tmp_path, markers=("<|im", "<|im_end|>", "<|im_")))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<|im_end|><|im_<|im")["input_ids"])
    assert tokens[2:] == ["<|im_end|>", "<|im_", "<|im"]


def test_decoding(phi3: SentencePieceTokenizer) -> None:
    for text in ("", "the cat", " the  cat ", "世界 \n\n x 😀"):
        assert phi3.decode(phi3(text)["input_ids"], skip_special_tokens=True) == text
    ids = phi3("<|user|>\nhi<|end|>\n<|assistant|>\n")["input_ids"]
    assert phi3.decode(ids, skip_special_tokens=True) == "<|user|> hi <|end|> <|assistant|>"
    ids = phi3("a<img><IMG_CONTEXT></img>b")["input_ids"]
    assert phi3.decode(ids, skip_special_tokens=True) == "ab"
    assert phi3.decode(ids) == "<s> a <img> <IMG_CONTEXT> </img> b"
    assert phi3.decode(ids, spaces_between_special_tokens=False) == "<s> a<img><IMG_CONTEXT></img>b"


def test_usual_interface(phi3: SentencePieceTokenizer) -> None:
    batch = phi3(["the cat", "the"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum() == sum(len(phi3(text)["input_ids"]) for text in ("the cat", "the"))
    assert len(phi3) == len(phi3.get_vocab()) == max(phi3.get_vocab().values()) + 1
    assert phi3.encode("the", add_special_tokens=False) == phi3("the")["input_ids"][1:]
    ids = phi3("the<|end|>")["input_ids"]
    mask = phi3.get_special_tokens_mask(ids[1:])
    assert mask == [1] + [0] * (len(ids) - 1)


def same(first: object, second: object) -> bool:
    texts = ["<|user|>\n the  cat<|end|>\n<img><IMG_CONTEXT></img> 世界 <quad>", " x", "<img>", "<|im_start|>\ny"]
    return [encode_with_offsets(first, text) for text in texts] == [encode_with_offsets(second, t) for t in texts]


@pytest.mark.parametrize("kind", ["phi3", "internlm2", "tiny"])
def test_saving_and_loading_again(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = build_tiny_tokenizer() if kind == "tiny" else request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path / "first")
    loaded = load_tokenizer(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    again = load_tokenizer(tmp_path / "second")
    assert same(tokenizer, loaded)
    assert same(tokenizer, again)
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)
    assert len(again) == len(tokenizer)
    assert visual_token_id(again) == visual_token_id(tokenizer)


def test_saved_directory_has_the_original_layout(internlm2: SentencePieceTokenizer, tmp_path: Path) -> None:
    internlm2.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert config["legacy"] is True
    assert config["add_bos_token"] is True
    assert "auto_map" not in config
    assert config["additional_special_tokens"] == list(SPECIAL_TOKENS)
    assert (tmp_path / "tokenizer.model").read_bytes() == sentencepiece_model()


def test_copies_for_worker_processes(phi3: SentencePieceTokenizer) -> None:
    assert same(phi3, pickle.loads(pickle.dumps(phi3)))
    assert same(phi3, copy.deepcopy(phi3))


def test_sequence_tokens_are_as_configured(tmp_path: Path) -> None:
    plain = load_tokenizer(write_sentencepiece_directory(tmp_path / "a"))("the")["input_ids"]
    config = {"add_bos_token": False, "add_eos_token": True}
    directory = write_sentencepiece_directory(tmp_path / "b", config=config)
    # transformers forgets both entries where this file is present; it is not read.
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    tokenizer = load_tokenizer(directory)
    ids, offsets = tokenizer.encode_with_offsets("the")
    assert ids == tokenizer("the")["input_ids"] == plain[1:] + [tokenizer.eos_token_id]
    assert len(ids) == len(offsets)
    assert tokenizer.get_special_tokens_mask(ids[:-1]) == [0] * (len(ids) - 1) + [1]


def test_llama_without_an_entry_is_legacy(tmp_path: Path) -> None:
    assert load_tokenizer(write_sentencepiece_directory(tmp_path, config={"legacy": None})).legacy is True


def test_other_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: expected tokenizer.model.*found no such file"):
        load_tokenizer(tmp_path / "empty")
    broken = write_sentencepiece_directory(tmp_path / "broken")
    (broken / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"broken.*tokenizer_config.json"):
        load_tokenizer(broken)
    (broken / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: expected a JSON object, found no JSON"):
        load_tokenizer(broken)
    (broken / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        load_tokenizer(broken)


def test_vocabulary_files_of_qwen(tmp_path: Path) -> None:
    model = json.loads(build_tiny_tokenizer().backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    ids, offsets = encode_with_offsets(tokenizer, "the person é")
    assert tokenizer.decode(ids) == "the person é"
    assert offsets[-1][1] == len("the person é")


def test_special_tokens_are_added_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_directory(tmp_path / "a", config={"additional_special_tokens": []}))
    assert add_special_tokens(tokenizer) == 0, "they are added tokens already"
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    added = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {
        key: token for key, token in added.items() if token["content"] not in SPECIAL_TOKENS
    }
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"found no <img>, </img>, <IMG_CONTEXT>"):
        visual_token_id(tokenizer)
    size = len(tokenizer)
    assert add_special_tokens(tokenizer) == len(SPECIAL_TOKENS) == len(tokenizer) - size
    assert add_special_tokens(tokenizer) == 0
    assert tokenizer.convert_ids_to_tokens(tokenizer("<img>the")["input_ids"])[:2] == ["<s>", "<img>"]
    tokenizer.save_pretrained(tmp_path / "b")
    assert same(tokenizer, load_tokenizer(tmp_path / "b"))


def test_tokens_that_become_special_later_are_treated_as_such(tmp_path: Path) -> None:
    """A tokenizer that was used before is as one that was not."""
    directory = write_sentencepiece_directory(tmp_path)
    changes: list[Callable[[SentencePieceTokenizer], object]] = [
        lambda tokenizer: tokenizer.add_tokens(["<late>"]),
        lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["<later>"]}),
        lambda tokenizer: setattr(tokenizer, "pad_token", "<late>"),
        lambda tokenizer: setattr(tokenizer, "extra_special_tokens", []),
    ]

    def seen(tokenizer: SentencePieceTokenizer) -> list[Any]:
        ids = tokenizer.convert_tokens_to_ids(["<s>", "<late>", "a", "<later>", "a"])
        texts = [f"{token}a" for token in ("<late>", "<later>")]
        return [tokenizer.decode(ids), *(encode_with_offsets(tokenizer, text) for text in texts)]

    used = load_tokenizer(directory)
    found = [seen(used)]
    for count, change in enumerate(changes, start=1):
        change(used)
        fresh = load_tokenizer(directory)
        for earlier in changes[:count]:
            earlier(fresh)
        found.append(seen(used))
        assert found[-1] == seen(fresh)
        assert found[-1] != found[-2], "a change that shows nowhere"


def test_id_of_a_token(phi3: SentencePieceTokenizer) -> None:
    assert phi3.convert_ids_to_tokens(visual_token_id(phi3)) == "<IMG_CONTEXT>"
    assert token_id(phi3, "<unk>") == 0
    assert token_id(phi3, "<nothing>") is None


def test_end_of_a_reply(phi3: SentencePieceTokenizer, internlm2: SentencePieceTokenizer) -> None:
    template = get_template("phi3-chat")
    end = end_token_id(phi3, template)
    assert phi3.convert_ids_to_tokens(end) == "<|end|>"
    with pytest.raises(InputError, match=r"'phi3-chat'.*'<\|end\|>'"):
        end_token_id(internlm2, template)


def test_tokenizers_without_places_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="load_tokenizer.*found Slow"):
        encode_with_offsets(Slow(), "x")  # type: ignore[arg-type]


def test_tiny_tokenizer() -> None:
    tokenizer = build_tiny_tokenizer(["purple elephants"] * 9, vocab_size=500)
    assert len(tokenizer) <= 500
    assert tokenizer.get_vocab() == build_tiny_tokenizer(["purple elephants"] * 9, vocab_size=500).get_vocab()
    text = "\x00 é世界😀 <|user|"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<|user|>\nx<img>")["input_ids"])
    assert tokens == ["<s>", "<|user|>", "x", "<img>"]
    assert len(tokenizer("purple elephants")["input_ids"]) < len(
        build_tiny_tokenizer()("purple elephants")["input_ids"]
    )
    with pytest.raises(ValueError, match="vocab_size: expected at least 273, found 272"):
        build_tiny_tokenizer(vocab_size=272)
