"""What a run holds on each device, by what it is: an estimate from sizes, plan and the largest batch.

Checked against measured peaks by scripts/experiments/training_memory_estimate.py. What libraries hold beside it (a
CUDA context, fragments, buffers of NCCL) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from videochat_online.model import VideoChatOnlineForConditionalGeneration
from videochat_online.model.loss import NUM_CHUNKS
from videochat_online.train.distributed import num_elements
from videochat_online.train.folder.disk import GIB
from videochat_online.train.keys.arguments import Arguments, num_processes
from videochat_online.train.keys.deepspeed_plan import DeepSpeedPlan, lossy_sums, resolve_plan
from videochat_online.train.loop.throughput import Work, learns, tower_tokens
from videochat_online.train.setup.frozen_matrices import frozen_matrices, keeps_frozen_in_half
from videochat_online.train.setup.model_setup import attention_of

KEPT_BY_LAYER = {"float32": (52, 16), "autocast": (34, 8), "half": (30, 8)}
"""Bytes that a layer of a language model keeps for the backward pass, for each token and each number of its width, and
of the width between its two linear layers: found with saved_tensors_hooks for Phi-3, Qwen2 and Llama."""
KEPT_BY_VISION_LAYER = {"float32": (40, 8), "autocast": (28, 4), "half": (20, 4)}
LOGIT_BYTES = 12
"""Bytes of a logit: itself in the type of the weights and in float32, its probability, its gradient."""
IN_FLIGHT = 3
"""Gradients of a head beside the one that is summed, where the loss is computed in chunks: found by measuring."""
MASK_WORTH_A_WORD = 2**28
"""Bytes."""
FALLBACK_BUCKET = 500_000_000
"""Numbers in a bucket where DeepSpeed sums whole gradients."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers in parameters: all, learning, the largest of these, a learning head, frozen and learning matrices."""

    all: int
    learning: int
    largest: int
    head: int
    halved: int
    matrices: int


def memory_estimate(
    network: VideoChatOnlineForConditionalGeneration, arguments: Arguments, batch: Work
) -> dict[str, float]:
    """GiB on each device, by what they hold.

    Args:
        network: network without storage for its weights.
        arguments: arguments of the run.
        batch: the largest of a process: tokens, learned tokens, pictures, rows (`samples`), and the squared length of
            its longest row times its rows (`squares`).
    """
    text = network.config.text_config
    plan = resolve_plan(arguments.training, text.hidden_size)
    sizes = _sizes(network)
    held = _held_without_plan(arguments, sizes) if plan is None else held_by_plan(plan, sizes)
    mode = _mode(arguments, plan)
    image = network.config.vision_config.image_size
    held |= {
        "pixels": batch.pictures * 3 * image[0] * image[1] * (1 + 4 + (mode != "float32") * 2),
        "activations": _activations(network, arguments, batch, mode),
        "logits": _logits(arguments, batch, mode) * text.vocab_size,
        "masks": _masks(network, arguments, batch, mode),
    }
    gib = {name: round(float(value) / GIB, 2) for name, value in held.items()}
    return gib | {"together": round(sum(held.values()) / GIB, 2)}


def remarks(
    network: VideoChatOnlineForConditionalGeneration, arguments: Arguments, longest_row: int, rows: int
) -> list[str]:
    """What somebody who starts a run should know of its sums and its memory.

    Args:
        network: network of the run, or a blank one.
        arguments: arguments of the run.
        longest_row: tokens of a batch's longest row.
        rows: rows in a batch.
    """
    found = []
    lossy = lossy_sums(arguments.training, network.config.text_config.hidden_size, arguments.model.model_dtype)
    if lossy:
        found.append(lossy)
    mode = _mode(arguments, resolve_plan(arguments.training, network.config.text_config.hidden_size))
    masks = _masks(network, arguments, Work(samples=rows, squares=rows * longest_row**2), mode)
    if masks >= MASK_WORTH_A_WORD:
        found.append(
            f"attention {attention_of(arguments)} makes masks of {rows} x {longest_row} x {longest_row} entries,"
            f" {masks / GIB:.1f} GiB in all, for rows that are packed or padded; flash_attention_2 needs none, fewer"
            " packing_tokens or activation_checkpointing need less"
        )
    return found


def _sizes(network: VideoChatOnlineForConditionalGeneration) -> Sizes:
    parameters = [(num_elements(p), p.requires_grad, p.ndim) for p in network.parameters()]
    learning = [(num, dimensions) for num, learns, dimensions in parameters if learns]
    head = network.get_output_embeddings().get_parameter("weight")
    return Sizes(
        all=sum(num for num, _, _ in parameters),
        learning=sum(num for num, _ in learning),
        largest=max((num for num, _ in learning), default=0),
        head=num_elements(head) if head.requires_grad else 0,
        halved=sum(parameter.numel() for parameter in frozen_matrices(network).values()),
        matrices=sum(num for num, dimensions in learning if dimensions > 1),
    )


def _mode(arguments: Arguments, plan: DeepSpeedPlan | None) -> str:
    if plan is not None:
        return "half" if plan.weights == 2 else "float32"
    if arguments.model.model_dtype == "bfloat16":
        return "half"
    return "autocast" if arguments.training.bf16 or arguments.training.fp16 else "float32"


def _held_without_plan(arguments: Arguments, sizes: Sizes) -> dict[str, float]:
    number = 2 if arguments.model.model_dtype == "bfloat16" else 4
    halved = sizes.halved if keeps_frozen_in_half(arguments) and number == 4 else 0
    # Autocast rounds what learns once a pass, and keeps that; gradients of a head are summed as rounded.
    is_rounded = _mode(arguments, None) == "autocast"
    return {
        "weights": number * sizes.all - 2 * halved + 2 * sizes.matrices * is_rounded,
        "gradients": number * sizes.learning + (2 if is_rounded else number) * IN_FLIGHT * sizes.head,
        "accumulation": 0,
        "optimizer": 2 * number * sizes.learning,
        "buckets": number * sizes.learning * (num_processes() > 1),  # of DistributedDataParallel
    }


def held_by_plan(plan: DeepSpeedPlan, sizes: Sizes) -> dict[str, float]:
    """Bytes by what they are, as DeepSpeed allocates; what it has moved to the machine's memory counts for nothing."""
    num, learning, on_device = num_processes(), sizes.learning, not plan.offloads("optimizer")
    zero = plan.zero
    share = learning / num if zero.stage else learning
    sums = plan.accumulation
    gradients, accumulation, buckets = float(plan.weights * learning), 0.0, 0.0
    bucket = zero.reduce_bucket_size * bool(zero.contiguous_gradients)
    if plan.sums_whole:
        accumulation = 4 * learning
        copied = learning if learning <= FALLBACK_BUCKET else 0
        buckets = 4 * copied + (plan.communication < 4) * plan.communication * learning
    elif zero.stage == 1:
        accumulation = sums * learning * (sums != plan.weights) + (plan.weights + 4 * (sums < 4)) * share * on_device
        buckets = bucket * sums * (1 + bool(zero.overlap_comm))
    elif zero.stage == 2:
        # Sums turned into float32, when no gradient is on its way any more.
        in_step = 0.0 if sums > plan.weights else 4.0 * share * on_device
        gradients = plan.weights * sizes.largest + max(0, plan.weights * IN_FLIGHT * sizes.head - in_step)
        accumulation = (4 if sums > plan.weights else 2 * plan.weights) * share * on_device + in_step
        buckets = bucket * plan.weights * (1 + bool(zero.overlap_comm))
    elif zero.stage == 3:
        gradients = plan.weights * sizes.largest
        # Summed in one flat piece; what is updated at once is copied out of it, and turned into float32.
        at_once = min(share, zero.sub_group_size)
        accumulation = (sums * share + (sums + 4 * (sums < 4)) * at_once) * on_device
        is_gathered = num > 1 or plan.offloads("param")
        gathered = min(sizes.all, zero.max_live_parameters + zero.prefetch_bucket_size) * is_gathered
        buckets = plan.weights * (bucket + gathered)
    is_spread = zero.stage == 3
    return {
        "weights": plan.weights * sizes.all / (num if is_spread else 1) * (not plan.offloads("param")),
        "gradients": gradients,
        "accumulation": accumulation,
        # Two moments and a copy in float32, which ZeRO makes of float32 weights, too.
        "optimizer": (12 if zero.stage or plan.weights == 2 else 8) * share * on_device,
        "buckets": buckets,
    }


def _activations(
    network: VideoChatOnlineForConditionalGeneration, arguments: Arguments, batch: Work, mode: str
) -> float:
    text, vision = network.config.text_config, network.config.vision_config
    is_checkpointed, stream = bool(arguments.training.activation_checkpointing), 2 if mode == "half" else 4

    def kept(by_layer: tuple[int, int], width: int, between: int, layers: int) -> float:
        """Bytes for each token; one layer is there in full, and its gradients."""
        in_full = by_layer[0] * width + by_layer[1] * between
        return (stream * width if is_checkpointed else in_full) * layers + in_full + 3 * stream * width

    in_layers = kept(KEPT_BY_LAYER[mode], text.hidden_size, text.intermediate_size, text.num_hidden_layers)
    if learns(network.vision_tower):
        by_layer = KEPT_BY_VISION_LAYER[mode]
        in_tower = kept(by_layer, vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers)
    else:  # passes and is gone
        in_tower = (4 if mode == "float32" else 2) * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return batch.tokens * in_layers + batch.pictures * tower_tokens(vision) * in_tower


def _logits(arguments: Arguments, batch: Work, mode: str) -> float:
    """Bytes for each word of the vocabulary."""
    if arguments.training.label_smoothing_factor:  # transformers wants the logits of whole rows
        return batch.tokens * LOGIT_BYTES
    return -(-batch.learned_tokens // NUM_CHUNKS) * LOGIT_BYTES


def _masks(network: VideoChatOnlineForConditionalGeneration, arguments: Arguments, batch: Work, mode: str) -> float:
    """Of rows that are no plain sequence: an entry for each pair of tokens, and its copy in each layer that is kept."""
    attention, text = attention_of(arguments), network.config.text_config
    is_plain = batch.samples == 1 and not arguments.data.packing_tokens
    layers = 1 if arguments.training.activation_checkpointing else text.num_hidden_layers
    number = 4 if mode == "float32" else 2
    if attention == "eager":
        return batch.squares * (number + text.num_attention_heads * layers * (2 * number + 4))
    return 0 if is_plain or attention != "sdpa" else batch.squares * (1 + number * layers)
