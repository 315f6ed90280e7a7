"""Strategies: what is done at question time with the frames that a memory gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from videochat_online.errors import InputError, NonFiniteError, PromptTooLongError
from videochat_online.memory import KeepAllMemoryBank, PyramidMemoryBank
from videochat_online.model import load_model
from videochat_online.model.tokens import in_a_row
from videochat_online.streaming import (
    GenerationSettings,
    KvBudget,
    StreamingSession,
    generate,
    make_strategy,
)
from videochat_online.streaming.generate import continuation_log_likelihoods, first_logits, generate_ids
from videochat_online.streaming.kv.cache import kv_bytes_per_token
from videochat_online.streaming.kv.contrasted import Contrast
from videochat_online.streaming.question_prompt import FrameSelection
from videochat_online.streaming.strategies import Retrieval, chain_of_shot
from videochat_online.streaming.strategies.chain_of_shot import are_relevant, contrasted, mosaic
from videochat_online.streaming.stream_clock import StreamClock
from videochat_online.text import layout_prompt
from videochat_online.types import FrameTokens, Turn, Visual

SHORT = GenerationSettings(max_new_tokens=5, min_new_tokens=5)
GRID = (4, 4)
ROPE_SWITCH = 105  # tokens: prompts lie on both sides
# Sums are rounded differently in a batch: 6e-7 is the most that was seen.
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def models(tiny_dir):
    """One model of each kind; the rope of phi3 switches within the lengths of these tests."""
    loaded = {llm: load_model(tiny_dir(llm), device="cpu") for llm in ("phi3", "qwen2", "llama")}
    loaded["phi3"].network.language_model.model.rotary_emb.switch_length = ROPE_SWITCH
    return loaded


@pytest.fixture
def chosen_from(monkeypatch):
    """Logits that tokens were chosen from, in order."""
    # All tokens are chosen from what passes through this check: a place to look on.
    logits, finite = [], generate._finite

    def record(values):
        logits.append(values.reshape(-1).clone())
        return finite(values)

    monkeypatch.setattr(generate, "_finite", record)
    return logits


def new_session(model, strategy, memory=None, **options):
    options.setdefault("settings", SHORT)
    options.setdefault("system_message", "Watch.")
    options.setdefault("kv_budget", KvBudget(1 << 30))
    memory = memory or PyramidMemoryBank(capacities=(2, 2, 12), full_grid=GRID)
    return StreamingSession(model, memory, strategy=make_strategy(strategy), **options)


def frame(index, tokens_CHW=None, time_s=None):
    tokens_CHW = torch.full((2, 1, 1), float(index)) if tokens_CHW is None else tokens_CHW
    return FrameTokens(tokens_CHW, index, float(index) if time_s is None else time_s, content_id=100 + index)


def row(embeds_LD):
    return in_a_row(embeds_LD, range(len(embeds_LD)))


def random_row(length):
    return row(torch.randn(length, 64, generator=torch.Generator().manual_seed(length)))


def alone(model, tokens, ids, regime):
    """Logits [N + 1, V] after a prompt and after each of the ids, all in one pass without a cache."""
    embed = model.network.get_input_embeddings()
    whole = torch.cat((tokens.embeds_LD, embed(torch.tensor(ids, dtype=torch.long))))
    with torch.inference_mode(), generate.fixed_regime(regime):
        logits_LV = model.network.language_model(inputs_embeds=whole[None], use_cache=False).logits[0]
    return logits_LV[len(tokens) - 1 :].float()


class TestNames:
    def test_unknown_ones_list_the_valid_ones(self):
        with pytest.raises(
            InputError,
            match=r"unknown strategy 'cos': expected one of \['chain_of_shot', 'direct', 'retrieval'\], or",
        ):
            make_strategy("cos")

    def test_options(self):
        assert make_strategy("retrieval", retrieved_frames=None).options == Retrieval(retrieved_frames=8).options
        with pytest.raises(InputError, match="'chain_of_shot' does not take retrieved_frames: it takes no options"):
            make_strategy("chain_of_shot", retrieved_frames=2)
        with pytest.raises(InputError, match="'retrieval': expected a whole number of at least 1, got 0"):
            make_strategy("retrieval", retrieved_frames=0)


class TestRetrieval:
    @pytest.mark.parametrize("kept", [1, 3, 7, 100])
    def test_restated(self, tiny_model, frames, kept):
        session = new_session(tiny_model, "direct")
        session.push(frames(30), range(30))
        remembered, question = session.memory.read(), "Where is the cup?"
        (reading,) = Retrieval(retrieved_frames=kept).read(
            remembered, question, tiny_model, lambda one: tiny_model.project(one.tokens_CHW).embeds
        )
        ids = tiny_model.tokenizer(question, add_special_tokens=False).input_ids
        table = tiny_model.network.get_input_embeddings().weight.detach().double()
        query = [sum(float(table[i, d]) for i in ids) / len(ids) for d in range(table.shape[1])]

        def cosine(one):
            tokens = tiny_model.project(one.tokens_CHW).embeds.double()
            mean = [float(tokens[:, d].sum()) / len(tokens) for d in range(tokens.shape[1])]
            length = math.sqrt(sum(x * x for x in mean)) * math.sqrt(sum(x * x for x in query))
            return sum(x * y for x, y in zip(mean, query, strict=True)) / length

        best = sorted(remembered, key=cosine, reverse=True)[:kept]
        assert [one.index for one in reading.frames] == sorted(one.index for one in best)
        assert reading.weight == 1

    def test_of_equal_frames_the_newer_are_kept(self, tiny_model):
        alike = [frame(index, torch.ones(256, 1, 1)) for index in range(5)]
        (reading,) = Retrieval(retrieved_frames=2).read(
            alike, "What?", tiny_model, lambda one: one.tokens_CHW.flatten(1).T[:, :64]
        )
        assert [one.index for one in reading.frames] == [3, 4]

    def test_an_answer_is_given_from_the_kept_frames_alone(self, tiny_model, frames):
        session = new_session(tiny_model, "direct", settings=SHORT)
        # The memory and its prompt stay those of `direct`: only what is read is another.
        session._strategy = Retrieval(retrieved_frames=2)
        session.push(frames(12), range(12))
        answer = session.ask("Where is the cup?")
        text = session.prepare("Where is the cup?").prompt.layout.text
        assert len(answer.frames_used) == 2
        assert text.count("<img>") == 2
        assert all(f"Frame{used.index + 1} at" in text for used in answer.frames_used)
        assert len(session.remembered()) == 12

    def test_reuse_changes_nothing(self, models, frames, chosen_from):
        """Prompts of two questions hold different frames of one memory: keys tell them apart."""
        for model in models.values():
            said = []
            for reuse in (True, False):
                session = StreamingSession(
                    model,
                    KeepAllMemoryBank(full_grid=GRID),
                    settings=SHORT,
                    reuse_prefix=reuse,
                    strategy=Retrieval(retrieved_frames=3),
                )
                session.push(frames(12), range(12))
                chosen_from.clear()
                for question in ("What?", "Where is it?", "And the red ball, since when?", "What?"):
                    assert session.prefill() == 0
                    session.ask(question)
                said.append(torch.stack(chosen_from))
            torch.testing.assert_close(*said, **TOLERANCE)


class TestMosaic:
    def test_four_full_frames_in_rows(self):
        tokens = torch.randn(4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
        made = mosaic(list(tokens), (4, 6))
        assert made.shape == (3, 4, 6)
        for number, (top, left) in enumerate(((0, 0), (0, 3), (2, 0), (2, 3))):
            for row in range(2):
                for column in range(3):
                    block = tokens[number, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    torch.testing.assert_close(made[:, top + row, left + column], block.mean((1, 2)))

    def test_frames_of_all_tiers(self):
        full, half, quarter = torch.rand(2, 8, 8), torch.rand(2, 4, 4), torch.rand(2, 2, 2)
        made = mosaic([full, half, quarter, torch.rand(2, 1, 1)], (8, 8))
        assert made.shape == (2, 8, 8)
        torch.testing.assert_close(made[:, :4, :4], torch.nn.functional.avg_pool2d(full, 2))
        assert torch.equal(made[:, :4, 4:], half)
        assert torch.equal(made[:, 4:, :4], quarter.repeat_interleave(2, -1).repeat_interleave(2, -2))
        assert len(made[0, 4:, 4:].unique()) == 1

    def test_too_few_are_filled_up_with_the_last(self):
        one, two = torch.rand(2, 4, 4), torch.rand(2, 4, 4)
        assert torch.equal(mosaic([one, two], GRID), mosaic([one, two, two, two], GRID))
        assert mosaic([torch.rand(2, 3, 3)], (1, 3)).shape == (2, 2, 2)


class TestReadings:
    def test_positive_and_negative(self):
        """Times run otherwise than numbers: the nearest is nearest by number, of two the earlier one."""
        given = [frame(index, time_s=index**2) for index in (0, 3, 4, 6, 9, 12)]
        itself, positive, negative = contrasted(given, [False, True, True, False, False, True])
        assert itself == FrameSelection(tuple(given), 1)
        assert [one.index for one in positive.frames] == [3, 4, 12]
        assert (positive.weight, negative.weight) == (0.5, -0.5)
        assert [one.index for one in negative.frames] == [0, 3, 4, 6, 9, 12]
        assert [one.time_s for one in negative.frames] == [0, 9, 16, 36, 81, 144]
        # 3 lies between 0 and 6: the earlier.
        assert [float(one.tokens_CHW[0]) for one in negative.frames] == [0, 0, 6, 6, 9, 9]
        assert [one.content_id for one in negative.frames] == [100, 100, 106, 106, 109, 109]

    def test_no_reading_has_more_tokens_than_the_memory_gives(self):
        """A large frame in the place of a small one is pooled, under an id of its own; a small one stays as it is."""
        large, small = torch.rand(2, 4, 4), torch.rand(2, 1, 1)
        given = [replace(frame(0, large), content_id=-7), frame(1, small), frame(2, large), frame(3, small)]
        _, _, negative = contrasted(given, [False, True, True, False])
        sizes = [one.num_tokens for one in negative.frames]
        assert sizes == [16, 1, 1, 1]
        torch.testing.assert_close(negative.frames[1].tokens_CHW, large.mean((1, 2), keepdim=True))
        assert negative.frames[1].content_id < -7
        assert negative.frames[2].tokens_CHW is small
        assert [one.content_id for one in negative.frames[2:]] == [103, 103]

    def test_the_fewer_are_relevant_the_more_they_count(self):
        _, positive, negative = contrasted([frame(index) for index in range(8)], [True] + [False] * 7)
        assert (positive.weight, negative.weight) == (7 / 8, -7 / 8)

    @pytest.mark.parametrize("all_are", [True, False])
    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_nothing_to_hold_against_each_other(self, all_are, count):
        given = tuple(frame(index) for index in range(count))
        assert contrasted(given, [all_are] * count) == (FrameSelection(given, 1),)


class TestJudgement:
    QUESTION = "Where is the cup?"

    def restated(self, model, mosaic_CHW):
        """Logits where the training dialogues with the replies Yes and No first differ."""
        tokens_LD = model.project(mosaic_CHW).embeds
        text = f"{self.QUESTION}\n{chain_of_shot.IS_VISIBLE}\nAnswer only with Yes or No."
        turn = Turn((Visual(len(tokens_LD)), "\n", text))
        both = [
            layout_prompt(
                [replace(turn, assistant=word)],
                tokenizer=model.tokenizer,
                template=model.template,
                system_message=model.system_message,
            ).input_ids
            for word in ("Yes", "No")
        ]
        place = next(i for i, (yes, no) in enumerate(zip(*both, strict=False)) if yes != no)
        ids = torch.tensor([both[0][:place]])
        with torch.inference_mode():
            logits_V = model.network(inputs_embeds=model.network.fuse(ids, tokens_LD)).logits[0, -1]
        return float(logits_V[both[0][place]] - logits_V[both[1][place]])

    @pytest.mark.parametrize("llm", ["phi3", "qwen2"])
    @pytest.mark.parametrize("template", [None, "internvl_zh"])
    def test_restated_one_by_one(self, tiny_dir, frames, monkeypatch, llm, template):
        model = load_model(tiny_dir(llm), device="cpu", template=template)
        batches, original = [], chain_of_shot.first_logits_of_each
        monkeypatch.setattr(chain_of_shot, "MOSAICS_AT_ONCE", 3)
        memory = KeepAllMemoryBank(full_grid=GRID)
        session = StreamingSession(model, memory)
        session.push(frames(30), range(30))
        given = memory.read()
        groups = [given[first : first + 4] for first in range(0, 30, 4)]
        margins = [self.restated(model, mosaic([one.tokens_CHW for one in group], GRID)) for group in groups]
        # Tokens of a random model lean one way: the middle of all margins is the line between Yes and No.
        middle = sorted(margins)[4]
        yes, no = (chain_of_shot.reply_ids(model, word) for word in ("Yes", "No"))
        place = next(i for i, (one, other) in enumerate(zip(yes, no, strict=False)) if one != other)

        def centred(network, embeds):
            logits = original(network, embeds)
            logits[:, yes[place]] -= middle - 1e-5
            batches.append(len(embeds))
            return logits

        monkeypatch.setattr(chain_of_shot, "first_logits_of_each", centred)
        found = are_relevant(model, given, self.QUESTION)
        assert found == [margins[index // 4] >= middle for index in range(30)]
        assert 0 < sum(found) < 30
        assert batches == [3, 3, 2]

    def test_no_frames_no_question(self, tiny_model):
        assert are_relevant(tiny_model, [], "What?") == []

    def test_a_prompt_that_is_too_long(self, tiny_model, monkeypatch):
        monkeypatch.setattr(tiny_model.network.config.text_config, "max_position_embeddings", 60)
        with pytest.raises(PromptTooLongError, match="context is 60"):
            are_relevant(tiny_model, [frame(0, torch.zeros(256, 4, 4))], "What? " * 30)

    def test_numbers_that_are_none(self, tiny_model):
        given = [frame(index, torch.zeros(256, 4, 4)) for index in range(8)]
        given[5] = frame(5, torch.full((256, 4, 4), math.nan))
        with pytest.raises(NonFiniteError):
            are_relevant(tiny_model, given, "What?")


class TestContrast:
    """All rows in one batch: each must be what it is alone."""

    @pytest.fixture(params=["some", "few"])
    def judged(self, request, monkeypatch):
        """Relevant: four of the ten remembered frames, or a small one beside the last large one."""
        chosen = {"some": [2, 3, 4, 5], "few": [7]}[request.param]
        monkeypatch.setattr(
            chain_of_shot, "are_relevant", lambda model, frames, question: [i in chosen for i in range(len(frames))]
        )

    @pytest.mark.usefixtures("judged")
    @pytest.mark.parametrize("llm", ["phi3", "qwen2", "llama"])
    @pytest.mark.parametrize("max_new_tokens", [5, 40])
    @pytest.mark.parametrize("piece", [1024, 7])
    def test_restated(self, models, frames, monkeypatch, chosen_from, llm, max_new_tokens, piece):
        monkeypatch.setattr("videochat_online.streaming.kv.contrasted.PIECE_TOKENS", piece)
        model = models[llm]
        settings = GenerationSettings(max_new_tokens=max_new_tokens, min_new_tokens=5)
        session = new_session(model, "chain_of_shot", settings=settings)
        session.push(frames(9), range(9))
        session.push(frames(10)[9:], [9.0])
        prepared = session.prepare("What now?")
        (positive, negative), own = prepared.prompt.contrasts, prepared.prompt.tokens
        rows = [(own, 1.0), (positive.tokens, positive.weight), (negative.tokens, negative.weight)]
        lengths = [len(tokens) for tokens, _ in rows]
        assert len(set(lengths)) > 1
        chosen_from.clear()
        ids = list(
            generate_ids(model.language_model, own, model.stop_ids, settings, contrasts=prepared.prompt.contrasts)
        )
        regime = max(lengths) + max_new_tokens > ROPE_SWITCH if llm == "phi3" else None
        expected = sum(weight * alone(model, tokens, ids[:-1], regime) for tokens, weight in rows)
        torch.testing.assert_close(torch.stack(chosen_from), expected, **TOLERANCE)
        assert (expected - alone(model, own, ids[:-1], regime)).abs().max() > 0.01, "the contrast changes nothing"
        # As an answer of the session, with and without a KV budget to count in.
        text = session.ask("What now?").text
        assert text == new_answer(model, frames, settings, reuse_prefix=False)
        assert model.tokenizer.decode(ids, skip_special_tokens=True).strip() == text

    def test_each_row_counts_its_own_positions(self, tiny_model):
        """A rope turns by differences, so that logits would not show it."""
        counted = []
        handle = tiny_model.network.language_model.register_forward_pre_hook(
            lambda module, given, keywords: counted.append(keywords["position_ids"]), with_kwargs=True
        )
        contrasts = (Contrast(row(torch.zeros(4, 64)), 0.5), Contrast(row(torch.zeros(6, 64)), -0.5))
        settings = GenerationSettings(max_new_tokens=3, min_new_tokens=3)
        list(generate_ids(tiny_model.language_model, row(torch.zeros(5, 64)), (), settings, contrasts=contrasts))
        handle.remove()
        rows = torch.cat(counted, dim=1).tolist()
        assert rows == [[0, *range(7)], [0, 0, *range(6)], [*range(8)]]

    def test_one_regime_of_the_rope_for_all_rows(self, models, monkeypatch):
        """The longest row decides, also where the question's own prompt alone would be short."""
        model, seen = models["phi3"], []
        needs_long_regime = generate.needs_long_regime
        monkeypatch.setattr(
            generate, "needs_long_regime", lambda *given: seen.append(given[1]) or needs_long_regime(*given)
        )
        rows = [random_row(length) for length in (60, 30, 101)]
        contrasts = (Contrast(rows[1], 0.5), Contrast(rows[2], -0.5))
        settings = GenerationSettings(max_new_tokens=5, min_new_tokens=5)
        got = first_logits(model.language_model, rows[0], settings.max_new_tokens, contrasts)
        weights = (1, 0.5, -0.5)
        expected = {
            regime: sum(w * alone(model, each, [], regime)[0] for w, each in zip(weights, rows, strict=True))
            for regime in (True, False)
        }
        torch.testing.assert_close(got, expected[True], **TOLERANCE)
        assert (expected[True] - expected[False]).abs().max() > 1e-3
        list(generate_ids(model.language_model, rows[0], (), settings, contrasts=contrasts))
        assert set(seen) == {106}

    @pytest.mark.parametrize("llm", ["phi3", "qwen2", "llama"])
    def test_likelihoods(self, models, llm):
        model = models[llm]
        rows = [random_row(length) for length in (60, 20, 90)]
        contrasts = (Contrast(rows[1], 0.7), Contrast(rows[2], -0.7))
        replies = [(5, 9, 12, 40), (7,), (11, 3)]
        found = continuation_log_likelihoods(model.language_model, rows[0], replies, contrasts)
        for reply, log_likelihood in zip(replies, found.tolist(), strict=True):
            regime = ROPE_SWITCH < 94 if llm == "phi3" else None
            logits_NV = sum(
                weight * alone(model, each, reply[:-1], regime)
                for weight, each in zip((1, 0.7, -0.7), rows, strict=True)
            )
            of_tokens = [float(logits_NV.log_softmax(-1)[n, token]) for n, token in enumerate(reply)]
            assert log_likelihood == pytest.approx(sum(of_tokens), abs=1e-4)

    @pytest.mark.parametrize(
        "settings",
        [
            GenerationSettings(max_new_tokens=12),
            GenerationSettings(max_new_tokens=12, min_new_tokens=6),
            GenerationSettings(max_new_tokens=12, temperature=1.5, top_k=20, top_p=0.9, seed=3),
            GenerationSettings(max_new_tokens=12, repetition_penalty=5.0),
        ],
        ids=["greedy", "min", "drawn", "penalty"],
    )
    def test_settings_count_as_for_a_plain_prompt(self, tiny_model, settings):
        """Two readings that cancel out leave the plain answer."""
        tokens, other = random_row(40), random_row(25)
        cancelled = (Contrast(other, 0.5), Contrast(other, -0.5))
        plain = list(generate_ids(tiny_model.language_model, tokens, (), settings))
        stop_ids = (plain[3],)
        for stops in ((), stop_ids):
            expected = list(generate_ids(tiny_model.language_model, tokens, stops, settings))
            assert (
                list(generate_ids(tiny_model.language_model, tokens, stops, settings, contrasts=cancelled)) == expected
            )
        assert len(plain) == 12

    def test_the_longest_row_has_to_fit(self, tiny_model, monkeypatch):
        monkeypatch.setattr(tiny_model.network.config.text_config, "max_position_embeddings", 60)
        contrasts = (Contrast(row(torch.zeros(58, 64)), 0.5), Contrast(row(torch.zeros(8, 64)), -0.5))
        network, own = tiny_model.network, row(torch.zeros(10, 64))
        with pytest.raises(PromptTooLongError, match="a prompt of 58 tokens and an answer of up to 5"):
            list(generate_ids(network.language_model, own, (), SHORT, contrasts=contrasts))
        with pytest.raises(PromptTooLongError, match="a prompt of 58 tokens"):
            continuation_log_likelihoods(network.language_model, own, [(1, 2, 3)], contrasts)
        first_logits(network.language_model, own, 1, contrasts)
        with pytest.raises(PromptTooLongError):
            first_logits(network.language_model, own, 1, (Contrast(row(torch.zeros(60, 64)), 0.5),))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_numbers_of_any_row_that_are_none(self, tiny_model, bad):
        contrasts = (Contrast(row(torch.full((8, 64), bad)), 0.5), Contrast(row(torch.zeros(8, 64)), -0.5))
        network, own = tiny_model.network, row(torch.zeros(10, 64))
        for call in (
            lambda: list(generate_ids(network.language_model, own, (), SHORT, contrasts=contrasts)),
            lambda: first_logits(network.language_model, own, 1, contrasts),
            lambda: continuation_log_likelihoods(network.language_model, own, [(1, 2)], contrasts),
        ):
            with pytest.raises(NonFiniteError):
                call()


def new_answer(model, frames, settings, **options):
    session = new_session(model, "chain_of_shot", settings=settings, **options)
    session.push(frames(10), range(10))
    return session.ask("What now?").text


class TestChainOfShot:
    @pytest.fixture(autouse=True)
    def _judged(self, monkeypatch):
        """The older half is relevant to "First half?", nothing to "Nothing?"."""
        monkeypatch.setattr(
            chain_of_shot,
            "are_relevant",
            lambda model, frames, question: [
                question == "First half?" and 2 * i < len(frames) for i in range(len(frames))
            ],
        )

    def test_each_reading_is_laid_out_by_itself(self, tiny_model, frames):
        session = new_session(tiny_model, "chain_of_shot", KeepAllMemoryBank(full_grid=GRID))
        session.push(frames(4), range(4))
        session.ask("Nothing?")
        session.push(frames(6)[4:], [4.0, 5.0])
        prepared = session.prepare("First half?")
        assert [used.index for used in prepared.frames] == list(range(6))
        # 16 tokens for frame 1, 4 for frame 5, 1 for the others; the first three show the fourth in the negative video.
        plain = len(prepared.prompt.tokens)
        positive, negative = prepared.prompt.contrasts
        assert (positive.weight, negative.weight) == (0.5, -0.5)
        assert plain - len(negative.tokens) == 15
        text = StreamingSession(tiny_model, session.memory, system_message="Watch.", history=session.history)
        # A session that has seen no frame, and yet is asked at the same moment.
        text._clock = StreamClock(6, 5.0)
        assert torch.equal(text.prepare("First half?").prompt.tokens.embeds_LD, prepared.prompt.tokens.embeds_LD)
        assert len(positive.tokens) < len(negative.tokens)

    def test_without_a_contrast_it_is_the_plain_answer_and_the_cache_is_kept(self, tiny_model, frames):
        answers = {}
        for strategy in ("direct", "chain_of_shot"):
            session = new_session(tiny_model, strategy)
            session.push(frames(6), range(6))
            answers[strategy] = session.ask("Nothing?").text
            assert session.kept_prefix.num_tokens > 0
        assert answers["direct"] == answers["chain_of_shot"]

    def test_three_rows_count_in_the_budget_and_nothing_of_them_is_kept(self, tiny_model, frames):
        budget = KvBudget(1 << 30)
        session = new_session(tiny_model, "chain_of_shot", kv_budget=budget)
        session.push(frames(6), range(6))
        session.ask("Nothing?")
        prompt = session.prepare("First half?").prompt
        longest = max(len(one.tokens) for one in (prompt, *prompt.contrasts))
        stream = session.stream("First half?")
        next(stream)
        per_token = kv_bytes_per_token(tiny_model.network.language_model)
        assert budget.num_bytes == 3 * (longest + SHORT.max_new_tokens) * per_token
        stream.close()
        assert budget.num_bytes == 0
        assert session.prefill() == 0

    def test_pieces_dialogue_and_later_frames(self, tiny_model, frames):
        session = new_session(tiny_model, "chain_of_shot")
        session.push(frames(6), range(6))
        prepared = session.prepare("First half?")
        session.push(frames(9)[6:], range(6, 9))
        pieces = list(session.stream_prepared(prepared))
        again = new_session(tiny_model, "chain_of_shot")
        again.push(frames(6), range(6))
        assert "".join(pieces) == again.ask("First half?").text
        assert [turn.question for turn in session.history] == ["First half?"]
        assert "First half?" in session.prepare("And now?").prompt.layout.text

    @pytest.mark.parametrize("num_tokens", [0, 2])
    def test_tokens_at_the_end_are_dropped_from_every_reading(self, tiny_model, frames, num_tokens):
        session = new_session(tiny_model, "chain_of_shot")
        session.push(frames(6), range(6))
        prompt = session.prepare("First half?").prompt
        shortened = prompt.without_last(num_tokens)
        rows = zip((prompt, *prompt.contrasts), (shortened, *shortened.contrasts), strict=True)
        for whole, short in rows:
            assert torch.equal(short.tokens.embeds_LD, whole.tokens.embeds_LD[: len(whole.tokens) - num_tokens])
            assert short.tokens.keys == whole.tokens.keys[: len(whole.tokens) - num_tokens]
        assert [one.weight for one in shortened.contrasts] == [0.5, -0.5]

    def test_what_a_strategy_has_changed_is_projected_as_it_is(self, tiny_model, frames, monkeypatch):
        """Its ids are used again for every question, and later by the memory: nothing of it may be kept."""
        monkeypatch.setattr(
            chain_of_shot, "are_relevant", lambda model, frames, question: [i != 0 for i in range(len(frames))]
        )
        session = new_session(tiny_model, "chain_of_shot", PyramidMemoryBank(capacities=(1, 1, 2), full_grid=GRID))
        num_changed = 0
        for index, pixels_HWC in enumerate(frames(24)):
            # What a strategy reads of the session, before it has chosen.
            session.push(pixels_HWC[None], [float(index)])
            snapshot = session._snapshot(None, "First half?")
            given = {one.content_id for one in session.memory.read()}
            for selection, visuals in zip(snapshot.selections, snapshot.visuals, strict=True):
                num_changed += sum(one.content_id not in given for one in selection.frames)
                for one, visual in zip(selection.frames, visuals, strict=True):
                    assert torch.equal(visual.embeds, tiny_model.project(one.tokens_CHW).embeds)
        assert num_changed > 10

    def test_projected_once(self, tiny_model, frames, monkeypatch):
        projected, network = [], tiny_model.network
        original = type(network).project
        monkeypatch.setattr(
            network, "project", lambda tokens: projected.append(len(tokens)) or original(network, tokens)
        )
        session = new_session(tiny_model, "chain_of_shot")
        session.push(frames(6), range(6))
        session.ask("First half?")
        session.ask("First half?")
        assert len(projected) == 6
