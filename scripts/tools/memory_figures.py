"""Write the small figures of `tests/figures/memory.json` from recorded numbers of the reference.

    python scripts/tools/memory_figures.py ../shared/golden > tests/figures/memory.json

Which frames survive depends on the mean of each frame's tokens alone, and halving a grid bilinearly keeps
that mean. So the mean of each recorded input frame, rounded, stands for the frame; cases whose evictions are
closer than the rounding are left out. Nothing here comes from our own bank.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

DECIMALS = 4
SMALLEST_GAP = 1e-3
SCHEDULE_LENGTH = 17


def frame_means(case: dict, root: Path) -> list[list[float]]:
    """Mean token of each input frame, [T][C]."""
    params = case["params"]
    full = round(max(int(name.removeprefix("size")) for name in params["capacities"]) ** 0.5)
    sides = [full // ratio for ratio in params["schedule"]]
    flat = load_file(root / next(f for f in case["files"] if f.endswith(".safetensors")))["input_tokens_flat"]
    pieces = flat.split([params["channels"] * side**2 for side in sides])
    means = (piece.view(params["channels"], -1).mean(1).tolist() for piece in pieces)
    return [[round(value, DECIMALS) for value in mean] for mean in means]


def main(root: Path) -> None:
    """Print the figures as JSON."""
    banks, schedules = [], []
    for case in json.loads((root / "index.json").read_text(encoding="utf-8"))["cases"]:
        recorded_path = root / next((f for f in case["files"] if f.endswith(".json")), "index.json")
        if case["kind"] == "token_schedule":
            for row in json.loads(recorded_path.read_text(encoding="utf-8")):
                if row["T"] == SCHEDULE_LENGTH:
                    schedules.append({key: row[key] for key in ("T", "intervals", "out")})
        if case["kind"] != "memory_bank" or (case["params"]["min_margin"] or 0) < SMALLEST_GAP:
            continue
        recorded = json.loads(recorded_path.read_text(encoding="utf-8"))
        capacities = [count for _, count in sorted(case["params"]["capacities"].items(), key=_size, reverse=True)]
        if recorded["error"] or 0 in capacities:
            continue
        banks.append(
            {
                "case": case["name"],
                "frame_means": frame_means(case, root),
                "capacities": capacities,
                "tiers_at_end": recorded["groups_after_each_frame"][-1],
                "tokens_per_frame": recorded["output_tokens_per_frame"],
            }
        )
    print(json.dumps({"how": __doc__, "schedules": schedules, "banks": banks}))


def _size(item: tuple[str, int]) -> int:
    return int(item[0].removeprefix("size"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the golden files")
    main(parser.parse_args().root)
