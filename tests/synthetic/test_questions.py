"""Questions about synthetic streams: true, balanced, answerable in time, and not answerable without looking."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, islice
from random import Random

import pytest

from heuristics import HEURISTICS, score, score_heuristics
from synthetic_sets import LONG_SEVERAL, MANY_SEVERAL, MANY_SINGLE, all_streams, benchmark_questions
from videochat_online.errors import InputError
from videochat_online.synthetic import (
    PRESETS,
    TEMPLATES,
    Entity,
    Event,
    Scene,
    make_streams,
    replay,
    replay_last_frame,
)
from videochat_online.synthetic.oracle import params_of
from videochat_online.synthetic.questions.question_templates import answer_of, make_question
from videochat_online.synthetic.scene.episodes import BUILDERS
from videochat_online.synthetic.scene.one_shape import AGE_BINS_S, OPTIONS

OVBENCH_TYPES = {
    "FuturePrediction",
    "Hallucination",
    "PastMemory",
    "SpatialPerception",
    "SpatioTemporalPerception",
    "TemporalPerception",
}
WORLDS = {"single": (MANY_SINGLE, set(OPTIONS)), "several": (MANY_SEVERAL, set(BUILDERS))}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return request.param


@pytest.fixture(scope="module")
def sets(world):
    """(train, test) streams with about 5,000 questions each."""
    preset, _ = WORLDS[world]
    return all_streams(preset, "train"), all_streams(preset, "test")


@pytest.fixture(scope="module")
def rows(sets):
    """The questions of both sets as they are written."""
    return tuple([row for stream in streams for row in benchmark_questions(stream)] for streams in sets)


def by_template(streams):
    found = defaultdict(list)
    for stream in streams:
        for question in stream.questions:
            found[question.template].append(question)
    return found


def test_all_six_types_are_asked(world, rows):
    assert {row["template"] for row in rows[1]} == WORLDS[world][1]
    assert {row["answer_type"] for row in rows[1]} == OVBENCH_TYPES
    assert all(row["sub_answer_type"].startswith(row["answer_type"] + "-") for row in rows[1])
    assert len(rows[1]) >= 5000


def test_replaying_the_scene_scores_100(sets):
    for stream in sets[1]:
        assert [replay(stream.scene, row, Random(0)) for row in benchmark_questions(stream)] == [
            row["answer"] for row in benchmark_questions(stream)
        ]


def test_replaying_long_streams_scores_100_and_evidence_is_minutes_old():
    ages_s = Counter()
    for stream in all_streams(LONG_SEVERAL):
        for row in benchmark_questions(stream):
            assert replay(stream.scene, row, Random(0)) == row["answer"]
            ages_s[row["evidence_age_s"]] += 1
    assert {0, 2, 8, 32, 128, 512} <= set(ages_s)


def test_the_last_frame_is_enough_for_now_and_chance_for_the_rest(sets, rows):
    random = Random(0)
    letters = [
        replay_last_frame(stream.scene, row, random) for stream in sets[1] for row in benchmark_questions(stream)
    ]
    for template in {row["template"] for row in rows[1]}:
        chosen = [(letter, row) for letter, row in zip(letters, rows[1], strict=True) if row["template"] == template]
        found = score([ord(letter) - ord("A") for letter, _ in chosen], [row for _, row in chosen])
        if TEMPLATES[template].is_in_frame:
            assert found.accuracy == 1, template
        else:
            assert abs(found.excess) < 3, (template, found)


def test_answers_and_letters_are_balanced(world, sets):
    for template, questions in by_template(sets[1]).items():
        letters = Counter(question.answer_index for question in questions)
        num_options = {len(question.options) for question in questions}
        assert len(num_options) == 1
        assert sorted(letters) == list(range(num_options.pop()))
        if world == "single":
            assert {question.options for question in questions} == {OPTIONS[template]}
            assert len(set(letters.values())) == 1, (template, letters)
            continue
        # A block of cards holds every letter equally often; only the last, unfinished one can differ.
        assert max(letters.values()) - min(letters.values()) <= 4, (template, letters)
        if BUILDERS[template].is_closed:
            cells = Counter((question.answer, question.answer_index) for question in questions)
            assert len(cells) == len(letters) ** 2
            assert max(cells.values()) - min(cells.values()) <= 1, (template, cells)


def test_past_questions_are_balanced_at_every_age():
    streams = list(make_streams(PRESETS["quickstart"], 5, "test"))
    for template in ("first_shape", "first_place"):
        questions = by_template(streams)[template]
        for low_s, high_s in AGE_BINS_S:
            cell = [question for question in questions if low_s < question.evidence_age_s <= high_s]
            assert len(cell) >= 160
            assert Counter(question.answer_index for question in cell) == dict.fromkeys(range(4), len(cell) // 4)


def test_nothing_gives_the_answer_away(rows):
    for name, found in score_heuristics(*rows).items():
        assert abs(found.excess) < 3, (name, found)


def test_heuristics_find_what_there_is_to_find(rows):
    """A letter, an answer, words or a place that do tell."""
    train, test = ([dict(row) for row in part if len(row["options"]) == 4][:800] for part in rows)
    for row in (*train, *test):
        row["answer"] = "ABCD"[len(row["question"]) % 2]
    found = score_heuristics(train, test)
    assert found["bag_of_words"].excess > 20
    assert found["majority_letter"].excess > 3
    for row in (*train, *test):
        row["options"] = ["A. here", "B. there", "C. left", "D. right"]
        row["answer"] = "C"
    assert score_heuristics(train, test)["majority_answer"].accuracy == 1
    for row in test:
        row["options"] = ["A. a b c d e", "B. f b c d e", "C. f g c d h", "D. i j k l m"]
        row["answer"] = "B"
    assert score_heuristics(train, test)["last_place"].excess > 3
    assert set(found) == set(HEURISTICS)


def test_evidence_lies_before_the_question(sets):
    for stream in sets[1]:
        for question in stream.questions:
            assert 0 < question.asked_at_s < stream.scene.duration_s
            assert 0 <= question.evidence_age_s <= question.asked_at_s
            assert TEMPLATES[question.template].is_in_frame is False or question.evidence_age_s == 0


def test_what_comes_later_changes_nothing(sets):
    """Other things happen from the moment of asking on: same answers."""
    random = Random(0)
    for stream in sets[1][:60]:
        for question in stream.questions:
            now_s, scene = question.asked_at_s, stream.scene
            past = tuple(event for event in scene.events if event.start_s <= now_s)
            entity = len(scene.entities)
            extra = (
                Event("appear", entity, now_s + 0.5, now_s + 0.5, random.choice([(0, 0), (1, 1)])),
                Event("move", random.randrange(entity), now_s, now_s + 1, (1, 0)),
                Event("vanish", random.randrange(entity), now_s + 0.1, now_s + 0.1),
                Event("flash", random.randrange(entity), now_s + 0.1, now_s + 1),
            )
            other = replace(scene, entities=(*scene.entities, scene.entities[0]), events=(*past, *extra))
            assert answer_of(other, question.template, now_s, question.params, question.options) == question.answer


def test_predictions_come_true(sets):
    checked = 0
    for stream in sets[1]:
        for question in stream.questions:
            if question.template in ("next_place", "next_cell"):
                later = {"next_place": "where_now", "next_cell": "where_is"}[question.template]
                truth = answer_of(stream.scene, later, question.asked_at_s + 1, question.params, question.options)
                assert truth == question.answer
                checked += 1
    assert checked > 300


def test_scenes_keep_the_rules(world, sets):
    num_moving = num_entities = 0
    for stream in sets[1][:300]:
        scene = stream.scene
        num_entities += len(scene.entities)
        num_moving += len({event.entity for event in scene.events if event.kind == "move"})
        assert list(scene.events) == sorted(scene.events, key=lambda event: event.start_s)
        for time_s in range(int(scene.duration_s)):
            state = scene.state_at(time_s)
            assert len(state) <= (1 if world == "single" else 3)
            cells = [one.cell for one in state if one.cell is not None]
            assert len(set(cells)) == len(cells)
            assert len({scene.entities[one.entity].name for one in state}) == len(state)
        for time_s in (half / 2 for half in range(2 * int(scene.duration_s))):
            for one, other in combinations(scene.state_at(time_s), 2):
                assert math.dist((one.row, one.column), (other.row, other.column)) >= 0.99
        if world == "single":
            assert len(scene.state_at(time_s)) == 1
            assert len({entity.colour for entity in scene.entities}) == len(scene.entities)
    if world == "single":
        assert 0.25 < num_moving / num_entities < 0.35


@pytest.mark.parametrize("preset", [MANY_SINGLE, MANY_SEVERAL], ids=lambda preset: preset.world)
def test_the_seed_decides(preset):
    def streams(seed, split="test"):
        return list(islice(make_streams(preset, seed, split), 10))

    assert streams(1) == streams(1)
    assert streams(1) != streams(2)
    assert [stream.questions for stream in streams(1)] != [stream.questions for stream in streams(1, "train")]


RED_BLOCK, BLUE_DOT = Entity("red", "block"), Entity("blue", "dot")


def make_scene(*events):
    return Scene("scene", 20, 2, (RED_BLOCK, BLUE_DOT), events)


def test_a_question_the_scene_contradicts_is_refused():
    scene = make_scene(Event("appear", 0, 0, 0, (0, 0)))
    question = make_question(scene, "where_now", 5, {}, OPTIONS["where_now"], "left top")
    assert (question.answer, question.evidence_age_s, question.detail) == ("left top", 0, "coarse")
    with pytest.raises(InputError, match=r"where_now at 5 s: expected 'right top' .* the scene says 'left top'"):
        make_question(scene, "where_now", 5, {}, OPTIONS["where_now"], "right top")
    with pytest.raises(InputError, match="the scene says 'left top'"):
        make_question(scene, "where_now", 5, {}, ("right top",), "left top")


SINGLE_SCENE = make_scene(
    Event("appear", 0, 0, 0, (0, 0)),
    Event("move", 0, 3, 4, (0, 1)),
    Event("vanish", 0, 6, 6),
    Event("appear", 1, 6, 6, (1, 0)),
)
SEVERAL_SCENE = Scene(
    "scene",
    20,
    4,
    (Entity("red", "square", "checks", "fine"), Entity("blue", "cross", "weave", "coarse")),
    (
        Event("appear", 0, 0, 0, (0, 0)),
        Event("flash", 0, 1, 2),
        Event("shake", 0, 2, 3),
        Event("vanish", 0, 4, 4),
        Event("appear", 1, 4, 4, (3, 3)),
        Event("pulse", 1, 5, 6),
        Event("hop", 1, 6, 7),
        Event("shake", 1, 7, 11),
    ),
)
RED, BLUE = {"colour": "red", "shape": "square"}, {"colour": "blue", "shape": "cross"}


@pytest.mark.parametrize(
    ("scene", "template", "params", "answer", "age_s", "detail"),
    [
        (SINGLE_SCENE, "where_now", {}, "left bottom", 0, "coarse"),
        (SINGLE_SCENE, "first_shape", {}, "block", 4, "coarse"),
        (SINGLE_SCENE, "first_place", {}, "left top", 7, "coarse"),
        (SINGLE_SCENE, "shape_of_colour", {"colour": "red"}, "block", 4, "coarse"),
        (SINGLE_SCENE, "place_of_colour", {"colour": "red"}, "left top", 7, "coarse"),
        (SINGLE_SCENE, "place_of_colour", {"colour": "blue"}, "left bottom", 0, "coarse"),
        (SINGLE_SCENE, "still_shown", {"colour": "red"}, "No", 0, "coarse"),
        (SINGLE_SCENE, "how_long", {}, "3 or 4 seconds", 4, "coarse"),
        (SINGLE_SCENE, "how_moved", {}, "it stayed", 4, "coarse"),
        (SINGLE_SCENE, "next_place", {}, "left bottom", 2, "coarse"),
        (SEVERAL_SCENE, "pattern_now", BLUE, "weave", 0, "coarse"),
        (SEVERAL_SCENE, "pattern_was", RED, "checks", 6, "fine"),
        (SEVERAL_SCENE, "where_was", {**RED, "seconds": 7}, "row 1 column 1", 7, "coarse"),
        (SEVERAL_SCENE, "first_of", {}, "red square", 6, "coarse"),
        (SEVERAL_SCENE, "flashed", {"seconds": 9}, "red", 8, "coarse"),
        (SEVERAL_SCENE, "how_long_shaking", BLUE, "3 or 4 seconds", 3, "coarse"),
        (SEVERAL_SCENE, "action_order", BLUE, "pulse, hop, shake", 4, "coarse"),
        (SEVERAL_SCENE, "path", BLUE, "row 4 column 4", 4, "coarse"),
        (SEVERAL_SCENE, "still_shaking", RED, "No", 0, "coarse"),
        (SEVERAL_SCENE, "how_many", {}, "1", 0, "coarse"),
    ],
)
def test_labels_say_where_the_evidence_is(scene, template, params, answer, age_s, detail):
    question = make_question(scene, template, 10, params, (answer, "blue cross", "other"), answer)
    assert (question.answer, question.evidence_age_s, question.detail) == (answer, age_s, detail)


def test_questions_are_read_back_from_their_words():
    text = "Where was the red square 12 seconds ago?"
    assert params_of("where_was", text) == {"colour": "red", "shape": "square", "seconds": "12"}
    with pytest.raises(InputError, match="expected 'Which shape was"):
        params_of("shape_of_colour", text)
    with pytest.raises(InputError, match="template: expected one of where_now"):
        params_of("colour_of_shape", text)


def test_a_scene_that_does_not_tell_is_an_error():
    row = {"template": "shape_of_colour", "question": "Which shape was red?", "options": ["A. block", "B. dot"]}
    row |= {"middle_frame_timestamp": 3.0}
    scene = make_scene(Event("appear", 1, 0, 0, (0, 0)))
    with pytest.raises(InputError, match=r"'Which shape was red\?': expected one of .*, the scene says None"):
        replay(scene, row, Random(0))
    assert replay_last_frame(scene, row, Random(0)) in "AB"


def test_heuristics_need_questions(rows):
    with pytest.raises(InputError, match="got 0 and 1"):
        score_heuristics([], rows[0][:1])
