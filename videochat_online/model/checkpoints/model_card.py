"""The model card of a folder: a README.md with front matter, for the Hub and for whoever finds the folder.

Says what is known and no more: no path of a file, nothing of whoever made it. A README.md that is there is never
changed; a card that comes with a model is carried over to its copies in other layouts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from videochat_online.model.checkpoints.weight_files import is_hub_name
from videochat_online.runs.markdown import markdown_table
from videochat_online.runs.provenance import versions

CARD = "README.md"
PACKAGES = ("torch", "transformers", "peft", "deepspeed")
_LOAD = "## Load"
_NATIVE = """\
import videochat_online as vco

session = vco.StreamingSession(vco.load_model("NAME"))
session.push(frames.pixels_THWC, frames.times_s)  # of vco.read_video
print(session.ask("What just happened?").text)
"""
_HF = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("NAME")
processor = AutoProcessor.from_pretrained("NAME")
"""
_LOADING = {"native": _NATIVE, "original": _NATIVE, "hf": _HF}


def write_card(
    directory: str | Path,
    layout: str,
    *,
    base: str | Path | None = None,
    sections: Mapping[str, str] | None = None,
    source: str | Path | None = None,
) -> bool:
    """Write the card of a model, unless there is a README.md.

    Args:
        directory: directory of the model.
        layout: "native", "original" or "hf", of which its library and how to load it follow.
        base: the model it was trained from; a name on the Hub is named in the front matter, a folder by its own name.
        sections: heading -> Markdown, in order, such as what it was trained on.
        source: folder of the same model in another layout, whose card is carried over.

    Returns:
        Whether one was written.
    """
    path = Path(directory) / CARD
    if path.exists():
        return False
    card = _card_of(source)
    data = card.data if card is not None else ModelCardData()
    data.library_name = "transformers" if layout == "hf" else "videochat-online"
    data.pipeline_tag = "image-text-to-text" if layout == "hf" else "video-text-to-text"
    data.tags = [*dict.fromkeys([*(data.tags or ()), "videochat-online", "video", "streaming"])]
    if base is not None and is_hub_name(base):
        data.base_model = str(base)
    elif (of_base := _card_of(base)) is not None:
        data.license = data.license or of_base.data.license
        data.base_model = data.base_model or of_base.data.base_model
    text = card.text if card is not None else _body(base, sections or {})
    load = f"{_LOAD}\n\n```python\n{_LOADING[layout]}```\n"
    section = re.compile(rf"^{_LOAD}$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    text = section.sub(lambda _: f"{load}\n", text, count=1) if section.search(text) else f"{text.rstrip()}\n\n{load}"
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n", encoding="utf-8")
    return True


def _card_of(folder: str | Path | None) -> ModelCard | None:
    """The card that lies in a folder; none where its front matter is not to be read."""
    path = None if folder is None else Path(folder).expanduser() / CARD
    if path is None or not path.is_file():
        return None
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, TypeError, YAMLError):
        return None


def _body(base: str | Path | None, sections: Mapping[str, str]) -> str:
    lines = ["# An online video language model", ""]
    if base is not None:
        lines += [f"Trained from {public(str(base))} with VideoChat-Online.", ""]
    lines += ["License: to be filled in by whoever publishes this, in the front matter too.", ""]
    for heading, text in sections.items():
        lines += [f"## {heading}", "", text.strip(), ""]
    found = {name: number for name, number in versions(PACKAGES).items() if number}
    lines += [_LOAD, "", "## Versions", "", ", ".join(f"{name} {number}" for name, number in found.items()), ""]
    return "\n".join(lines)


def public(value: Any) -> str:
    """A value as a card may say it: of a path its last part alone, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{public(key)} {public(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(public, value))
    text = " ".join(str(value).split())
    is_path = isinstance(value, str) and not is_hub_name(text) and ("/" in text or "\\" in text)
    return PurePath(text.replace("\\", "/")).name if is_path else text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; columns are the keys of the first."""
    return markdown_table(list(rows[0]), [[public(row.get(name, "")) for name in rows[0]] for row in rows], "---")
