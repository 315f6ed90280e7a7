"""Training data: registries, rows, and what the model is trained on."""

from videochat_online.data.collator import BATCH_REPORT, BatchReport, Collator
from videochat_online.data.dataset import SetCount, SkippedSample, TrainingDataset
from videochat_online.data.encoding import Example, SampleEncoder
from videochat_online.data.frames import FrameSampling, PixelReader, Tiling
from videochat_online.data.held_out import HeldOutRows
from videochat_online.data.mixture import EpochSampler
from videochat_online.data.packing import PackedDataset
from videochat_online.data.records import Sample, parse_row
from videochat_online.data.registry import RegistryEntry, load_registries, load_registry
from videochat_online.data.rows import RowFile

__all__ = [
    "BATCH_REPORT",
    "BatchReport",
    "Collator",
    "EpochSampler",
    "Example",
    "FrameSampling",
    "HeldOutRows",
    "PackedDataset",
    "PixelReader",
    "RegistryEntry",
    "RowFile",
    "Sample",
    "SampleEncoder",
    "SetCount",
    "SkippedSample",
    "Tiling",
    "TrainingDataset",
    "load_registries",
    "load_registry",
    "parse_row",
]
