"""Documents that cross a boundary, checked by pydantic; what is wrong with one is said in one line.

A document of our own is a `Document`, which takes no other keys than its fields. Rows and annotations of others are
checked value by value, with `validated`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    create_model,
)

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

Fault = Mapping[str, Any]
"""An error of pydantic: `type`, `loc`, `msg`, `input`, `ctx`."""

_ATTRIBUTE = re.compile(r"^ *([a-z_]+): (.+?)(?=\n *[a-z_]+: |\n *\n|\Z)", re.DOTALL | re.MULTILINE)
"""An attribute in a docstring."""


def one_of(known: Collection[str]) -> AfterValidator:
    """What makes a text one of several names."""

    def checked(text: str) -> str:
        if text not in known:
            raise InputError(f"expected one of {', '.join(known)}, found {shown(text)}")
        return text

    return AfterValidator(checked)


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
    return checker(kind)(value, where)


@functools.lru_cache(maxsize=256)
def checker(kind: Any) -> Callable[[Any, str], Any]:
    """`validated` of one type, for values by the million: looking up a type takes longer than checking a value."""
    if dataclasses.is_dataclass(kind):
        adapter: TypeAdapter[Any] = TypeAdapter(InstanceOf[kind])
    else:
        adapter = TypeAdapter(kind, config=None if _is_document(kind) else STRICT)
    validate = adapter.validator.validate_python

    def check(value: Any, where: str) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise InputError(fault_of(error, value, where, kind)) from error

    return check


def check_dataclass(made: Any, flag: str = "") -> None:
    """Check the fields of a dataclass, of the types and within the bounds that their annotations say.

    Args:
        made: an instance.
        flag: what stands before a field's name in errors, such as "--".

    Raises:
        InputError: names the first field that does not fit.
    """
    kind: Any = type(made)
    for name, hint in _hints(kind).items():
        validated(hint, getattr(made, name), f"{flag}{name}")


def document_of(kind: type, without: Collection[str] = ()) -> type[Document]:
    """A document with the fields of a dataclass, dataclasses in it included.

    Args:
        kind: dataclass whose fields all have defaults, and are described under `Attributes:`.
        without: fields that the document does not take.
    """
    described = dict(_ATTRIBUTE.findall(inspect.getdoc(kind) or ""))
    made: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in without:
            continue
        hint, default = _hints(kind)[field.name], field.default
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            hint = document_of(hint)
            default = hint()
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        made[field.name] = (hint, Field(default, description=" ".join(described.get(field.name, "").split())))
    summary = (kind.__doc__ or "").partition("\n")[0]
    return create_model(f"{kind.__name__}Document", __base__=Document, __doc__=summary, **made)


def fault_of(error: ValidationError, value: Any, where: str = "", kind: Any = None) -> str:
    """The first fault of a value in one line: `generation.top_p: expected a number of at least 0, found -1`.

    Args:
        error: what pydantic said of the value.
        value: the value, in which the fault is looked for.
        where: what the line calls the value.
        kind: type that the value should have had, whose fields are named where there is another.
    """
    return first_fault(error.errors(include_url=False), value, where, kind)


def first_fault(faults: Sequence[Fault], value: Any, where: str = "", kind: Any = None) -> str:
    """As `fault_of`, of the errors themselves."""
    path = _path(faults[0], value)
    # Members of a union are one fault each.
    same = [fault for fault in faults if _path(fault, value) == path]
    name = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")
    reason = _reason(same)
    if faults[0]["type"] == "missing":
        reason = _reason_of_none(_fields_at(kind, path[:-1], faults[0]["loc"]).get(path[-1])) or reason
    if faults[0]["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = ", ".join(map(str, _fields_at(kind, path[:-1], faults[0]["loc"])))
        name, reason = "", f"unknown field {shown(name)}: expected one of {known}"
    if name.startswith("["):  # of a list that `where` names
        where, name = f"{where}{name}", ""
    return ": ".join(filter(None, (where, cut(name), reason)))


def _fields_at(kind: Any, path: Sequence[str | int], names: Sequence[str | int]) -> dict[Any, Any]:
    """Types of the fields of the document that lies there in one of that kind, by name.

    Args:
        kind: type of the whole.
        path: keys and indices that lead to the document.
        names: what pydantic has on its way, which members of unions it took among them.
    """
    fields: dict[Any, Any] = {}
    for one in (None, *path):
        kind = kind if one is None else fields.get(one) if isinstance(one, str) else next(iter(get_args(kind)), None)
        fields = {}
        for member in _members(kind, names):
            if _is_document(member):
                fields = {
                    field.alias or name: field.rebuild_annotation() for name, field in member.model_fields.items()
                }
            elif isinstance(member, type) and dataclasses.is_dataclass(member):
                fields = _hints(member)
    return fields


def _members(kind: Any, names: Sequence[str | int]) -> list[Any]:
    """The members of a union, the one that was taken last; of another type, the type."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return [kind]
    documents = [member for member in get_args(kind) if _is_document(member)]

    def is_named(member: Any) -> bool:
        tags = [tag for field in member.model_fields.values() for tag in get_args(field.annotation)]
        return any(tag in names for tag in (member.__name__, *tags))

    return sorted(documents, key=is_named)


def _reason_of_none(kind: Any) -> str | None:
    """What is said of nothing in place of a value of that type; None where nothing is one."""
    try:
        checker(kind)(None, "")
    except InputError as error:
        return str(error)
    return None


def _is_document(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@functools.lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _path(fault: Fault, value: Any) -> tuple[str | int, ...]:
    """Keys and indices that lead to a fault; pydantic names members of unions among them, which no value has."""
    path: list[str | int] = []
    for one in fault["loc"]:
        try:
            value = value[one]
        except (KeyError, IndexError, TypeError):
            if fault["type"] != "missing" or one != fault["loc"][-1]:
                continue
        path.append(one)
    if fault["type"].startswith("union_tag"):
        path.append(fault["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _reason(faults: Sequence[Fault]) -> str:
    kind, found = faults[0]["type"], faults[0]["input"]
    if kind == "value_error":  # a validator's own words
        return str(faults[0]["ctx"]["error"])
    expected = " or ".join(dict.fromkeys(map(_expected, faults)))
    if kind in ("string_too_long", "too_long", "string_too_short", "too_short", "bytes_too_long") and found:
        return f"expected {expected}, found {len(found):,}"
    if kind in ("missing", "union_tag_not_found"):
        return f"expected {expected}, found none"
    return f"expected {expected}, found {shown(faults[0].get('ctx', {}).get('tag', found))}"


_EXPECTED = {
    "missing": "a value",
    "string_type": "a text",
    "string_unicode": "Unicode text, without halves of surrogate pairs",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "none_required": "none",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a value",
}
"""What is expected where pydantic finds an error, by its type."""


def _expected(fault: Fault) -> str:
    known = _EXPECTED.get(fault["type"])
    if known is None:
        return fault["msg"].removeprefix("Input should be ")
    words = {name: _word(value) for name, value in fault.get("ctx", {}).items()}
    return known.format(**words)


def _word(value: Any) -> str:
    if isinstance(value, str):  # 'a', 'b' or 'c'
        return value.replace("' or '", "', '").replace("'", "")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.12g}" if isinstance(value, float) else str(value)
