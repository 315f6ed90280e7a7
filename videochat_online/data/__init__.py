"""Training data: registries, rows, and what the model is trained on."""

from videochat_online.data.batches.collator import BATCH_REPORT, BatchReport, Collator
from videochat_online.data.batches.held_out import HeldOutRows
from videochat_online.data.batches.mixture import EpochSampler
from videochat_online.data.batches.packing import PackedDataset
from videochat_online.data.batches.registry import RegistryEntry, load_registries, load_registry
from videochat_online.data.batches.training_dataset import SetCount, SkippedSample, TrainingDataset
from videochat_online.data.rows.annotation_file import AnnotationFile
from videochat_online.data.rows.formats.base import RowFormat
from videochat_online.data.rows.row_formats import ROW_FORMATS, RowParser, parse_row
from videochat_online.data.rows.sample import BoxAt, DialogueTurn, Sample
from videochat_online.data.samples.encoding import Example, SampleEncoder
from videochat_online.data.samples.pixel_reader import FrameSampling, PixelReader, Tiling

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
    "AnnotationFile",
    "ROW_FORMATS",
    "BoxAt",
    "DialogueTurn",
    "RowFormat",
    "RowParser",
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
