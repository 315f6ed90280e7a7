"""Questions about a video at their moments, and the commands that say how far it is watched."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from videochat_online.cli.dialogue.dialogue import Command, LineDialogue, spoken, tell
from videochat_online.cli.dialogue.session_player import SHOWN_TO_S, VideoPlayer
from videochat_online.errors import InputError, NoFrameError
from videochat_online.streaming import StreamingSession
from videochat_online.text.times import TimedQuestion, clock_time, seconds_of, timed_question
from videochat_online.types import Answer


class VideoDialogue(LineDialogue):
    """A conversation about a video, as far as it has been watched.

    Args:
        session: the one that watches.
        player: the player of the video into that session.
        as_json: see `LineDialogue`.
    """

    def __init__(self, session: StreamingSession, player: VideoPlayer, as_json: bool) -> None:
        super().__init__(as_json)
        self._session, self._player = session, player

    def _own_commands(self) -> dict[str, Command]:
        return {
            "play": Command(":play [T]", "watch on up to T (12.5, 1:05, 1:02:05), or to the end", self._play),
            "rewind": Command(
                ":rewind [T]",
                "begin again and watch up to T, or the first frame; forgets everything, since nothing can be unseen",
                self._rewind,
            ),
            "memory": Command(":memory", "the frames that are remembered now, their times and tokens", self._memory),
            "reset": Command(":reset", "forget questions and answers, but no frame; stay at this time", self._reset),
        }

    @property
    def prompt(self) -> str:
        """How far has been watched."""
        return f"[{self._now}] > "

    @property
    def _now(self) -> str:
        return clock_time(self._player.position_s or 0.0)

    def begin(self) -> None:
        """Watch the first frame: there is something to ask about."""
        self._player.play_until(self._player.start_s)

    def ask(self, line: str) -> None:
        """Answer at the time that the line begins with, or at the present one.

        Raises:
            InputError: a time that is none, or one that has passed; what is asked cannot be answered.
        """
        timed, now_s = timed_question(line), self._player.position_s or 0.0
        if timed is None:
            timed = TimedQuestion(now_s, line)
            if self._session.num_frames == 1 and not self._player.is_at_end:
                tell("note: only the first frame has been seen: ':play' watches to the end, ':play 1:05' up to there")
        elif self._player.start_s <= timed.time_s < now_s:
            if timed.time_s < now_s - SHOWN_TO_S:
                asked = clock_time(timed.time_s)
                raise InputError(f"expected a time from {self._now} on, got {asked}: ':rewind {asked}' begins again")
            timed = TimedQuestion(now_s, timed.text)
        self.ask_at(timed)

    def ask_at(self, question: TimedQuestion) -> None:
        """Watch up to a question's time and answer it; one from before the first frame gets an error for an answer."""
        try:
            self._player.play_until(question.time_s, self.stop)
        except NoFrameError as error:
            self.refusals.append(str(error))
            readable = f"[{question.time_s:g} s] {question.text}\n  error: {error}"
            self.write(readable, {"asked_at_s": question.time_s, "question": question.text, "error": str(error)})
            return
        prepared = self._session.prepare(question.text, at_s=question.time_s)
        text, is_stopped = spoken(self._session.stream_prepared(prepared), self.stop)
        self.num_answered += 1
        answer = Answer(prepared.question, text, prepared.asked_at_s, prepared.frames)
        notes: dict[str, Any] = {"stopped": True} if is_stopped else {}
        self.write(_readable(answer, is_stopped), _row(answer) | notes | self._late(question.time_s))

    def _late(self, time_s: float) -> dict[str, str]:
        """A warning on stderr, and what to say of it in JSON, where the video does not last so long."""
        late = self._player.lateness(time_s)
        if late is not None:
            tell(f"warning: {late}")
        return {} if late is None else {"late": late}

    def _play(self, written: str) -> None:
        time_s = _time_behind(":play", written, math.inf)
        if self._player.is_at_end:
            raise InputError(f":play: the video has ended, at {self._now}; ':rewind' begins again")
        if time_s < (self._player.position_s or 0.0) - SHOWN_TO_S:
            raise InputError(f":play: expected a time from {self._now} on, got {written!r}: ':rewind' goes back")
        self._player.play_until(time_s, self.stop)
        self._say("play", f"{self._session.num_frames} frames seen", time_s)

    def _rewind(self, written: str) -> None:
        time_s = _time_behind(":rewind", written, self._player.start_s)
        if time_s > (self._player.position_s or 0.0) + SHOWN_TO_S:
            raise InputError(f":rewind: expected a time up to {self._now}, got {written!r}: ':play' goes on")
        num_turns = len(self._session.history)
        self._player.rewind(time_s, self.stop)
        seen = f"begun again, {self._session.num_frames} frames seen; forgotten: what came later, {num_turns} questions"
        self._say("rewind", f"{seen} and their answers", num_forgotten=num_turns)

    def _memory(self, _: str) -> None:
        frames = self._session.remembered()
        num_tokens = sum(frame.num_tokens for frame in frames)
        lines = [f"  frame {frame.index} at {clock_time(frame.time_s)}: {frame.num_tokens} tokens" for frame in frames]
        said = "\n".join([f"remembered: {len(frames)} frames, {num_tokens} visual tokens", *lines])
        self._say("memory", said, frames=list(map(asdict, frames)), num_visual_tokens=num_tokens)

    def _reset(self, _: str) -> None:
        num_turns = len(self._session.history)
        self._session.forget_dialogue()
        said = f"forgotten: {num_turns} questions and their answers; the frames are still remembered"
        self._say("reset", said, num_forgotten=num_turns)

    def _say(self, command: str, text: str, time_s: float = 0.0, **row: Any) -> None:
        if self._player.is_at_end:
            text += "; the video has ended" if command in ("play", "rewind") else ""
        row = {"command": command, "position_s": self._player.position_s, **row, **self._late(time_s)}
        self.write(f"[{self._now}] {text}", row)


def _time_behind(command: str, written: str, default_s: float) -> float:
    try:
        return seconds_of(written) if written else default_s
    except InputError as error:
        raise InputError(f"{command}: {error}") from error


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "asked_at_s": answer.asked_at_s,
        "question": answer.question,
        "text": answer.text,
        "frames_used": list(map(asdict, answer.frames_used)),
        "num_visual_tokens": answer.num_visual_tokens,
    }


def _readable(answer: Answer, is_stopped: bool) -> str:
    used = f"{len(answer.frames_used)} frames, {answer.num_visual_tokens} visual tokens"
    text = f"{answer.text} (stopped)" if is_stopped else answer.text
    return f"[{answer.asked_at_s:g} s] {answer.question}\n  {text}\n  ({used})"
