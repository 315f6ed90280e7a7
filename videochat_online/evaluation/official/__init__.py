"""Runs scored by the benchmarks' own rules, and written as their own scripts read them; a file for each benchmark."""

from videochat_online.evaluation.official.export import Export, export_run
from videochat_online.evaluation.official.scores import OFFICIAL, OfficialScores, official_scores

__all__ = ["OFFICIAL", "Export", "OfficialScores", "export_run", "official_scores"]
