"""Calls in processes of their own: what hangs, crashes or fails costs its own result and no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluation_sets import folder_set, make_config, run
from videochat_online.evaluation.media.protocol_frames import VideoFrames
from videochat_online.isolation import Lost, run_isolated
from videochat_online.video import FrameTransform


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


def wait_for(is_so):
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def is_running(pid):
    """False also for one that has ended but whose new parent has not noticed."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def hang(path):
    """Write down the own process, then be deaf to all but a kill."""
    path.with_suffix(".partial").write_text(str(os.getpid()))
    path.with_suffix(".partial").replace(path)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    time.sleep(600)


def evaluate_with_a_decoder_that_hangs(place, monkeypatch):
    monkeypatch.setattr(VideoFrames, "__init__", lambda *arguments, **options: hang(place))
    config = make_config(folder_set(place.parent, num_videos=1), place.parent / "out", decode_timeout_s=600.0)
    model = SimpleNamespace(device=torch.device("cpu"), transform=FrameTransform())  # no more is asked of it
    return lambda: run(config, model)


def inspect_what_hangs(place, monkeypatch):
    return lambda: list(run_isolated(hang, [(place,)], num_processes=1, limits_s=[600.0]))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process may outlive its parent")
@pytest.mark.parametrize("work", [evaluate_with_a_decoder_that_hangs, inspect_what_hangs])
def test_what_hangs_dies_with_a_run_that_is_killed(tmp_path, monkeypatch, work):
    place = tmp_path / "pid"
    parent = multiprocessing.get_context("fork").Process(target=work(place, monkeypatch))
    parent.start()
    try:
        assert wait_for(place.exists)
        child = int(place.read_text())
        assert child != parent.pid
        assert is_running(child)
    finally:
        parent.kill()
        parent.join()
    try:
        assert wait_for(lambda: not is_running(child))
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_no_calls():
    assert list(run_isolated(behave, [], num_processes=2, limits_s=[])) == []
