"""The parser of command lines: flags in full, and those of the parts that a command line names."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from videochat_online.errors import InputError
from videochat_online.parts import Option, PartKind


@dataclass(frozen=True, slots=True)
class _Swappable:
    kind: PartKind
    usual: str
    short: tuple[str, ...]

    @property
    def flag(self) -> str:
        return f"--{self.kind.name}"

    def named_in(self, arguments: Sequence[str]) -> str:
        """The part that a command line names; the last of several, as for any flag."""
        named = self.usual
        for argument, following in zip(arguments, [*arguments[1:], self.usual], strict=False):
            flag, equals, value = argument.partition("=")
            if flag == self.flag:
                named = value if equals else following
        return named.strip().partition(" ")[0]  # a label of tables has sizes behind the name


class Parser(argparse.ArgumentParser):
    """Takes flags in full: the beginning of one may be another flag, here or in the next version.

    What can be set of a part is a flag, too, once the command line says which part: `--memory star --memory.key_frames
    5`. `--help` lists those of the part that is named.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self._swappable: list[_Swappable] = []

    def add_part(
        self,
        kind: PartKind,
        usual: str,
        purpose: str,
        *,
        short: Sequence[str] = (),
        **options: Any,
    ) -> argparse._ArgumentGroup:
        """Take `--memory NAME` and the flags of that memory, of which `memory_options` is made; their group.

        Args:
            kind: kind of the part.
            usual: name of the part whose flags are taken where none is named.
            purpose: what the part is for.
            short: options that have a flag by their mere name, too.
            options: further arguments of `add_argument`, for the flag that names the part.
        """
        self._swappable.append(_Swappable(kind, usual, tuple(short)))
        said = f"{purpose}: {', '.join(kind.names())}, or package.module:Name (default: {usual})"
        group = self.add_argument_group(kind.name)
        group.add_argument(f"--{kind.name}", metavar="NAME", help=said, **options)
        return group

    def add_replaced(self, flag: str, now: str) -> None:
        """Refuse a flag that was there before, whatever is behind it, in a line that names what is given instead."""
        self.add_argument(flag, action=_Refuse, nargs="*", const=now, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, with the flags of the parts that are named.

        Raises:
            InputError: no such part, a flag that it has not, or a value that does not fit.
        """
        if not self._swappable:
            return super().parse_known_args(args, namespace)
        namespace = argparse.Namespace() if namespace is None else namespace
        # With the flags of this command line's parts: the next one may name others.
        parser = copy.deepcopy(self)
        parser._swappable = []
        for part in self._swappable:
            setattr(namespace, f"{part.kind.name}_options", {})
            parser._add_options(part, args or [])
        namespace, rest = parser.parse_known_args(args, namespace)
        self._refuse_unknown(rest, args or [])
        return namespace, rest

    def _add_options(self, part: _Swappable, arguments: Sequence[str]) -> None:
        name = part.named_in(arguments)
        group = self.add_argument_group(f"{part.kind.name} {name}")
        for one in part.kind.options_of(name).values():
            if one.from_model:
                continue
            default = "" if one.default is None else f" (default: {one.written(one.default)})"
            group.add_argument(
                f"{part.flag}.{one.name}",
                *([f"--{one.name}"] if one.name in part.short else []),
                action=_StoreOption,
                dest=f"{part.kind.name}_options",
                default=argparse.SUPPRESS,
                const=one,
                nargs="+" if one.is_list else None,
                metavar="VALUE",
                help=f"{one.help}; {one.expected}{default}".replace("%", "%%"),
            )

    def _refuse_unknown(self, rest: Sequence[str], arguments: Sequence[str]) -> None:
        """Say which flags a part has in place of one that it has not."""
        for flag in (argument.partition("=")[0] for argument in rest if argument.startswith("--")):
            for part in self._swappable:
                named = part.named_in(arguments)
                if flag.startswith(f"{part.flag}.") or flag[2:] in part.short:
                    own = [
                        f"{part.flag}.{one.name}" for one in part.kind.options_of(named).values() if not one.from_model
                    ]
                    expected = f"an option of {part.kind.name} {named}, {', '.join(own) or 'which has none'}"
                    raise InputError(f"{flag}: expected {expected}")
                has = [name for name in (named, *part.kind.built_in) if flag[2:] in part.kind.options_of(name)]
                if has:
                    whose = "" if has[0] == named else f", an option of {part.kind.name} {has[0]}"
                    raise InputError(f"{flag}: expected {part.flag}.{flag[2:]} in its place{whose}")

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong; exit status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _Refuse(argparse.Action):
    """Ends in a line that names what takes the flag's place, the action's `const`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        parser.error(f"{option_string}: expected {self.const} in its place")


class _StoreOption(argparse.Action):
    """A value of a part, as its `Option`, the action's `const`, reads it."""

    const: Option

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        text = " ".join(values) if isinstance(values, list) else values
        getattr(namespace, self.dest)[self.const.name] = self.const.parse(text, str(option_string))
