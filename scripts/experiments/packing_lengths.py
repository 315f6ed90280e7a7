#!/usr/bin/env python
"""How long counting the tokens of a training set takes, how near it comes, and how full packs are.

    python scripts/experiments/packing_lengths.py --model_name_or_path outputs/tiny_model --meta_path REGISTRY[,...]
        --packing_tokens 512 --max_num_frame 8 --output_dir outputs/none [--any_key_of_train value]

Prints one JSON object: CPU seconds that counting takes, against those of reading and validating the same rows; by how
much the samples of some packs, read with their media, are shorter than planned; the tokens of these packs. A
minute with the quickstart's rows. Nothing is written.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from videochat_online.data import AnnotationFile, Example, PackedDataset, TrainingDataset, load_registries
from videochat_online.train.keys.parsing import parse_arguments
from videochat_online.train.run import make_collator
from videochat_online.train.setup.model_setup import load_texts, make_encoder

NUM_PACKS = 40


def main() -> int:
    """Measure and print."""
    if {"-h", "--help"} & set(sys.argv[1:]):  # no key of a training
        print(__doc__)
        return 0
    arguments = parse_arguments(None, sys.argv[1:])
    config, tokenizer, template = load_texts(arguments)
    encoder = make_encoder(config, tokenizer, template, arguments.data)
    entries = load_registries(str(arguments.data.meta_path))
    began = time.process_time()
    num_rows = 0
    for entry in entries:
        for row in AnnotationFile(entry.annotation, entry.row_format):
            entry.row_format.parse(row, entry.data_root)
            num_rows += 1
    read_s = time.process_time() - began
    dataset = TrainingDataset(entries, encoder)
    began = time.process_time()
    lengths = dataset.estimate_lengths()
    counted_s = time.process_time() - began
    limit, num_blank = arguments.data.packing_tokens, make_collator(encoder, tokenizer).num_blank_tokens
    packs = PackedDataset(dataset, lengths, limit, True, 0, num_blank)
    planned, real, tokens, reduced = list[int](), list[int](), list[int](), 0
    for number in range(0, len(packs), max(1, len(packs) // NUM_PACKS)):
        examples = [(int(item), example) for item, example in zip(packs.items(number), packs[number], strict=True)]
        used = [(int(lengths[item]), example) for item, example in examples if isinstance(example, Example)]
        planned += [length for length, _ in used]
        real += [len(example) for _, example in used]
        tokens.append(sum(len(example) for _, example in used))
        reduced += sum(example.is_reduced for _, example in used)
    result = {
        "rows": num_rows,
        "cpu_s_to_read": round(read_s, 2),
        "cpu_s_to_count": round(counted_s, 2),
        "times_reading": round(counted_s / read_s, 1),
        "samples": {
            "planned": round(statistics.fmean(planned), 1),
            "real": round(statistics.fmean(real), 1),
            "longer_than_planned": sum(a < b for a, b in zip(planned, real, strict=True)),
            "reduced": reduced,
        },
        "packs": {"limit": limit, "most": max(tokens), "mean": round(statistics.fmean(tokens), 1)},
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
