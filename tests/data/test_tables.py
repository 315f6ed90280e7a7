"""CSV and parquet files: the same rows as JSON lines that say the same; what is wrong is told by file, or by row."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from train_cases import dialogue, tiny_encoder, write_media, write_registry
from videochat_online.data import AnnotationFile, Example, TrainingDataset, load_registries
from videochat_online.data.rows.row_formats import RowParser
from videochat_online.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"video": "clip.mp4", "conversations": dialogue("What?", "That, é.", times=(1.5,)), "clip": [0, 3], "fps": 2},
    {"image": ["image0.png", "image1.png"], "conversations": dialogue("Two?\n\nYes.", 'A "b".'), "width": [80, 80]},
    {"prompt": "[1, 2] is a list", "response": "[3, 4]", "system": "{no JSON"},
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "need_reset_timestamp": True,
    },
]
COLUMNS = list(dict.fromkeys(key for row in ROWS for key in row))


def as_csv(rows: list[dict[str, Any]], columns: list[str], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter=delimiter)
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "ROWS.CSV.gz", "memory"])
def test_csv_holds_the_rows_of_json(tmp_path, name):
    content = b"\xef\xbb\xbf" + as_csv(ROWS, COLUMNS, "\t" if "tsv" in name else ",")
    path = UPath("memory://tables/rows.csv") if name == "memory" else tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    file = AnnotationFile(path)
    assert (len(file), list(file), file[2]) == (4, ROWS, ROWS[2])


def test_parquet_holds_the_rows_of_json(tmp_path):
    """Arrow writes a null for each key that a row, a message or a part lacks; other tools write lists as JSON texts."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: the extra `dev` has it")
    pyarrow = pytest.importorskip("pyarrow")
    parts = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What?"}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[1:]}], "fps": 2.0},
        {"messages": [{"role": "user", "content": parts[1:]}, {"role": "assistant", "content": parts[1:]}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows * 600), tmp_path / "a.parquet", row_group_size=7)
    assert list(AnnotationFile(tmp_path / "a.parquet")) == rows * 600
    texts = {
        "QA": json.dumps([{"q": "a", "a": "b"}]),
        "start": datetime.time(0, 1, 5),
        "end": Decimal("70.5"),
        "image": None,
    }
    parquet.write_table(pyarrow.Table.from_pylist([texts | {"video": "v"}]), tmp_path / "named_otherwise")
    (row,) = AnnotationFile(tmp_path / "named_otherwise")
    assert row == {"QA": [{"q": "a", "a": "b"}], "start": "00:01:05", "end": 70.5, "video": "v"}
    sample = RowParser().parse(row, Path())
    assert sample.clip_s == (65, 70.5)
    media = [{"messages": [], "images": [{"bytes": b"PNG", "path": "a.png"}]}, {"messages": []}]
    parquet.write_table(pyarrow.Table.from_pylist(media), tmp_path / "b.parquet")
    file = AnnotationFile(tmp_path / "b.parquet")
    with pytest.raises(
        InputError, match="^images: expected texts, numbers and lists, found bytes; of media, the paths"
    ):
        file[0]
    assert file[1] == {"messages": []}
    parquet.write_table(pyarrow.table({"clip_name": ["a"], "caption": ["b"]}), tmp_path / "c.parquet")
    with pytest.raises(
        InputError, match=r"c.parquet: expected columns conversations, QA, .* found columns clip_name, capt"
    ):
        AnnotationFile(tmp_path / "c.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"c.parquet: expected parquet, found one that cannot be read \("):
        AnnotationFile(tmp_path / "c.parquet")


def test_parquet_of_what_no_row_can_hold(tmp_path):
    """A column twice, bytes that are no text, a date that Python has none of: not a traceback, and nothing is lost."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names, texts = ["prompt", "response", "response"], [pyarrow.array(["a"])] * 3
    odd = {
        "bytes": pyarrow.Array.from_buffers(
            pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
        ),
        "far": pyarrow.array([10**14], pyarrow.timestamp("s")),
    }
    tables = {"twice": pyarrow.Table.from_arrays(texts, names=names)}
    tables |= {name: pyarrow.table({"prompt": ["a"], "response": ["b"], "id": cell}) for name, cell in odd.items()}
    for name, said in (("twice", "expected each column once, found response twice"), *dict.fromkeys(odd, "").items()):
        parquet.write_table(tables[name], tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match=said or r"expected parquet, found one that cannot be read"):
            AnnotationFile(tmp_path / f"{name}.parquet")


def test_parquet_without_its_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError,
        match=r"a\.parquet: parquet: expected pyarrow, which is not installed: pip install '.*\[parquet\]'",
    ):
        AnnotationFile(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "video,question,answer\na.mp4,What?,That.\n",
            "expected columns conversations, .* found columns video, question, an",
        ),
        ("prompt,answer\na,b\n", "expected columns .*prompt/response, found columns prompt, answer"),
        ("prompt:response\na:b\n", "found columns prompt:response"),
        ("prompt,response,Prompt\na,b,c\n", "expected one column prompt, found Prompt, too"),
        ("prompt,response,prompt\na,b,c\n", "expected each column once, found prompt again"),
        ("prompt,,response\na,b,c\n", "expected a name for each column, found none for column 2"),
        ("", "found no rows|expected columns"),
        ("prompt,response\n", "expected annotations, found no rows"),
        ('prompt,response\na,"b\n', "2: expected a row of CSV, found one that cannot be read: unexpected end of d"),
        (
            "prompt,response\na\n",
            "found none in the first 1: row 0: rows.csv:2: expected 2 cells, as the first row has, found 1",
        ),
    ],
)
def test_a_table_that_holds_no_rows_is_refused_as_a_whole(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^[^:]*rows\.csv:.*({message})") as raised:
        AnnotationFile(tmp_path / "rows.csv")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("head", "delimiter", "index", "behind"),
    [
        ("Video,PROMPT,response", ",", "", ""),
        ("sep=;\r\nvideo;prompt;response", ";", "", ""),
        ('"sep=|"\r\nvideo|prompt|response', "|", "", ""),
        ("\r\n,video,prompt,response,,", ",", "0,", ",,"),
        ('"video"\t"prompt"\t"response"', "\t", "", ""),
        ("video, prompt, response", ", ", "", ""),
    ],
    ids=["capitals", "sep", "sep quoted", "index and empty columns", "tabs", "spaces"],
)
def test_csv_as_programs_write_it(tmp_path, head, delimiter, index, behind):
    rows = [["v", '"Two; or,|\tthree\nlines?"', "That."], ["w", "What?", '"A ""b""."']]
    lines = [head, *(index + delimiter.join(row) + behind for row in rows), delimiter.strip(" ") * 2, "", ""]
    (tmp_path / "rows.csv").write_bytes("\r\n".join(lines).encode())
    assert list(AnnotationFile(tmp_path / "rows.csv")) == [
        {"video": "v", "prompt": "Two; or,|\tthree\nlines?", "response": "That."},
        {"video": "w", "prompt": "What?", "response": 'A "b".'},
    ]


def test_spaces_of_a_text_stay(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,response\n a , b\nc, \n")
    assert list(AnnotationFile(tmp_path / "rows.csv")) == [{"prompt": " a ", "response": " b"}, {"prompt": "c"}]


def test_csv_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_bytes("prompt,response\ncafé,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"rows\.csv:2: expected text in UTF-8, found byte 0xe9 \(spreadsheets"):
        AnnotationFile(tmp_path / "rows.csv")


def test_a_broken_line_spoils_its_own_row(tmp_path):
    lines = [
        "video,conversations,fps,label",
        f'v,"{json.dumps(dialogue("a", "b")).replace(chr(34), chr(34) * 2)}",2,TRUE',
        "v,\"[{'from': 'human'}]\",,",
        "v,x",
        "",
        f"v,hi,fast,{'y' * 200_000}",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    before = csv.field_size_limit(1234)
    file = AnnotationFile(tmp_path / "rows.csv")
    assert csv.field_size_limit(before) == 1234
    assert (len(file), file[0]["fps"], file[0]["label"]) == (4, 2, True)
    with pytest.raises(
        InputError, match="conversations: expected JSON, found .*: Expecting property name enclosed in doub"
    ):
        file[1]
    with pytest.raises(InputError, match="expected 4 cells, as the first row has, found 2"):
        file[2]
    assert (file[3]["conversations"], file[3]["fps"], len(file[3]["label"])) == ("hi", "fast", 200_000)


def test_sets_in_tables_are_trained_on_as_those_in_json(tiny_model, tmp_path):
    media = write_media(tmp_path / "media")
    rows = [{"video": "clip.mp4", "prompt": f"What {n}?", "response": "That.", "timestamps": f"0:0{n}"} for n in (1, 2)]
    path = write_registry(tmp_path, media, json=rows, csv=rows)
    (tmp_path / "rows.csv").write_bytes(as_csv(rows, list(rows[0])))
    entries = json.loads(path.read_text())
    entries["csv"]["annotation"] = "rows.csv"
    path.write_text(json.dumps(entries))
    data = TrainingDataset(load_registries(str(path)), tiny_encoder(tiny_model))
    assert [count.rows for count in data.counts().values()] == [2, 2]
    lengths = data.estimate_lengths()
    for number in range(2):
        first, second = data[number], data[number + 2]
        assert isinstance(first, Example)
        assert isinstance(second, Example)
        assert first.input_ids == second.input_ids
        assert len(first) <= lengths[number] == lengths[number + 2]
