"""Tests of elastic fine-tuning: what is trained, what is kept, and that a killed run loses nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mpcompile.compile.adapt.elastic import DISTILLATION, Elastic, describe_run, train_elastic
from mpcompile.compile.adapt.lesson import ElasticSettings, Lesson, Start, TaughtTexts
from mpcompile.compile.adapt.losses import SingleLabelLoss
from mpcompile.compile.adapt.trainer import Trainer, name_weights
from mpcompile.errors import DataError
from mpcompile.graph.capture import CapturedModel
from mpcompile.graph.rewrite import rewrite
from mpcompile.runtime.tokens import Tokenizer
from mpcompile.store.results import Store, digest
from passes import find_layers, verify
from tests.models import MAX_POSITIONS, NUM_LABELS, build_head
from tests.paths import ROOT

PRUNES = (0, 2)
SETTINGS = ElasticSettings(
    max_epochs=3, batch_size=8, learning_rate=1e-3, head_learning_rate=1e-2, steps_per_evaluation=4,
    seconds_per_checkpoint=0.0,
)  # fmt: skip
"""Fifteen steps on forty texts, a checkpoint after each."""


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

    def run(folder: Path, settings: ElasticSettings = SETTINGS, **changes: object) -> Elastic:
        arguments = {"training": training, "validation": validation, "settings": settings, **changes}
        heads = {layer: build_head(layer) for layer in (1, 2)}
        lesson = Lesson(arguments.pop("training"), arguments.pop("validation"), tokenizer)  # type: ignore[arg-type]
        return train_elastic(Start(captured, heads, PRUNES), lesson, Store(folder), **arguments)

    return run


@pytest.fixture(scope="module")
def elastic(train, tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    return train(tmp_path_factory.mktemp("elastic"))


def weights(elastic: Elastic) -> dict[str, np.ndarray]:
    named = {name: value.detach().numpy() for name, value in elastic.captured.graph_module.named_parameters()}
    for layer, head in elastic.heads.items():
        named |= {f"{layer} {name}": value.detach().numpy() for name, value in head.named_parameters()}
    return named


def is_same(left: Elastic, right: Elastic) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def kill_at(step: int):
    """A stage that is killed after some steps."""
    count = 0

    def stage(share: float) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Killed

    return stage


def never(share: float) -> None:
    raise AssertionError("trained again")


def loss_of(elastic: Elastic, tokenizer: Tokenizer, texts: TaughtTexts) -> float:
    trainer = Trainer(elastic.captured, elastic.heads, PRUNES, tokenizer, SETTINGS, SingleLabelLoss())
    return trainer.evaluate(texts)


def test_training_brings_the_answers_nearer_to_the_teacher(
    elastic: Elastic, captured: CapturedModel, tokenizer: Tokenizer, training: TaughtTexts
) -> None:
    before = Elastic(captured, {layer: build_head(layer) for layer in (1, 2)})
    assert loss_of(elastic, tokenizer, training) < 0.7 * loss_of(before, tokenizer, training)


def test_every_weight_that_answers_depend_on_is_trained(elastic: Elastic, captured: CapturedModel) -> None:
    before = weights(Elastic(captured, {layer: build_head(layer) for layer in (1, 2)}))
    same = [name for name, value in weights(elastic).items() if np.array_equal(value, before[name])]
    assert same == []


def test_model_given_stays_as_it_is(train, captured: CapturedModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in captured.graph_module.state_dict().items()}
    nodes = [(node.op, node.target) for node in captured.graph_module.graph.nodes]
    train(tmp_path)
    after = captured.graph_module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert nodes == [(node.op, node.target) for node in captured.graph_module.graph.nodes]


def test_result_is_a_canonical_graph_in_fp32(elastic: Elastic, captured: CapturedModel) -> None:
    verify(elastic.captured.graph_module)
    assert len(find_layers(elastic.captured.graph_module)) == captured.num_layers
    assert {value.dtype for value in name_weights(elastic.captured.graph_module).values()} == {torch.float32}
    rewrite(elastic.captured.graph_module, elastic.heads, PRUNES)


def test_heads_are_ready_to_run(elastic: Elastic) -> None:
    assert sorted(elastic.heads) == [1, 2]
    for head in elastic.heads.values():
        assert not head.training and not any(weight.requires_grad for weight in head.parameters())


def test_rerun_does_not_train_again(train, tmp_path: Path) -> None:
    first = train(tmp_path)
    assert is_same(first, train(tmp_path, stage=never))


def test_same_seed_gives_the_same_weights(train, elastic: Elastic, tmp_path: Path) -> None:
    assert is_same(elastic, train(tmp_path))


@pytest.mark.parametrize("step", [1, 4, 7, 14])
def test_killed_run_resumes_to_the_same_weights(train, elastic: Elastic, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stage=kill_at(step))
    shares: list[float] = []
    assert is_same(elastic, train(tmp_path, stage=shares.append))
    assert len(shares) == 15 - step


def test_finished_run_leaves_no_checkpoint(train, tmp_path: Path) -> None:
    train(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None], ids=["empty", "text", "flipped"])
def test_damaged_checkpoint_is_put_aside_and_training_starts_anew(
    train, elastic: Elastic, tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, stage=kill_at(9))
    (path,) = (tmp_path / "checkpoints").iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content if damage is None else damage)
    assert is_same(elastic, train(tmp_path))
    assert "starts anew" in caplog.text and str(path) in caplog.text
    assert path.with_suffix(".damaged").exists()


def test_checkpoint_of_another_run_is_not_taken_up(train, elastic: Elastic, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, ElasticSettings(**{**vars(SETTINGS), "seed": 1}), stage=kill_at(9))
    shares: list[float] = []
    assert is_same(elastic, train(tmp_path, stage=shares.append))
    assert len(shares) == 15 and len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_training_without_gain_returns_what_was_given(train, captured: CapturedModel, tmp_path: Path) -> None:
    harmful = ElasticSettings(**{**vars(SETTINGS), "learning_rate": 3.0, "head_learning_rate": 3.0, "patience": 2})
    shares: list[float] = []
    result = train(tmp_path, harmful, stage=shares.append)
    assert is_same(result, Elastic(captured, {layer: build_head(layer) for layer in (1, 2)}))
    assert len(shares) == 8  # two evaluations without improvement


def test_time_limit_ends_training(train, tmp_path: Path) -> None:
    shares: list[float] = []
    train(tmp_path, ElasticSettings(**{**vars(SETTINGS), "max_seconds": 1e-6}), stage=shares.append)
    assert shares == []


def test_labels_change_what_is_learned(train, elastic: Elastic, training: TaughtTexts, tmp_path: Path) -> None:
    labels = np.arange(len(training)) % NUM_LABELS
    labelled = TaughtTexts(training.encoded, training.teacher_logits, labels)
    assert not is_same(elastic, train(tmp_path, training=labelled))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (lambda t: TaughtTexts([], t.teacher_logits[:0]), "no texts"),
        (lambda t: TaughtTexts(t.encoded, t.teacher_logits[:-1]), r"shape \(39, 3\), expected \(40, 3\)"),
        (lambda t: TaughtTexts(t.encoded, t.teacher_logits, np.zeros(7, int)), "7 labels for 40 texts"),
    ],
    ids=["none", "answers", "labels"],
)
def test_texts_that_do_not_fit_are_an_error(train, training: TaughtTexts, tmp_path: Path, texts, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(tmp_path, training=texts(training))


def test_another_process_finds_what_this_one_trained(captured: CapturedModel) -> None:
    code = (
        "from mpcompile.compile.adapt.elastic import *; from mpcompile.graph.capture import capture\n"
        "from mpcompile.store.results import digest; from tests.models import family_model\n"
        "captured = capture(family_model('bert'))\n"
        "print(digest(describe_run(captured, {}, (), (), DEFAULTS, DISTILLATION)))"
    )
    theirs = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert theirs.split()[-1] == digest(describe_run(captured, {}, (), (), ElasticSettings(), DISTILLATION))
