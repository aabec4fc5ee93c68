"""Fixtures: tiny models with random weights, a tokenizer that fits the BERT among them, and texts."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.fx import GraphModule
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.models import (
    FAMILIES,
    WORDS,
    build_tokenizer,
    canonical_graph,
    exported_graph,
    family_model,
)

# pytest hands everything that torch traces to its log where this logger keeps to itself, which slows exports down.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(scope="session", autouse=True)
def no_pauses() -> Iterator[None]:
    """Times systems without pauses between them: how long something takes is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcompile.cost.timing.PAUSE_S", 0.0)
        yield


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every supported family of models in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(family: str) -> PreTrainedModel:
    """A classifier of the family; shared, so leave it as it is."""
    return family_model(family)


@pytest.fixture
def exported(family: str) -> GraphModule:
    """A copy of the family's exported graph, before any pass."""
    return exported_graph(family)


@pytest.fixture
def canonical(family: str) -> GraphModule:
    """A copy of the family's canonical graph."""
    return canonical_graph(family)


@pytest.fixture
def bert_graph() -> GraphModule:
    """A copy of the tiny BERT's canonical graph."""
    return canonical_graph("bert")


@pytest.fixture(scope="session")
def tiny_bert() -> PreTrainedModel:
    """A BERT classifier of three layers and three classes; shared, so leave it as it is."""
    return family_model("bert")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are those of `tiny_bert`."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """Forty texts of 1 to 20 known words, no two alike."""
    return [" ".join(WORDS[(7 * i + 3 * j * j) % len(WORDS)] for j in range(1 + i % 20)) for i in range(40)]


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A folder that holds `tiny_bert` and its tokenizer, as `save_pretrained` writes them; do not write to it."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    tiny_bert.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
