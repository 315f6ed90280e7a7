from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from huggingface_hub import ModelCard
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainerControl, TrainerState, TrainingArguments

from text_tokenizers import EACH, END
from train_cases import arguments, launch, losses, online_rows, state, write_registry
from videochat_online.constants import SPECIAL_TOKENS
from videochat_online.data import EpochSampler, load_registries
from videochat_online.errors import InputError
from videochat_online.model import VideoChatOnlineForConditionalGeneration, load_model, load_network
from videochat_online.streaming import ImageChat
from videochat_online.testing import build_tiny_tokenizer, tiny_config
from videochat_online.train import TrainReport, parse_arguments, train
from videochat_online.train.folder.training_folder import TrainingFolder
from videochat_online.train.folder.training_report import read_report
from videochat_online.train.keys.arguments import ModelArguments
from videochat_online.train.loop.batches_ahead import BatchesAhead
from videochat_online.train.loop.skipped_rows import SkippedLog
from videochat_online.train.loop.trainer import LoopCallback, OnlineTrainer
from videochat_online.train.run import set_facts
from videochat_online.train.setup.model_setup import choose_trainable

# Two epochs of four steps, with noise of the trainer's own random numbers.
WHOLE = {"max_steps": 8, "drop_path_rate": 0.5, "save_strategy": "steps", "save_steps": 5}


@pytest.fixture(scope="module")
def whole(run) -> TrainReport:
    return run("whole", **WHOLE)


def test_a_run_leaves_a_model_and_says_what_it_did(place, whole, frames):
    folder = place / "whole"
    model = load_model(folder, device="cpu")
    assert model.config.drop_path_rate == 0.5
    assert model.encode(frames(1)).shape == (1, 256, 4, 4)
    report = json.loads((folder / "report.json").read_text())
    assert report["finished"] is True
    assert (report["steps"], len(report["losses"])) == (8, 8)
    assert report["skipped"] == {"count": 0, "by_set": {}, "rows": []}
    assert report["dataset"] == {"mixed": {"rows": 8, "items": 8}}
    assert (
        report["parameters"]["all"] == report["parameters"]["learning"] == sum(map(torch.numel, state(folder).values()))
    )
    assert losses(whole) == losses(report)
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    recorded = json.loads((folder / "run.json").read_text())
    (launched,) = recorded["launches"]
    assert launched["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"git_revision", "command", "time", "processes"} <= launched.keys()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["max_steps"], config["max_num_frame"]) == (8, 6)
    assert load_model(folder / "checkpoint-5", device="cpu").tokenizer("a") == model.tokenizer("a")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("videochat-online", "video-text-to-text")
    assert "| mixed | 8 | 8 | repeat_time 1.0 |" in card.text
    assert "Intervals of the token schedule: 8, 4, 1." in card.text
    assert {"| max_steps | 8 |", "| max_num_frame | 6 |", "| steps | 8 |"} <= set(card.text.splitlines())
    assert str(place) not in card.text
    assert "/tmp" not in card.text


def test_the_template_of_the_tokenizer_is_saved_with_the_weights(place, run, tiny_dir, tmp_path):
    folder = shutil.copytree(tiny_dir("phi3"), tmp_path / "model")
    source = EACH + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}" + END
    source += "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(source)
    run("own", model_name_or_path=folder, conv_style="own")
    model = load_model(place / "own", device="cpu")
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "What?"}], add_generation_prompt=True, return_dict=False
    )
    assert list(ImageChat(model).prepare("What?").layout.input_ids) == ids
    assert model.config.template["after_reply"] == "\n"


def test_every_parameter_learns(place, whole, tiny_dir):
    before, after = state(tiny_dir("phi3")), state(place / "whole")
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []


@pytest.mark.parametrize(
    ("keys", "learning"),
    [
        ({"freeze_backbone": True}, ("projector.", "language_model.")),
        ({"freeze_backbone": True, "freeze_llm": True}, ("projector.",)),
        ({"freeze_mlp": True, "freeze_llm": True}, ("vision_tower.",)),
        (
            {"freeze_backbone": True, "freeze_llm": True, "unfreeze_vit_layers": 1, "unfreeze_lm_head": True},
            ("projector.", "vision_tower.encoder.layer.1.", "language_model.lm_head."),
        ),
    ],
)
def test_what_is_frozen_stays_and_the_rest_learns(place, run, tiny_dir, keys, learning):
    name = "_".join(["frozen", *map(str, keys)])
    report = run(name, weight_decay=0.1, activation_checkpointing=True, **keys)
    before, after = state(tiny_dir("phi3")), state(place / name)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(learning)}
    assert report.parameters["learning"] == sum(before[name].numel() for name in moved)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_vision_tower_keeps_no_graph(run, monkeypatch, frozen):
    kept = []
    encode = VideoChatOnlineForConditionalGeneration.encode

    def watched(self: VideoChatOnlineForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
        features = encode(self, pixels)
        kept.append(features.requires_grad)
        return features

    monkeypatch.setattr(VideoChatOnlineForConditionalGeneration, "encode", watched)
    run(f"graph_{frozen}", freeze_backbone=frozen, activation_checkpointing=True)
    assert kept == [not frozen] * 2


def test_adapters_learn_and_are_merged(place, run, tiny_dir):
    keys = {"freeze_backbone": True, "freeze_llm": True, "freeze_mlp": True, "save_strategy": "steps", "save_steps": 1}
    run("lora", use_llm_lora=4, use_backbone_lora=2, max_steps=4, **keys)
    before, after = state(tiny_dir("phi3")), state(place / "lora")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved} == {
        *("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        *("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2"),
    }
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 4
    checkpoint = load_model(place / "lora" / "checkpoint-4", device="cpu").network.state_dict()
    assert all(torch.allclose(checkpoint[name], after[name], atol=1e-6) for name in after)


def test_accumulation_changes_nothing(run):
    # Rows of different lengths: a mean over batches would weigh their tokens differently.
    at_once = losses(run("at_once", per_device_train_batch_size=8, max_steps=3))
    in_turn = losses(run("in_turn", per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=3))
    grouped = losses(run("grouped", per_device_train_batch_size=2, global_batch_size=8, max_steps=3))
    assert at_once == pytest.approx(in_turn, abs=1e-6)
    assert at_once == pytest.approx(grouped, abs=1e-6)
    assert len({round(loss, 3) for loss in at_once}) == 3


def test_packing_changes_no_loss(run):
    keys = {"train_sampling_strategy": "sequential", "max_steps": 3}
    apart = losses(run("apart", per_device_train_batch_size=8, **keys))
    packed = losses(run("packed", per_device_train_batch_size=1, packing_tokens=100_000, **keys))
    assert packed == pytest.approx(apart, abs=1e-6)
    assert packed[0] > packed[-1]


def test_packs_of_an_epoch_hold_every_row(place, run):
    report = run("packs", "bad", packing_tokens=300, per_device_train_batch_size=1, max_steps=-1, max_bad_fraction=0.5)
    assert report.losses[-1]["epoch"] == 1.0
    assert 1 < report.steps < 16
    assert {(row.set_name, row.row) for row in report.skipped} == {("spoilt", 0), ("spoilt", 9)}
    assert [report.dataset[name].items for name in ("good", "spoilt")] == [6, 10]


def test_all_rows_of_packs_are_seen(place, tiny_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(SkippedLog, "add", lambda self, report: seen.append(report.num_items))
    keys = {"packing_tokens": 300, "per_device_train_batch_size": 1, "max_steps": -1}
    report = train(parse_arguments(None, arguments(place, tiny_dir, "seen", **keys)))
    assert (sum(seen), len(seen)) == (8, report.steps)


def test_parts_and_layers_have_rates_of_their_own(place, tiny_dir, monkeypatch):
    """Restated by name; after one step of plain gradient descent each weight has moved by its own rate."""
    monkeypatch.setattr(OnlineTrainer, "create_scheduler", lambda self, *rest, **options: made(self))
    groups = []

    def made(trainer):
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        groups.extend((group["lr"], names[id(p)]) for group in trainer.optimizer.param_groups for p in group["params"])
        raise KeyboardInterrupt

    keys = {"vit_learning_rate": 1e-4, "mlp_learning_rate": 2e-3, "vit_layer_decay": 0.5, "llm_layer_decay": 0.9}
    with pytest.raises(KeyboardInterrupt):
        train(parse_arguments(None, arguments(place, tiny_dir, "rates", **keys)))
    rates = {name: rate for rate, name in groups}
    assert len(rates) == len(groups)
    for start, expected in {
        "vision_tower.embeddings.patch": 1e-4 * 0.25,
        "vision_tower.encoder.layer.0.": 1e-4 * 0.5,
        "vision_tower.encoder.layer.1.": 1e-4,
        "projector.": 2e-3,
        "language_model.model.embed_tokens.": 1e-3 * 0.81,
        "language_model.model.layers.0.": 1e-3 * 0.9,
        "language_model.model.layers.1.": 1e-3,
        "language_model.model.norm.": 1e-3,
        "language_model.lm_head.": 1e-3,
    }.items():
        found = {rate for name, rate in rates.items() if name.startswith(start)}
        assert list(found) == [pytest.approx(expected)], start


def test_rates_decide_how_far_weights_go(place, run, tiny_dir):
    keys = {"optim": "sgd", "max_grad_norm": 0, "weight_decay": 0, "max_steps": 1}
    run("one_rate", **keys)
    run("own_rates", **keys, mlp_learning_rate=3e-3, llm_layer_decay=0.5)
    before = load_model(tiny_dir("phi3"), device="cpu").network.state_dict()
    alike, apart = state(place / "one_rate"), state(place / "own_rates")
    for name, scale in (
        ("projector.linear_1.weight", 3),
        ("language_model.model.layers.0.mlp.down_proj.weight", 0.5),
        ("language_model.model.layers.1.mlp.down_proj.weight", 1),
    ):
        moved = [(weights[name] - before[name]).norm() for weights in (alike, apart)]
        assert float(moved[1] / moved[0]) == pytest.approx(scale, rel=1e-3)


def test_grouping_by_length_trains_on_every_row(run):
    report = run("by_length", train_sampling_strategy="group_by_length", max_steps=-1)
    assert (report.steps, report.losses[-1]["epoch"]) == (4, 1.0)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(place, tiny_dir, whole):
    keys = arguments(place, tiny_dir, "killed", **WHOLE)
    killed = launch(keys, kill_at_step=6)
    assert killed.returncode == -9
    assert not (place / "killed" / "report.json").exists()
    shutil.copytree(place / "killed" / "checkpoint-5", place / "killed" / "checkpoint-6")
    (place / "killed" / "checkpoint-6" / "complete.json").unlink()  # as if killed while it was written
    done = launch(keys)
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "killed" / "report.json").read_text())
    assert [entry["step"] for entry in report["losses"]] == list(range(1, 9))
    assert losses(report) == losses(whole)
    ours, theirs = state(place / "killed"), state(place / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    launches = json.loads((place / "killed" / "run.json").read_text())["launches"]
    assert [launched["resumed_from"] for launched in launches] == [None, "checkpoint-5"]
    assert not (place / "killed" / "checkpoint-6").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_packs(place, tiny_dir, run):
    packing = {"packing_tokens": 300, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 2}
    whole = run("whole_packs", **packing, max_steps=7)
    keys = arguments(place, tiny_dir, "killed_packs", **packing, max_steps=7)
    assert launch(keys, kill_at_step=5).returncode == -9
    done = launch(keys)
    assert done.returncode == 0, done.stderr
    assert losses(json.loads((place / "killed_packs" / "report.json").read_text())) == losses(whole)


def test_a_resumed_loader_of_several_processes_draws_the_running_epoch():
    """transformers sets the epoch of the sampler, but does not reach it in exactly this case."""
    drawn = []
    for process in (0, 1):
        sampler = EpochSampler(8, seed=1)
        loader = DataLoader(range(1000), batch_size=1, sampler=sampler)
        loader = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        resumed = skip_first_batches(loader, 1)
        LoopCallback(sampler, BatchesAhead(), lambda: None).on_epoch_begin(
            TrainingArguments(), TrainerState(epoch=3.25), TrainerControl()
        )
        resumed.set_epoch(3)
        drawn.append([int(batch) for batch in resumed])
    sampler = EpochSampler(8, seed=1)
    sampler.set_epoch(3)
    assert [*zip(*drawn, strict=True)] == [*zip(*[iter([*sampler][2:])] * 2, strict=True)]


def test_a_finished_run_is_left_as_it_is(place, run, whole):
    before = {path: path.stat().st_mtime_ns for path in (place / "whole").rglob("*")}
    assert run("whole", **WHOLE) == whole
    assert {path: path.stat().st_mtime_ns for path in (place / "whole").rglob("*")} == before


def test_a_report_that_is_damaged_is_named(whole):
    content = json.loads(json.dumps(whole.to_json()))
    with pytest.raises(InputError, match=r"run/report.json: steps: expected .*, found 'eight'"):
        read_report(content | {"steps": "eight"}, Path("run/report.json"))
    del content["losses"]
    with pytest.raises(InputError, match="run/report.json: losses: expected a list, found none"):
        read_report(content, Path("run/report.json"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_of_another_run_is_refused_and_left_as_it_is(place, run, whole):
    before = snapshot(place / "whole")
    with pytest.raises(InputError, match=r"holds another run.*learning_rate was 0.001, now 0.1"):
        run("whole", **WHOLE | {"learning_rate": 0.1})
    with pytest.raises(InputError, match="meta_path was"):
        run("whole", registry="bad", **WHOLE)
    assert snapshot(place / "whole") == before


def test_a_folder_with_other_things_is_refused_and_left_as_it_is(place, run):
    folder = place / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("\\section{Introduction}")
    with pytest.raises(InputError, match="expected a new or empty folder, or this run's own, found .* other files"):
        run("thesis")
    assert list(snapshot(folder)) == [str(folder / "chapter1.tex")]
    (place / "file").write_text("")
    with pytest.raises(InputError, match="expected a new or empty folder.* found a file"):
        run("file")


def test_other_data_is_another_run(tmp_path):
    sets = {"a": {"memory": None, "repeat_time": 1.0}}
    folder = TrainingFolder(tmp_path / "run", {"seed": 1})
    folder.check(sets)
    folder.open({"a": {"rows": 1, "items": 1}}, sets, None)
    folder.check(sets)
    with pytest.raises(InputError, match="the run was begun with other data"):
        folder.open({"a": {"rows": 2, "items": 2}}, sets, None)
    with pytest.raises(InputError, match="the run was begun with other data: a.repeat_time was 1.0, now 2.0. Choose"):
        folder.check({"a": {"memory": None, "repeat_time": 2.0}})
    with pytest.raises(InputError, match="seed was 1, now 2"):
        TrainingFolder(tmp_path / "run", {"seed": 2}).check(sets)
    TrainingFolder(tmp_path / "run", {"seed": 1, "save_steps": 7, "report_to": "wandb"}).check(sets)


def test_a_set_with_other_rows_or_another_memory_is_other_data(place, tmp_path):
    path = write_registry(tmp_path / "registry", place / "media", a=online_rows(2))
    (before,) = set_facts(load_registries(str(path))).values()
    (tmp_path / "registry" / "a.json").write_text(json.dumps(online_rows(2)[::-1]))
    (after,) = set_facts(load_registries(str(path))).values()
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == {"annotation_sha256"}
    memory = {"name": "window", "num_frames": 2}
    path.write_text(path.read_text().replace('"data_root"', f'"memory": {json.dumps(memory)}, "data_root"'))
    (remembered,) = set_facts(load_registries(str(path))).values()
    assert remembered["memory"] == memory
    assert json.loads(json.dumps(remembered)) == remembered


def test_a_run_whose_registry_has_changed_does_not_go_on(place, run, whole):
    path = place / "good" / "registry.json"
    text = path.read_text()
    path.write_text(text.replace('"data_root"', '"data_augment": true, "data_root"'))
    try:
        with pytest.raises(InputError, match="begun with other data: mixed.data_augment was false, now true"):
            run("whole", **WHOLE)
    finally:
        path.write_text(text)
    assert run("whole", **WHOLE) == whole


def test_layers_after_the_chosen_one_do_not_learn(tiny_dir):
    network = load_network(tiny_dir("phi3"))
    network.config.select_layer = -2
    choose_trainable(network, ModelArguments())
    still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert still == {name for name in network.state_dict() if name.startswith("vision_tower.encoder.layer.1.")}


def test_a_language_model_without_the_picture_tokens_gets_them(place, run, tmp_path):
    content = json.loads(build_tiny_tokenizer().backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>")
    network = VideoChatOnlineForConditionalGeneration(tiny_config("phi3", len(tokenizer), 112))
    network.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    run("grown", model_name_or_path=tmp_path / "plain", max_steps=1, learning_rate=0)
    model = load_model(place / "grown", device="cpu")
    assert len(model.tokenizer) == len(tokenizer) + len(SPECIAL_TOKENS)
    for before, after in (
        (network.get_input_embeddings().weight, model.network.get_input_embeddings().weight),
        (network.get_output_embeddings().weight, model.network.get_output_embeddings().weight),
    ):
        assert torch.equal(after[: len(tokenizer)], before)
        assert torch.allclose(after[len(tokenizer) :], before.mean(dim=0, keepdim=True), atol=1e-6)


def test_a_larger_frame_is_trained_and_saved(place, run):
    run("large", force_image_size=224, max_num_frame=2, max_steps=1)
    model = load_model(place / "large", device="cpu")
    assert (model.config.image_size, model.frames.grid, model.transform.size) == (224, (8, 8), 224)
