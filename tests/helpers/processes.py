"""Processes of their own without the seconds that importing takes: each is forked from one that has imported it all.

What a process keeps to itself is its own here, too: variables, folder, output, signals, exit status, and death. Only
what Python reads when it starts, such as `PYTHONIOENCODING`, has no effect.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

IMPORTED = ("deepspeed", "train_cases", "evaluation_sets", "videochat_online.cli.chat")


def start(
    function: Callable[..., Any],
    *arguments: Any,
    variables: Mapping[str, str],
    folder: Path,
    out: Path | None = None,
    log: Path,
) -> BaseProcess:
    """Call a function of a module; what it returns is the exit status.

    Args:
        function: found by its name in its module.
        arguments: of the function.
        variables: all of its environment.
        folder: where it works.
        out: gets stdout; `log` where there is none.
        log: gets stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    files = (out or log, log)
    process = context.Process(target=_run, args=(function, arguments, dict(variables), folder, files))
    process.start()
    return process


def run_program(
    main: Callable[[], Any], command: Sequence[str], *, count: int = 1, timeout_s: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call the `main` of a program in a process of its own, in several as torchrun does it; the output of all together.

    Where one of them fails the others are killed. The working folder is one that goes with them.
    """
    launched = _of_launch(count) if count > 1 else [{}]
    processes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank, of_rank in enumerate(launched):
            places = {"folder": folder, "out": folder / f"out{rank}", "log": folder / f"err{rank}"}
            process = start(_main, main, list(command), variables={**os.environ, **of_rank, **variables}, **places)
            processes.append(process)
        deadline = time.monotonic() + timeout_s
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes) or time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.02)
        texts = ["".join((folder / f"{name}{rank}").read_text() for rank in range(count)) for name in ("out", "err")]
    status = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess(list(command), status, *texts)


def _of_launch(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | sizes | address for rank in range(count)]


def _main(main: Callable[[], Any], command: list[str]) -> Any:
    sys.argv = command
    return main()


def _run(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    variables: dict[str, str],
    folder: Path,
    files: tuple[Path, Path],
) -> None:
    gc.freeze()  # what was imported is not looked through for garbage
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.exit(function(*arguments))
