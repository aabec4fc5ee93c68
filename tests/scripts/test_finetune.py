"""Tests of scripts/finetune.py on a random BERT of two layers."""

import csv
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from mpcompile.compile.texts.examples import labels_to_ids, load_examples
from mpcompile.errors import DataError, SettingError

WORDS = ("good", "bad", "film", "plot", "very", "the", "a")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "finetune.py"
    spec = importlib.util.spec_from_file_location("finetune_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


finetune = load_script()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other at every small product, for minutes on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT that knows seven words."""
    folder = tmp_path_factory.mktemp("base")
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names: dict[str, Any] = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    )
    BertTokenizer(tokenizer_object=tokenizer, vocab=vocabulary, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def reviews(num_rows: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        words = draw.choices(WORDS[2:], k=draw.randint(1, 8))
        label = draw.choice(("good", "bad"))
        words.insert(draw.randint(0, len(words)), label)
        rows.append((" ".join(words), {"good": "positive", "bad": "negative"}[label]))
    return rows


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> Any:
    train = write_csv(tmp_path / "train.csv", [("text", "label"), *reviews(200)])
    return finetune.Settings(
        train=train, out=tmp_path / "out", base=base, epochs=2, max_length=16, batch_size=8, learning_rate=0.01
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    return state


def stop_at(step: int) -> Callable[[str, int, int], None]:
    """Presses Ctrl-C after a step."""

    def after_step(_line: str, done: int, _total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return after_step


def test_model_learns_and_is_loadable(settings: Any) -> None:
    result = finetune.fine_tune(replace(settings, epochs=3))
    assert (result.num_train, result.num_held_out) == (190, 10)
    assert result.held_out_accuracy >= 0.9
    model = AutoModelForSequenceClassification.from_pretrained(settings.out).eval()
    tokenizer = AutoTokenizer.from_pretrained(settings.out)
    texts, labels = zip(*reviews(50, seed=1), strict=True)
    answers = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits.argmax(-1)
    assert (answers.numpy() == labels_to_ids(labels, model.config.id2label)).mean() >= 0.9


def test_examples_that_were_not_trained_on_are_kept_beside_the_model(settings: Any) -> None:
    finetune.fine_tune(replace(settings, held_out_share=0.1))
    held_out, every = load_examples(settings.out / "held_out.csv"), load_examples(settings.train)
    rows = list(zip(every.texts, every.labels or (), strict=True))
    assert len(held_out) == 20
    assert set(zip(held_out.texts, held_out.labels or (), strict=True)) < set(rows)
    expected, _ = finetune.split(every, replace(settings, held_out_share=0.1))
    assert held_out == expected


def test_nothing_is_left_but_the_model(settings: Any) -> None:
    finetune.fine_tune(settings)
    assert sorted(path.name for path in settings.out.parent.iterdir()) == ["out", "train.csv"]


def test_stopped_run_goes_on_to_the_same_model(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "STEPS_PER_CHECKPOINT", 10)
    whole = replace(settings, out=settings.out.with_name("whole"))
    finetune.fine_tune(whole)

    for step in (13, 37):
        with pytest.raises(KeyboardInterrupt):
            finetune.fine_tune(settings, stop_at(step))
        assert not settings.out.exists()
    steps: list[int] = []
    finetune.fine_tune(settings, lambda line, done, total: steps.append(done))

    assert steps == list(range(35, 49))  # 24 steps an epoch: the last checkpoint is that of step 34 = 24 + 10
    expected = weights(whole.out)
    for name, value in weights(settings.out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_checkpoint_of_other_settings_is_refused(settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune.fine_tune(settings, stop_at(30))
    with pytest.raises(SettingError, match=r"other settings \(seed: 0 there, 1 now\)"):
        finetune.fine_tune(replace(settings, seed=1))


def test_pairs_and_numbered_labels(settings: Any) -> None:
    rows = [(text, text, str(10 - index % 3)) for index, (text, _) in enumerate(reviews(30))]
    write_csv(settings.train, [("text", "text_pair", "label"), *rows])
    finetune.fine_tune(replace(settings, epochs=1))
    config = AutoModelForSequenceClassification.from_pretrained(settings.out).config
    assert config.id2label == {0: "8", 1: "9", 2: "10"}


def test_classifier_with_other_classes_is_a_base(settings: Any) -> None:
    finetune.fine_tune(replace(settings, epochs=1))
    rows = [(text, f"class {index % 5}") for index, (text, _) in enumerate(reviews(40))]
    write_csv(settings.train, [("text", "label"), *rows])
    again = replace(settings, epochs=1, base=settings.out, out=settings.out.with_name("again"))
    finetune.fine_tune(again)
    assert AutoModelForSequenceClassification.from_pretrained(again.out).config.num_labels == 5


def test_student_has_fewer_layers_and_learns_what_the_teacher_answers(settings: Any, tmp_path: Path) -> None:
    finetune.fine_tune(settings)
    teacher = AutoModelForSequenceClassification.from_pretrained(settings.out)
    with torch.no_grad():  # a teacher that calls everything the same: labels would teach otherwise
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(torch.tensor([4.0, -4.0]))
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(settings.out).save_pretrained(tmp_path / "teacher")
    student = replace(
        settings, out=tmp_path / "student", base=settings.out, teacher=tmp_path / "teacher", layers=1, epochs=8
    )
    finetune.fine_tune(student)
    model = AutoModelForSequenceClassification.from_pretrained(student.out)
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 1
    logits = model(input_ids=torch.tensor([[2, 5, 7, 3], [2, 6, 8, 3]])).logits
    assert logits.argmax(-1).tolist() == [0, 0]


def test_layers_that_are_kept_are_evenly_spread_and_the_last_is_among_them(base: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_hidden_layers=6)
    layers = list(model.bert.encoder.layer)
    finetune.keep_layers(model, 3)
    assert [layers.index(layer) for layer in model.bert.encoder.layer] == [1, 3, 5]
    with pytest.raises(SettingError, match=r"--layers 9: the base has 3 layers"):
        finetune.keep_layers(model, 9)


def test_teacher_with_other_classes_is_refused(settings: Any, tmp_path: Path) -> None:
    finetune.fine_tune(settings)
    rows = "text,label\ngood,yes\nbad,no\n" * 8
    (tmp_path / "other.csv").write_text(rows)
    with pytest.raises(SettingError, match="its classes are"):
        finetune.fine_tune(replace(settings, train=tmp_path / "other.csv", out=tmp_path / "new", teacher=settings.out))


def test_batches_hold_each_row_once_and_similar_lengths() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 100) for _ in range(1001)]
    batches = finetune.group_by_length(lengths, 8, draw)
    assert sorted(row for batch in batches for row in batch) == list(range(1001))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [finetune.rate_at(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == 0


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("text",), ("a",)], "no column 'label'"),
        ([("text", "label"), ("a", "x"), ("b", "x")], "all labels are 'x'; a classifier needs two classes"),
        ([("body", "label"), ("a", "x")], "no column 'text'"),
    ],
)
def test_unusable_training_set(settings: Any, rows: list[tuple[str, ...]], expected: str) -> None:
    write_csv(settings.train, rows)
    with pytest.raises(DataError, match=expected):
        finetune.fine_tune(settings)


def test_output_folder_with_something_in_it_is_refused(settings: Any) -> None:
    settings.out.mkdir()
    (settings.out / "precious").touch()
    with pytest.raises(SettingError, match="not an empty folder"):
        finetune.fine_tune(settings)


def test_too_many_tokens_for_the_base(settings: Any) -> None:
    with pytest.raises(SettingError, match=r"--max-length 17: .* takes 16 tokens at most"):
        finetune.fine_tune(replace(settings, max_length=17))


def test_folder_without_a_model_is_no_base(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="cannot be loaded as a sequence classifier"):
        finetune.fine_tune(replace(settings, base=tmp_path / "empty"))


def test_command_line(settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--train", str(settings.train), "--out", str(settings.out), "--base", str(settings.base)]
    assert finetune.main([*arguments, "--max-length", "16", "--smoke"]) == 0
    assert "held-out examples (epoch 1 of 1, 61 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--epochs", "0"], "--epochs 0: must be 1 or more"),
        (["--lr", "5"], "--lr 5.0: must be between 0 and 1"),
        (["--base", "/nowhere"], "--base /nowhere: no such folder"),
        (["--train", "/nowhere.csv"], "/nowhere.csv: no such file"),
    ],
)
def test_command_line_says_what_was_wrong(
    settings: Any, capsys: pytest.CaptureFixture[str], extra: list[str], expected: str
) -> None:
    arguments = ["--train", str(settings.train), "--out", str(settings.out), "--base", str(settings.base)]
    assert finetune.main([*arguments, *extra]) == 2
    assert expected in capsys.readouterr().err
