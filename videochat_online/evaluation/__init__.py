"""Evaluation on benchmarks of timed questions: causal, each frame encoded once, resumable, in shards."""

from videochat_online.evaluation.benchmark import EvalQuestion, EvalSet, EvalVideo
from videochat_online.evaluation.compare.compare import Comparison, compare_runs
from videochat_online.evaluation.config import EvaluationConfig
from videochat_online.evaluation.protocol import PROTOCOLS, EvalProtocol, resolve_protocol
from videochat_online.evaluation.run.evaluation_folder import EvaluationFolder, Shard
from videochat_online.evaluation.run.plan import Plan, make_plan
from videochat_online.evaluation.run.runner import Progress, evaluate
from videochat_online.evaluation.run.summarize import Outcome
from videochat_online.evaluation.scoring.metrics import compute_metrics
from videochat_online.evaluation.scoring.parse import parse_answer
from videochat_online.evaluation.task import Task
from videochat_online.evaluation.tasks import TASKS, get_task

__all__ = [
    "PROTOCOLS",
    "TASKS",
    "Comparison",
    "EvalQuestion",
    "EvalSet",
    "EvalVideo",
    "EvaluationConfig",
    "Outcome",
    "Plan",
    "Progress",
    "EvalProtocol",
    "EvaluationFolder",
    "Shard",
    "Task",
    "compare_runs",
    "compute_metrics",
    "evaluate",
    "get_task",
    "make_plan",
    "parse_answer",
    "resolve_protocol",
]
