"""A second language model for n-best lists, and the search for weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq2.assets import AssetDownloadError
from fairseq2.data.tokenizers import Tokenizer
from fairseq2.data.tokenizers.vocab_info import VocabularyInfo
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.utils.uri import Uri
from torch import Tensor

from hubert_plugin.decoding.distance import EditCounts
from hubert_plugin.decoding.hypothesis import Hypothesis, Word
from hubert_plugin.decoding.rescoring import Rescorer, RescoringConfig, load_rescorer
from hubert_plugin.decoding.tuning import TuningConfig, tune_weights
from hubert_plugin.errors import ConfigError, DecodingError, MissingDependencyError


class Letters(Tokenizer):
    """A token for each letter; unknown ones are 3."""

    def __init__(self, bos: int | None = 1, eos: int | None = 2) -> None:
        self._info = VocabularyInfo(size=32, unk_idx=3, bos_idx=bos, eos_idx=eos, pad_idx=0)

    def create_raw_encoder(self, **kwargs: Any) -> Any:
        return lambda text: torch.tensor(
            [4 + ord(c) - ord("a") if c.isalpha() and c.islower() else 3 for c in text], dtype=torch.int64
        )

    def create_encoder(self, **kwargs: Any) -> Any:
        raise AssertionError("control symbols are put by the rescorer")

    def create_decoder(self, **kwargs: Any) -> Any:
        raise AssertionError

    @property
    def vocab_info(self) -> VocabularyInfo:
        return self._info


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)

    config = LLaMAConfig(
        model_dim=16, max_seq_len=12, vocab_size=32, num_layers=2, num_attn_heads=2, num_key_value_heads=2,
        ffn_inner_dim=32,
    )  # fmt: skip

    model = create_llama_model(config)

    # Away from uniform.
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(2.0)

    return model.eval()


def token_by_token(model: Any, tokens: Sequence[int]) -> float:
    """The chain rule, a prefix at a time."""
    from fairseq2.nn import BatchLayout

    total = 0.0

    for end in range(1, len(tokens)):
        prefix = torch.tensor([tokens[:end]])

        with torch.no_grad():
            logits: Tensor = model(prefix, BatchLayout.of(prefix))

        total += float(logits[0, -1].log_softmax(-1)[tokens[end]])

    return total


@pytest.mark.parametrize("batch_tokens", [1, 14, 4096])
def test_scores_are_those_of_the_chain_rule(model: Any, batch_tokens: int) -> None:
    rescorer = Rescorer(model, Letters(), RescoringConfig(lm="x", batch_tokens=batch_tokens))

    texts = ["AB", "", "ABCDEFGH", "C"]

    # Lower case is what the model is given.
    expected = [token_by_token(model, [1, *(4 + ord(c) - ord("A") for c in t), 2]) for t in texts]

    assert rescorer.score(texts) == pytest.approx(expected, abs=1e-4)


def test_text_as_it_is_and_a_tokenizer_without_beginning(model: Any) -> None:
    rescorer = Rescorer(model, Letters(bos=None), RescoringConfig(lm="x", case="none"))

    assert rescorer.score(["aB"]) == pytest.approx([token_by_token(model, [2, 4, 3, 2])], abs=1e-4)


def test_text_longer_than_the_model_takes_is_scored_in_pieces(model: Any) -> None:
    rescorer = Rescorer(model, Letters(), RescoringConfig(lm="x"))

    tokens = [1, *([4, 5] * 12), 2]  # 26 tokens, 12 at a time

    expected = sum(token_by_token(model, tokens[i : i + 13]) for i in (0, 12, 24))

    assert rescorer.score(["AB" * 12]) == pytest.approx([expected], abs=1e-4)


def hypothesis(text: str, score: float) -> Hypothesis:
    return Hypothesis(tuple(Word(w, 0.0, 0.1, 0.9) for w in text.split()), score, score)


def test_hypotheses_are_ranked_anew(model: Any) -> None:
    given = [hypothesis("AB", -1.0), hypothesis("CD", -1.5), hypothesis("", -2.0)]

    scores = Rescorer(model, Letters(), RescoringConfig(lm="x")).score([h.text for h in given])

    for weight in (0.0, 0.3, 5.0):
        ranked = Rescorer(model, Letters(), RescoringConfig(lm="x", weight=weight)).rescore(given)

        expected = sorted(
            ((h.score + weight * s, s, h.text) for h, s in zip(given, scores, strict=True)), key=lambda e: -e[0]
        )

        assert [h.text for h in ranked] == [t for _, _, t in expected]
        assert [h.score for h in ranked] == pytest.approx([s for s, _, _ in expected], abs=1e-4)
        assert [h.rescored for h in ranked] == pytest.approx([s for _, s, _ in expected], abs=1e-4)
        assert all(h.ctc_score == g.ctc_score for h in ranked for g in given if g.text == h.text)


def test_a_tokenizer_without_ends_is_refused(model: Any) -> None:
    with pytest.raises(DecodingError, match="no token that begins a text"):
        Rescorer(model, Letters(bos=None, eos=None), RescoringConfig(lm="some_lm"))


def test_an_unknown_card_is_named() -> None:
    with pytest.raises(DecodingError, match=r"no asset card.*no_such_lm.*fairseq2 assets list"):
        load_rescorer(RescoringConfig(lm="no_such_lm"), torch.device("cpu"))


def test_a_card_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, device: torch.device) -> None:
        raise AssetDownloadError(Uri.parse("https://example.org/lm.pt"), "No connection.")

    monkeypatch.setattr("hubert_plugin.decoding.rescoring.load_model", fail)

    with pytest.raises(
        DecodingError, match=r"'far_lm' of `rescoring` cannot be downloaded: .*No connection.* a file of"
    ):
        load_rescorer(RescoringConfig(lm="far_lm"), torch.device("cpu"))


def bowl(w1: float, w2: float) -> EditCounts:
    """Word errors that are fewest at w1 = 3, w2 = 1."""
    return EditCounts(round(100 * math.hypot(w1 - 3.0, w2 - 1.0)), 0, 0, 1000)


def test_a_search_finds_better_weights_and_the_same_ones_again() -> None:
    pytest.importorskip("optuna")

    config = TuningConfig(trials=40, seed=1)

    seen = []

    result = tune_weights(bowl, config, start=(2.0, -1.0), on_trial=lambda: seen.append(1))

    assert len(seen) == len(result.history) == 40
    assert result.history[0] == (2.0, -1.0, bowl(2.0, -1.0).rate)
    assert result.counts.rate == min(rate for _, _, rate in result.history) < 0.1
    assert result.counts == bowl(result.lm_weight, result.word_score)
    assert all(0.0 <= w1 <= 8.0 and -5.0 <= w2 <= 5.0 for w1, w2, _ in result.history)

    assert tune_weights(bowl, config, start=(2.0, -1.0)) == result
    assert tune_weights(bowl, TuningConfig(trials=40, seed=2), start=(2.0, -1.0)) != result


def test_a_search_never_ends_worse_than_it_began() -> None:
    pytest.importorskip("optuna")

    result = tune_weights(bowl, TuningConfig(trials=2), start=(3.0, 1.0))

    assert (result.lm_weight, result.word_score, result.counts.rate) == (3.0, 1.0, 0.0)

    # A start outside the range is moved to its edge.
    edge = tune_weights(bowl, TuningConfig(trials=1, lm_weight=(0.0, 2.5)), start=(9.0, 1.0))

    assert edge.lm_weight == 2.5


def test_a_search_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'fairseq2-hubert\[tune\]'"):
        tune_weights(bowl, TuningConfig(trials=1), start=(2.0, -1.0))


def test_a_search_without_trials_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`tune\.trials` must be 1 or greater"):
        tune_weights(bowl, TuningConfig(), start=(2.0, -1.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TuningConfig(lm_weight=(3.0, 1.0)), "`lm_weight` must be a smaller and a larger number"),
        (TuningConfig(trials=-1), "`trials` must be 0 or greater"),
        (RescoringConfig(case="title"), "`case` must be one of none, lower, upper"),  # type: ignore[arg-type]
        (RescoringConfig(batch_tokens=0), "`batch_tokens` must be 1"),
    ],
)
def test_options_that_cannot_be_used_are_named(config: Any, message: str) -> None:
    (problem,) = config.problems()

    assert message in problem


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (RescoringConfig(weight=math.inf), "`weight` must be finite, but is inf"),
        (TuningConfig(lm_weight=(0.0, math.inf)), "`lm_weight` must be finite, but is (0.0, inf)"),
        (TuningConfig(word_score=(-math.inf, 5.0)), "`word_score` must be finite"),
    ],
)
def test_infinite_weights_are_refused(options: RescoringConfig | TuningConfig, phrase: str) -> None:
    (problem,) = options.problems()

    assert phrase in problem
