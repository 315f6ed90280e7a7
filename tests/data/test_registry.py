from __future__ import annotations

import json
from pathlib import Path

import pytest

from train_cases import dialogue
from videochat_online.data import AnnotationFile, load_registries, parse_row
from videochat_online.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": 2}]', encoding="utf-8")
    return tmp_path


def write(path: Path, **entries: object) -> str:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)


GOOD = {"annotation": "rows.json", "data_root": "videos"}


def test_paths_are_relative_to_the_registry_and_variables_are_filled_in(folder, monkeypatch):
    monkeypatch.setenv("MEDIA", str(folder))
    entry = {"annotation": "rows.json", "data_root": "${MEDIA}/videos", "repeat_time": 0.5, "max_dynamic_patch": 4}
    path = write(folder / "r.json", one=entry, two=GOOD | {"annotation": "${NOT_SET:-rows}.json", "length": 2})
    one, two = load_registries(path)
    assert (one.name, one.data_root, one.repeat_time, one.max_dynamic_patch) == ("one", folder / "videos", 0.5, 4)
    assert (two.annotation, two.repeat_time, two.data_augment) == (folder / "rows.json", 1.0, False)


def test_several_registries_are_read_in_order(folder):
    first, second = write(folder / "r.json", b=GOOD), write(folder / "s.json", a=GOOD)
    assert [entry.name for entry in load_registries(f"{first}, {second}")] == ["b", "a"]
    with pytest.raises(InputError, match="entry 'b' is also in another registry"):
        load_registries(f"{first},{first}")


def test_all_sets_have_weights_or_none(folder):
    path = write(folder / "r.json", a=GOOD | {"weight": 3}, b=GOOD | {"weight": 1})
    assert [entry.weight for entry in load_registries(path)] == [3, 1]
    other = write(folder / "s.json", c=GOOD)
    with pytest.raises(InputError, match="entry 'c': expected weight, as other entries have, found none"):
        load_registries(f"{path},{other}")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"annotation": "rows.json"}, "entry 'x': data_root: expected a text, found none"),
        ({"data_root": "videos"}, "entry 'x': annotation: expected a text, found none"),
        (GOOD | {"annotation": "no.json"}, "entry 'x': annotation: expected a file, found none at .*no.json"),
        (GOOD | {"data_root": "no"}, "entry 'x': data_root: expected a folder, found none at .*no"),
        (GOOD | {"data_root": "${NOT_SET}/a"}, "entry 'x': data_root: .* needs the environment variable NOT_SET"),
        (GOOD | {"repeat_times": 2}, "entry 'x': unknown key 'repeat_times'; did you mean 'repeat_time'"),
        (GOOD | {"repeat_time": 0}, "entry 'x': repeat_time: expected a number of at least 1e-06, found 0"),
        (GOOD | {"repeat_time": True}, "entry 'x': repeat_time: expected a number, found True"),
        (
            GOOD | {"repeat_time": 1e12},
            "entry 'x': repeat_time: expected a number of at most 1,000,000, found 10*\.0",
        ),
        (GOOD | {"weight": 0}, "entry 'x': weight: expected a number of at least 1e-06, found 0"),
        (GOOD | {"weight": float("inf")}, "entry 'x': weight: expected a finite number, found inf"),
        (GOOD | {"weight": 1e-323}, "entry 'x': weight: expected a number of at least 1e-06, found 1e-323"),
        (GOOD | {"weight": 10**400}, r"entry 'x': weight: expected a number, found 10{56}\.\.\.$"),
        (GOOD | {"fps": 10**400}, "entry 'x': fps: expected a number, found 1000"),
        (GOOD | {"fps": 5e-324}, "entry 'x': fps: expected a number of at least 0.001, found 5e-324"),
        (
            GOOD | {"memory": {"name": "pyramid", "capacities": [10**9, 1, 1]}},
            "entry 'x': memory: capacities: expected numbers of at most 1,000,000, and at most 16 of them, found",
        ),
        (
            GOOD | {"memory": {"name": "uniform", "num_frames": 10**12}},
            "entry 'x': memory: num_frames: expected numbers of at most 1,000,000, and at most 16 of them, found",
        ),
        (
            GOOD | {"memory": {"name": "fifo", "capacities": [1] * 17}},
            "entry 'x': memory: capacities: expected numbers",
        ),
        (GOOD | {"weight": 1, "repeat_time": 1}, "entry 'x': expected repeat_time or weight, found both"),
        (GOOD | {"max_dynamic_patch": 1.5}, "entry 'x': max_dynamic_patch: expected a whole number"),
        (GOOD | {"data_augment": "no"}, "entry 'x': data_augment: expected true or false, found 'no'"),
        ("rows.json", "entry 'x': expected an object with annotation and data_root, found str"),
    ],
)
def test_a_bad_entry_is_named(folder, entry, message):
    with pytest.raises(InputError, match=message):
        load_registries(write(folder / "r.json", x=entry))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a registry in JSON"),
        ("[]", "expected a JSON object with one entry a set, found an empty list"),
        ("{}", "found an empty dict"),
        ('{"a": {}, "a": {}}', "'a' appears twice"),
    ],
)
def test_a_file_that_is_no_registry(folder, text, message):
    (folder / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_registries(str(folder / "r.json"))


def test_a_missing_registry(folder):
    with pytest.raises(InputError, match="^[^:]*none.json: expected a registry, found no readable file"):
        load_registries(str(folder / "none.json"))
    with pytest.raises(InputError, match="expected the path of a registry"):
        load_registries(" , ")


def test_rows_of_both_formats_are_the_same(tmp_path):
    rows = [{"q": "你好\n", "n": 1}, {"q": "", "n": [1, 2]}]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "b.jsonl").write_text("\ufeff" + lines + "\n", encoding="utf-8")
    for name in ("a.json", "b.jsonl"):
        file = AnnotationFile(tmp_path / name)
        assert list(file) == rows
        file[0]["n"] = 5
        assert file[0] == rows[0]  # a copy each time: nobody can change a row for the next epoch


@pytest.mark.parametrize("as_lines", [False, True])
def test_bytes_that_are_not_utf8_spoil_their_own_row(tmp_path, as_lines):
    rows = ['{"a": "你"}'.encode(), b'{"a": "caf\xe9"}', b'{"a": "\\ud83d\\ude00"}']
    content = b"\n".join(rows) if as_lines else b"[" + b" ,\n".join(rows) + b" ] \n"
    (tmp_path / "a.json").write_bytes(content)
    file = AnnotationFile(tmp_path / "a.json")
    assert (len(file), file[0], file[2]) == (3, {"a": "你"}, {"a": "😀"})
    with pytest.raises(InputError, match="found a row that is not JSON: 'utf-8' codec can't decode byte 0xe9"):
        file[1]


@pytest.mark.slow
def test_a_line_of_200_mb(tmp_path):
    """Many rows in it, one of which is half of it: that one cannot be used, and says so in a short line."""
    row = json.dumps({"conversations": dialogue("What?", "An answer of some words. " * 20)})
    huge = json.dumps({"conversations": dialogue("What?", "x" * 100_000_000)})
    count = 100_000_000 // len(row)
    path = tmp_path / "a.json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" + ", ".join([row] * count) + ", " + huge + ", " + '{"' + "k" * 10_000_000 + '": 1}' + "]")
    assert path.stat().st_size > 200_000_000
    rows = AnnotationFile(path)
    assert len(rows) == count + 2
    assert parse_row(rows[count - 1], tmp_path).turns[0].assistant.startswith("An answer")
    with pytest.raises(InputError, match="gpt: expected a text of at most 1,000,000 characters, found 100,000,000"):
        parse_row(rows[count], tmp_path)
    with pytest.raises(InputError, match="image_bboxes, messages or prompt/response, found kkk") as raised:
        parse_row(rows[count + 1], tmp_path)
    assert len(str(raised.value)) < 200


def test_broken_annotations(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (
        ("[1, ", "expected a JSON array .* row 1: Expecting value"),
        ('[{"a": 1} {"a": 2}]', "found no comma or end after row 0"),
        ('[{"a": 1},]', "row 1: Expecting value"),
        ('[{"a": 1}]\n[{"a": 2}]', "found more after the array's end"),
        ('[{"a": 1}', "found no comma or end after row 0"),
        ("[" * 100_000, "row 0: maximum recursion depth"),
        ("", "found no rows"),
        ("[]", "found no rows"),
        (" [ ] ", "found no rows"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            AnnotationFile(path)
    path.write_text('{"a": 1}\n{"a":\n3\n', encoding="utf-8")
    file = AnnotationFile(path)
    assert file[0] == {"a": 1}
    with pytest.raises(InputError, match="a row that is not JSON"):
        file[1]
    with pytest.raises(InputError, match="found int"):
        file[2]


@pytest.mark.parametrize("around", ["[%s]", "%s"])
def test_a_row_of_another_format_is_no_object_around_rows(tmp_path, around):
    row = {"videos": [{"path": "a.mp4"}], "turns": [{"role": "user", "content": "What?"}]}
    (tmp_path / "rows.json").write_text(around % json.dumps(row))
    (found,) = AnnotationFile(tmp_path / "rows.json")
    with pytest.raises(InputError, match="found .videos."):
        parse_row(found, tmp_path)


HELD = {"version": 2, "data": [{"conversations": dialogue("a", "b")}] * 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(HELD).encode(), "expected rows, found an object with key 'data' that holds them"),
        (json.dumps([HELD]).encode(), "expected rows, found an object with key 'data' that holds them"),
        (json.dumps(HELD, indent=1).encode(), 'found JSON over lines: \'{ "version": 2, "data": '),
        (json.dumps({"conversations": dialogue("a", "b")}, indent=1).encode(), "found JSON over lines: '{ \"conv"),
        (
            json.dumps([[{"conversations": []}] * 30]).encode(),
            "found none in the first 1: row 0: expected a JSON object",
        ),
        (b"video,question\n" + b"a.mp4,What?\n" * 30, "found none in the first 20: row 0: expected a JSON object"),
        ('[{"conversations": 1}]'.encode("utf-16"), "expected annotations in UTF-8, found UTF-16 or UTF-32"),
        ('[{"conversations": 1}]'.encode("utf-16-be"), "expected annotations in UTF-8, found UTF-16 or UTF-32"),
        ('{"conversations": 1}'.encode("utf-32"), "expected annotations in UTF-8, found UTF-16 or UTF-32"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_as_a_whole(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        AnnotationFile(tmp_path / "a.json")
    assert len(str(raised.value)) < 300


def test_files_whose_form_is_odd_but_clear(tmp_path):
    row = {"conversations": dialogue("a", "b")}
    line = json.dumps(row).encode()
    bom = b"\xef\xbb\xbf"
    for content in (bom + bom + line, bom + bom + b"[" + line + b"]", line, b"[1,\n" + line + b"\n]"):
        (tmp_path / "a.json").write_bytes(content)
        file = AnnotationFile(tmp_path / "a.json")
        assert file[len(file) - 1] == row
