"""Tests of exit heads: trained on features alone, and judged on texts that they did not see."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from mpcompile.compile.adapt.frozen import TrainedHeads, name_head_weights, read_heads, train_exit_heads
from mpcompile.contract.task import Task
from passes import ExitHead

SIZE, CLASSES = 16, 3


def toy(count: int, seed: int, scale: float = 1.0, shuffled: bool = False) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Features of two exits around one centre per class, and a teacher that is sure of the class."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).standard_normal((CLASSES, SIZE)) * 3
    features = {
        layer: (scale * (centres[truth] + noise * generator.standard_normal((count, SIZE)))).astype(np.float32)
        for layer, noise in ((4, 0.5), (1, 1.0))
    }
    if shuffled:
        truth = generator.permutation(truth)
    return features, (8.0 * np.eye(CLASSES)[truth]).astype(np.float32)


def accuracy(logits: np.ndarray, teacher: np.ndarray) -> float:
    return float((logits.argmax(1) == teacher.argmax(1)).mean())


@torch.no_grad()
def answer(trained: TrainedHeads, layer: int, features: np.ndarray) -> np.ndarray:
    return np.asarray(trained.heads[layer].classify(torch.from_numpy(features)))


@pytest.fixture(scope="module")
def separable() -> tuple[dict[int, np.ndarray], np.ndarray, TrainedHeads]:
    features, teacher = toy(300, seed=0)
    return features, teacher, train_exit_heads(features, teacher)


@pytest.fixture(scope="module")
def shuffled() -> tuple[dict[int, np.ndarray], np.ndarray, TrainedHeads]:
    features, teacher = toy(240, seed=1, shuffled=True)
    return features, teacher, train_exit_heads(features, teacher)


@pytest.mark.parametrize("layer", [1, 4])
def test_heads_learn_a_separable_task(separable: tuple, layer: int) -> None:
    features, teacher, trained = separable
    assert accuracy(trained.predict_held_out(features)[layer], teacher) > 0.97


@pytest.mark.parametrize("layer", [1, 4])
def test_heads_answer_new_texts(separable: tuple, layer: int) -> None:
    new, teacher = toy(300, seed=5)
    assert accuracy(answer(separable[2], layer, new[layer]), teacher) > 0.97


def test_heads_are_unsure_where_the_teacher_is() -> None:
    features, teacher = toy(200, seed=0)
    trained = train_exit_heads(features, np.zeros_like(teacher))
    p = torch.softmax(torch.from_numpy(trained.predict_held_out(features)[4]), -1)
    assert (p - 1 / CLASSES).abs().max() < 0.1


def test_held_out_answers_to_a_task_without_a_pattern_are_chance(shuffled: tuple) -> None:
    features, teacher, trained = shuffled
    held_out = accuracy(trained.predict_held_out(features)[1], teacher)
    seen = accuracy(answer(trained, 1, features[1]), teacher)
    assert held_out < 0.45
    assert seen > held_out + 0.2


def test_held_out_answer_of_a_text_does_not_depend_on_its_own_target() -> None:
    features, teacher = toy(80, seed=2)
    torch.manual_seed(0)
    before = train_exit_heads(features, teacher, seed=3)
    changed = teacher.copy()
    part = (before.folds == 0).numpy()
    changed[part] = np.roll(changed[part], 1, axis=1)
    torch.manual_seed(0)
    after = train_exit_heads(features, changed, seed=3)
    for layer in features:
        own = (t.predict_held_out(features)[layer][part] for t in (before, after))
        np.testing.assert_allclose(*own, atol=1e-5)


def test_parts_are_even_and_cover_every_text(separable: tuple) -> None:
    counts = torch.bincount(separable[2].folds, minlength=4)
    assert counts.sum() == 300 and counts.max() - counts.min() <= 1


def test_extracted_head_answers_as_the_stack(separable: tuple) -> None:
    features, _, trained = separable
    inputs = torch.from_numpy(np.stack([features[layer] for layer in sorted(features)]))
    with torch.no_grad():
        stacked = trained.stack.eval()(inputs)[:, -1]
    for index, layer in enumerate(sorted(features)):
        np.testing.assert_allclose(answer(trained, layer, features[layer]), stacked[index], atol=1e-4)


def test_heads_are_named_by_their_exit(separable: tuple) -> None:
    assert sorted(separable[2].heads) == [1, 4]
    assert list(separable[2].predict_held_out(separable[0])) == [1, 4]


def test_heads_without_cross_fitting_answer_other_texts() -> None:
    trained = train_exit_heads(*toy(300, seed=0), num_folds=0)
    features, teacher = toy(200, seed=5)
    logits = trained.predict_held_out(features, np.arange(200))
    assert accuracy(logits[4], teacher) > 0.97
    np.testing.assert_allclose(logits[4], answer(trained, 4, features[4]), atol=1e-4)


def test_stored_heads_answer_as_before(separable: tuple) -> None:
    features, _, trained = separable
    read = read_heads(name_head_weights(trained.heads), (1, 4), SIZE // 2, Task("single_label", CLASSES))
    stored = dataclasses.replace(trained, heads=read)
    np.testing.assert_array_equal(answer(stored, 4, features[4]), answer(trained, 4, features[4]))


def test_heads_are_ready_to_be_compiled(separable: tuple) -> None:
    for head in separable[2].heads.values():
        assert not head.training
        assert not any(parameter.requires_grad for parameter in head.parameters())
        assert all(parameter.is_contiguous() for parameter in head.parameters())


def test_scale_of_the_features_does_not_matter() -> None:
    features, teacher = toy(200, seed=0, scale=100.0)
    assert accuracy(train_exit_heads(features, teacher).predict_held_out(features)[4], teacher) > 0.97


def test_feature_that_never_changes_does_no_harm() -> None:
    features, teacher = toy(100, seed=0)
    features = {
        layer: np.concatenate([values[:, 1:], np.ones((100, 1), np.float32)], 1) for layer, values in features.items()
    }
    logits = train_exit_heads(features, teacher).predict_held_out(features)[4]
    assert np.isfinite(logits).all() and accuracy(logits, teacher) > 0.9


def rounded(head: ExitHead, features: np.ndarray) -> np.ndarray:
    """What an engine in bf16 makes of a head: inputs, weights and the hidden layer are rounded."""
    copied = copy.deepcopy(head).bfloat16().float()
    with torch.inference_mode():
        hidden = copied.hidden(torch.from_numpy(features).bfloat16().float()).bfloat16().float()
        return np.asarray(copied.output(copied.activation(hidden)))


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_heads_answer_alike_in_bf16_whatever_features_vary_around(offset: float) -> None:
    """Such as [CLS] right after the embeddings, which is the same in every text, and dimensions of large values."""
    features, teacher = toy(300, seed=0)
    constant = np.random.default_rng(1).standard_normal(SIZE // 2).astype(np.float32)
    for layer in features:
        features[layer][:, : SIZE // 2] = constant
        features[layer][:, -2:] += np.float32(offset)
    trained = train_exit_heads(features, teacher)
    for layer, values in features.items():
        exact = answer(trained, layer, values)
        assert accuracy(exact, teacher) > 0.95
        assert np.abs(rounded(trained.heads[layer], values) - exact).max() < 0.05 * np.abs(exact).max()


def test_same_seed_gives_the_same_heads() -> None:
    features, teacher = toy(60, seed=0)
    one, other = (train_exit_heads(features, teacher, seed=7).heads[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_gives_other_heads() -> None:
    features, teacher = toy(60, seed=0)
    one, other = (train_exit_heads(features, teacher, seed=seed).heads[1].hidden.weight for seed in (7, 8))
    assert not torch.equal(one, other)


def test_global_random_state_decides_nothing() -> None:
    features, teacher = toy(60, seed=0)
    weights = []
    for state in (1, 2):
        torch.manual_seed(state)
        weights.append(train_exit_heads(features, teacher, seed=7).heads[1].hidden.weight)
    assert torch.equal(*weights)


def test_progress_is_told_up_to_the_end() -> None:
    shares: list[float] = []
    train_exit_heads(*toy(40, seed=0), on_step=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.parametrize("count", [2, 5, 16])
def test_few_texts_are_enough_to_run(count: int) -> None:
    features, teacher = toy(count, seed=0)
    assert np.isfinite(train_exit_heads(features, teacher, num_folds=2).predict_held_out(features)[1]).all()
