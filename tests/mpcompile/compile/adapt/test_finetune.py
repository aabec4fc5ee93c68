"""Tests of adapt="finetune" from end to end: what is trained is what is deployed, and the original stays."""

import copy
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mpcompile
from mpcompile.compile.adapt.lesson import TaughtTexts
from mpcompile.compile.adapt.trainer import Trainer
from mpcompile.compile.rebuild import load_sources, rebuild_segments
from mpcompile.errors import ArtifactError, SettingError
from mpcompile.runtime.artifact import BACKBONE, read_manifest


@pytest.fixture(scope="module")
def given(tiny_bert: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(tiny_bert)


@pytest.fixture(scope="module")
def finetuned(
    given: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_texts: list[str],
    cache_dir: Path,
    few_batches: None,
) -> mpcompile.OptimizedModel:
    """The tiny BERT, trained for some steps; shared, so leave its operating point as it is."""
    evaluate = Trainer.evaluate

    def prefer_training(trainer: Trainer, texts: TaughtTexts) -> float:
        """On so few texts it is a matter of luck whether training helps: what it starts from counts as the worst."""
        loss = evaluate(trainer, texts)
        if trainer.step == 0:
            trainer.validation_loss[-1] = (0, math.inf)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", prefer_training)
        return mpcompile.optimize(
            given,
            1.0,
            tokenizer=tiny_tokenizer,
            texts=tiny_texts,
            adapt="finetune",
            train_epochs=8,
            backend="eager",
            progress=False,
            cache_dir=cache_dir,
        )


@pytest.fixture(scope="module")
def folder(finetuned: mpcompile.OptimizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finetuned") / "artifact"
    finetuned.save(path)
    return path


def test_model_given_stays_as_it_is(
    finetuned: mpcompile.OptimizedModel, given: PreTrainedModel, tiny_bert: PreTrainedModel
) -> None:
    before = tiny_bert.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_drop_is_measured_on_texts_not_trained_on(finetuned: mpcompile.OptimizedModel, tiny_texts: list[str]) -> None:
    assert finetuned.report.measured_on == f"{len(tiny_texts) // 5} held-out texts"


def test_artifact_holds_the_original_and_what_it_was_trained_to(folder: Path, tiny_bert: PreTrainedModel) -> None:
    trained, saved = load_file(folder / BACKBONE), load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(value, tiny_bert.state_dict()[name]) for name, value in saved.items())
    name = next(name for name in saved if name.endswith("layer.1.output.dense.weight"))
    (ours,) = (value for key, value in trained.items() if key.endswith(name))
    assert ours.shape == saved[name].shape and not torch.equal(ours, saved[name])


def test_engines_are_those_of_the_trained_weights(
    folder: Path, finetuned: mpcompile.OptimizedModel, tiny_tokenizer: PreTrainedTokenizerFast, tiny_texts: list[str]
) -> None:
    inputs = dict(tiny_tokenizer(tiny_texts[:1], return_tensors="np"))
    graphs = rebuild_segments(folder, read_manifest(folder))
    first = graphs[0].graph_module
    lengths = inputs["attention_mask"].sum(1)
    width = inputs["attention_mask"].shape[1]
    extra = {f"num_kept_{layer}": lengths for layer in graphs[0].prune_layers}
    extra |= {f"slots_{layer}": np.arange(width) for layer in graphs[0].prune_layers}
    with torch.inference_mode():
        feed = {name: torch.from_numpy(np.asarray(value)) for name, value in {**inputs, **extra}.items()}
        expected = first(**{name: feed[name] for name in graphs[0].input_names})["logits"].numpy()
    plain = mpcompile.load(folder).runtime.segments[0]
    assert plain.input_names == graphs[0].input_names
    outputs = finetuned.runtime.engines[0]({name: feed[name].numpy() for name in graphs[0].input_names})
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


def test_saved_artifact_answers_as_before(
    folder: Path, finetuned: mpcompile.OptimizedModel, tiny_texts: list[str]
) -> None:
    assert [a.label for a in mpcompile.load(folder).predict(tiny_texts)] == [
        a.label for a in finetuned.predict(tiny_texts)
    ]


def test_foreign_trained_weights_are_an_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    save_file({"weight": torch.zeros(3)}, tmp_path / "copy" / BACKBONE)
    with pytest.raises(ArtifactError, match="not those of the model beside it"):
        load_sources(tmp_path / "copy")


@pytest.mark.parametrize(
    ("option", "message"),
    [({"train_epochs": 0}, "train_epochs: 0"), ({"train_minutes": -1.0}, "train_minutes: -1.0")],
)
def test_bad_options_are_an_error(tiny_model_dir: Path, option: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        mpcompile.optimize(tiny_model_dir, 2.0, adapt="finetune", **option)
