"""Generated streams with questions whose answers are known, for training and for measuring."""

from videochat_online.synthetic.files.preset_streams import Stream, make_streams
from videochat_online.synthetic.files.synthetic_dataset import Synthesis, synthesize
from videochat_online.synthetic.files.vocabulary import vocabulary
from videochat_online.synthetic.oracle import replay, replay_last_frame
from videochat_online.synthetic.presets import PRESETS, ClipKind, Preset, StreamKind
from videochat_online.synthetic.questions.question_templates import TEMPLATES
from videochat_online.synthetic.scene.render import Renderer
from videochat_online.synthetic.scene.scene import Entity, Event, Scene, scene_from_dict

__all__ = [
    "PRESETS",
    "TEMPLATES",
    "ClipKind",
    "Entity",
    "Event",
    "Preset",
    "Renderer",
    "Scene",
    "Stream",
    "StreamKind",
    "Synthesis",
    "make_streams",
    "replay",
    "replay_last_frame",
    "scene_from_dict",
    "synthesize",
    "vocabulary",
]
