"""Calls in processes of their own: what hangs, crashes or fails costs its own result and no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from videochat_online.evaluation.isolation import Lost, run_isolated


def behave(how, path):
    """Do what a decoder might do with a broken file."""
    if how == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # deaf to all but a kill
        time.sleep(600)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
    if how == "leave":
        os._exit(3)
    if how == "fail":
        raise RuntimeError("no such codec")
    path.write_text(str(os.getpid()))
    return how, b"x" * 300_000  # more than a pipe holds at once


@pytest.mark.parametrize("num_processes", [1, 3])
def test_each_call_has_its_own_fate(tmp_path, num_processes):
    calls = [(how, tmp_path / f"{i}") for i, how in enumerate(["good", "hang", "crash", "leave", "fail", "fine"])]
    limits_s = [60, 0.3, 60, 60, 60, 60]
    start_s = time.monotonic()
    found = dict(run_isolated(behave, calls, num_processes=num_processes, limits_s=limits_s))
    assert time.monotonic() - start_s < 30
    assert [found[place][0] for place in (0, 5)] == ["good", "fine"]
    assert {place: found[place].reason for place in (1, 2, 3, 4)} == {
        1: "no result within 0.3 s",
        2: "the process that read it ended with signal 9 (SIGKILL)",
        3: "the process that read it ended with exit status 3",
        4: "RuntimeError: no such codec",
    }
    assert all(isinstance(found[place], Lost) for place in (1, 2, 3, 4))
    pids = {int((tmp_path / str(place)).read_text()) for place in (0, 5)}
    assert len({*pids, os.getpid()}) == 3
    assert multiprocessing.active_children() == []


def test_what_is_left_is_killed_when_the_caller_goes_away(tmp_path):
    calls = [("good", tmp_path / "a"), ("hang", tmp_path / "b"), ("hang", tmp_path / "c")]
    running = run_isolated(behave, calls, num_processes=3, limits_s=[60] * 3)
    assert next(running)[0] == 0
    assert len(multiprocessing.active_children()) == 2
    running.close()
    assert multiprocessing.active_children() == []


def test_no_calls():
    assert list(run_isolated(behave, [], num_processes=2, limits_s=[])) == []
