"""Sets that lie elsewhere: annotations and media through fsspec, gzip, and what is said when they are not there."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from train_cases import dialogue, mixed_rows, tiny_encoder, write_media, write_registry
from videochat_online.data import AnnotationFile, Example, TrainingDataset, load_registries
from videochat_online.data.rows.storage import exists, local_copy, location, read_bytes
from videochat_online.errors import InputError, VideoError
from videochat_online.video import open_video


@pytest.fixture
def remote():
    """A folder of fsspec's storage in memory."""
    folder = UPath("memory://storage")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    folder.fs.rm(folder.path, recursive=True)


def upload(source: Path, target: UPath) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            there = target / file.relative_to(source).as_posix()
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(file.read_bytes())


def test_a_set_elsewhere_gives_the_same_examples(tiny_model, remote, tmp_path):
    """Videos, folders of frames, images; registry, zipped annotations and media all in another storage."""
    here = write_registry(tmp_path / "here", write_media(tmp_path / "media"), mixed=mixed_rows())
    upload(tmp_path / "media", remote / "media")
    (remote / "mixed.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, mixed_rows())).encode()))
    entry = {"annotation": "mixed.jsonl.gz", "data_root": "memory://storage/media"}
    (remote / "registry.json").write_text(json.dumps({"mixed": entry}))
    apart = TrainingDataset(load_registries("memory://storage/registry.json"), tiny_encoder(tiny_model))
    local = TrainingDataset(load_registries(str(here)), tiny_encoder(tiny_model))
    assert len(apart) == len(local) == 8
    for number in range(8):
        ours, theirs = apart[number], local[number]
        assert isinstance(ours, Example)
        assert (ours.input_ids, ours.pool_ratios) == (theirs.input_ids, theirs.pool_ratios)
        assert np.array_equal(ours.pixels_TSSC, theirs.pixels_TSSC)


@pytest.mark.parametrize("lines", [True, False])
def test_zipped_annotations(tmp_path, lines):
    rows = [{"a": 1}, {"b": "\u00e9"}]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (tmp_path / "rows.gz").write_bytes(gzip.compress(text.encode()))
    assert list(AnnotationFile(tmp_path / "rows.gz")) == rows


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"[{}]")[:-4], b"\x1f\x8b and no more", gzip.compress(b"[{}]" * 9)[:20]],
    ids=["no length", "no content", "half"],  # the bytes hold the time
)
def test_broken_zips_are_named(tmp_path, content):
    (tmp_path / "rows.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.gz: expected annotations, found a broken gzip file"):
        AnnotationFile(tmp_path / "rows.gz")


def test_media_that_is_not_there_is_named(remote):
    with (
        pytest.raises(VideoError, match="memory://storage/none.mp4: expected a file or folder that can be read"),
        local_copy(remote / "none.mp4"),
    ):
        pass


def test_errors_about_a_copy_name_the_place_and_the_copy_goes(remote):
    (remote / "cut.mp4").write_bytes(b"no video")
    copies = []

    def open_copy() -> None:
        with local_copy(remote / "cut.mp4") as copy:
            copies.append(copy)
            open_video(copy)

    with pytest.raises(VideoError, match=r"^memory://storage/cut.mp4: expected a video file, found something unread"):
        open_copy()
    assert copies[0].suffix == ".mp4"
    assert not copies[0].exists()


def test_a_local_file_is_not_copied(tmp_path):
    with local_copy(tmp_path / "clip.mp4") as copy:
        assert copy == tmp_path / "clip.mp4"


def test_where_a_text_points_to(tmp_path):
    assert location("a/b.mp4", tmp_path) == tmp_path / "a/b.mp4"
    assert location(str(tmp_path / "x"), Path("elsewhere")) == tmp_path / "x"
    assert str(location("b.mp4", UPath("memory://a"))) == "memory://a/b.mp4"
    assert str(location("memory://c/b.mp4", tmp_path)) == "memory://c/b.mp4"
    with pytest.raises(InputError, match="nonsense://a: expected a path or a URL that fsspec knows"):
        location("nonsense://a")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"annotation": "memory://storage/none.json"},
            "annotation: expected a file, found none at memory://storage/none",
        ),
        ({"data_root": "memory://none"}, "data_root: expected a folder, found none at memory://none"),
        ({"annotation": "nonsense://a.json"}, "nonsense://a.json: expected a path or a URL"),
    ],
)
def test_a_registry_names_what_is_not_there(remote, tmp_path, entry, message):
    registry = write_registry(tmp_path, write_media(tmp_path / "media"), one=[{"conversations": dialogue("a", "b")}])
    entries = json.loads(registry.read_text())
    entries["one"] |= entry
    registry.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        load_registries(str(registry))


def test_a_storage_whose_package_is_missing_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for read in (exists, lambda place: read_bytes(place, "annotations")):
        with pytest.raises(InputError, match="s3fs"):
            read(location("s3://bucket/rows.json"))
