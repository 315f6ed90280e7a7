"""Memories as tables print them, pasted back: `pyramid 2/2/12`, `2/2/12`."""

from __future__ import annotations

import argparse

import pytest
from videochat_online.memory.settings import MEMORY_SETTINGS, label_of, parse_label

from videochat_online.cli.options import add_memory_arguments, memory_options_of
from videochat_online.errors import InputError
from videochat_online.evaluation.protocol import resolve_protocol
from videochat_online.memory import MEMORY_BANKS


def given(*words):
    """The memory that a command line names, and what it says about it."""
    parser = argparse.ArgumentParser()
    add_memory_arguments(parser)
    options = parser.parse_args(words)
    return options.memory, {name: value for name, value in memory_options_of(options).items() if value is not None}


@pytest.mark.parametrize("memory", MEMORY_BANKS)
@pytest.mark.parametrize("more", [{}, {"merged_frames": 3}])
def test_a_label_says_what_it_was_made_of(memory, more):
    """Whatever a memory's sizes are called, its label on the command line gives the same memory again."""
    made = resolve_protocol("streaming", memory=memory, memory_options=more if "moviechat" in memory else None)
    label = label_of(memory, made.memory_options)
    name, options = given("--memory", label)
    again = resolve_protocol("streaming", memory=name, memory_options=options)
    assert (again.memory, again.memory_options) == (memory, made.memory_options)
    assert label_of(name, again.memory_options) == label


@pytest.mark.parametrize("name", [name for name, setting in MEMORY_SETTINGS.items() if setting.num_values is not None])
@pytest.mark.parametrize(
    "words", [("1", "0", "4"), ("1/0/4",), ("1,0,4",), ("1, 0, 4",), ("1/0", "4"), (" 1 / 0 /4 ",)]
)
def test_lists_are_written_in_any_of_three_ways(name, words):
    assert given(f"--{name}", *words)[1] == {name: [1, 0, 4]}


def test_what_is_no_list():
    for words, said in (
        (["--capacities", "2/x/12"], "--capacities: expected whole numbers such as 2, 2, 12, got '2/x/12'"),
        (["--capacities", "/"], "--capacities: expected whole numbers"),
        (["--capacities", "2//12"], "--capacities: expected whole numbers such as 2, 2, 12, got '2//12'"),
        (["--capacities", "2", ",", ",", "12"], "--capacities: expected whole numbers"),
        (["--memory", "pyramid /2/12"], "sizes of pyramid: expected whole numbers such as 2, 2, 12, got '/2/12'"),
        (["--penalty_weights", "1/2"], "--penalty_weights: expected 3 numbers, got '1/2'"),
        (["--memory", "pyramid 2/2/12 + retrieval 8"], "sizes of pyramid: expected whole numbers"),
        (["--memory", "window 2/2"], "'window 2/2': expected at most 1 sizes \\(num_frames\\) of window, got 2"),
        (["--memory", "keep_all 2"], "expected no sizes of keep_all, got 1"),
        (
            ["--memory", "pyramid 2/2/12", "--capacities", "4/4/16"],
            "--capacities: expected nothing else than 'pyramid'",
        ),
    ):
        with pytest.raises(InputError, match=said):
            given(*words)
    assert given("--memory", "pyramid 2/2/12", "--capacities", "2/2/12") == ("pyramid", {"capacities": [2, 2, 12]})
    assert parse_label("nothing 2/2") == ("nothing 2/2", {})
