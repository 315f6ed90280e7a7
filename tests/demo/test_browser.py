"""The page in a real browser: what a visitor does, and what a visitor must not be able to do."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from clips import write_clip
from rtsp_server import RtspServer
from videochat_online.demo.server import DemoServer, ServerOptions
from videochat_online.demo.tabs import DemoOptions
from videochat_online.serving.sources.named_sources import NamedSource
from videochat_online.serving.sources.uploads import UploadLimits
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.stream_options import StreamOptions
from videochat_online.streaming import GenerationSettings, StreamingSession

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

WAIT_MS = 30_000
"""Longer than anything here takes, on a busy machine."""

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip
SPEAKING = GenerationSettings(max_new_tokens=8, min_new_tokens=8)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    path = write_clip(tmp_path_factory.mktemp("camera") / "clip.ts")
    made = RtspServer(path.read_bytes(), login=("user", "secret"), seconds=4.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tiny_model, camera, clip):
    demo = DemoOptions(
        sources=(NamedSource("walk", str(clip)), NamedSource("door", camera.url("user:secret@"))),
        limits=UploadLimits(max_bytes=2 << 20, max_duration_s=60.0),
        defaults=StreamOptions(fps=4.0, generation=SPEAKING),
    )
    with DemoServer(tiny_model, demo, ServerOptions(port=0, max_streams=3)) as running:
        yield running


VISITOR = {"permissions": ["camera"], "viewport": {"width": 1300, "height": 1200}}


@pytest.fixture(scope="module")
def profile(browser):
    """Of a visitor who comes again and again, and has the parts of the page that do not change."""
    context = browser.new_context(**VISITOR)
    yield context
    context.close()


@pytest.fixture
def visit(browser, profile, server):
    """Open the page, as somebody `new` where that matters; nothing may be asked of another host."""
    pages, asked = [], []

    def open_page(url=server.url, *, new=False):
        page = browser.new_page(**VISITOR) if new else profile.new_page()
        pages.append(page)
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(f"a script was run: {dialog.message}"))
        page.goto(url)
        if url == server.url:
            page.wait_for_selector(".vco-hint")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert {httpx.URL(url).host for url in asked if not url.startswith(("data:", "blob:"))} <= {"localhost"}
    wait_until(lambda: len(server.pool) == 0)


def wait_until(condition):
    end = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=300, fps=10)


def choose(page, tab):
    page.get_by_role("tab", name=tab).click()


def upload(page, *files, into="upload"):
    choose(page, {"upload": "Upload", "images": "Images"}[into])
    page.set_input_files(f"#{into} input[type=file]", [str(file) for file in files])


def field_of(name):
    """Selector of what is written into for a setting such as `star.key_frames`."""
    return f'[id="{name}"] input, [id="{name}"] textarea'


def set_memory(page, name, value):
    """Fill a setting of the memory; again where its field was drawn anew, as fields are once the page has loaded."""
    field = page.locator(field_of(name))
    for _ in range(20):
        field.fill(value)
        page.wait_for_timeout(200)
        if field.input_value() == value:
            return
    raise AssertionError(f"{name}: expected {value!r} to stay, found {field.input_value()!r}")


def wait_for_picture(page):
    page.wait_for_function("document.querySelector('#vco-view img')?.naturalWidth > 0")


def ask(page, question):
    page.fill("#question textarea, #question input", question)
    page.click("button#ask")


def answer_of(page, number=-1):
    """The text of an answer, when all of it is there."""
    page.wait_for_function("[...document.querySelectorAll('#chat .bot')].at(-1)?.innerText.trim().length > 3")
    return page.locator("#chat .bot .message").nth(number).inner_text().strip()


def stream_of(page, server):
    return server.pool.find(page.get_attribute("#vco-stream", "data-stream")).dialogue


def figures_of(page):
    texts = page.locator("#vco-stats span").all_inner_texts()
    return dict(text.rsplit(" ", 1) for text in texts if " " in text)


def test_upload_play_ask_pause_and_what_is_remembered(visit, server, clip):
    page = visit()
    upload(page, clip)
    wait_for_picture(page)
    page.wait_for_selector(".vco-lane .vco-frame")
    page.wait_for_function("document.querySelectorAll('.vco-lane:not(.vco-forgotten) .vco-frame').length > 3")
    ask(page, "What is moving?")
    text = answer_of(page)
    stream = stream_of(page, server)
    wait_until(lambda: stream.answers[0].is_over)
    answer = stream.answers[0]
    page.wait_for_function("text => document.querySelector('#chat').innerText.includes(text)", arg=answer.text[:20])
    assert answer.text.startswith(text[:3])
    assert 0 < answer.asked_at_s < 30
    user = page.locator("#chat .user .message").first.inner_text()
    assert user.strip() == f"[0:{answer.asked_at_s:04.1f}] What is moving?"
    seen = stream.status().num_frames_seen
    wait_until(lambda: stream.status().num_frames_seen > seen)  # it went on playing
    figures = figures_of(page)
    assert figures["frames in"].isdigit()
    assert float(figures["real-time factor"]) > 0
    page.click("button#pause")
    page.wait_for_function("document.querySelector('#vco-badge').innerText.startsWith('paused')")
    assert stream.drain(10)
    held = stream.status().num_frames_seen
    page.wait_for_timeout(700)
    assert stream.status().num_frames_seen == held
    remembered = {(frame.index, frame.num_tokens) for frame in stream.memory().remembered}
    page.wait_for_function("n => document.querySelectorAll('.vco-lane:not(.vco-forgotten) .vco-frame').length === n",
                           arg=len(remembered))  # fmt: skip
    frames = page.locator(".vco-lane:not(.vco-forgotten) .vco-frame")
    shown = [(frame.get_attribute("data-index"), frame.get_attribute("data-tokens")) for frame in frames.all()]
    assert {(int(index), int(tokens)) for index, tokens in shown} == remembered
    widths = {
        int(tokens): frame.bounding_box()["width"] for (_, tokens), frame in zip(shown, frames.all(), strict=True)
    }
    assert sorted(widths.values()) == [widths[tokens] for tokens in sorted(widths)]
    frames.first.hover()
    assert "frame 0 at 0.00 s" in frames.first.locator(".vco-tip").inner_text()
    page.click("button#play")
    wait_until(lambda: stream.status().num_frames_seen > held)


def test_seek_speed_and_the_end(visit, server, clip):
    page = visit()
    upload(page, clip)
    wait_for_picture(page)
    page.fill("#seek_s textarea, #seek_s input", "0:27")
    page.click("button#seek")
    stream = stream_of(page, server)
    wait_until(lambda: stream.status().time_s >= 27)
    page.fill("#seek_s textarea, #seek_s input", "3")
    page.click("button#seek")
    page.wait_for_selector(".vco-notice:has-text('only goes forward')")
    page.fill("#seek_s textarea, #seek_s input", "soon")
    page.click("button#seek")
    page.wait_for_selector(".vco-notice:has-text('1:30')")
    page.wait_for_function("document.querySelector('#vco-badge').innerText.startsWith('ended')")
    times = [frame.time_s for frame in stream.memory().remembered]
    assert any(time_s >= 27 for time_s in times)
    assert not any(6 < time_s < 26.9 for time_s in times)
    ask(page, "What happened?")
    answer_of(page)


def test_the_camera(visit, server):
    page = visit()
    choose(page, "Camera")
    page.click("#open_camera")
    wait_for_picture(page)
    stream = stream_of(page, server)
    wait_until(lambda: stream.status().num_frames_seen >= 3)
    ask(page, "What do you see?")
    answer_of(page)
    assert stream.answers[0].question == "What do you see?"
    page.click("button#close")
    page.wait_for_selector(".vco-hint")
    wait_until(lambda: len(server.pool) == 0)
    assert stream.is_closed


def test_a_camera_that_is_refused_is_told(visit):
    page = visit()
    refuse = "() => Promise.reject(new Error('Permission denied'))"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refuse} }}")
    choose(page, "Camera")
    page.click("#open_camera")
    # Beside the figures, which are drawn again and again: it stays.
    page.wait_for_selector("#vco-stats:has-text('frames in'):has-text('no camera: Permission denied')")
    page.wait_for_timeout(1000)
    assert "no camera: Permission denied" in page.inner_text("#vco-stats")


def test_a_server_that_is_gone_is_told_and_found_again(visit, clip):
    page, route = visit(), "**/page/streams/*"
    upload(page, clip)
    wait_for_picture(page)
    page.route(route, lambda asked: asked.fulfill(status=200, body="{"))  # it broke off
    page.wait_for_timeout(1000)
    page.unroute(route)
    page.route(route, lambda asked: asked.abort())
    page.wait_for_function("document.querySelector('#vco-badge').innerText === 'the server does not answer'")
    page.unroute(route)
    page.wait_for_function("/playing|ended/.test(document.querySelector('#vco-badge').innerText)")
    assert int(figures_of(page)["frames in"]) > 0


def test_two_visitors_see_only_their_own(visit, server, tmp_path, clip):
    first, second = visit(new=True), visit(new=True)
    upload(first, clip)
    other = write_clip(tmp_path / "other.mp4", num_frames=80, fps=10)
    upload(second, other)
    for page, question in ((first, "Who is one?"), (second, "Who is two?")):
        wait_for_picture(page)
        ask(page, question)
    for page, question, missing, length in (
        (first, "Who is one?", "two", "0:30"),
        (second, "Who is two?", "one", "0:08"),
    ):
        answer_of(page)
        chat = page.inner_text("#chat")
        assert question in chat
        assert f"Who is {missing}" not in chat
        page.wait_for_function("length => document.querySelector('#vco-badge').innerText.includes(length)", arg=length)
    ids = {page.get_attribute("#vco-stream", "data-stream") for page in (first, second)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.mp4", b"hello " * 100, "expected a video"),
        ("<img src=x onerror=alert(1)>.mp4", b"\0" * 500, "img src=x onerror=alert(1).mp4: expected a video"),
        ("page.html", b"<script>alert(1)</script>", "page.html: expected a video or an image"),
    ],
)
def test_a_bad_upload_says_what_is_wrong(visit, server, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    page = visit()
    upload(page, tmp_path / name)
    page.wait_for_selector(".vco-notice")
    shown = page.inner_text(".vco-notice")
    assert says in shown
    assert str(tmp_path) not in shown
    assert page.locator(".vco-notice img, .vco-notice script").count() == 0
    assert len(server.pool) == 0
    # The page goes on working, and what is being watched goes on if the next one is bad.
    upload(page, write_clip(tmp_path / "good.mp4"))
    wait_for_picture(page)
    watched = page.get_attribute("#vco-stream", "data-stream")
    (tmp_path / name).write_bytes(content)
    upload(page, tmp_path / name)
    page.wait_for_selector(".vco-notice")
    assert page.get_attribute("#vco-stream", "data-stream") == watched
    assert not server.pool.find(watched).dialogue.is_closed


def test_a_closed_tab_frees_its_place(visit, server, clip):
    page = visit()
    upload(page, clip)
    wait_for_picture(page)
    folder = server.pool.find(page.get_attribute("#vco-stream", "data-stream")).folder
    assert list(folder.iterdir())
    page.close()
    wait_until(lambda: len(server.pool) == 0)
    wait_until(lambda: not folder.exists())  # another may open one before its files are gone


def test_no_place_is_left(visit, server, clip):
    taken = [server.pool.open(StreamOptions()) for _ in range(3)]
    page = visit()
    page.click("#open_example")
    page.wait_for_selector(".vco-notice:has-text('all 3 places are taken')")
    server.pool.close(taken[0].id)
    page.click("#open_example")
    wait_for_picture(page)
    assert len(server.pool) == 3
    for entry in taken[1:]:
        server.pool.close(entry.id)


def test_what_a_model_says_is_text(visit, server, clip, monkeypatch):
    says = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold** [link](javascript:alert(3)) $x$"

    def speak(session, prepared):
        yield says

    monkeypatch.setattr(StreamingSession, "stream_prepared", speak)
    page = visit()
    upload(page, clip)
    wait_for_picture(page)
    stream = stream_of(page, server)
    wait_until(lambda: stream.status().num_frames_seen)
    ask(page, "<b>Who</b> are you?<img src=x onerror=alert(4)>")
    page.wait_for_function("document.querySelector('#chat').innerText.includes('javascript')")
    assert answer_of(page) == says
    assert "<b>Who</b> are you?<img src=x onerror=alert(4)>" in page.inner_text("#chat .user")
    for tag in ("img[src=x]", "script", "a[href^=javascript]", "strong", "b"):
        assert page.locator(f"#chat .message {tag}").count() == 0, tag


def test_stop_new_dialogue_and_export(visit, server, clip, monkeypatch):
    original = StreamingSession.stream_prepared

    def slow(session, prepared):
        for number in range(10_000):
            time.sleep(0.02)
            yield f"word{number} "
        yield from original(session, prepared)

    page = visit()
    upload(page, clip)
    wait_for_picture(page)
    stream = stream_of(page, server)
    wait_until(lambda: stream.status().num_frames_seen)
    ask(page, "First?")
    answer_of(page)
    wait_until(lambda: stream.answers[0].is_over)
    monkeypatch.setattr(StreamingSession, "stream_prepared", slow)
    ask(page, "Second?")
    page.wait_for_function("document.querySelector('#chat').innerText.includes('word3')")
    ask(page, "Third?")
    page.wait_for_selector(".vco-notice:has-text('still being given')")
    page.click("button#stop")
    page.wait_for_function("document.querySelector('#chat').innerText.includes('(stopped)')")
    with page.expect_download() as started:
        page.click("#vco-export-json")
    rows = json.loads(Path(started.value.path()).read_text("utf-8"))
    assert [(row["question"], row["state"]) for row in rows] == [("First?", "answered"), ("Second?", "stopped")]
    assert [row["asked_at_s"] for row in rows] == [answer.asked_at_s for answer in stream.answers]
    with page.expect_download() as started:
        page.click("#vco-export-srt")
    blocks = Path(started.value.path()).read_text("utf-8").split("\n\n")
    assert re.match(r"1\n00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}\nFirst\?\n", blocks[0])
    page.click("button#clear")
    page.wait_for_function("!document.querySelector('#chat').innerText.includes('First?')")
    assert stream.answers == ()


def test_an_example_with_its_questions(visit, server):
    page = visit()
    page.click("#open_example")
    wait_for_picture(page)
    page.get_by_text("Multiple choice").click()
    page.click("#known input")
    page.locator("ul[role=listbox] li").first.click()
    wait_until(lambda: page.input_value("#choices textarea"))
    question = page.input_value("#question textarea, #question input")
    options = page.input_value("#choices textarea").splitlines()
    stream = stream_of(page, server)
    wait_until(lambda: stream.status().num_frames_seen)
    page.click("button#ask")
    answer_of(page)
    asked = stream.answers[0].question
    assert question in asked
    page.click("button#ask")  # the options are still there, the question is not
    page.wait_for_selector(".vco-notice:has-text('got an empty one')")
    assert all(f"({letter}) {option}" in asked for letter, option in zip("ABCD", options, strict=False))


def test_a_source_by_its_name(visit, server):
    """A camera that hangs up after 4 s is waited for, and goes on; a file can be paused as an upload can."""
    page = visit()
    choose(page, "Source")
    assert page.input_value("#source input") == "walk"
    page.click("#source input")
    listed = page.locator("ul[role=listbox] li").all_inner_texts()
    assert [text.split()[-1] for text in listed] == ["walk", "door"]  # the one that is chosen is ticked
    page.locator("ul[role=listbox] li", has_text="door").click()
    page.click("button#open_source")
    badge = "document.querySelector('#vco-badge')?.innerText"
    page.wait_for_function(f"{badge}?.startsWith('playing')")
    wait_for_picture(page)
    stream = stream_of(page, server)
    page.wait_for_function(f"{badge}?.startsWith('waiting for 0:0')")
    assert page.locator(".vco-problem").inner_text() == "the source has ended"
    seen = stream.status().num_frames_seen
    assert seen > 0
    page.wait_for_function(f"{badge}?.startsWith('playing')")
    wait_until(lambda: stream.status().num_frames_seen > seen)
    page.wait_for_function("!document.querySelector('.vco-problem')")
    page.click("button#pause")
    page.wait_for_selector(".vco-notice:has-text('only a video file can be paused')")
    assert not {"secret", "rtsp:"} & set(re.findall(r"secret|rtsp:", page.content()))
    page.click("#source input")
    page.locator("ul[role=listbox] li", has_text="walk").click()
    page.click("button#open_source")
    page.wait_for_function(f"{badge}?.includes(' / 0:30')")
    page.click("button#pause")
    page.wait_for_function(f"{badge}?.startsWith('paused')")


def test_chat_about_images(visit, server, tmp_path):
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"picture{number}.png")
    page = visit()
    upload(page, tmp_path / "picture0.png", tmp_path / "picture1.png", into="images")
    wait_for_picture(page)
    ask(page, "What are these?")
    answer_of(page)
    dialogue = stream_of(page, server)
    assert not isinstance(dialogue, LiveStream)
    assert dialogue.num_images == 2
    wait_until(lambda: dialogue.answers[0].is_over)
    assert dialogue.answers[0].state == "answered"


def test_another_memory(visit, server, clip):
    page = visit()
    page.get_by_text("Settings (they count").click()
    set_memory(page, "pyramid.capacities", "1, 0, 2")
    upload(page, clip)
    wait_for_picture(page)
    stream = stream_of(page, server)
    assert stream.options.memory_options == {"capacities": (1, 0, 2)}
    assert stream.status().max_tokens == 16 + 2 * 1
    page.click("button#close")
    page.wait_for_selector(".vco-hint")
    set_memory(page, "pyramid.capacities", "many")
    upload(page, clip)
    page.wait_for_selector(".vco-notice:has-text('whole numbers')")
    page.click("#memory input")  # its number of frames is left empty
    page.locator("ul[role=listbox] li", has_text="window").first.click()
    upload(page, clip)
    wait_for_picture(page)
    assert stream_of(page, server).options.memory == "window"


def test_the_settings_of_a_memory(visit, server, clip):
    """Fields of the chosen memory only; a bad value is named, and what is watched goes on."""
    page = visit()
    page.get_by_text("Settings (they count").click()
    page.wait_for_selector(field_of("pyramid.capacities"))
    assert page.locator(field_of("star.cluster_frames")).count() == 0
    page.click("#memory input")
    page.locator("ul[role=listbox] li", has_text="star").first.click()
    page.wait_for_selector(field_of("star.cluster_frames"))
    assert page.locator(field_of("pyramid.capacities")).count() == 0
    field = page.locator(field_of("star.cluster_frames"))
    assert field.get_attribute("placeholder") == "25"
    field.fill("6")
    set_memory(page, "star.abstract_decay", "0.5")
    upload(page, clip)
    wait_for_picture(page)
    stream = stream_of(page, server)
    assert (stream.options.memory, stream.options.memory_options) == (
        "star",
        {"cluster_frames": 6, "abstract_decay": 0.5},
    )
    for bad, says in (
        ("2", "expected at most one for each of the 2 clusters, got 3"),
        ("few", "whole number of at least 1, got 'few'"),
    ):
        field.fill(bad)
        upload(page, clip)
        page.wait_for_selector(f'.vco-notice:has-text("{says}")')
        assert stream_of(page, server) is stream
    seen = stream.status().num_frames_seen
    wait_until(lambda: stream.status().num_frames_seen > seen)


def test_no_file_outside_the_uploads_is_served(server, clip, tmp_path):
    (tmp_path / "secret.txt").write_text("treasure")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/etc/passwd", tmp_path / "secret.txt", clip, Path(__file__), Path("pyproject.toml").resolve()):
            for route in (
                f"gradio_api/file={path}",
                f"file={path}",
                f"gradio_api/file/{path}",
                f"page/..%2f..%2f{path}",
            ):
                reply = client.get(route)
                assert reply.status_code >= 400, route
                assert "treasure" not in reply.text
        for route in (
            "page/page.py",
            "page/server.py",
            "page/..%2fpage.py",
            "page/streams/x",
            "page/streams/x/conversation.srt",
        ):
            assert client.get(route).status_code == 404, route
        assert client.get("page/page.js").status_code == 200
        assert client.get("", headers={"Host": "evil.example"}).status_code == 400


def test_a_password_is_asked_for(browser, visit, tiny_model):
    with DemoServer(tiny_model, server=ServerOptions(port=0, password="open sesame")) as closed:
        page = visit(closed.url, new=True)
        page.wait_for_selector("input[type=password]")
        assert page.locator("#open_example").count() == 0
        fields = page.locator("input")
        fields.nth(0).fill("me")
        fields.nth(1).fill("wrong")
        page.get_by_role("button").first.click()
        page.wait_for_selector("text=Incorrect Credentials")
        fields.nth(0).fill("me")
        fields.nth(1).fill("open sesame")
        page.get_by_role("button").first.click()
        page.wait_for_selector("#open_example")
        page.click("#open_example")
        wait_for_picture(page)
