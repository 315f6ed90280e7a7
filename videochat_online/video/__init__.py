"""Reading videos, choosing frames, and turning them into what a vision tower takes."""

from videochat_online.video.ahead import read_ahead
from videochat_online.video.decode import BACKENDS, VideoSource, open_video, read_video
from videochat_online.video.reader import DEFAULT_FRAME_RATE, VideoInfo
from videochat_online.video.sampling_rules import (
    TIME_TOLERANCE_S,
    SampledFrames,
    frame_step,
    sample_clip,
    segment_centre_indices,
    sliding_window_indices,
    sliding_window_indices_at_times,
    streaming_indices,
    streaming_indices_at_times,
    uniform_subset,
)
from videochat_online.video.still_images import IMAGE_EXTENSIONS, image_notes, list_frame_files, read_image
from videochat_online.video.transforms import FrameTransform, choose_tile_grid, normalize, stack_images, tile_image

__all__ = [
    "BACKENDS",
    "DEFAULT_FRAME_RATE",
    "IMAGE_EXTENSIONS",
    "TIME_TOLERANCE_S",
    "FrameTransform",
    "SampledFrames",
    "VideoInfo",
    "VideoSource",
    "choose_tile_grid",
    "frame_step",
    "image_notes",
    "list_frame_files",
    "normalize",
    "open_video",
    "read_ahead",
    "read_image",
    "read_video",
    "sample_clip",
    "segment_centre_indices",
    "sliding_window_indices",
    "sliding_window_indices_at_times",
    "stack_images",
    "streaming_indices",
    "streaming_indices_at_times",
    "tile_image",
    "uniform_subset",
]
