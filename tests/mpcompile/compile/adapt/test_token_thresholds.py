"""Tests of learned token pruning: thresholds move against what they cost, and the model answers under them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start, TaughtTexts
from mpcompile.compile.adapt.losses import SingleLabelLoss
from mpcompile.compile.adapt.token_thresholds import (
    HardTrainer,
    Pyramid,
    SoftTrainer,
    ThresholdSettings,
    train_thresholds,
)
from mpcompile.errors import DataError
from mpcompile.graph.capture import CapturedModel
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store
from passes import find_layers
from tests.models import MAX_POSITIONS, NUM_LABELS, build_head

PRUNES = (0, 2)
STAGE = ElasticSettings(
    max_epochs=3, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-2, steps_per_evaluation=4,
    seconds_per_checkpoint=0.0,
)  # fmt: skip
SETTINGS = ThresholdSettings(
    STAGE, STAGE, keep_weight=1.0, temperature=0.02, last_threshold=0.03, threshold_learning_rate=1e-2
)


class Killed(Exception):
    """In place of a signal."""


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    return Tokenizer.from_transformers(tiny_tokenizer, MAX_POSITIONS)


@pytest.fixture(scope="module")
def training(tokenizer: Tokenizer, tiny_texts: list[str]) -> TaughtTexts:
    return teach(tokenizer, tiny_texts)


@pytest.fixture(scope="module")
def validation(tokenizer: Tokenizer, tiny_texts: list[str]) -> TaughtTexts:
    return teach(tokenizer, [f"ban {text}" for text in tiny_texts[:12]])


def teach(tokenizer: Tokenizer, texts: list[str]) -> TaughtTexts:
    """Texts whose teacher looks at their second token alone."""
    encoded = tokenizer.encode(texts)
    classes = np.array([tokens.ids[1] % NUM_LABELS for tokens in encoded])
    return TaughtTexts(encoded, 4.0 * np.eye(NUM_LABELS, dtype=np.float32)[classes])


@pytest.fixture(scope="module")
def train(captured: CapturedModel, tokenizer: Tokenizer, training: TaughtTexts, validation: TaughtTexts):
    """Trains the tiny BERT with exits after layers 1 and 2."""

    def run(folder: Path, settings: ThresholdSettings = SETTINGS, **changes: object) -> Pyramid:
        heads = {layer: build_head(layer) for layer in (1, 2)}
        arguments = {"training": training, "validation": validation, "settings": settings, **changes}
        lesson = Lesson(arguments.pop("training"), arguments.pop("validation"), tokenizer)  # type: ignore[arg-type]
        return train_thresholds(Start(captured, heads, PRUNES), lesson, Store(folder), **arguments)

    return run


@pytest.fixture(scope="module")
def pyramid(train, tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    return train(tmp_path_factory.mktemp("pyramid"))


def loss_of(pyramid: Pyramid, tokenizer: Tokenizer, texts: TaughtTexts) -> float:
    """Under the thresholds, tokens dropped."""
    trainer = HardTrainer(
        pyramid.captured, pyramid.heads, pyramid.token_thresholds, tokenizer, STAGE, SingleLabelLoss()
    )
    return trainer.evaluate(texts)


def weights(pyramid: Pyramid) -> list[np.ndarray]:
    return [value.detach().numpy() for value in pyramid.captured.graph_module.parameters()]


def test_what_keeping_costs_raises_the_thresholds(train, pyramid: Pyramid, tmp_path: Path) -> None:
    free = train(tmp_path, ThresholdSettings(STAGE, STAGE, 0.0, 0.02, 0.03, 1e-2))
    start = {0: 0.01, 2: 0.03}
    assert all(pyramid.token_thresholds[layer] > start[layer] for layer in PRUNES)
    assert all(pyramid.token_thresholds[layer] > free.token_thresholds[layer] for layer in PRUNES)


def test_the_model_answers_like_its_teacher_with_tokens_dropped(
    pyramid: Pyramid, captured: CapturedModel, tokenizer: Tokenizer, training: TaughtTexts
) -> None:
    before = Pyramid(captured, {layer: build_head(layer) for layer in (1, 2)}, pyramid.token_thresholds)
    assert loss_of(pyramid, tokenizer, training) < 0.7 * loss_of(before, tokenizer, training)


def test_the_model_given_stays_as_it_is(train, captured: CapturedModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in captured.graph_module.state_dict().items()}
    train(tmp_path)
    after = captured.graph_module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_result_is_a_graph_without_prunes_or_masks(pyramid: Pyramid, captured: CapturedModel) -> None:
    graph = pyramid.captured.graph_module
    assert len(find_layers(graph)) == captured.num_layers
    assert [n.target for n in graph.graph.nodes] == [n.target for n in captured.graph_module.graph.nodes]


def test_rerun_does_not_train_again(train, tmp_path: Path) -> None:
    def never(share: float) -> None:
        raise AssertionError("trained again")

    first, again = train(tmp_path), train(tmp_path, stage=never)
    assert first.token_thresholds == again.token_thresholds
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


@pytest.mark.parametrize("step", [3, 15, 20])
def test_killed_run_goes_on_to_the_same_result(train, pyramid: Pyramid, tmp_path: Path, step: int) -> None:
    count = 0

    def stage(share: float) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, stage=stage)
    resumed = train(tmp_path)
    assert resumed.token_thresholds == pyramid.token_thresholds
    assert all(np.array_equal(a, b) for a, b in zip(weights(resumed), weights(pyramid), strict=True))


def test_the_soft_stage_is_charged_for_the_tokens_that_it_keeps(
    captured: CapturedModel, tokenizer: Tokenizer, validation: TaughtTexts
) -> None:
    heads = {1: build_head(1)}

    def evaluate(keep_weight: float) -> float:
        settings = ThresholdSettings(STAGE, STAGE, keep_weight, temperature=1e-9)
        return SoftTrainer(captured, heads, {0: 0.0, 2: 0.0}, tokenizer, settings, SingleLabelLoss()).evaluate(
            validation
        )

    assert evaluate(0.5) - evaluate(0.0) == pytest.approx(0.5, abs=1e-5)


def test_no_texts_are_refused(train, tokenizer: Tokenizer, tmp_path: Path) -> None:
    empty = TaughtTexts([], np.zeros((0, NUM_LABELS), np.float32))
    with pytest.raises(DataError, match="training: no texts"):
        train(tmp_path, training=empty)
