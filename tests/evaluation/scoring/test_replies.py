"""Replies as models word them: every letter is read alike, and a benchmark that is answered right scores 100."""

from __future__ import annotations

import random
import re

import pytest

from reply_styles import STYLES, reply
from videochat_online.evaluation import get_task, parse_answer
from videochat_online.evaluation.scoring.parse import parse_reply
from videochat_online.evaluation.scoring.replies import conclusion

# Some begin with an article, one within another.
OPTIONS = (
    "A person walks across", "The red cup of tea", "sitting down", "a blue car", "An empty street", "A cup",
    "walking", "Yes",
    "none of them",
)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_each_letter_is_read_alike(style):
    for count in range(2, 10):
        letters = "ABCDEFGHI"[:count]
        for place, letter in enumerate(letters[:8]):
            text = reply(style, letter, "A" if place else "B")
            assert parse_answer(text, OPTIONS[:count]) == place, (text, count)


def test_a_ninth_letter_is_read_where_it_cannot_be_the_pronoun():
    unread = {style for style in STYLES if parse_answer(reply(style, "I", "B"), OPTIONS) != 8}
    assert {parse_answer(reply(style, "I", "B"), OPTIONS) for style in unread} == {None}
    # "I would be my choice", "The answer is I man".
    assert len(unread) <= 8 < 113 <= len(set(STYLES))
    assert parse_answer("I think it is (B), I am sure.", OPTIONS) == 1
    assert parse_answer("I really think so", OPTIONS) is None


@pytest.mark.parametrize(
    "text",
    [
        "a man", "A man", "A man walks.", "A family is eating", "A butterfly lands", "A series of events",
        "A bus stops",
        "A very tall man", "A fully dressed man", "A best man stands", "A sports car", "A 3 year old", "A unicorn",
        "A one-way street", "A MAN WALKS", "THE MAN HAS A PLATE", "There is A man", "Answer: A man walks",
        "Answer: a man",
        "The answer is a man.", "The answer is: a man", '"A man walks."', "(A man walks)", "A woman, then a man",
        "In the video a man walks", "He has a", "A can of soda", "Make A Comfortable Gerbil Home", "A note: nothing",
        "E.g. the man", "He's a U.S. citizen", "At 5 a.m. he wakes", "C'est la vie", "the A-frame house", "déjà vu",
        "I wouldn't go with A", "I would never choose A.", "I don't think it's A", "I would rule out A",
        "A and B are wrong", "not A or B", "neither A nor B", "A B", "(A) (B)", "A-C",
        "Option A and option C are correct",
        "The answer is A or B", "<think>A, surely", "<think>maybe D</think>", "A.B.C.D.", "",
        "The answer cannot be A", "Anything but D", "Everything other than B", "Is it B? No.", "A or maybe B",
        "It's 20 \u2103", "in C++ code", "a B-52", "<|channel|>analysis<|message|>The answer is B", "No, A man walks",
        "But it's a man",
    ],
)  # fmt: skip
def test_an_article_a_denial_and_several_letters_are_no_answer(text):
    assert parse_answer(text, ("plates", "sitting", "hammer", "truck", "sofa")) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        # The article of an option's text, whole or cut, is no letter; nor is what an option's text says of answers.
        ("The answer is A hammer.", 2), ("Answer: A hammer", 2), ("I would go with A hammer here.", 2),
        ("B. Yes, the answer is A cup", 1), ("(B) Yes, the answer is A cup.", 1),
        ("A. Yes, the answer is A cup", 0), ("D. (E) The pantry", 3), ("It is (E) The pantry.", 3),
        ("The answer is E.", 4),
        ("A hammer on a table. So C", 2), ("Is B right? No. Option C", 2), ("Not a hammer but the plates", 0),
        ("A. the plates. Option B shows a dog.", 0),
    ],
)  # fmt: skip
def test_the_words_of_an_option_are_no_letters(text, place):
    options = ("the plates", "Yes, the answer is A cup", "A hammer", "(E) The pantry", "A hammer on the table")
    assert parse_answer(text, options) == place


def test_options_that_are_letters():
    options = ("D", "C", "B", "A")
    for place, (letter, text) in enumerate(zip("ABCD", options, strict=True)):
        for style in ("{}. {}", "({}) {}", "{}: {}", "The answer is {}, {}.", "Option {} ({}) is correct."):
            assert parse_answer(style.format(letter, text), options) == place
        assert parse_answer(letter, options) == place


def test_options_in_another_order_move_the_answer():
    draw = random.Random(0)
    for style in STYLES:
        order = draw.sample(range(5), 5)
        place = draw.randrange(5)
        options = tuple(OPTIONS[old] for old in order)
        for text, moved in ((style, style), ("It shows {text}.", "It shows {text}.")):
            before = parse_answer(reply(text, "ABCDE"[order[place]], "F", OPTIONS[order[place]]), OPTIONS[:5])
            after = parse_answer(reply(moved, "ABCDE"[place], "F", options[place]), options)
            assert (before, after) == (order[place], place), text
    assert parse_answer("a cup", ("a cup", "a dog", "a cup")) is None


def test_what_is_not_the_answer_of_a_reply_is_left_out():
    assert conclusion("<think>D</think> A</s>") == "A"
    assert conclusion("D</think>A") == conclusion("<think>a <think>b</think> c</think>A") == "A"
    assert conclusion("B <think>no <answer>D</answer>, never closed") == "D"
    assert conclusion("<answer></answer> B") == "B"
    assert conclusion("<answer>C</answer> <answer>A</answer> B") == "A"
    assert conclusion("2 < 3 <3 <B> \\boxed{} x") == "2 < 3 <3 <B> \n{} x"
    assert conclusion("<b>A") == "A"


CHATTY = (
    "The answer is ({X}).", "Option {X} best describes the video.", "{X}. {text}",
    "<think>maybe {other}</think><answer>{X}</answer>",
    "**{X}**", "I would go with {X} here.", "({x})", "({X}) {text}", "The correct answer is {X}: {text}", "{X}</s>",
    "Based on the video, the answer is {X} because it fits.", "Answer: {X}\nExplanation: a man walks.",
    "{X} {text}", "{X}",
)  # fmt: skip
CHATTY_TEXT = ("{text}", "The answer is {text}.", "<answer>{text}</answer>")
CHATTY_YES_NO = (
    "{text}", "{text}.", "**{text}**", "{text}, it is.", "The answer is {text}.", "I would say {text}.",
    "Answer: {text}",
    "<think>yes or no?</think>{text}", "<answer>{text}</answer>", "{text}</s>",
    "The man is not here yet. Answer: {text}",
)  # fmt: skip
CHATTY_COUNT = (
    "{text}", "{text}.", "{text} times", "**{text}**", "The answer is {text}.", "One of the men does it {text} times.",
    "<think>1, 2, 3 or 4</think>{text}", "<answer>{text}</answer>", "{text}</s>", "Answer: {text} times in 10 seconds",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sets(shared):
    folder = shared / "benchmarks" / "streamingbench"
    yield "ovbench", sorted((shared / "ovbench").rglob("*.json"))
    yield "ovobench", [shared / "benchmarks" / "ovo" / "ovo_bench_new.json"]
    yield "streamingbench", [folder / f"questions_{kind}.json" for kind in ("real", "omni", "sqa", "proactive")]


@pytest.mark.parametrize(("task", "fewest"), [("ovbench", 1400), ("ovobench", 3035), ("streamingbench", 4233)])
def test_a_benchmark_answered_right_in_any_style_scores_100(shared_dir, task, fewest):
    """Each question in some of the styles, each style on thousands of questions: all right answers are read."""
    paths = dict(sets(shared_dir))[task]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"no annotations of {task} in shared/")
    questions = {
        question.id: question
        for path in paths
        for video in get_task(task).load([path]).videos
        for question in video.questions
        if question.kind != "open"
    }
    assert len(questions) >= fewest
    for number, question in enumerate(questions.values()):
        place, options = question.answer_index, question.options
        if question.kind == "choice":
            right, other = "ABCDEFGHI"[place], "ABCDEFGHI"[(place + 1) % len(options)]
            styles = [CHATTY[number % len(CHATTY)]]
            # A text that two options have, but for its signs, does not say which is meant.
            plain = [re.sub(r"[^a-z0-9]+", " ", option.casefold()) for option in options]
            if plain.count(plain[place]) == 1:
                styles.append(CHATTY_TEXT[number % len(CHATTY_TEXT)])
            replies = [reply(style, right, other, options[place]) for style in styles]
        elif question.kind == "yes_no":
            replies = [reply(style, "", "", options[place]) for style in CHATTY_YES_NO]
        else:
            replies = [reply(style, "", "", text) for style in CHATTY_COUNT for text in (str(place), NUMBERS[place])]
        for text in replies:
            assert parse_reply(text, options, question.kind) == place, (text, options)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Yes", 0), ("no.", 1), ("**Yes**, he is.", 0), ("No, he is not; yes would be wrong.", 1), ("Y", 0), ("(n)", 1),
        ("I would say yes", 0), ("The answer is: No", 1), ("", None), ("Maybe", None), ("Yes or no", None),
        ("no and yes", None), ("It is yes or it is no", None), ("nothing", None), ("N/A", None), ("Not yet", 1),
        ("Why", None), ("Yes/No", None), ("yes / no", None), ("I would not say yes", None), ("It is not yes.", None),
        ("I don't think yes", None), ("I would not really say yes", None),
        ("I would not, in all honesty, say yes", None),
        ("Not yet.", 1), ("Nope", 1), ("Nah.", 1), ("Yeah", 0), ("Yep, he is", 0), ("True", 0), ("False.", 1),
        ("Never.", 1),
        ("Not really", 1), ("Absolutely not.", 1), ("I don't think so.", 1), ("It is true", 0),
        ("It is not true", None),
        ("True or false", None), ("Not sure", None), ("No idea", None), ("No doubt, yes", 0), ("I cannot say no", None),
        ("I am not sure, but yes", 0), ("There is no man. Answer: Yes", 0), ("The answer is: not yet", 1),
        ("The answer is not yes", None), ("<think>yes</think>No", 1), ("yes, no</think><answer>Yes</answer>", 0),
        ("Yes<|im_end|>", 0), ("\\boxed{No}", 1), ("Neither yes nor no", None), ("I do not see him, so no", 1),
        ("Yes, no doubt", 0),
    ],
)  # fmt: skip
def test_yes_or_no(text, meant):
    assert parse_reply(text, ("Yes", "No"), "yes_no") == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("3", 3), (" 12.", 12), ("They did it 4 times.", 4), ("three times", 3), ("Zero", 0), ("(7)", 7),
        ("2 ... 2", 2), ("", None), ("often", None), ("2 or 3", None), ("3.5", None), ("9" * 30, None),
        ("Once", 1), ("He does it once.", 1), ("once he sits", None), ("once he sits, 3", 3), ("two of 5", None),
        ("twice", 2), ("Thrice!", 3), ("3.0", 3), ("3x", 3), ("3.05", None), ("-3", None), ("3.000", None),
        ("twenty-one", 21), ("Twenty one times.", 21), ("ninety nine", 99), ("forty-two", 42), ("nineteen times", 19),
        ("seventy-ninth", None), ("one hundred", None), ("two dozen", None), ("none", 0), ("No times.", 0),
        ("Never", 0),
        ("zero times", 0), ("not even once", 0), ("He didn't do it once", 0), ("He did not stop, and jumps once", 1),
        ("a single time", 1), ("one", 1), ("Only one time", 1), ("One jump", 1), ("one of the men jumps 3 times", 3),
        ("One man jumps 3 times", 3), ("no one", None), ("The one on the left, 4 times", 4), ("one or two", None),
        ("once or twice", None), ("at once", None), ("once more", None), ("Once, at the start", 1), ("2-3", None),
        ("between 2 and 3", None), ("two to three times", None), ("more than 3", None), ("3 times in 10 seconds", 3),
        ("at 0:05 and 0:10, so 2", 2), ("<think>3 or 4</think>5", 5), ("3 or 4</think>\\boxed{5}", 5),
        ("<think>3", None),
        ("7</s>", 7), ("ninety\u2011nine", 99), ("three (3)", 3), ("x3", 3), ("1,000", None), ("5 s", None),
    ],
)  # fmt: skip
def test_counts(text, meant):
    assert parse_reply(text, (), "count") == meant
