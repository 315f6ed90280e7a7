"""Questions that are to be answered when their time has come: the model is polled until it says that it has.

Knows no model and no frames: how something is asked is handed in. What comes out is a row of `predictions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from videochat_online.errors import NoFrameError
from videochat_online.evaluation.benchmark import YES_NO, EvalQuestion
from videochat_online.evaluation.scoring.parse import says
from videochat_online.runs.row_file import Row


class Polls:
    """The polls of one video's questions so far, kept until a question has its answer.

    Nothing of them is written before: a run that is broken off in between polls the question again from the start.

    Args:
        ask: call that asks something now and gives what a row says of the answer.
    """

    def __init__(self, ask: Callable[[EvalQuestion], Row]) -> None:
        self._ask = ask
        self._polled: dict[str, list[Row]] = {}
        self._settled: set[str] = set()

    def take(self, poll: EvalQuestion, question: EvalQuestion) -> Row | None:
        """Ask a poll of a question, and at the first Yes the question itself.

        Returns:
            What the row of the question says about its answer, once there is one or no poll is left; else None.
        """
        proactive = question.proactive
        if proactive is None or question.id in self._settled:
            return None
        polled = self._polled.setdefault(question.id, [])
        polled.append({**self._ask(poll), "time_s": poll.time_s})
        says_now = polled[-1]["predicted_index"] == YES_NO.index("Yes")
        if not says_now and poll is not proactive.polls[-1]:
            return None
        self._settled.add(question.id)
        asked = list(polled)
        if says_now:
            # Under the poll's id, since that is where a window context has the frames of this moment.
            asked.append(self._ask(replace(question, id=poll.id, time_s=poll.time_s, proactive=None)))
        text = asked[-1]["text"] if says_now else ""
        is_in_time = says_now and abs(poll.time_s - proactive.due_s) <= proactive.tolerance_s
        is_right = says_now and says(text, proactive.output)
        row: Row = {
            "text": text,
            "predicted_index": round(poll.time_s) if says_now else None,
            "correct": is_in_time and is_right,
            "in_time": is_in_time,
            "output": proactive.output,
            "due_s": proactive.due_s,
            "output_s": poll.time_s if says_now else None,
            "output_correct": is_right,
            "polls": [{key: one[key] for key in ("time_s", "text", "predicted_index")} for one in polled],
            "answer_s": round(sum(one["answer_s"] for one in asked), 6),
        }
        row |= {key: asked[-1][key] for key in ("frames_used", "num_visual_tokens", "first_token_s")}
        failed = [one for one in asked if "error" in one]
        # That a poll came before the first frame says nothing as long as a later one did not; anything else is said.
        if failed and (len(failed) == len(asked) or failed[-1]["error_kind"] != NoFrameError.__name__):
            row |= {key: failed[-1][key] for key in ("error", "error_kind")}
        return row
