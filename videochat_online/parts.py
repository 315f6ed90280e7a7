"""Parts that can be swapped: where they are found by name, and what can be set of each.

A name is that of a built-in part, of an entry point of an installed package, or an import path, `package.module:Name`.
What can be set of a part stands in its class once, as `Options`: a frozen, keyword-only dataclass with defaults, whose
fields have `metadata={"help": ...}`. Flags, JSON fields, form fields and tables of the documents are made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from videochat_online.documents import Text, validated
from videochat_online.errors import InputError, cut, one_line, shown

logger = logging.getLogger(__name__)

_NOTHING = object()
_NOUNS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_BOUNDS = {Ge: ("of at least", "ge"), Gt: ("above", "gt"), Le: ("of at most", "le"), Lt: ("below", "lt")}


def option(default: Any, help: str, *, from_model: bool = False) -> Any:  # noqa: A002
    """A field of `Options`.

    Args:
        default: value where none is given.
        help: meaning of the value, with its unit, in a few words.
        from_model: whether the model decides the value: it is then neither a flag nor a field of a form or a document.
    """
    return dataclasses.field(default=default, metadata={"help": help, "from_model": from_model})


@dataclass(frozen=True, slots=True)
class Option:
    """A value that can be set of a part.

    Attributes:
        name: name of the field.
        annotation: type of the value, with its bounds: int, float, str, bool, a `Literal`, a tuple of these, or None.
        default: value where none is given.
        help: meaning in a few words.
        from_model: whether the model decides it.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    from_model: bool = False

    @property
    def is_list(self) -> bool:
        """Whether the value has several parts, as in `2 2 12`."""
        return get_origin(_split(self.annotation)[0]) is tuple

    @property
    def expected(self) -> str:
        """Kind of value that is taken, in words."""
        return _words(self.annotation)

    def check(self, value: Any, name: str) -> Any:
        """A value of a program or of JSON, of the very type; lists count as tuples. `name` is how the error calls it.

        Raises:
            InputError: another type, or out of bounds.
        """
        return self._validated(_as_tuples(value), name, value, is_strict=True)

    def parse(self, text: str, name: str) -> Any:
        """A value as somebody has written it: `0.9`, `paper`, `2 2 12`, `2, 2, 12`, `2/2/12`.

        Raises:
            InputError: it is not of the type, or out of bounds.
        """
        # 2, 2, 12 and 2 / 2 / 12 have blanks about one sign; 2//12 lacks a value.
        parts = tuple(re.split(r"\s*[,/]\s*|\s+", text.strip())) if self.is_list else text.strip()
        return self._validated(parts, name, text, is_strict=False)

    def written(self, value: Any) -> str:
        """A value as `parse` reads it; nothing for None."""
        if value is None:
            return ""
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    def _validated(self, value: Any, name: str, found: Any, *, is_strict: bool) -> Any:
        try:
            checked = _adapter(self.annotation, is_strict).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{name}: expected {self.expected}, got {shown(found)}") from error
        for one in checked if isinstance(checked, tuple) else (checked,):
            if isinstance(one, str):
                validated(Text, one, name)
        return checked


@dataclass(frozen=True)
class PartKind:
    """A kind of part, and where its parts come from.

    Attributes:
        name: what one is called, in flags and errors: "memory".
        group: entry points of packages that bring some.
        built_in: import path of each built-in part, by name. No package can take one of these names.
        methods: what a part must have to be called.
        attributes: what it must have besides, once it is made.
        reserved: names that no option may have: documents and functions that make parts have them beside the options.
    """

    name: str
    group: str
    built_in: Mapping[str, str]
    methods: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ("name",)

    def names(self) -> tuple[str, ...]:
        """Names of all parts but those that an import path alone leads to: built in, then of installed packages."""
        return (*self.built_in, *sorted(set(self._installed()) - set(self.built_in)))

    def find(self, name: str) -> Any:
        """The part of that name.

        Raises:
            InputError: there is none, it cannot be imported, or is no such part.
        """
        path = self.built_in.get(name) or self._installed().get(name)
        if path is None and ":" not in name:
            known = sorted(self.names())
            raise InputError(f"unknown {self.name} {name!r}: expected one of {known}, or package.module:Name")
        if path is None:
            path = name
            if os.getcwd() not in sys.path and "" not in sys.path:
                sys.path.append(os.getcwd())  # the working folder counts, as it does for `python -m`
        found = _imported(path, f"{self.name} {name!r}")
        self._check(found, self.methods, callable, name)
        return found

    def usable(self, **fixed: Any) -> tuple[str, ...]:
        """Those of `names` that can be made; others, which nobody has asked for, are left out with a warning.

        Args:
            fixed: what `make` is given beside options.
        """
        found = list(self.built_in)
        for name in self.names()[len(found) :]:
            try:
                self.make(name, {}, **fixed)
            except InputError as error:
                logger.warning("%s", error)
            else:
                found.append(name)
        return tuple(found)

    def options_of(self, name: str) -> dict[str, Option]:
        """What can be set of the part of that name, by name.

        Raises:
            InputError: those of `find` and `options_of`; an option with a name that is `reserved`.
        """
        found = options_of(self.find(name))
        taken = ", ".join(option for option in found if option in self.reserved)
        if taken:
            raise InputError(f"{self.name} {name!r}: expected options with names of their own, found {taken}")
        return found

    def make(self, name: str, given: Mapping[str, Any], **fixed: Any) -> Any:
        """Make a part of its options, of which those that are None count as not given, and of what is fixed for it.

        Raises:
            InputError: those of `find`; an option that it does not take, or a bad value of one; a part that is made
                in another way.
        """
        part, what = self.find(name), f"{self.name} {name!r}"
        given = {option: value for option, value in given.items() if value is not None}
        check_names(self.options_of(name), given, what)
        options = [make_options(part, None, given, what)] if getattr(part, "Options", None) is not None else []
        try:
            inspect.signature(part).bind(*options, **fixed)
        except (TypeError, ValueError) as error:
            way = ", ".join([*(["options"] if options else []), *(f"{one}=..." for one in fixed)])
            raise InputError(f"{what}: expected a class that is made of ({way}), found {error}") from error
        try:
            made = part(*options, **fixed)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # likewise a stranger's constructor
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{what}: expected to be made of its options, found {reason}") from error
        self._check(made, self.attributes, lambda value: value is not _NOTHING, name)
        return made

    def _check(self, part: Any, names: tuple[str, ...], is_one: Callable[[Any], bool], name: str) -> None:
        try:
            lacking = ", ".join(one for one in names if not is_one(getattr(part, one, _NOTHING)))
        except Exception as error:  # a stranger's property
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{self.name} {name!r}: expected one with {', '.join(names)}, found {reason}") from error
        if lacking:
            expected = ", ".join((*self.methods, *self.attributes))
            raise InputError(f"{self.name} {name!r}: expected a {self.name} with {expected}, found none of {lacking}")

    def _installed(self) -> dict[str, str]:
        return {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=self.group)}


def options_of(part: Any) -> dict[str, Option]:
    """What can be set of a part, by name, from its `Options`; nothing where it has none.

    Raises:
        InputError: `Options` is no dataclass, or has a field without default or of a type that cannot be written down.
    """
    declared = getattr(part, "Options", None)
    if declared is None:
        return {}
    if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        raise InputError(f"{_path(part)}.Options: expected a dataclass of options, found {shown(declared)}")
    return _declared(declared)


def make_options(part: Any, options: Any, given: Mapping[str, Any], what: str) -> Any:
    """The `Options` of a part, each value of its type and within its bounds.

    Args:
        part: class with `Options`.
        options: an instance of it, or None for the defaults.
        given: values in place of those.
        what: how errors call the part: "memory 'window'".

    Raises:
        InputError: `options` of another type, a name that the part does not take, or a value that does not fit.
    """
    known, declared = options_of(part), part.Options
    if not (options is None or isinstance(options, declared)):
        raise InputError(f"options of {what}: expected {declared.__qualname__}, got {shown(options)}")
    values = {name: one.default if options is None else getattr(options, name) for name, one in known.items()}
    check_names(known, given, what)
    for name, value in {**values, **given}.items():
        # What the model decides is the part's own to check: it may be of any type.
        values[name] = value if known[name].from_model else known[name].check(value, f"{name} of {what}")
    try:
        return declared(**values)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's checks of them together
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(f"options of {what}: {kind}{one_line(error)}") from error


def check_names(known: Mapping[str, Option], given: Iterable[str], what: str) -> None:
    """Refuse, with an InputError, names that are none of the options of a part, `what`."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"{what} does not take {cut(', '.join(unknown))}: it takes {', '.join(known) or 'no options'}")


@functools.lru_cache
def _declared(declared: type) -> dict[str, Option]:
    what, found = _path(declared), {}
    try:
        types = get_type_hints(declared, include_extras=True)
    except Exception as error:  # whatever a stranger's annotations say
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{what}: expected types that can be read, found {reason}") from error
    for field in dataclasses.fields(declared):
        is_of_model = bool(field.metadata.get("from_model"))
        try:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        except Exception as error:  # likewise
            raise InputError(f"{what}: default of {field.name}: {type(error).__name__}: {one_line(error)}") from error
        if default is dataclasses.MISSING:
            raise InputError(f"{what}: expected a default of {field.name}, found none")
        if not field.init:
            raise InputError(f"{what}: expected {field.name} to be one that can be set, found init=False")
        if not is_of_model and not _is_known(types[field.name]):
            raise InputError(
                f"{what}: expected {field.name} to be an int, float, str, bool, Literal of texts, or a tuple of one of "
                f"these, found {field.type}"
            )
        help_text = str(field.metadata.get("help", ""))
        one = Option(field.name, types[field.name], default, help_text, is_of_model)
        try:
            if not is_of_model:
                one.check(default, f"default of {field.name}")
        except Exception as error:  # bounds that are none for the type, besides
            raise InputError(f"{what}: {one_line(error)}") from error
        found[field.name] = one
    return found


@functools.lru_cache(maxsize=256)  # a registry's memory is made anew for each row
def _adapter(annotation: Any, is_strict: bool) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=is_strict, allow_inf_nan=False))


def _imported(path: str, what: str) -> Any:
    """What an import path leads to."""
    module, _, attribute = path.partition(":")
    try:
        imported = import_module(module)
    except (Exception, SystemExit) as error:  # a stranger's module may fail in any way
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{what}: expected a module {module} that can be imported, found {reason}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), imported)
    except AttributeError as error:
        raise InputError(f"{what}: expected {attribute!r} in the module {module}, found none") from error
    except Exception as error:  # a module may look its names up by code
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{what}: expected {attribute!r} in the module {module}, found {reason}") from error


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its bounds and without None; its bounds."""
    bounds: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            bounds += tuple(more)
        elif get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
            annotation = Union[tuple(one for one in get_args(annotation) if one is not NoneType)]  # noqa: UP007
        else:
            return annotation, bounds


def _is_known(annotation: Any, *, in_tuple: bool = False) -> bool:
    base = _split(annotation)[0]
    if get_origin(base) is tuple and not in_tuple:
        kinds = [each for each in get_args(base) if each is not Ellipsis]
        return len(set(kinds)) == 1 and _is_known(kinds[0], in_tuple=True)
    return base in _NOUNS or (get_origin(base) is Literal and all(isinstance(one, str) for one in get_args(base)))


def _words(annotation: Any, count: str = "a ") -> str:
    """What a type takes: "a whole number of at least 1", "3 numbers of at least 0", "one of reference, paper"."""
    base, bounds = _split(annotation)
    if get_origin(base) is Literal:
        return f"one of {', '.join(map(str, get_args(base)))}"
    if get_origin(base) is tuple:
        kinds = get_args(base)
        if kinds[-1] is Ellipsis:
            return f"a list of {_words(kinds[0], '')}" + (" such as 2, 2, 12" if _split(kinds[0])[0] is int else "")
        return _words(kinds[0], f"{len(kinds)} ")
    if base is bool or base not in _NOUNS:
        return _NOUNS.get(base, str(annotation))
    noun = count + _NOUNS[base] + ("" if count == "a " else "s")
    limits = {type(bound): getattr(bound, _BOUNDS[type(bound)][1]) for bound in bounds if type(bound) in _BOUNDS}
    if {*limits} == {Ge, Le}:
        return f"{noun} from {limits[Ge]:g} to {limits[Le]:g}"
    return " ".join([noun, " and ".join(f"{_BOUNDS[kind][0]} {limit:g}" for kind, limit in limits.items())]).strip()


def _path(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
