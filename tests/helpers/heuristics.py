"""Answering without looking: what the words alone give away. All of it should be chance.

Each heuristic learns from the questions of one set and is scored on another. The bag of words is a logistic
regression over the words of question and option, the option's letter and the template, fitted by full-batch
gradient descent: no draw, so it always gives the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videochat_online.errors import InputError
from videochat_online.synthetic.files.vocabulary import words_in
from videochat_online.text.questions import option_text

Row = Mapping[str, Any]
"""An entry of "questions" of the nested layout."""
Heuristic = Callable[[Sequence[Row], Sequence[Row]], "list[int]"]
Vector = npt.NDArray[np.float64]

NUM_STEPS, LEARNING_RATE, MOMENTUM, PENALTY = 100, 0.5, 0.9, 1e-3
TIME_BIN_S = 8
MAX_TIME_BINS = 16


@dataclass(frozen=True, slots=True)
class Score:
    """How often a heuristic was right.

    Attributes:
        accuracy: share of questions.
        chance: mean of 1 / (number of options).
        standard_error: of a guesser's accuracy over as many questions.
    """

    accuracy: float
    chance: float
    standard_error: float

    @property
    def excess(self) -> float:
        """Distance from chance in standard errors."""
        return (self.accuracy - self.chance) / self.standard_error


def score_heuristics(known: Sequence[Row], asked: Sequence[Row]) -> dict[str, Score]:
    """Scores of all `HEURISTICS` that learn from `known` on `asked`.

    Raises:
        InputError: one of the sets is empty.
    """
    if not known or not asked:
        raise InputError(f"questions: expected some to learn from and to ask, got {len(known)} and {len(asked)}")
    return {name: score(heuristic(known, asked), asked) for name, heuristic in HEURISTICS.items()}


def score(predictions: Sequence[int], asked: Sequence[Row]) -> Score:
    """Accuracy of predicted option numbers, beside that of guessing."""
    shares = [1 / len(row["options"]) for row in asked]
    num_right = sum(p == _right(row) for p, row in zip(predictions, asked, strict=True))
    variance = sum(share * (1 - share) for share in shares)
    return Score(num_right / len(asked), sum(shares) / len(asked), math.sqrt(variance) / len(asked))


def _majority_letter(known: Sequence[Row], asked: Sequence[Row]) -> list[int]:
    """The letter that is right most often for the template."""
    counts = Counter((row["template"], _right(row)) for row in known)
    return [max(range(len(row["options"])), key=lambda i: counts[row["template"], i]) for row in asked]


def _majority_answer(known: Sequence[Row], asked: Sequence[Row]) -> list[int]:
    """The option whose text is right most often for the template, of the times it is offered."""
    right = Counter((row["template"], _texts(row)[_right(row)]) for row in known)
    offered = Counter((row["template"], text) for row in known for text in _texts(row))
    predictions = []
    for row in asked:
        keys = [(row["template"], text) for text in _texts(row)]
        predictions.append(max(range(len(keys)), key=lambda i: right[keys[i]] / max(offered[keys[i]], 1)))
    return predictions


def _last_place(known: Sequence[Row], asked: Sequence[Row]) -> list[int]:
    """The option that ends as most options do (of paths: where the thing is now), then the longest."""
    predictions = []
    for row in asked:
        words = [words_in(text) for text in _texts(row)]
        ends = Counter(tuple(option[-4:]) for option in words)
        shared = [sum(len(set(option) & set(other)) for other in words) for option in words]
        ranks = [(ends[tuple(option[-4:])], shared[i], len(option)) for i, option in enumerate(words)]
        predictions.append(ranks.index(max(ranks)))
    return predictions


def _bag_of_words(known: Sequence[Row], asked: Sequence[Row]) -> list[int]:
    """Logistic regression over the options of a question."""
    features: dict[str, int] = {}
    design = _Design(known, features, is_learning=True)
    weights, velocity = np.zeros(len(features)), np.zeros(len(features))
    is_right = np.concatenate([np.arange(len(row["options"])) == _right(row) for row in known])
    for _ in range(NUM_STEPS):
        errors = design.probabilities(weights) - is_right
        gradient = design.summed_by_feature(errors) / len(known) + PENALTY * weights
        velocity = MOMENTUM * velocity - LEARNING_RATE * gradient
        weights = weights + velocity
    probabilities = _Design(asked, features, is_learning=False).probabilities(weights)
    starts = np.cumsum([0, *(len(row["options"]) for row in asked)])
    return [int(np.argmax(probabilities[start:end])) for start, end in zip(starts, starts[1:], strict=False)]


class _Design:
    """Which features each option has: a sparse matrix of ones, kept as pairs (option, feature)."""

    def __init__(self, rows: Sequence[Row], features: dict[str, int], *, is_learning: bool) -> None:
        options: list[int] = []
        columns: list[int] = []
        questions: list[int] = []
        for number, row in enumerate(rows):
            for option in range(len(row["options"])):
                names = _feature_names(row, option)
                found = [features.setdefault(n, len(features)) if is_learning else features.get(n) for n in names]
                known = [column for column in found if column is not None]
                options += [len(questions)] * len(known)
                columns += known
                questions.append(number)
        self._options, self._columns, self._questions = np.array(options), np.array(columns), np.array(questions)
        self._num_features = len(features)

    def probabilities(self, weights: Vector) -> Vector:
        """Of each option; those of a question sum to 1."""
        logits = np.bincount(self._options, weights[self._columns], len(self._questions))
        powers = np.exp(logits - logits.max())
        shares: Vector = powers / np.bincount(self._questions, powers)[self._questions]
        return shares

    def summed_by_feature(self, values: Vector) -> Vector:
        """For each feature, the sum of a value over the options that have it."""
        return np.bincount(self._columns, values[self._options], self._num_features).astype(np.float64)


HEURISTICS: dict[str, Heuristic] = {
    "majority_letter": _majority_letter,
    "majority_answer": _majority_answer,
    "bag_of_words": _bag_of_words,
    "last_place": _last_place,
}


def _right(row: Row) -> int:
    return ord(row["answer"]) - ord("A")


def _texts(row: Row) -> list[str]:
    return [option_text(option) for option in row["options"]]


def _feature_names(row: Row, option: int) -> list[str]:
    """What the regression sees of an option: its words and letter; both with the template, the question, the time."""
    template, letter = row["template"], f"letter {option}"
    text = option_text(row["options"][option])
    own = [*words_in(text), letter]
    time = f"time {min(int(row['middle_frame_timestamp'] // TIME_BIN_S), MAX_TIME_BINS)}"
    context = sorted({*words_in(row["question"]), time, template})
    pairs = [f"{word} and {what}" for word in context for what in (letter, text)]
    return [*own, *(f"{template}: {word}" for word in own), *pairs]
