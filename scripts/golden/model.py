"""Golden checks of the network: vision tower, pixel shuffle, training features, one training step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from videochat_online.memory.schedule import TokenSchedule
from videochat_online.model import VideoChatOnlineForConditionalGeneration, load_network
from videochat_online.model.checkpoints.original import to_original_state
from videochat_online.model.modeling import pixel_shuffle

from .harness import Case


@lru_cache(maxsize=8)
def network_of(root: Path, name: str) -> VideoChatOnlineForConditionalGeneration:
    """The recorded model `name`, loaded once."""
    return load_network(root / "models" / name).eval()


def pixels_of(case: Case, **frames: object) -> Tensor:
    """Normalised pixels [T, 3, H, W] of the recorded frame generator."""
    return case.frames.normalise(case.make_frames(**frames))


def check_pixel_shuffle(case: Case) -> None:
    """[T, H, W, C] in, [T, H/2, W/2, 4C] out."""
    ours = pixel_shuffle(case.tensors["input"], case.params["scale"], case.params["ps_version"])
    case.close("output", ours, case.tensors["output"])


@torch.no_grad()
def check_vision(case: Case) -> None:
    """Embeddings, hidden states, pixel shuffle and projector on generated frames."""
    network = network_of(case.root, case.params["model"])
    tower, config = network.vision_tower, network.config
    pixels = pixels_of(case, **case.params["frames"])
    out = tower(pixels, output_hidden_states=True)
    hidden = {
        depth: state[:, :: case.params.get(stride, 1)]
        for depth, stride, state in (
            (0, "token_stride", out.hidden_states[0]),
            (1, "token_stride_layer1", out.hidden_states[1]),
            (-1, "token_stride_last", out.last_hidden_state),
        )
    }
    patches = out.last_hidden_state[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    shuffled: dict[str, Tensor] = {}
    if side * side == patches.shape[1]:
        grid = patches.unflatten(1, (side, side))
        shuffled = {version: pixel_shuffle(grid, config.downsample_ratio, version) for version in ("v1", "v2")}
    for key, recorded in case.tensors.items():
        if key.startswith("embeddings_stride"):
            ours = hidden[0]
        elif key.startswith("hidden_state_layer1"):
            ours = hidden[1]
        elif key.startswith("last_hidden_state"):
            ours = hidden[-1]
        elif key == "mlp1_of_last_hidden":
            ours = network.project(shuffled[config.ps_version].flatten(1, 2))
        else:  # pixel_shuffle_v1_img0: version and number of the image
            _, _, version, image = key.split("_")
            ours = shuffled[version][int(image.removeprefix("img"))]
        case.close(key, ours, recorded)
    if config.select_layer == -1 and shuffled:
        # The road of the package must give what the parts give.
        case.close("encode", network.encode(pixels), shuffled[config.ps_version].permute(0, 3, 1, 2))


def pool_ratios(samples: list[dict], intervals: list[int]) -> list[int]:
    """Pooling of every frame of a batch: video frames by the schedule, image tiles not at all."""
    schedule = TokenSchedule(tuple(intervals))
    ratios: list[int] = []
    for sample in samples:
        num_frames = sample["frames"]["T"]
        ratios += [schedule.ratio(t) if sample["is_video"] else 1 for t in range(num_frames)]
    return ratios


@torch.no_grad()
def check_train_features(case: Case) -> None:
    """Visual tokens of a mixed batch of tiles and videos, pooled by schedule and projected."""
    params = case.params
    network = network_of(case.root, params["model"])
    pixels = torch.cat([pixels_of(case, **sample["frames"]) for sample in params["samples"]])
    ours = network.embed_frames(pixels, pool_ratios(params["samples"], params["reverse_memory_sample_ratio"]))
    case.exact("total", ours.shape[0], case.recorded["total"])
    ((key, recorded),) = case.tensors.items()
    case.close(key, ours[:: params["stride"]], recorded)


def check_train_step(case: Case) -> None:
    """Loss, logits and gradients of one batch, vision tower and language model included."""
    params, tensors = case.params, case.tensors
    network = load_network(case.root / "models" / params["model"]).eval()
    pixels = torch.cat([pixels_of(case, **sample["frames"]) for sample in params["samples"]])
    ratios = pool_ratios(params["samples"], list(network.config.memory_intervals))
    network.config.image_token_id = _context_id(tensors["input_ids"], network, pixels, ratios)
    out = network(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["attention_mask"].long(),
        labels=tensors["labels"],
        pixel_values=pixels,
        pool_ratios=ratios,
        use_cache=False,
    )
    out.loss.backward()
    case.close("loss", out.loss, case.recorded["loss"])
    for key, recorded in tensors.items():
        if key.startswith("logits_last"):  # logits_last8_of_sample1
            sample = int(key.rpartition("sample")[2])
            case.close(key, out.logits[sample, -recorded.shape[0] :], recorded)
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in network.named_parameters()}
    original = to_original_state(grads)
    if "wqkv" in " ".join(case.recorded["grad_norms_per_parameter"]):
        original = _as_internlm2(original, network.config.text_config)
    for name, recorded in case.recorded["grad_norms_per_parameter"].items():
        case.close(f"grad norm of {name}", original[name].norm(), recorded)
    for part, recorded in case.recorded["grad_norms"].items():
        norms = [g.norm() for n, g in original.items() if n.startswith(part)]
        case.close(f"grad norm of {part}", torch.stack(norms).norm(), recorded)
    case.close("grad_mlp1.3.weight", original["mlp1.3.weight"], tensors["grad_mlp1.3.weight"])
    name = "vision_model.embeddings.class_embedding"
    case.close("grad_vision_cls", original[name], tensors["grad_vision_cls"])


def _context_id(
    input_ids: Tensor, network: VideoChatOnlineForConditionalGeneration, pixels: Tensor, ratios: list[int]
) -> int:
    """The id that stands where visual tokens go: the one that occurs as often as there are visual tokens."""
    tokens = sum((network.config.grid[0] // ratio) ** 2 for ratio in ratios)
    ids, counts = input_ids.unique(return_counts=True)
    return int(ids[counts == tokens].max())  # added to the vocabulary, and so after its words


def _as_internlm2(state: dict[str, Tensor], config: object) -> dict[str, Tensor]:
    """Gradients of a Llama-layout language model under InternLM2's names, q, k and v grouped by key head."""
    names = {
        "embed_tokens": "tok_embeddings",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names |= {
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    names |= {"self_attn.o_proj": "attention.wo", "language_model.lm_head": "language_model.output"}
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if "self_attn.q_proj" in key:
            heads = config.num_key_value_heads  # type: ignore[attr-defined]
            parts = [state[key.replace("q_proj", f"{x}_proj")].unflatten(0, (heads, -1)) for x in "qkv"]
            result[key.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(parts, dim=1).flatten(0, 1)
        elif not any(f"self_attn.{x}_proj" in key for x in "kv"):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            result[key] = tensor
    return result


CHECKS: dict[str, Callable[[Case], None]] = {
    "pixel_shuffle": check_pixel_shuffle,
    "vision": check_vision,
    "train_features": check_train_features,
    "train_step": check_train_step,
}
