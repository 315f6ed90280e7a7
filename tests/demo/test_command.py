"""videochat-online demo: what it refuses, and how it starts and ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

import httpx
import pytest

from processes import start
from videochat_online.cli.main import main
from videochat_online.client import StreamClient


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "port: expected 0 to 65535, got 70000"),
        (["--source", "door=ftp://host/"], "--source: door: expected a path, or one of rtsp://"),
        (["--source", "door=rtsp://a/", "--source", "door=rtsp://b/"], "expected each name once, found door twice"),
        (["--sources", "nowhere"], "--sources nowhere: expected a file of NAME=ADDRESS lines, found No such file"),
        (["--password_file", "nowhere"], "--password_file nowhere: expected a file with a password"),
        (["--fps", "0"], "fps: expected a number above 0"),
        (["--fps", "nan"], "fps: expected a finite number"),
        (["--max_streams", "0"], "max_streams: expected at least 1"),
        (["--idle_s", "-1"], "idle_s: expected a time above 0 s"),
        (["--max_upload_mb", "0"], "max_bytes: expected a number above 0"),
        (["--memory", "none"], "unknown memory 'none'"),
        (["--capacities", "0", "0", "0"], "capacities"),
        (
            ["--memory", "window", "--capacities", "2", "2", "2"],
            "expected an option of memory window, --memory.num_frames",
        ),
        (["--temperature", "-1"], "temperature"),
        (["--strategy", "guess"], "unknown strategy 'guess': expected one of ['chain_of_shot', 'direct', 'retrieval']"),
        (["--strategy", ""], "unknown strategy ''"),
        (["--strategy.retrieved_frames", "2"], "expected an option of strategy direct, which has none"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid:0: expected an address to listen at"),
        (["--model", "nowhere"], "nowhere: expected a model directory"),
    ],
)
def test_wrong_input(tiny_dir, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = ["--model", str(tiny_dir("phi3")), "--port", "0", *arguments]
    assert main(["demo", *given]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "a folder for uploads is left"


def test_an_empty_password_is_refused(tiny_dir, capsys, tmp_path, monkeypatch):
    (tmp_path / "password").write_text("\n")
    given = ["demo", "--model", str(tiny_dir("phi3")), "--port", "0"]
    assert main([*given, "--password_file", str(tmp_path / "password")]) == 2
    assert "password: expected one" in capsys.readouterr().err
    monkeypatch.setenv("VIDEOCHAT_ONLINE_PASSWORD", " ")
    assert main(given) == 2


@pytest.mark.parametrize("given", [["--allow_urls"], ["--media_root", "nowhere"], ["--media_root=nowhere"]])
def test_flags_that_sources_replace(capsys, given):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--model", "nowhere", *given, "--port", "0"])
    assert ended.value.code == 2
    flag = given[0].partition("=")[0]
    assert capsys.readouterr().err.startswith(f"error: {flag}: expected --source NAME=ADDRESS for each of what viewers")


def test_a_file_of_sources_that_others_can_read(tiny_dir, capsys, tmp_path):
    file = tmp_path / "sources"
    file.write_text("door=rtsp://user:secret@192.168.1.64/s1\n")
    file.chmod(0o644)
    assert main(["demo", "--model", str(tiny_dir("phi3")), "--port", "0", "--sources", str(file)]) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: --sources {file}: expected a file that others cannot read, mode 600, found 644"
    )


def test_a_port_in_use(tiny_dir, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--model", str(tiny_dir("phi3")), "--port", str(port)]) == 2
    assert (
        f"127.0.0.1:{port}: expected an address to listen at, found: Address already in use" in capsys.readouterr().err
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_ends_cleanly(tiny_dir, tmp_path, how):
    """With a stream open and a viewer connected: exit status 0, and no file stays behind."""
    uploads, out, log = (tmp_path / name for name in ("uploads", "out", "log"))
    uploads.mkdir()
    variables = {**os.environ, "TMPDIR": str(uploads), "OMP_NUM_THREADS": "1", "VIDEOCHAT_ONLINE_PASSWORD": "secret"}
    given = ["demo", "--model", str(tiny_dir("phi3")), "--port", "0"]
    process = start(main, given, variables=variables, folder=tmp_path, out=out, log=log)
    try:
        while not (out.is_file() and (line := re.search(r"(http://\S+) .*\n", out.read_text()))):
            assert process.is_alive(), log.read_text()
            time.sleep(0.05)
        url = line[1]
        assert url.startswith("http://localhost:")
        client = StreamClient(url, "secret")
        assert client.health()["places"] == {"free": 8, "total": 8}
        assert httpx.post(f"{url}v1/streams", json={}).status_code == 401
        assert httpx.get(url, headers={"Host": "elsewhere.example"}).status_code == 400
        opened = client.request("POST", "/streams", json={}).json()["id"]
        folders = list(uploads.glob("videochat_online_*"))
        assert len(folders) == 1
        with httpx.stream("GET", f"{url}v1/streams/{opened}/view") as view:
            assert view.status_code == 200
            os.kill(process.pid, how)
            process.join(60)
            assert process.exitcode == 0
        assert "Traceback" not in log.read_text()
        assert not folders[0].exists()
    finally:
        process.kill()
        process.join()
