"""The page: what is on it and which button does what. The live parts are `static/page.js`.

Text of models, files and viewers reaches the page as text only: the chat shows no markup, messages are escaped.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from videochat_online.demo.examples import EXAMPLES
from videochat_online.demo.tabs import DemoOptions, Viewers, form_options, memories_of
from videochat_online.errors import InputError
from videochat_online.memory.labels import settings_of
from videochat_online.serving.sources.file_source import FilePlayer
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.text.times import seconds_of

SECONDS_BETWEEN_PIECES = 0.05
"""The chat is not drawn again more often than that."""

SPEED_CHOICES = [0.5, 1.0, 2.0, 4.0, 8.0]
LEFT_UPLOADS_S = (60, 1800)
"""Seconds between two looks for uploads that nobody has opened, and the age in seconds that they may reach."""

HEAD = '<script src="page/page.js" defer></script><link rel="stylesheet" href="page/page.css">'

Update = dict[Any, Any]


def make_page(viewers: Viewers) -> gr.Blocks:
    """The page for all tabs of a server."""
    return _Page(viewers).blocks


def theme() -> gr.themes.Base:
    """Without fonts from other hosts."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])


class _Blocks(gr.Blocks):
    """Takes files from the page only as what was uploaded before.

    A file reaches an event as a path, or an address, that the browser sends along with it. Gradio looks at it only in
    pages that it serves itself: in one that is mounted, anybody could name a file of the server's or another host.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **options: Any) -> Any:
        """Refuse other files, whatever field they are in, before they are looked at."""
        _check_files(inputs, Path(self.GRADIO_CACHE).resolve())
        return await super().preprocess_data(block_fn, inputs, *more, **options)


def _check_files(value: Any, folder: Path) -> None:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and not Path(path.replace("\0", "_")).resolve().is_relative_to(folder):
            raise gr.Error("expected a file that was uploaded, found another", print_exception=False)
        _check_files(list(value.values()), folder)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_files(each, folder)


class _Page:
    def __init__(self, viewers: Viewers) -> None:
        self.viewers, options = viewers, viewers.options
        with _Blocks(
            title="VideoChat-Online", fill_width=True, analytics_enabled=False, delete_cache=LEFT_UPLOADS_S
        ) as self.blocks:
            gr.Markdown(
                "# VideoChat-Online\nWatch a video as it plays, and ask at any moment: the answer comes from "
                "what has been seen so far."
            )
            self.stream = gr.HTML(self._stream_tag("", "", 1.0), elem_classes="vco-hidden")
            self.notice = gr.HTML("", elem_classes="vco-notices")
            with gr.Row():
                with gr.Column(scale=3):
                    gr.HTML('<div id="vco-view" class="vco-view"></div><div id="vco-stats" class="vco-stats"></div>')
                    self._add_controls()
                    self._add_sources(options)
                with gr.Column(scale=2):
                    self._add_chat()
            gr.HTML('<div id="vco-memory" class="vco-memory"></div>')
            self._add_settings(options)
            self._wire(options)

    def _add_controls(self) -> None:
        bare: dict[str, Any] = {"container": False, "show_label": False}
        with gr.Row():
            self.play = gr.Button("Play", elem_id="play", min_width=70)
            self.pause = gr.Button("Pause", elem_id="pause", min_width=70)
            speeds = [(f"{speed:g} x speed", speed) for speed in SPEED_CHOICES]
            self.speed = gr.Dropdown(speeds, value=1.0, elem_id="speed", min_width=130, **bare)
            self.seek_s = gr.Textbox(placeholder="to 1:30", elem_id="seek_s", min_width=90, **bare)
            self.seek = gr.Button("Go", elem_id="seek", min_width=50)
            self.close = gr.Button("Close", elem_id="close", min_width=70)

    def _add_sources(self, options: DemoOptions) -> None:
        limits = options.limits
        with gr.Tabs():
            with gr.Tab("Example", id="example"):
                self.example = gr.Radio(list(EXAMPLES), value=next(iter(EXAMPLES)), show_label=False)
                self.open_example = gr.Button("Play a new example", elem_id="open_example", variant="primary")
            with gr.Tab("Upload", id="upload"):
                self.upload = gr.File(
                    label=f"A video of at most {limits.max_bytes >> 20} MB, {limits.max_duration_s / 60:g} minutes",
                    elem_id="upload", height=120,
                )  # fmt: skip
            with gr.Tab("Camera", id="camera"):
                gr.Markdown("The browser asks for the camera. Pictures go to this server and nowhere else.")
                self.open_camera = gr.Button("Watch the camera", elem_id="open_camera", variant="primary")
            with gr.Tab("Images", id="images"):
                self.images = gr.File(
                    label="One or several images to chat about", file_count="multiple", elem_id="images", height=120
                )
            names = [source.name for source in options.sources]
            with gr.Tab("Source", id="source", visible=bool(names)):
                self.source = gr.Dropdown(names, label="Cameras and videos of this server", elem_id="source")
                self.open_source = gr.Button("Watch", elem_id="open_source", variant="primary")

    def _add_chat(self) -> None:
        self.chat = gr.Chatbot(
            [], label="Dialogue", height=430, elem_id="chat", render_markdown=False, allow_tags=False,
            feedback_options=None, buttons=[], placeholder="Ask while the video plays.",
        )  # fmt: skip
        with gr.Row():
            self.question = gr.Textbox(
                show_label=False, placeholder="What is happening?", elem_id="question", scale=4, container=False
            )
            self.ask = gr.Button("Ask", elem_id="ask", variant="primary", scale=1, min_width=70)
            self.stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=70)
        with gr.Accordion("Multiple choice", open=False):
            self.known = gr.Dropdown(
                [], label="Questions that this example answers", interactive=True, elem_id="known", visible=False
            )
            self.choices = gr.Textbox(label="Options, one per line (empty: open question)", lines=4, elem_id="choices")
        with gr.Row():
            self.clear = gr.Button("New dialogue", elem_id="clear", size="sm")
            links = (f'<a id="vco-export-{kind}" download>Export {kind.upper()}</a>' for kind in ("json", "srt"))
            gr.HTML(f"<nobr>{' · '.join(links)}</nobr>")

    def _add_settings(self, options: DemoOptions) -> None:
        defaults = options.defaults
        memories = memories_of(defaults)
        with gr.Accordion("Settings (they count for what is opened next)", open=False, elem_id="settings"):
            with gr.Row():
                fps = gr.Slider(0.25, 8.0, defaults.fps, step=0.25, label="Frames a second that the model sees")
                # Named beside the memory: it is the operator's to choose.
                info = None if defaults.strategy == "direct" else f"strategy: {defaults.strategy}"
                self.memory = gr.Dropdown(
                    list(memories), value=defaults.memory, label="Memory", info=info, elem_id="memory"
                )
            with gr.Row():
                self.memory_fields = {
                    f"{memory}.{name}": gr.Textbox(
                        one.written(defaults.memory_options.get(name) if memory == defaults.memory else None),
                        label=name.replace("_", " ").capitalize(),
                        info=one.help, placeholder=one.written(one.default), elem_id=f"{memory}.{name}", min_width=150,
                        visible=memory == defaults.memory,
                    )
                    for memory in memories
                    for name, one in settings_of(memory).items()
                }  # fmt: skip
            with gr.Row():
                generation = defaults.generation
                max_new_tokens = gr.Slider(1, 1024, generation.max_new_tokens, step=1, label="Longest answer, tokens")
                temperature = gr.Slider(0, 2, generation.temperature, step=0.05, label="Temperature (0: greedy)")
                top_p = gr.Slider(0.05, 1, generation.top_p, step=0.05, label="Top p")
                seed = gr.Number(generation.seed, label="Seed (empty: another each time)", precision=0)
            system_message = gr.Textbox(
                defaults.system_message or "", label="System message (empty: the checkpoint's)", lines=2
            )
        self.settings = {
            "fps": fps, "memory": self.memory, **self.memory_fields,
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
            "system_message": system_message,
        }  # fmt: skip

    def _wire(self, options: DemoOptions) -> None:
        viewers, settings = self.viewers, list(self.settings.values())
        opened = [self.stream, self.notice, self.chat, self.known, self.question, self.choices, self.speed]

        def opening(open_it: Callable[[str, Any, Any], None]) -> Callable[..., Update]:
            # Gradio puts the request before the values, however many there are.
            def handle(request: gr.Request, value: Any, *chosen: Any) -> Update:
                tab = str(request.session_hash)
                before = viewers.of(tab).stream_id
                try:
                    open_it(tab, value, form_options(options.defaults, dict(zip(self.settings, chosen, strict=True))))
                except InputError as error:
                    said = {self.notice: notice(str(error))}
                    return said if viewers.of(tab).stream_id == before else {**self._opened(tab), **said}
                return self._opened(tab)

            return handle

        every: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        self.open_example.click(opening(viewers.open_example), [self.example, *settings], opened, **every)
        self.open_camera.click(
            opening(lambda tab, _, chosen: viewers.open_camera(tab, chosen)), [self.example, *settings], opened, **every
        )
        self.upload.upload(
            opening(lambda tab, path, chosen: viewers.open_upload(tab, Path(path), chosen)),
            [self.upload, *settings], opened, **every,
        ).then(lambda: None, None, self.upload, **every)  # fmt: skip
        self.images.upload(
            opening(lambda tab, paths, chosen: viewers.open_images(tab, [Path(path) for path in paths], chosen)),
            [self.images, *settings], opened, **every,
        ).then(lambda: None, None, self.images, **every)  # fmt: skip
        self.open_source.click(opening(viewers.open_source), [self.source, *settings], opened, **every)

        asked = [self.chat, self.question, self.notice]
        for event in (self.ask.click, self.question.submit):
            # A second question during an answer is told why it has to wait, rather than swallowed.
            event(self._ask, [self.question, self.choices], asked, trigger_mode="multiple", **every)
        self.stop.click(self._acting(lambda tab: viewers.entry(tab).dialogue.stop_answer()), None, self.notice, **every)
        self.play.click(self._acting(lambda tab: self._player(tab).play()), None, self.notice, **every)
        self.pause.click(self._acting(lambda tab: self._player(tab).pause()), None, self.notice, **every)
        self.speed.input(
            self._acting(lambda tab, speed: self._player(tab).set_speed(float(speed))), self.speed, self.notice, **every
        )
        self.seek.click(self._acting(self._seek), self.seek_s, self.notice, **every)
        for event in (self.clear.click, self.chat.clear):
            event(self._clear, None, [self.chat, self.notice], **every)
        self.close.click(self._close, None, opened, **every)
        self.memory.change(
            lambda memory: [gr.update(visible=name.startswith(f"{memory}.")) for name in self.memory_fields],
            self.memory, list(self.memory_fields.values()), **every,
        )  # fmt: skip
        self.known.input(self._choose, self.known, [self.question, self.choices], **every)
        self.blocks.unload(self._leave)

    def _opened(self, tab: str) -> Update:
        viewer = self.viewers.of(tab)
        titles = [f"{one.asked_at_s:g} s: {one.text}" for one in viewer.questions]
        return {
            self.stream: self._stream_tag(viewer.stream_id or "", viewer.kind, viewer.fps),
            self.notice: "",
            self.chat: [],
            self.known: gr.update(choices=titles, value=None, visible=bool(titles)),
            self.question: "",
            self.choices: "",
            self.speed: 1.0,
        }

    def _stream_tag(self, name: str, kind: str, fps: float) -> str:
        """What `page.js` learns of the stream that is open."""
        rows, columns = self.viewers.pool.model.frames.grid
        facts = {"stream": name, "kind": kind, "fps": fps, "full-tokens": rows * columns}
        attributes = " ".join(f'data-{key}="{html.escape(str(value))}"' for key, value in facts.items())
        return f'<div id="vco-stream" {attributes}></div>'

    def _ask(self, question: str, choices: str, request: gr.Request) -> Iterator[Update]:
        tab, drawn_s = str(request.session_hash), 0.0
        options = [line.strip() for line in choices.splitlines() if line.strip()]
        try:
            yield {self.question: "", self.notice: ""}
            answers: Sequence[LiveAnswer] = ()
            for answers in self.viewers.ask(tab, question, options):
                if time.monotonic() - drawn_s >= SECONDS_BETWEEN_PIECES:
                    drawn_s = time.monotonic()
                    yield {self.chat: messages(answers)}
            yield {self.chat: messages(answers)}
        except InputError as error:
            # What no text is made of is not sent back either: the event would fail.
            yield {self.notice: notice(str(error)), self.question: question.encode(errors="replace").decode()}

    def _acting(self, act: Callable[..., Any]) -> Callable[..., str]:
        def handle(request: gr.Request, *values: Any) -> str:
            try:
                act(str(request.session_hash), *values)
            except InputError as error:
                return notice(str(error))
            return ""

        return handle

    def _player(self, tab: str) -> FilePlayer:
        player = self.viewers.entry(tab).player
        if not isinstance(player, FilePlayer):
            raise InputError("only a video file can be paused, and played at another speed or from a later moment")
        return player

    def _seek(self, tab: str, moment: str) -> None:
        self._player(tab).seek(seconds_of(moment))

    def _clear(self, request: gr.Request) -> Update:
        try:
            self.viewers.entry(str(request.session_hash)).dialogue.forget_dialogue()
        except InputError as error:
            return {self.notice: notice(str(error))}
        return {self.chat: [], self.notice: ""}

    def _close(self, request: gr.Request) -> Update:
        tab = str(request.session_hash)
        self.viewers.leave(tab)
        return self._opened(tab)

    def _leave(self, request: gr.Request) -> None:
        self.viewers.leave(str(request.session_hash))

    def _choose(self, title: str | None, request: gr.Request) -> Update:
        for one in self.viewers.of(str(request.session_hash)).questions:
            if title == f"{one.asked_at_s:g} s: {one.text}":
                return {self.question: one.text, self.choices: "\n".join(one.options)}
        return {self.question: "", self.choices: ""}


def messages(answers: Sequence[LiveAnswer]) -> list[dict[str, str]]:
    """A dialogue as the chat shows it: each question with the stream time it was asked at.

    Escaped: without markdown the chat still takes text for HTML, of which it removes scripts but not pictures.
    """
    rows = []
    for answer in answers:
        when = "" if answer.asked_at_s is None else f"[{int(answer.asked_at_s) // 60}:{answer.asked_at_s % 60:04.1f}] "
        ends = {
            "answering": "" if answer.text else "…",
            "answered": "" if answer.text else "(an empty answer)",
            "stopped": " (stopped)",
            "failed": f" Not answered: {answer.error}",
        }
        said = (answer.text + ends[answer.state]).strip()
        rows += [
            {"role": "user", "content": html.escape(f"{when}{answer.question}", quote=False)},
            {"role": "assistant", "content": html.escape(said, quote=False)},
        ]
    return rows


def notice(text: str) -> str:
    """A message, as text whatever is in it."""
    return f'<div class="vco-notice" role="alert">{html.escape(text)}</div>'
