"""Parts that can be swapped: where they are found, what can be set of them, and the flags that come of it."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given
from hypothesis import strategies as st

from videochat_online.cli.main import build_parser
from videochat_online.cli.options import add_memory_arguments, add_strategy_arguments, memory_options_of
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.parts import Option, PartKind, make_options, option, options_of

LAMP = '''
from dataclasses import dataclass
from typing import Literal
from videochat_online.parts import option

class Lamp:
    """A part of this test's own kind."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        watts: int = option(40, "power, in W")
        colour: Literal["white", "warm"] = option("white", "of the light")

    def __init__(self, options, *, height):
        self.options, self.height = options, height

    def shine(self):
        return self.options.watts
'''


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """Lamps, of which `desk` is built in; modules of `tmp_path` can be imported as from the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lamps_of_ours.py").write_text(LAMP)
    return PartKind(name="lamp", group="tests.lamps", built_in={"desk": "lamps_of_ours:Lamp"}, methods=("shine",))


def install(folder, name, **lamps):
    """What pip leaves of a package that brings lamps."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{lamp} = {path}" for lamp, path in lamps.items()]
    (info / "entry_points.txt").write_text("\n".join(["[tests.lamps]", *lines]) + "\n")


class TestFound:
    def test_an_entry_point_of_an_installed_package(self, kind, tmp_path):
        (tmp_path / "shop.py").write_text(LAMP)
        install(tmp_path, "shop", floor="shop:Lamp", desk="shop:Lamp")
        assert kind.names() == ("desk", "floor")
        assert kind.find("floor").__module__ == "shop"
        assert kind.find("desk").__module__ == "lamps_of_ours", "a package has taken a built-in name"
        with pytest.raises(InputError, match=r"unknown lamp 'sun': expected one of \['desk', 'floor'\], or package"):
            kind.find("sun")

    def test_a_module_of_the_working_folder(self, kind, tmp_path, monkeypatch):
        inner = tmp_path / "inner"
        (inner / "parcel").mkdir(parents=True)
        (inner / "parcel" / "sold.py").write_text(LAMP + "\nclass Shelf:\n    Top = Lamp\n")
        monkeypatch.setattr("sys.path", [path for path in sys.path if path])
        monkeypatch.chdir(inner)
        assert kind.make("parcel.sold:Shelf.Top", {"watts": 5}, height=2).shine() == 5

    def test_nothing_else_is_looked_for_in_the_working_folder(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.path", [path for path in sys.path if path])
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path / "inner")
        kind.find("desk")
        assert str(tmp_path / "inner") not in sys.path

    @pytest.mark.parametrize(
        ("module", "name", "says"),
        [
            (
                None,
                "absent:Lamp",
                "lamp 'absent:Lamp': expected a module absent that can be imported, found ModuleNotF",
            ),
            ("x = 1 / 0", "it:Lamp", "expected a module it that can be imported, found ZeroDivisionError: division by"),
            ("raise KeyError('a')", "it:Lamp", "expected a module it that can be imported, found KeyError"),
            (None, ":Lamp", "expected a module  that can be imported, found ValueError"),
            (LAMP, "it:Lantern", "lamp 'it:Lantern': expected 'Lantern' in the module it, found none"),
            (LAMP, "it:", "expected '' in the module it, found none"),
            ("from json import dumps", "it:dumps", "expected a lamp with shine, found none of shine"),
            ("import json", "it:json", "expected a lamp with shine, found none of shine"),
            (LAMP.replace("shine", "glow"), "it:Lamp", "expected a lamp with shine, found none of shine"),
            (
                LAMP.replace("options, *, height", "*, watts=1"),
                "it:Lamp",
                r"made of \(options, height=...\), found too",
            ),
            (LAMP.replace("*, height", "*, width"), "it:Lamp", "made of .*, found missing a required .*'width'"),
            (
                LAMP + "Lamp = Lamp(Lamp.Options(), height=1)",
                "it:Lamp",
                "expected a class that is made of .*not a callable",
            ),
            (LAMP.replace('= option(40, "power, in W")', ""), "it:Lamp", "Lamp.Options: expected a default of watts"),
            (
                LAMP.replace("watts: int", "watts: dict"),
                "it:Lamp",
                "expected watts to be an int, float, .*, found .*dict",
            ),
            (LAMP.replace('"white", "warm"', "1, 2"), "it:Lamp", "expected colour to be an int, .*, found .*Literal"),
            (
                LAMP.replace("watts: int", "watts: 'Watts'"),
                "it:Lamp",
                "expected types that can be read, found NameError",
            ),
            (
                LAMP.replace("    @dataclass(frozen=True, kw_only=True)\n", ""),
                "it:Lamp",
                "expected a dataclass of options",
            ),
            ("import sys\nsys.exit(3)", "it:Lamp", "expected a module it that can be imported, found SystemExit: 3"),
            (
                LAMP + "    def __new__(cls, *a, **k):\n        raise KeyError('no bulb')",
                "it:Lamp",
                "lamp 'it:Lamp': expected to be made of its options, found KeyError: 'no bulb'",
            ),
            (LAMP.replace("option(40", "option('dim'"), "it:Lamp", "Lamp.Options: default of watts: expected .*'dim'"),
            (LAMP + "    shine = 5", "it:Lamp", "expected a lamp with shine, found none of shine"),
            (LAMP + "    Options = 5", "it:Lamp", r"it.Lamp.Options: expected a dataclass of options, found 5"),
        ],
    )
    def test_what_is_no_such_part_is_named_in_one_line(self, kind, tmp_path, module, name, says):
        if module is not None:
            (tmp_path / "it.py").write_text(module)
        try:
            with pytest.raises(InputError, match=says) as refused:
                kind.make(name, {}, height=1)
        finally:
            sys.modules.pop("it", None)
        assert "\n" not in str(refused.value)

    def test_an_attribute_may_be_made_with_the_part(self, kind):
        lit = replace(kind, attributes=("height", "glow"))
        with pytest.raises(InputError, match="lamp 'desk': expected a lamp with .*, height, glow, found none of glow$"):
            lit.make("desk", {}, height=3)
        assert replace(kind, attributes=("height",)).make("desk", {}, height=3).height == 3

    def test_options_are_checked_and_those_not_given_have_their_defaults(self, kind):
        made = kind.make("desk", {"watts": 60, "colour": None}, height=3)
        assert (made.options.watts, made.options.colour, made.height) == (60, "white", 3)
        for wrong, says in (
            ({"watts": "60"}, "watts of lamp 'desk': expected a whole number, got '60'"),
            ({"colour": "red"}, "colour of lamp 'desk': expected one of white, warm, got 'red'"),
            ({"size": 1}, "lamp 'desk' does not take size: it takes watts, colour"),
            ({str(n): 1 for n in range(99)}, r"^lamp 'desk' does not take 0, 1, .{,60}\.\.\.: it takes watts, colour$"),
        ):
            with pytest.raises(InputError, match=says):
                kind.make("desk", wrong, height=3)

    def test_a_class_s_own_rule_is_an_error_of_its_options(self):
        class Strict:
            @dataclass(frozen=True, kw_only=True)
            class Options:
                low: int = option(1, "")
                high: int = option(2, "")

                def __post_init__(self):
                    if self.low > self.high:
                        raise ValueError("low above high")

        with pytest.raises(InputError, match="options of a strict one: low above high"):
            make_options(Strict, None, {"low": 3}, "a strict one")
        with pytest.raises(InputError, match=r"options of a strict one: expected .*Strict.Options, got \{\}"):
            make_options(Strict, {}, {}, "a strict one")


NUMBERS = st.floats(-5, 5, allow_nan=False)
WORDS = st.text("abc/ ,.é-", min_size=1).map(str.strip)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (Annotated[int, Ge(2)], st.integers(2)),
    (Annotated[float, Ge(-5), Le(5)], NUMBERS),
    (float | None, NUMBERS),
    (bool, st.booleans()),
    (str, WORDS),
    (Literal["a", "b c"], st.sampled_from(["a", "b c"])),
    (tuple[int, ...], st.lists(st.integers(), min_size=1).map(tuple)),
    (tuple[Annotated[float, Ge(-5)], ...] | None, st.lists(NUMBERS, min_size=1).map(tuple)),
    (tuple[int, int], st.tuples(st.integers(), st.integers())),
    (tuple[Literal["a", "b"], ...], st.lists(st.sampled_from("ab"), min_size=1).map(tuple)),
]
CASES = st.sampled_from(VALUES).flatmap(lambda case: st.tuples(st.just(Option("it", case[0], None, "")), case[1]))


class TestValues:
    @given(CASES)
    def test_what_is_written_is_read_again_and_may_come_as_json(self, case):
        one, value = case
        assert one.parse(one.written(value), "it") == value
        as_json = list(value) if isinstance(value, tuple) else value
        checked = one.check(as_json, "it")
        assert (checked, type(checked)) == (value, type(value))

    @given(st.sampled_from(VALUES), st.one_of(st.none(), st.booleans(), st.floats(), WORDS, st.binary(), st.just({})))
    def test_a_value_is_of_the_type_or_refused(self, case, value):
        one = Option("it", case[0], None, "")
        try:
            checked = one.check(value, "it")
        except InputError as refused:
            assert str(refused).startswith(f"it: expected {one.expected}, got ")  # noqa: PT017
        else:
            assert checked is None or type(checked) is (type(value) if value != {} else None)

    @pytest.mark.parametrize(
        ("annotation", "expected", "wrong"),
        [
            (Annotated[int, Ge(1)], "a whole number of at least 1", [0, True, 1.0]),
            (Annotated[float, Gt(0)], "a number above 0", [0, float("inf"), "1"]),
            (Annotated[float, Ge(0), Le(1)], "a number from 0 to 1", [-0.1, 1.1, float("nan")]),
            (Literal["reference", "paper"], "one of reference, paper", ["papers", 1]),
            (tuple[int, int, int], "3 whole numbers", [(1, 2), 5]),
            (tuple[Annotated[int, Ge(0)], ...], "a list of whole numbers of at least 0 such as 2, 2, 12", [(1, -1), 3]),
            (tuple[str, ...], "a list of texts", ["a", (1,)]),
            (bool, "true or false", [1, "true"]),
            (str | None, "a text", [1]),
        ],
    )
    def test_expected_in_words(self, annotation, expected, wrong):
        one = Option("it", annotation, None, "")
        assert one.expected == expected
        for value in wrong:
            with pytest.raises(InputError, match=f"^it: expected {re.escape(expected)}, got "):
                one.check(value, "it")

    def test_a_text_holds_no_half_of_a_character(self):
        for annotation, wrong in ((str, "a\ud800"), (tuple[str, ...], ["b", "\udfff"])):
            with pytest.raises(InputError, match="^it: expected Unicode text, without halves"):
                Option("it", annotation, None, "").check(wrong, "it")

    def test_a_default_may_be_made_each_time(self):
        class Bank:
            @dataclass(frozen=True, kw_only=True)
            class Options:
                sizes: tuple[int, ...] = field(default_factory=lambda: (1, 2), metadata={"help": "frames"})

        assert [one.default for one in options_of(Bank).values()] == [(1, 2)]
        assert make_options(Bank, None, {"sizes": [3]}, "a bank").sizes == (3,)

    def test_text_is_taken_as_people_write_it(self):
        flag = Option("it", bool, False, "")
        assert [flag.parse(text, "it") for text in ("yes", "true", "1", "no", "False")] == [True] * 3 + [False] * 2
        with pytest.raises(InputError, match="it: expected true or false, got 'perhaps'"):
            flag.parse("perhaps", "it")

    def test_what_the_model_decides_is_of_any_type(self):
        class Bank:
            @dataclass(frozen=True, kw_only=True)
            class Options:
                grids: dict[str, int] | None = option(None, "token grids", from_model=True)

        assert [one.from_model for one in options_of(Bank).values()] == [True]
        assert make_options(Bank, None, {"grids": {"a": 1}}, "a bank").grids == {"a": 1}


@pytest.fixture
def parser():
    made = Parser(prog="it", formatter_class=argparse.RawDescriptionHelpFormatter)
    add_memory_arguments(made)
    add_strategy_arguments(made)
    return made


@pytest.mark.parametrize(("command", "most"), [("chat", 30), ("demo", 33), ("evaluate", 46)])
def test_a_command_has_no_more_flags(command, most):
    """Those of parts and those of every command not counted."""
    commands = next(one for one in build_parser(command)._actions if isinstance(one, argparse._SubParsersAction))
    own = [one for one in commands.choices[command]._actions if one.option_strings and one.help != argparse.SUPPRESS]
    names = {one.option_strings[0] for one in own} - {"-h", "--debug"}
    assert {"--memory", "--strategy", "--model"} < names
    assert len(names) <= most, sorted(names)


class TestFlags:
    def read(self, parser, *words):
        options = parser.parse_args(words)
        return options.memory, memory_options_of(options), options.strategy, options.strategy_options

    def test_a_part_is_named_in_any_way_and_brings_its_flags(self, parser):
        for named in (["--memory=star"], ["--memory", "star"], ["--memory", "window", "--memory=star"]):
            found = self.read(parser, "--memory.key_frames", "2", *named, "--memory.abstract_decay=0.5")
            assert found == ("star", {"key_frames": 2, "abstract_decay": 0.5}, "direct", {})
        both = self.read(parser, "--strategy", "retrieval", "--strategy.retrieved_frames", "3", "--memory", "window 6")
        assert both == ("window", {"num_frames": 6}, "retrieval", {"retrieved_frames": 3})
        assert self.read(parser) == ("pyramid", {}, "direct", {}), "what was said before has stayed"

    def test_help_lists_the_options_of_the_named_part_and_no_other_s(self, parser, capsys):
        for words, there, not_there in (
            (["--memory", "star"], ["--memory.key_frames", "--memory.abstract_decay"], ["capacities", "num_frames"]),
            ([], ["--memory.capacities", "--memory.policy", "frames of each tier"], ["key_frames", "intervals"]),
            (["--strategy", "retrieval"], ["--strategy.retrieved_frames", "(default: 8)"], ["key_frames"]),
        ):
            with pytest.raises(SystemExit, match="0"):
                parser.parse_args([*words, "--help"])
            said = capsys.readouterr().out
            assert [text for text in there if text not in said] == []
            assert [text for text in not_there if text in said] == []

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (
                "--memory star --memory.num_frames 5",
                "--memory.num_frames: expected an option of memory star, --memory.new",
            ),
            ("--memory keep_all --memory.x 5", "--memory.x: expected an option of memory keep_all, which has none"),
            ("--memory star --capacities 1", "--capacities: expected an option of memory star, --memory.newest_frames"),
            ("--key_frames 5", "--key_frames: expected --memory.key_frames in its place"),
            ("--retrieved_frames=5", "--retrieved_frames: expected --strategy.retrieved_frames in its place"),
            ("--memory star --memory.key_frames much", "--memory.key_frames: expected a whole number .*, got 'much'"),
            ("--memory none", "unknown memory 'none'"),
            ("--memory absent.mod:Bank", "memory 'absent.mod:Bank': expected a module absent.mod that can be imported"),
        ],
    )
    def test_a_wrong_flag_is_named(self, parser, words, says):
        with pytest.raises(InputError, match=says):
            parser.parse_args(words.split())

    def test_an_unknown_flag_and_a_shortened_one_end_it(self, parser, capsys):
        for flag in ("--color", "--memor=star"):
            with pytest.raises(SystemExit, match="2"):
                parser.parse_args([flag])
            assert capsys.readouterr().err == f"error: unrecognized arguments: {flag} (see it --help)\n"
