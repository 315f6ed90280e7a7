"""Memories as tables print them, pasted back: `pyramid 2/2/12`, `2/2/12`."""

from __future__ import annotations

import pytest

from videochat_online.cli.options import add_memory_arguments, memory_options_of
from videochat_online.cli.parser import Parser
from videochat_online.errors import InputError
from videochat_online.evaluation.protocol import resolve_protocol
from videochat_online.memory import MEMORIES
from videochat_online.memory.labels import label_of, parse_label


def given(*words):
    """The memory that a command line names, and what it says about it."""
    parser = Parser()
    add_memory_arguments(parser)
    options = parser.parse_args(words)
    return options.memory, memory_options_of(options)


@pytest.mark.parametrize("memory", MEMORIES.built_in)
@pytest.mark.parametrize("more", [{}, {"merged_frames": 3}])
def test_a_label_says_what_it_was_made_of(memory, more):
    """Whatever a memory's sizes are called, its label on the command line gives the same memory again."""
    made = resolve_protocol("streaming", memory=memory, memory_options=more if "moviechat" in memory else None)
    label = label_of(memory, made.memory_options)
    name, options = given("--memory", label)
    again = resolve_protocol("streaming", memory=name, memory_options=options)
    assert (again.memory, again.memory_options) == (memory, made.memory_options)
    assert label_of(name, again.memory_options) == label


@pytest.mark.parametrize(
    ("memory", "name"),
    [
        (memory, name)
        for memory in MEMORIES.built_in
        for name, one in MEMORIES.options_of(memory).items()
        if one.is_list and not one.from_model
    ],
)
@pytest.mark.parametrize(
    "words", [("1", "0", "4"), ("1/0/4",), ("1,0,4",), ("1, 0, 4",), ("1/0", "4"), (" 1 / 0 /4 ",)]
)
def test_lists_are_written_in_any_of_three_ways(memory, name, words):
    assert given("--memory", memory, f"--memory.{name}", *words)[1] == {name: (1, 0, 4)}
    if name == "capacities":
        assert given("--memory", memory, "--capacities", *words)[1] == {name: (1, 0, 4)}


CAPACITIES = "a list of whole numbers of at least 0 such as 2, 2, 12"


def test_what_is_no_list():
    for words, said in (
        (["--capacities", "2/x/12"], f"--capacities: expected {CAPACITIES}, got '2/x/12'"),
        (["--memory.capacities", "2/-2/12"], f"--memory.capacities: expected {CAPACITIES}, got '2/-2/12'"),
        (["--capacities", "/"], f"--capacities: expected {CAPACITIES}, got '/'"),
        (["--capacities", "2//12"], f"--capacities: expected {CAPACITIES}, got '2//12'"),
        (["--capacities", "2", ",", ",", "12"], f"--capacities: expected {CAPACITIES}"),
        (["--memory", "pyramid /2/12"], f"sizes of pyramid: expected {CAPACITIES}, got '/2/12'"),
        (
            ["--memory", "event_merging", "--memory.penalty_weights", "1/2"],
            "--memory.penalty_weights: expected 3 numbers of at least 0, got '1/2'",
        ),
        (["--memory", "pyramid 2/2/12 + retrieval 8"], f"sizes of pyramid: expected {CAPACITIES}"),
        (["--memory", "window 2/x"], "sizes of window: expected a list of whole numbers such as 2, 2, 12, got '2/x'"),
        (["--memory", "window 2/2"], "'window 2/2': expected at most 1 sizes \\(num_frames\\) of window, got 2"),
        (["--memory", "keep_all 2"], "expected no sizes of keep_all, got 1"),
        (
            ["--memory", "pyramid 2/2/12", "--capacities", "4/4/16"],
            "--memory.capacities: expected nothing else than 'pyramid' says",
        ),
    ):
        with pytest.raises(InputError, match=said):
            given(*words)
    assert given("--memory", "pyramid 2/2/12", "--capacities", "2/2/12") == ("pyramid", {"capacities": (2, 2, 12)})
    with pytest.raises(InputError, match="unknown memory 'nothing'"):
        parse_label("nothing 2/2")
