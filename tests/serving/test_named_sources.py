"""What an operator lets viewers watch: which lines are sources, and that nobody reads an address in an error."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest

from clips import write_clip, write_folder
from videochat_online.errors import InputError
from videochat_online.serving.sources.named_sources import NamedSource, read_sources

CAMERA = "rtsp://user:secret@192.168.1.64:554/s1"


@pytest.fixture
def listed(tmp_path):
    def write(text, mode=0o600, encoding="utf-8"):
        path = tmp_path / "sources"
        path.write_text(text, encoding)
        path.chmod(mode)
        return path

    return write


def test_lines_and_arguments(listed, tmp_path):
    clip, frames = write_clip(tmp_path / "a b.mp4"), tmp_path / "frames"
    write_folder(frames)
    file = listed(f"# cameras\n\n  gate = https://user:secret@cam.example/mjpeg?a=b \n\ndoor={CAMERA}\n")
    sources = read_sources([f"clip={clip}", f"frames={frames}", "web-1=http://[::1]:8080/a.mp4"], file)
    assert [(one.name, one.address, one.is_remote) for one in sources] == [
        ("clip", str(clip), False),
        ("frames", str(frames), False),
        ("web-1", "http://[::1]:8080/a.mp4", True),
        ("gate", "https://user:secret@cam.example/mjpeg?a=b", True),
        ("door", CAMERA, True),
    ]
    assert read_sources([], None) == ()


def test_its_text_is_its_name():
    source = NamedSource("door", CAMERA)
    assert [str(source), repr(source), f"{[source]}", f"{source}"] == ["door", "door", "[door]", "door"]
    # A process of its own gets it, address and all.
    assert pickle.loads(pickle.dumps(source)) == source != replace(source, address=f"{CAMERA}2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected NAME=ADDRESS, with a name of a-z, 0-9, _ and -, found another"),
        ("rtsp://user:secret@host/", "expected NAME=ADDRESS"),
        ("rtsp://user:secret@host/?a=b", "expected NAME=ADDRESS"),
        ("=rtsp://user:secret@host/", "expected NAME=ADDRESS"),
        ("Door=rtsp://user:secret@host/", "expected NAME=ADDRESS"),
        ("do or=rtsp://user:secret@host/", "expected NAME=ADDRESS"),
        ("door=", "door: expected a video or a folder of frames, found none that can be read"),
        ("door=nowhere/secret.mp4", "door: expected a video or a folder of frames, found none"),
        ("door=rtsp:/user:secret@host", "door: expected a video or a folder of frames, found none"),
        ("door=ftp://user:secret@host/", "door: expected a path, or one of rtsp://, http://, https:// with a host"),
        ("door=file:///secret", "door: expected a path, or one of"),
        ("door=concat:http://secret", "door: expected a path, or one of"),
        ("door=rtsp://", "door: expected a path, or one of"),
        ("door=rtsp://user:secret@/s1", "door: expected a path, or one of"),
        ("door=rtsp://user:secret@host:99999/", "door: expected a path, or one of"),
        ("door=rtsp://user:pass:word@host:secret/", "door: expected a path, or one of"),
        ("door=rtsp://user:secret@[::1/", "door: expected a path, or one of"),
    ],
)
def test_what_is_no_source(listed, text, says):
    with pytest.raises(InputError) as caught:
        read_sources([text], None)
    assert str(caught.value).startswith(f"--source: {says}")
    assert "secret" not in f"{caught.value}{caught.value.__cause__}"
    assert "\n" not in str(caught.value)
    if text:
        file = listed(f"# one\n{text}\n")
        with pytest.raises(InputError, match=f"^--sources {re.escape(str(file))}, line 2: {says}"):
            read_sources([], file)


def test_each_name_once(listed):
    with pytest.raises(InputError, match="^--source: expected each name once, found door twice$"):
        read_sources([f"door={CAMERA}", f"door={CAMERA}2"], None)
    with pytest.raises(InputError, match="line 1: expected each name once, found door twice"):
        read_sources([f"door={CAMERA}"], listed(f"door={CAMERA}"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_file_that_others_can_read(listed, mode):
    with pytest.raises(InputError, match=f"expected a file that others cannot read, mode 600, found {mode:o}$"):
        read_sources([], listed(f"door={CAMERA}", mode))


def test_what_is_no_file_of_sources(listed, tmp_path):
    for path, cause in [
        (tmp_path / "nowhere", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (listed("door=/ü", encoding="latin-1"), "other bytes than UTF-8"),
    ]:
        with pytest.raises(InputError) as caught:
            read_sources([], path)
        assert str(caught.value) == f"--sources {path}: expected a file of NAME=ADDRESS lines, found {cause}"
