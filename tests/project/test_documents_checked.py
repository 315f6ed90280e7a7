"""What is wrong with a document, in one line: the place, what was expected, what was found."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from videochat_online.documents import Document, Text, TimeS, validated
from videochat_online.errors import InputError


class Inner(Document):
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Outer(Document):
    name: Text
    key: int | str = 1
    time_s: TimeS = 0.0
    kind: Literal["a", "b", "c"] = "a"
    is_on: bool = True
    clip: list[float] | None = None
    inner: Inner = Inner()
    several: list[Inner] = []


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "name: expected a text, found none"),
        ({"name": None}, "name: expected a text, found none"),
        ({"name": "\ud800"}, "name: expected Unicode text, without halves of surrogate pairs, found '\\ud800'"),
        ({"name": "x" * 1_000_001}, "name: expected a text of at most 1,000,000 characters, found 1,000,001"),
        ({"name": "", "key": 1.5}, "key: expected a whole number or a text, found 1.5"),
        ({"name": "", "key": True}, "key: expected a whole number or a text, found True"),
        ({"name": "", "time_s": -1}, "time_s: expected a number of at least 0, found -1"),
        ({"name": "", "time_s": float("nan")}, "time_s: expected a finite number, found nan"),
        ({"name": "", "time_s": float("inf")}, "time_s: expected a finite number, found inf"),
        ({"name": "", "time_s": True}, "time_s: expected a number, found True"),
        ({"name": "", "time_s": 10**400}, f"time_s: expected a number, found 1{56 * '0'}..."),
        ({"name": "", "kind": "d"}, "kind: expected one of a, b, c, found 'd'"),
        ({"name": "", "is_on": 1}, "is_on: expected true or false, found 1"),
        ({"name": "", "clip": 3}, "clip: expected a list, found 3"),
        ({"name": "", "clip": [1, "2"]}, "clip[1]: expected a number, found '2'"),
        ({"name": "", "inner": {"top_p": 2}}, "inner.top_p: expected a number of at most 1, found 2"),
        ({"name": "", "inner": {"top_k": 2}}, "unknown field 'inner.top_k': expected one of top_p"),
        ({"name": "", "several": [{}, {"top_k": 2}]}, "unknown field 'several[1].top_k': expected one of top_p"),
        (
            {"name": "", "a\nb": 1},
            "unknown field 'a\\nb': expected one of name, key, time_s, kind, is_on, clip, inner, several",
        ),
        ([], "expected an object, found []"),
    ],
)
def test_one_line_names_the_place_and_what_was_expected(document: object, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(Outer, document, "config.json")
    assert str(caught.value) == f"config.json: {expected}"


def test_what_is_right_is_kept_as_it_is() -> None:
    found: Outer = validated(Outer, {"name": "x", "key": "7", "time_s": 3, "several": [{"top_p": 0.5}]})
    assert found == Outer(name="x", key="7", time_s=3.0, several=[Inner(top_p=0.5)])
    assert found.key == "7"
    with pytest.raises(Exception, match="frozen"):
        found.name = "y"  # type: ignore[misc]


def test_values_of_any_type_can_be_checked() -> None:
    assert validated(TimeS, 2, "time_s") == 2.0
    with pytest.raises(InputError, match=r"^row 3: expected a number, found '2'$"):
        validated(TimeS, "2", "row 3")
    with pytest.raises(InputError, match=r"^messages\[1\]: expected a number, found '2'$"):
        validated(list[TimeS], [1, "2"], "messages")
