"""What stands behind the page, without a browser: dialogues as files, fields as options, still images, examples."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from clips import write_clip, write_folder
from rtsp_server import RtspServer
from videochat_online.cli.options import add_memory_arguments, memory_options_of
from videochat_online.cli.parser import Parser
from videochat_online.demo.conversation_file import to_json, to_srt
from videochat_online.demo.examples import EXAMPLES, make_example
from videochat_online.demo.page import messages, notice
from videochat_online.demo.server import DemoServer, ServerOptions
from videochat_online.demo.tabs import DemoOptions, Viewers, form_options
from videochat_online.errors import InputError
from videochat_online.memory import make_memory
from videochat_online.memory.labels import settings_of
from videochat_online.serving.api.schemas import ApiLimits
from videochat_online.serving.sources.named_sources import NamedSource
from videochat_online.serving.sources.uploads import accept_upload
from videochat_online.serving.streams.fair_lock import ModelGate
from videochat_online.serving.streams.image_dialogue import LiveImages
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.pool import StreamPool
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import GenerationSettings, ImageChat
from videochat_online.video import open_video

SHORT = GenerationSettings(max_new_tokens=6, min_new_tokens=6)


def answer(question, asked_at_s, text="yes", *, stopped=False, error=None):
    made = LiveAnswer(question, asked_at_s)
    if text:
        made.add(text)
    if stopped:
        made.stop()
    made.end(error)
    return made


def seconds(stamp):
    hours, minutes, rest = stamp.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


class TestConversation:
    def test_json_has_all_of_it(self):
        rows = json.loads(to_json([answer("Wer?", 1.5, "das – hier"), answer("And?", 3.0, "", error="no")]))
        assert [(row["question"], row["asked_at_s"], row["text"], row["state"], row["error"]) for row in rows] == [
            ("Wer?", 1.5, "das – hier", "answered", None),
            ("And?", 3.0, "", "failed", "no"),
        ]
        assert to_json([]) == "[]\n"

    def test_subtitles(self):
        text = to_srt([
            answer("What?", 3725.5, "a\n\ncup --> here"),
            answer("Why?", 3726.0, "x" * 500),
            answer("Never?", 3727.0, "", error="no"),
            answer("So?", 3750.0, "well", stopped=True),
        ])  # fmt: skip
        assert text.startswith("1\n01:02:05,500 --> 01:02:06,000\nWhat?\na cup -> here\n\n2\n01:02:06,000 --> ")
        assert "Never?" not in text
        assert text.endswith("3\n01:02:30,000 --> 01:02:32,000\nSo?\nwell\n")

    @pytest.mark.parametrize("seed", range(5))
    def test_subtitles_never_overlap_and_can_be_read_back(self, seed):
        rng = np.random.default_rng(seed)
        times = np.sort(rng.uniform(0, 7200, 40)).round(1)
        times[5] = times[6]  # two questions at once
        given = [
            answer(f"question {i}", float(time_s), "word " * rng.integers(1, 60)) for i, time_s in enumerate(times)
        ]
        blocks = to_srt(given).strip().split("\n\n")
        assert len(blocks) == len(given)
        spans = []
        for number, (block, one) in enumerate(zip(blocks, given, strict=True), start=1):
            first, span, *lines = block.split("\n")
            assert first == str(number)
            assert lines == [one.question, " ".join(one.text.split())]
            start, end = map(seconds, re.fullmatch(r"(\S+) --> (\S+)", span).groups())
            assert start == pytest.approx(one.asked_at_s, abs=1e-3)
            assert 0 < end - start <= 7.001
            spans.append((start, end))
        assert all(b[0] >= a[1] or b[0] == a[0] for a, b in zip(spans, spans[1:], strict=False))

    def test_questions_about_images_have_no_time(self):
        text = to_srt([answer("What?", None), answer("And?", None)])
        assert [line for line in text.splitlines() if "-->" in line] == [
            "00:00:00,000 --> 00:00:02,000", "00:00:02,000 --> 00:00:04,000",
        ]  # fmt: skip


class TestText:
    def test_the_chat_shows_text_only(self):
        rows = messages(
            [answer("<b>?</b>", 61.25, "<img src=x> & more", stopped=True), answer("x", None, "", error="<i>")]
        )
        assert [row["content"] for row in rows] == [
            "[1:01.2] &lt;b&gt;?&lt;/b&gt;", "&lt;img src=x&gt; &amp; more (stopped)",
            "x", "Not answered: &lt;i&gt;",
        ]  # fmt: skip
        assert messages([LiveAnswer("x", 0.0)])[1]["content"] == "…"
        assert messages([answer("x", 0.0, "")])[1]["content"] == "(an empty answer)"

    def test_notices_are_escaped(self):
        assert notice('<a href="x">') == '<div class="vco-notice" role="alert">&lt;a href=&quot;x&quot;&gt;</div>'


class TestOptions:
    CHOSEN = {
        "fps": 2, "memory": "pyramid",
        **{f"{memory}.{name}": "" for memory in ApiLimits().memories for name in settings_of(memory)},
        "pyramid.capacities": "1, 2 3", "window.num_frames": "5",
        "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": None, "system_message": " ",
    }  # fmt: skip

    def test_fields_become_options(self):
        made = form_options(StreamOptions(system_message="Watch."), self.CHOSEN)
        assert made == StreamOptions(
            fps=2.0,
            memory_options={"capacities": (1, 2, 3)},
            system_message="Watch.",
            generation=GenerationSettings(max_new_tokens=9, temperature=0.5, top_p=0.9),
        )
        window = form_options(
            StreamOptions(), {**self.CHOSEN, "memory": "window", "seed": 3.0, "system_message": "Look."}
        )
        assert (window.memory, window.memory_options) == ("window", {"num_frames": 5})
        assert (window.generation.seed, window.system_message) == (3, "Look.")

    def test_what_the_operator_chose_holds(self):
        """The policy, which has no field; and more frames than a viewer may ask for."""
        own = StreamOptions(memory_options={"policy": "p", "capacities": (300, 0, 0)})
        assert form_options(own, {**self.CHOSEN, "pyramid.capacities": "300, 0, 0"}) == replace(
            own, fps=2.0, generation=GenerationSettings(max_new_tokens=9, temperature=0.5, top_p=0.9)
        )
        other = form_options(own, {**self.CHOSEN, "memory": "window", "window.num_frames": "300"})
        assert other.memory_options == {"num_frames": 300}
        with pytest.raises(InputError, match="at most 256 frames, got 300"):
            form_options(StreamOptions(), {**self.CHOSEN, "memory": "window", "window.num_frames": "300"})

    @pytest.mark.parametrize("empty", [None, 0])
    def test_empty_fields_are_the_defaults(self, empty):
        """The page sends 0 for a number that is not there."""
        made = form_options(
            StreamOptions(), {**self.CHOSEN, "memory": "window", "window.num_frames": " ", "seed": empty}
        )
        assert (made.memory_options, made.generation.seed) == ({}, None)

    @pytest.mark.parametrize("memory", ApiLimits().memories)
    def test_a_memory_is_set_as_on_the_command_line(self, memory):
        known = settings_of(memory)
        fields = {name: self.VALUES[name] for name in known}
        parser = Parser()
        add_memory_arguments(parser)
        flags = [word for name, text in fields.items() for word in (f"--memory.{name}", *text.split(", "))]
        typed = memory_options_of(parser.parse_args(["--memory", memory, *flags]))
        chosen = {f"{memory}.{name}": text for name, text in fields.items()}
        made = form_options(StreamOptions(), {**self.CHOSEN, **chosen, "memory": memory})
        assert made.memory_options == typed
        page, line = (make_memory(memory, **options).state_dict() for options in (made.memory_options, typed))
        assert torch.equal(page["config"], line["config"])
        # None of them is the default: a field that had no effect would not be noticed otherwise.
        assert all(known[name].written(known[name].default) != text for name, text in fields.items())

    VALUES = {
        "capacities": "1, 2, 3", "policy": "paper", "reading": "breakpoint", "num_frames": "5", "short_frames": "6",
        "long_frames": "7", "merged_frames": "3", "newest_frames": "2", "key_frames": "1", "cluster_frames": "8",
        "recent_frames": "2", "event_frames": "3", "threshold": "0.5", "abstract_decay": "0.25",
        "penalty_weights": "1, 0.5, 2",
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("pyramid.capacities", "two", "capacities: expected a list of whole numbers .* such as .*, got 'two'"),
            ("pyramid.capacities", "200, 50, 7", "memory: expected at most 256 frames, got 257"),
            ("fps", 0, "fps"),
            ("temperature", -1, "temperature"),
        ],
    )
    def test_bad_fields(self, field, value, says):
        with pytest.raises(InputError, match=says):
            form_options(StreamOptions(), {**self.CHOSEN, field: value})

    @pytest.mark.parametrize(
        ("memory", "name", "value", "says"),
        [
            ("star", "cluster_frames", "2 3", "cluster_frames: expected a whole number of at least 1, got '2 3'"),
            ("star", "key_frames", "257", "memory: expected at most 256 frames, got 257"),
            ("moviechat", "reading", "both", "reading: expected one of global, breakpoint, got 'both'"),
            ("similarity_drop", "threshold", "0,5", "threshold: expected a number from -1 to 1, got '0,5'"),
        ],
    )
    def test_bad_fields_of_a_memory(self, memory, name, value, says):
        with pytest.raises(InputError, match=says):
            form_options(StreamOptions(), {**self.CHOSEN, "memory": memory, f"{memory}.{name}": value})


class TestImages:
    @pytest.fixture
    def images(self, frames):
        return [Image.fromarray(picture) for picture in frames(2)]

    def test_answers_as_an_image_chat_does(self, tiny_model, images):
        chat = ImageChat(tiny_model, images, SHORT)
        live = LiveImages(tiny_model, images, StreamOptions(generation=SHORT), ModelGate())
        for question in ("What are these?", "And now?"):
            asked = live.ask(question)
            assert asked.wait(60)
            assert (asked.state, asked.asked_at_s) == ("answered", None)
            assert asked.text == chat.ask(question)
        live.forget_dialogue()
        again = live.ask("What are these?")
        assert again.wait(60)
        assert again.text == ImageChat(tiny_model, images, SHORT).ask("What are these?")
        assert live.picture().startswith(b"\xff\xd8")
        live.close()
        with pytest.raises(InputError, match="the dialogue is closed"):
            live.ask("Still?")

    def test_one_question_at_a_time_and_none_empty(self, tiny_model, images):
        long = StreamOptions(generation=GenerationSettings(max_new_tokens=500, min_new_tokens=500))
        live = LiveImages(tiny_model, images, long, ModelGate())
        asked = live.ask("What?")
        next(asked.pieces())
        with pytest.raises(InputError, match="still being given"):
            live.ask("And?")
        with pytest.raises(InputError, match="got an empty one"):
            live.ask(" ")
        with pytest.raises(InputError, match="^question: expected Unicode text, found half of a surrogate pair"):
            live.ask("a\ud800")
        live.stop_answer()
        assert asked.wait(60)
        assert asked.state == "stopped"
        live.close()
        with pytest.raises(InputError, match="at least one image"):
            LiveImages(tiny_model, [], long, ModelGate())


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_a_video_with_questions(title, tmp_path):
    questions = make_example(title, tmp_path / "1.mp4", seed=1)
    with open_video(tmp_path / "1.mp4") as source:
        assert f"{source.info.duration_s:.0f} s" in title
        assert source.info.average_fps == pytest.approx(8.0)
    assert questions
    for question in questions:
        assert question.answer in question.options
        assert 0 <= question.asked_at_s <= 48
    assert make_example(title, tmp_path / "again.mp4", seed=1) == questions
    make_example(title, tmp_path / "2.mp4", seed=2)
    first, again, other = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("1", "again", "2"))
    assert first == again != other


def test_the_operator_s_strategy_is_that_of_every_stream(tiny_model, monkeypatch):
    """Of the page and of the API, where it is named beside the memory; no client chooses it."""
    watching = StreamOptions(strategy="retrieval", strategy_options={"retrieved_frames": 2}, generation=SHORT)
    opened, original = [], StreamPool.open
    monkeypatch.setattr(StreamPool, "open", lambda self, *given: opened.append(original(self, *given)) or opened[-1])
    with (
        DemoServer(tiny_model, DemoOptions(defaults=watching), ServerOptions(port=0)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert TestRequests.send(client, "open_camera")
        made = client.post("v1/streams", json={"fps": 2}).json()["options"]
        assert (made["strategy"], made["strategy_options"]) == ("retrieval", {"retrieved_frames": 2})
        for field in ("strategy", "strategy_options"):
            assert client.post("v1/streams", json={field: "direct"}).status_code == 422
        assert len(opened) == 2
        for one in opened:
            for time_s in range(4):
                one.stream.receive(np.full((30, 40, 3), 60 * time_s, np.uint8), float(time_s))
            one.stream.drain(60)
            assert len(one.stream.session.prepare("What?").frames) == 2
        fields = {each["props"].get("elem_id"): each["props"] for each in client.get("config").json()["components"]}
        assert fields["memory"]["info"] == "strategy: retrieval"


class TestRequests:
    """What a program may send to the page's own routes, which no button of the page would send."""

    @pytest.fixture(scope="class")
    def server(self, tiny_model):
        with DemoServer(tiny_model, server=ServerOptions(port=0)) as running:
            yield running

    @pytest.fixture
    def client(self, server):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client

    @staticmethod
    def send(client, element, *values):
        """Let the event of a field or button happen, its first inputs being these; what came of it."""
        config = client.get("config").json()
        fields = {each["id"]: each["props"] for each in config["components"]}
        event = next(e for e in config["dependencies"] if fields.get(e["targets"][0][0], {}).get("elem_id") == element)
        rest = [fields[each].get("value") for each in event["inputs"][len(values) :]]
        tab = {"session_hash": f"test{element}"}
        client.post("gradio_api/queue/join", json={"fn_index": event["id"], "data": [*values, *rest], **tab})
        with client.stream("GET", "gradio_api/queue/data", params=tab) as messages:
            for line in filter(None, messages.iter_lines()):
                message = json.loads(line.removeprefix("data:"))
                if message["msg"] == "process_completed":
                    return json.dumps(message["output"])
        return None

    def test_the_fields_of_the_chosen_memory_are_shown(self, client):
        config = client.get("config").json()
        fields = {each["id"]: each["props"] for each in config["components"]}
        own = [f for f in fields.values() if "." in (f.get("elem_id") or "")]
        shown = {f["elem_id"]: f["placeholder"] for f in own if f["visible"]}
        assert shown == {"pyramid.capacities": "2, 2, 12", "pyramid.policy": "reference"}
        updates = json.loads(self.send(client, "memory", "moviechat"))["data"]
        shown = {f["elem_id"]: f["placeholder"] for f, update in zip(own, updates, strict=True) if update["visible"]}
        assert {name.removeprefix("moviechat."): value for name, value in shown.items()} == {
            "short_frames": "18",
            "long_frames": "256",
            "merged_frames": "2",
            "reading": "global",
        }

    def test_a_memory_that_grows_for_ever_is_not_offered(self, client):
        fields = {each["props"].get("elem_id"): each["props"] for each in client.get("config").json()["components"]}
        names = [name for name, _ in fields["memory"]["choices"]]
        assert "pyramid" in names
        assert "keep_all" not in names

    @pytest.mark.parametrize("more", [{}, {"is_stream": True}])
    @pytest.mark.parametrize("element", ["upload", "open_example", "ask"])
    def test_no_file_but_an_uploaded_one_is_taken(self, client, server, tmp_path, element, more):
        clip = write_clip(tmp_path / "clip.mp4")
        kind = {"meta": {"_type": "gradio.FileData"}, **more}
        for path in (str(clip), "/dev/zero", "http://192.0.2.1/clip.mp4", "clip.mp4"):
            said = self.send(client, element, {"path": path, **kind})
            assert "expected a file that was uploaded, found another" in said, path
            said = self.send(client, element, [{"file": {"path": path, "url": path, **kind}}])
            assert "expected a file that was uploaded, found another" in said, path
        assert clip.exists()
        assert len(server.pool) == 0

    def test_an_uploaded_one_is_taken(self, client, server, tmp_path):
        said, path = self.upload(client, write_clip(tmp_path / "clip.mp4"))
        assert not path.exists()
        (name,) = re.findall(r'data-stream=\\"([^"\\]+)', said)
        server.pool.close(name)

    @pytest.mark.parametrize("name", ["notes.txt", "notes.mp4"])
    def test_a_refused_one_does_not_stay(self, client, tmp_path, name):
        (tmp_path / name).write_bytes(b"hello")
        said, path = self.upload(client, tmp_path / name)
        assert f"{name}: expected a video" in said
        assert not path.exists()

    @staticmethod
    def upload(client, file):
        with file.open("rb") as content:
            (path,) = client.post("gradio_api/upload", files={"files": (file.name, content)}).json()
        said = TestRequests.send(client, "upload", {"path": path, "meta": {"_type": "gradio.FileData"}})
        return said, Path(path)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_pages_of_other_origins_are_refused(self, client, server, host):
        for method, route in [
            ("POST", "gradio_api/upload"),
            ("POST", "gradio_api/queue/join"),
            ("POST", "login"),
            ("OPTIONS", "gradio_api/queue/join"),
        ]:
            for origin, status in (("http://evil.example", 403), ("null", 403), (f"http://{host}:1", 403)):
                headers = {"Origin": origin, "Host": f"{host}:{server.port}"}
                reply = client.request(method, route, headers=headers, files={"files": ("clip.mp4", b"x")})
                assert reply.status_code == status, (route, origin)
        own = {"Origin": server.url.rstrip("/")}
        assert client.post("gradio_api/upload", headers=own, files={"files": ("a.mp4", b"x")}).status_code == 200


class TestSources:
    """What the operator has named."""

    @pytest.fixture
    def camera(self, tmp_path):
        server = RtspServer(write_clip(tmp_path / "clip.ts").read_bytes(), login=("user", "secret"), seconds=4.0)
        yield server
        server.close()

    @pytest.fixture
    def client(self, tiny_model, tmp_path, camera):
        clip, frames = write_clip(tmp_path / "clip.mp4"), write_folder(tmp_path / "frames")
        sources = {
            "door": camera.url("user:secret@"), "gate": camera.url("user:hunter2@"),
            "clip": str(clip), "frames": str(frames),
        }  # fmt: skip
        demo = DemoOptions(
            sources=tuple(NamedSource(*each) for each in sources.items()), defaults=StreamOptions(fps=8.0)
        )
        with (
            DemoServer(tiny_model, demo, ServerOptions(port=0)) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            yield client

    @staticmethod
    def watch(client, name, until):
        """The page's view of a stream of that source, as soon as it is so."""
        said = TestRequests.send(client, "open_source", name)
        (stream,) = re.findall(r'data-stream=\\"([^"\\]+)', said)
        end = time.monotonic() + 60
        while not until(live := client.get(f"page/streams/{stream}").json()):
            assert time.monotonic() < end, live
            time.sleep(0.05)
        return live

    @pytest.mark.parametrize("name", ["door", "clip", "frames"])
    def test_one_is_watched_by_its_name(self, client, name):
        live = self.watch(client, name, lambda live: live["status"]["num_frames_seen"] >= 3)
        assert live["player"]["problem"] is None
        assert (live["player"]["state"], live["player"]["waiting_s"]) in (("playing", None), ("ended", None))
        assert live["memory"]["remembered"]

    def test_nothing_has_an_address(self, client, caplog, capfd):
        live = self.watch(client, "gate", lambda live: live["player"]["state"] == "waiting")
        assert live["player"]["problem"] == "Server returned 401 Unauthorized (authorization failed)"
        assert live["player"]["waiting_s"] >= 0
        config = client.get("config").text
        assert all(name in config for name in ("door", "gate", "clip", "frames"))
        for said in (str(live), config, caplog.text, str(capfd.readouterr()), client.get("").text):
            for secret in ("hunter2", "secret", "user:", "clip.mp4", "rtsp:"):
                assert secret not in said

    @pytest.mark.parametrize("name", ["rtsp://127.0.0.1/", "/etc/hostname", "Door", "", None])
    def test_no_other_is_opened(self, client, camera, name):
        said = TestRequests.send(client, "open_source", name)
        assert "data-stream" not in said
        assert camera.requests == []

    def test_without_any_there_is_no_choice(self, tiny_model):
        with (
            DemoServer(tiny_model, server=ServerOptions(port=0)) as server,
            httpx.Client(base_url=server.url) as client,
        ):
            tabs = [one["props"] for one in client.get("config").json()["components"] if one["type"] == "tabitem"]
            assert [(one["id"], one["visible"]) for one in tabs if one["id"] == "source"] == [("source", False)]
            said = TestRequests.send(client, "open_source", None)
            assert "source: expected one of none, found none" in said


def test_a_tab_that_is_closed_during_an_upload_takes_no_place(tiny_model, tmp_path, monkeypatch):
    pool = StreamPool(tiny_model, max_streams=1)
    viewers = Viewers(pool, DemoOptions())
    original = accept_upload

    def leave_meanwhile(*arguments):
        viewers.leave("tab")
        return original(*arguments)

    monkeypatch.setattr("videochat_online.demo.tabs.accept_upload", leave_meanwhile)
    with pytest.raises(InputError, match="the page was closed meanwhile"):
        viewers.open_upload("tab", write_clip(tmp_path / "clip.mp4"), StreamOptions())
    assert len(pool) == 0
    pool.close_all()
