"""Training: `parse_arguments`, then `train`."""

from videochat_online.extras import require

require("training", "peft")

from videochat_online.train.folder.training_report import TrainReport  # noqa: E402
from videochat_online.train.keys.arguments import Arguments  # noqa: E402
from videochat_online.train.keys.parsing import parse_arguments  # noqa: E402
from videochat_online.train.run import dry_run, train  # noqa: E402

__all__ = ["Arguments", "TrainReport", "dry_run", "parse_arguments", "train"]
