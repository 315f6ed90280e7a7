"""Chat templates as tokenizers bring them, and a small byte-level tokenizer that brings one."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from videochat_online.constants import SPECIAL_TOKENS

EACH = "{% for m in messages %}"
END = "{% endfor %}"
CHATML = (
    EACH + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}" + END +
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
)
PHI3 = (
    EACH + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}" + END +
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|eot|>' }}{% endif %}"
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}" + EACH +
    "{{ '<|head|>' + m['role'] + '<|tail|>\n\n' + m['content'] | trim + '<|eot|>' }}" + END +
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}"
)  # fmt: skip
TURNS = EACH.replace("messages", "rest") + (
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '')"
    " + m['content'] | trim + '</turn>\n' }}"
) + END + "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"  # fmt: skip
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}" + TURNS
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% set first = '' %}{% set rest = messages %}" + TURNS
)
MISTRAL = (
    "{{ bos_token }}" + EACH + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}" + END
)  # fmt: skip
LLAMA2 = (
    EACH + "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}" + END
)  # fmt: skip
MARKERS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|eot|>")
MARKERS += ("<|head|>", "<|tail|>", "<turn>", "</turn>", "[INST]", "[/INST]", *SPECIAL_TOKENS)


def tokenizer_with(chat_template: str | None, bos: str = "<s>", adds_bos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(MARKERS), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what is it now"], trainer)
    if adds_bos:
        single = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = single
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    fast.chat_template = chat_template
    return fast
