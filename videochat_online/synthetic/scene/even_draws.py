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


class Decks(Generic[T]):
    """Cards that are shuffled and dealt to the last before any comes again: counts never differ by more than 1.

    A deck for each name, made when it is first asked for.
    """

    def __init__(self, *words: str | int) -> None:
        self._words = words
        self._decks: dict[str, tuple[Random, list[T]]] = {}

    def draw(self, name: str, cards: Sequence[T]) -> T:
        """The next card of a named deck; `cards` are all its cards, the same at every draw."""
        if name not in self._decks:
            self._decks[name] = random_of(*self._words, name), []
        random, rest = self._decks[name]
        if not rest:
            rest += cards
            random.shuffle(rest)
        return rest.pop()
