"""Random schedules of frames and questions, and what a session computes on the way."""

from __future__ import annotations

import random
from contextlib import contextmanager

from videochat_online.memory import FifoMemoryBank, KeepAllMemoryBank, PyramidMemoryBank, WindowMemoryBank
from videochat_online.streaming import GenerationSettings, KvBudget, StreamingSession

SHORT = GenerationSettings(max_new_tokens=4, min_new_tokens=4)
GRID = (4, 4)
TIERS = {"capacities": (1, 1, 3), "full_grid": GRID}
MEMORIES = {
    "pyramid": lambda: PyramidMemoryBank(**TIERS),
    "paper": lambda: PyramidMemoryBank(**TIERS, policy="paper"),
    "fifo": lambda: FifoMemoryBank(**TIERS),
    "window": lambda: WindowMemoryBank(num_frames=2, full_grid=GRID),
    "keep_all": lambda: KeepAllMemoryBank(full_grid=GRID),
}
LLMS = ("phi3", "qwen2", "llama")
STEPS = 16
# Sums are rounded differently in two pieces: 1e-6 is the most that was seen.
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
ROPE_SWITCH = 105  # tokens: prompts of the schedules lie on both sides


def new_session(model, memory=None, **options):
    options.setdefault("settings", SHORT)
    options.setdefault("kv_budget", KvBudget(1 << 30))
    options.setdefault("system_message", "Watch.")
    return StreamingSession(model, memory, **options)


@contextmanager
def computed(model):
    """Positions of each forward pass of the language model, in order."""
    counts: list[int] = []

    def count(module, arguments, keywords):
        counts.append(keywords["inputs_embeds"].shape[1])

    handle = model.network.language_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class Schedule:
    """Random steps, the same for any session that they are taken with."""

    def __init__(self, seed, frames, folder):
        self._seed, self._frames, self._folder = seed, frames, folder

    def run(self, session):
        """Take the steps; what was said."""
        draw, said = random.Random(self._seed), []
        draws = 0
        self._push(session, 2, draws)
        session.save(self._folder / "state")
        for _ in range(STEPS):
            draws += 1
            settings = GenerationSettings(max_new_tokens=draw.randint(1, 6))
            step = draw.choices(
                ["ask", "push", "prefill", "stop", "later", "forget", "reset", "save", "restore", "release"],
                [6, 5, 4, 2, 2, 1, 1, 1, 1, 1],
            )[0]
            question = draw.choice(["What?", "What now?", "Where is it, and since when?"])
            count = draw.randint(1, 3)
            if step == "ask":
                said.append(session.ask(question, settings=settings).text)
            elif step == "push":
                self._push(session, count, draws)
            elif step == "prefill":
                session.prefill()
            elif step == "stop":
                stream = session.stream(question)
                said.append(next(stream))
                stream.close()
            elif step == "later":
                prepared = session.prepare(question)
                self._push(session, count, draws)
                session.prefill()
                said += list(session.stream_prepared(prepared, settings=settings))
            elif step == "forget":
                session.forget_dialogue()
            elif step == "reset":
                session.reset()
                self._push(session, count, draws)
            elif step == "save":
                session.save(self._folder / "state")
            elif step == "restore":
                session.restore(self._folder / "state")
            elif session.kept_prefix is not None:
                session.kept_prefix.drop()
        said.append(session.ask("And in the end?").text)
        return said

    def _push(self, session, count, seed):
        start = session.num_frames
        session.push(self._frames(count, seed=seed), range(start, start + count))
