"""Generated streams with questions whose answers are known, for training and for measuring."""

from videochat_online.synthetic.files.preset_streams import Stream, make_streams
from videochat_online.synthetic.files.synthetic_dataset import Synthesis, synthesize
from videochat_online.synthetic.files.vocabulary import WORD_PATTERN, vocabulary, words_in
from videochat_online.synthetic.oracle import replay, replay_last_frame
from videochat_online.synthetic.presets import PRESETS, ClipKind, Preset, StreamKind
from videochat_online.synthetic.questions.question_templates import TEMPLATES, Question, Template
from videochat_online.synthetic.scene.render import Renderer
from videochat_online.synthetic.scene.scene import Entity, Event, Scene, Visible, scene_from_dict

__all__ = [
    "PRESETS",
    "TEMPLATES",
    "WORD_PATTERN",
    "ClipKind",
    "Entity",
    "Event",
    "Preset",
    "Question",
    "Renderer",
    "Scene",
    "Stream",
    "StreamKind",
    "Synthesis",
    "Template",
    "Visible",
    "make_streams",
    "replay",
    "replay_last_frame",
    "scene_from_dict",
    "synthesize",
    "vocabulary",
    "words_in",
]
