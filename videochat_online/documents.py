"""Documents that cross a boundary, checked by pydantic; what is wrong with one is said in one line.

A document of our own is a `Document`, which takes no other keys than its fields. Rows and annotations of others are
checked value by value, with `validated`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from videochat_online.errors import InputError, cut, shown

STRICT = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
"""Values of the very type, and no keys but the known ones."""

MAX_TEXT = 1_000_000
"""Characters of one text: tens of times the longest prompt. Tokenizing more can take minutes."""

MAX_TIME_S = 1e6
"""Eleven days: no video is that long, and a larger number is a time in other units."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
"""A text that a tokenizer takes: UTF-8 holds no half of a surrogate pair, and pydantic refuses one."""
TimeS = Annotated[float, Field(ge=0, le=MAX_TIME_S)]
"""A time in seconds."""


class Document(BaseModel):
    """A JSON object of our own."""

    model_config = STRICT


def validated(kind: Any, value: Any, where: str = "") -> Any:
    """A value of a type, checked strictly.

    Args:
        kind: a `Document`, or any type that pydantic knows, with bounds.
        value: what was found, as `json.loads` gives it.
        where: what errors call it.

    Raises:
        InputError: the first thing that is wrong, as `fault_of` says it.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(fault_of(error, value, where, kind)) from error


def fault_of(error: ValidationError, value: Any, where: str = "", kind: Any = None) -> str:
    """The first fault of a value in one line: `generation.top_p: expected a number of at least 0, found -1`.

    Args:
        error: what pydantic said of the value.
        value: the value, in which the fault is looked for.
        where: what the line calls the value.
        kind: type that the value should have had, whose fields are named where there is another.
    """
    faults = error.errors(include_url=False)
    path = _path(faults[0], value)
    # Members of a union are one fault each.
    same = [fault for fault in faults if _path(fault, value) == path]
    name = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")
    name, reason = cut(" ".join(name.split())), _reason(same)
    if faults[0]["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name, reason = "", f"unknown field {name}: expected one of {', '.join(_fields(kind, path[:-1]))}"
    return ": ".join(filter(None, (where, name, reason)))


def _fields(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the fields of the document that lies there in one of that kind."""
    for one in (*path, None):
        if get_origin(kind) in (Union, UnionType):
            kind = next((member for member in get_args(kind) if _is_document(member)), None)
        if one is None:
            break
        if isinstance(one, int):
            kind = get_args(kind)[0] if get_args(kind) else None
        else:
            kind = kind.model_fields[one].annotation if _is_document(kind) else None
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return [field.alias or name for name, field in kind.model_fields.items()] if _is_document(kind) else ["those known"]


def _is_document(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@functools.lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=None if _is_document(kind) else STRICT)


def _path(fault: ErrorDetails, value: Any) -> tuple[str | int, ...]:
    """Keys and indices that lead to a fault; pydantic names members of unions among them, which no value has."""
    path: list[str | int] = []
    for one in fault["loc"]:
        try:
            value = value[one]
        except (KeyError, IndexError, TypeError):
            if fault["type"] != "missing" or one != fault["loc"][-1]:
                continue
        path.append(one)
    return tuple(path)


def _reason(faults: Sequence[ErrorDetails]) -> str:
    kind, found = faults[0]["type"], faults[0]["input"]
    if kind == "value_error":  # a validator's own words
        return str(faults[0]["ctx"]["error"])
    expected = " or ".join(dict.fromkeys(map(_expected, faults)))
    if kind in ("string_too_long", "too_long", "string_too_short", "too_short", "bytes_too_long") and found:
        return f"expected {expected}, found {len(found):,}"
    return f"expected {expected}, found {'none' if kind == 'missing' else shown(found)}"


_EXPECTED = {
    "missing": "a value",
    "string_type": "a text",
    "string_unicode": "Unicode text, without halves of surrogate pairs",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "none_required": "none",
    "greater_than": "a number above {gt:,.12g}",
    "greater_than_equal": "a number of at least {ge:,.12g}",
    "less_than": "a number below {lt:,.12g}",
    "less_than_equal": "a number of at most {le:,.12g}",
    "string_too_short": "a text of at least {min_length:,} characters",
    "string_too_long": "a text of at most {max_length:,} characters",
    "too_short": "at least {min_length:,} of them",
    "too_long": "at most {max_length:,} of them",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a value",
}
"""What is expected where pydantic finds an error, by its type."""


def _expected(fault: ErrorDetails) -> str:
    known = _EXPECTED.get(fault["type"])
    if known is None:
        return fault["msg"].removeprefix("Input should be ")
    words = {
        name: value.replace("' or '", "', '").replace("'", "") if isinstance(value, str) else value
        for name, value in fault.get("ctx", {}).items()
    }
    return known.format(**words)
