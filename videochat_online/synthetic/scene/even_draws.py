"""Seeded random draws that come out even.

A generator is seeded with words, so that no draw depends on what was drawn elsewhere or on the order of a hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


def random_of(*words: str | int) -> Random:
    """A generator that is the same for the same words, on any machine."""
    return Random("/".join(map(str, words)))


class Deck(Generic[T]):
    """Cards that are shuffled and dealt to the last before any comes again: counts never differ by more than 1."""

    def __init__(self, cards: Sequence[T], *words: str | int) -> None:
        self._cards = list(cards)
        self._random = random_of(*words)
        self._rest: list[T] = []

    def draw(self) -> T:
        """The next card."""
        if not self._rest:
            self._rest = self._cards.copy()
            self._random.shuffle(self._rest)
        return self._rest.pop()


class Decks(Generic[T]):
    """A deck for each name, made when it is first asked for."""

    def __init__(self, *words: str | int) -> None:
        self._words = words
        self._decks: dict[str, Deck[T]] = {}

    def draw(self, name: str, cards: Sequence[T]) -> T:
        """The next card of a named deck; `cards` are its cards from the first draw on."""
        if name not in self._decks:
            self._decks[name] = Deck(cards, *self._words, name)
        return self._decks[name].draw()
