"""Nothing of a library's gets onto stdout, where programs read our JSON; what it says is not lost."""

from __future__ import annotations

import json
import subprocess
import sys

from train_cases import environment
from videochat_online.cli import doctor
from videochat_online.cli.main import main

NOISY = """
import ctypes, os, sys
sys.argv = ["videochat-online", "synthesize", "--help"]
from videochat_online.cli import main, stdout

class Finder:
    "Whatever is imported prints a line, at once and in C, and keeps stdout for later."
    def find_spec(self, name, *rest):
        if name == "videochat_online.cli.synthesize":
            exec("print('python'); kept.append(sys.stdout)", {"__name__": "library", "kept": kept, "sys": sys})
            ctypes.CDLL(None).puts(b"c"); ctypes.CDLL(None).fflush(None)
            os.system("echo program")
kept = []
sys.meta_path.insert(0, Finder())
status = None
try:
    main.main()
except SystemExit as ended:
    status = ended.code
exec("kept[0].write('later'+chr(10))", {"__name__": "library", "kept": kept})
print("after")
sys.exit(status)
"""


def test_what_libraries_print_goes_to_stderr():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: videochat-online synthesize")
    assert lines[-1] == "after"
    assert {"python", "c", "program", "later"} & {*lines} == set()
    assert {"python", "c", "program", "later"} <= {*done.stderr.splitlines()}


def test_json_is_all_there_is(capsys, monkeypatch):
    """In this process, where stdout is no file."""
    monkeypatch.setattr(doctor, "describe_machine", lambda: exec("print('noise')", {"__name__": "library"}) or {"a": 1})
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"a": 1}, "noise\n")
    assert sys.stdout.write("ours again") == 10
