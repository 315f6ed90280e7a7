"""Training: `parse_arguments`, then `train`."""

from videochat_online.train.folder.training_report import TrainReport
from videochat_online.train.keys.arguments import Arguments
from videochat_online.train.keys.parsing import parse_arguments
from videochat_online.train.run import dry_run, train

__all__ = ["Arguments", "TrainReport", "dry_run", "parse_arguments", "train"]
