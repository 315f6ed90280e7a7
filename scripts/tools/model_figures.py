#!/usr/bin/env python
"""Write `tests/figures/model.json`: digests of the logits of tiny models, to four digits.

    python scripts/tools/model_figures.py > tests/figures/model.json

They hold the whole road (frames, memory, prompt, language model) to what it computed when the recorded numbers
of the reference last passed. Regenerate them only after `scripts/check_golden.py` has passed on such numbers,
and say in the commit what changed and why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from videochat_online.model import load_model
from videochat_online.streaming import StreamingSession
from videochat_online.streaming.generate import first_logits
from videochat_online.testing import LLMS, make_tiny_model

NUM_FRAMES, NUM_LOGITS = 30, 8


def digest(directory: Path) -> dict[str, Any]:
    """What a question after a stream of simple pictures starts from."""
    t, y, x, c = np.ogrid[:NUM_FRAMES, :48, :64, :3]
    pixels = ((7 * t * (c + 1) + 3 * y + 2 * x * c) % 256).astype(np.uint8)
    model = load_model(directory, device="cpu")
    session = StreamingSession(model)
    session.push(pixels, [0.5 * t for t in range(NUM_FRAMES)])
    prepared = session.prepare("What is the person doing now?")
    logits = first_logits(model.language_model, prepared.prompt.tokens, 16)
    return {
        "frames": [[frame.index, frame.num_tokens] for frame in prepared.frames],
        "num_prompt_ids": len(prepared.prompt.layout),
        "logits": [round(float(value), 4) for value in logits[:NUM_LOGITS]],
    }


def digests() -> dict[str, Any]:
    """One digest for each kind of language model."""
    with tempfile.TemporaryDirectory() as folder:
        for llm in LLMS:
            make_tiny_model(Path(folder) / llm, llm)
        return {llm: digest(Path(folder) / llm) for llm in LLMS}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    json.dump({"how": __doc__} | digests(), sys.stdout, indent=1)
    sys.stdout.write("\n")
