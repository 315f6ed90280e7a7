"""What all runs share: their folders, files that are whole, rows, and how two runs differ."""

from __future__ import annotations

import json
import os

import pytest

from videochat_online.errors import InputError
from videochat_online.runs.files import read_object, write_json, write_text, written_whole
from videochat_online.runs.row_file import RowFile
from videochat_online.runs.run_folder import MOST_NAMED, MOST_TOLD, RunFolder, differences, in_one_line


class TestFiles:
    def test_a_write_that_fails_leaves_what_was_there(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        write_text(tmp_path / "file", "old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "file", "new")
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}

    def test_an_error_names_the_file_that_was_to_be_written(self, tmp_path):
        (tmp_path / "folder").mkdir()
        for path in (tmp_path / "none" / "file", tmp_path / "folder"):
            with pytest.raises(OSError, match=f"'{path}'$"):
                write_text(path, "new")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_a_link_stays_one_and_a_device_is_written_to(self, tmp_path):
        (tmp_path / "link").symlink_to("file")
        for text in ("old", "new"):
            write_text(tmp_path / "link", text)
            assert (tmp_path / "file").read_text() == text
        assert (tmp_path / "link").is_symlink()
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_text(tmp_path / "pipe", "piped")
        assert os.read(reader, 9) == b"piped"
        os.close(reader)

    def test_two_may_write_one_file_at_once(self, tmp_path):
        with written_whole(tmp_path / "file") as first, written_whole(tmp_path / "file") as second:
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "file").read_text() == "first"

    def test_half_a_character_comes_back_as_it_was(self, tmp_path):
        write_json(tmp_path / "file", {"path": "a\udc80é"})
        assert json.loads((tmp_path / "file").read_text("utf-8")) == {"path": "a\udc80é"}

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (None, r"found no readable file \(No such file"),
            (b"{", "found no JSON: "),
            (b"\xff{}", "found no JSON: "),
            (b"[" * 50_000, "found no JSON: "),
            (b"\xef\xbb\xbf[]", "found list"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path, content, found):
        if content is not None:
            (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError, match=f"file: expected settings, {found}"):
            read_object(tmp_path / "file", "settings")


def test_broken_lines_can_be_left_out(tmp_path):
    (tmp_path / "rows").write_text('{"id": 1}\n{"id": {"id": 2}\n{"row": 3}\n{"id": 4}\n{"id": 5}')
    file = RowFile(tmp_path / "rows", key="id")
    assert file.readable_rows() == [{"id": 1}, {"id": 4}]
    with pytest.raises(InputError, match="rows line 2: expected a JSON object with 'id'"):
        file.rows()


class TestFolder:
    class Folder(RunFolder):
        flag = "--there"

    def test_what_a_killed_process_left_is_not_in_the_way(self, tmp_path):
        for name in (".lock", ".run.json.1a2b.partial"):
            (tmp_path / name).touch()
        self.Folder(tmp_path).check_free()
        for name in ("notes.txt", "b"):
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=r"found 2 other files \(b\); choose another --there"):
            self.Folder(tmp_path).check_free()
        (tmp_path / "run.json").touch()
        self.Folder(tmp_path).check_free()

    def test_a_damaged_file_of_a_run_is_an_error(self, tmp_path):
        folder = self.Folder(tmp_path)
        assert folder.read("report.json") is None
        (tmp_path / "report.json").write_text('{"finished": tr')
        with pytest.raises(InputError, match=r"report.json: expected a JSON object, found no JSON"):
            folder.read("report.json")


class TestDifferences:
    def test_each_value_is_named_by_where_it_is(self):
        was, now = {"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 1, "c": [1]}, "e": "text"}
        assert in_one_line(differences(was, now)) == 'a.c was [1, 2], now [1]; e was null, now "text"'

    def test_of_long_values_both_ends_are_shown(self):
        ((name, was, now),) = differences({"path": "/" + "a" * 300 + "/one"}, {"path": "/" + "a" * 300 + "/two"})
        assert (name, was[:3], was[-5:], now[-5:]) == ("path", '"/a', '/one"', '/two"')
        assert max(map(len, (was, now))) < 200

    def test_the_first_have_values_and_the_others_names(self):
        was = {f"key{number:02}": number for number in range(MOST_NAMED + 2)}
        told = in_one_line(differences(was, {}))
        assert told.count(" was ") == MOST_TOLD
        assert told.endswith(f", key{MOST_NAMED - 1}, 2 more differ")
        few = dict(list(was.items())[: MOST_TOLD + 1])
        assert in_one_line(differences(few, {})).endswith(f"; and key0{MOST_TOLD} differ")
