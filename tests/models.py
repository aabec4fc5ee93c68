"""Tiny classifiers with random weights, their inputs and their graphs.

Shapes: B examples, S tokens, K tokens kept, D hidden size, C classes.
"""

import copy
import functools
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from mpcompile.graph.capture import CapturedModel, capture
from passes import Canonicalize, ExitHead, FuseAttention, run_passes
from tests.reference import count_kept

FAMILIES = ("bert", "roberta", "electra", "distilbert")
MORE_FAMILIES = ("xlm-roberta", "camembert", "albert", "mpnet", "modernbert", "deberta")
"""Families that are tested for what is unlike the others in them, see tests/passes/test_more_families.py."""
VOCAB_SIZE = 100
HIDDEN_SIZE = 32
NUM_LABELS = 3
MAX_POSITIONS = 40
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"{onset}{rest}" for onset in "bcdfghjklmnpqrstvwz" for rest in ("an", "el", "ip", "os", "ur"))
"""The 95 words that the tiny tokenizer knows; with the special tokens they fill the vocabulary."""

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "num_labels": NUM_LABELS,
    "max_position_embeddings": MAX_POSITIONS,
    "id2label": {0: "negative", 1: "neutral", 2: "positive"},
    "label2id": {"negative": 0, "neutral": 1, "positive": 2},
}
_ENCODER = {"hidden_size": HIDDEN_SIZE, "num_attention_heads": 4, "intermediate_size": 48}

_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1}
_MORE = {
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification, _ROBERTA),
    "camembert": (CamembertConfig, CamembertForSequenceClassification, _ROBERTA),
    "albert": (AlbertConfig, AlbertForSequenceClassification, {"embedding_size": 16}),
    "mpnet": (MPNetConfig, MPNetForSequenceClassification, {}),
    "modernbert": (
        ModernBertConfig,
        ModernBertForSequenceClassification,
        {
            "local_attention": 8,
            **{f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
        },
    ),
    "deberta": (
        DebertaV2Config,
        DebertaV2ForSequenceClassification,
        {
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
}


def build_model(family: str, num_layers: int = 3, seed: int = 7, **changes: object) -> PreTrainedModel:
    """A classifier in evaluation mode whose attention is far from uniform.

    Args:
        family: one of `FAMILIES` or `MORE_FAMILIES`.
        changes: settings of its config that differ.
    """
    settings = {**_COMMON, **changes}
    layers = {"num_hidden_layers": num_layers}
    if family == "bert":
        model = BertForSequenceClassification(BertConfig(**_ENCODER, **layers, **settings))
    elif family == "roberta":
        config = RobertaConfig(**_ENCODER, **layers, type_vocab_size=1, pad_token_id=1, **settings)
        model = RobertaForSequenceClassification(config)
    elif family == "electra":
        model = ElectraForSequenceClassification(ElectraConfig(**_ENCODER, **layers, embedding_size=16, **settings))
    elif family in _MORE:
        config_class, model_class, own = _MORE[family]
        model = model_class(config_class(**{**_ENCODER, **layers, **own, **settings}))
    else:
        sizes = {"dim": HIDDEN_SIZE, "hidden_dim": 48, "n_heads": 4, "n_layers": num_layers}
        model = DistilBertForSequenceClassification(DistilBertConfig(**sizes, **settings))
    return randomise(model, seed)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draws all weights anew, large enough that every token and every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.lower().endswith("norm.weight")
            parameter.copy_(1 + 0.1 * noise if is_scale else noise * (0.3 if noise.dim() > 1 else 0.1))
    return model.eval()


def build_head(exit_layer: int, num_labels: int = NUM_LABELS) -> ExitHead:
    """An exit head with random weights, another for each layer."""
    return randomise(ExitHead(HIDDEN_SIZE, num_labels, width=16), seed=100 + exit_layer)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose ids are those of the tiny BERT, with token types for pairs."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )


def random_batch(
    model: PreTrainedModel, lengths: Sequence[int], seq_len: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of a model with right padding, (B, S) int64; the padding id stands at padding alone.

    Args:
        lengths: tokens of each example.
        seq_len: S; the longest example's length by default.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) if seq_len is None else seq_len
    real = torch.arange(width) < torch.tensor(list(lengths))[:, None]
    ids = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, real.shape, generator=generator)
    ids[:, 0] = 2
    batch = {"input_ids": torch.where(real, ids, model.config.pad_token_id), "attention_mask": real.long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        second = torch.arange(width) >= torch.tensor(list(lengths))[:, None] // 2
        batch["token_type_ids"] = (second & real).long()
    return batch


@functools.cache
def captured_model(family: str) -> CapturedModel:
    """The family's tiny model as `capture` gives it, captured once; shared, so leave it as it is."""
    return capture(family_model(family))


def prune_inputs(lengths: Sequence[int], keep_ratios: Mapping[int, float]) -> dict[str, Tensor]:
    """The inputs `num_kept_N` (B,) and `slots_N` (K,) of a pruning graph."""
    inputs = {}
    left = list(lengths)
    for layer, ratio in sorted(keep_ratios.items()):
        left = [count_kept(ratio, length) for length in left]
        inputs[f"num_kept_{layer}"], inputs[f"slots_{layer}"] = torch.tensor(left), torch.arange(max(left))
    return inputs


class LogitsOnly(nn.Module):
    """A Hugging Face classifier with its logits as the only output, as torch.export wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


class HandmadeLayer(nn.Module):
    """One Transformer layer; `order` says where its norms are, or that its halves are parallel."""

    def __init__(self, order: str, causal: bool, dropout: float) -> None:
        super().__init__()
        self.order, self.causal, self.dropout = order, causal, dropout
        self.query, self.key, self.value, self.output, self.up, self.down = (
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(6)
        )
        self.attention_norm, self.norm = nn.LayerNorm(HIDDEN_SIZE), nn.LayerNorm(HIDDEN_SIZE)

    def attend(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        split = [part(hidden).unflatten(2, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        context = nn.functional.scaled_dot_product_attention(*split, mask, self.dropout, self.causal)
        return self.output(context.transpose(1, 2).flatten(2))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(hidden)))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.order == "parallel":
            normed = self.norm(hidden)
            return hidden + self.attend(normed, mask) + self.feed_forward(normed)
        if self.order == "pre":
            hidden = hidden + self.attend(self.attention_norm(hidden), mask)
            return hidden + self.feed_forward(self.norm(hidden))
        hidden = self.attention_norm(hidden + self.attend(hidden, mask))
        return self.norm(hidden + self.feed_forward(hidden))


class HandmadeEncoder(nn.Module):
    """A classifier of three layers that can be made unlike the supported families, one trait at a time.

    Args:
        order: "post", "pre" (norm first) or "parallel" (attention beside feed-forward).
        window: positions that a token sees to either side; None for all.
        causal: whether attention is causal by its own flag.
        dropout: of attention.
        skip: whether the embeddings are added in front of every layer.
        reads: input that the classifier reads beside the hidden state, None for the hidden state alone.
    """

    def __init__(
        self,
        order: str = "post",
        window: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        skip: bool = False,
        reads: str | None = None,
    ) -> None:
        super().__init__()
        self.window, self.causal, self.skip, self.reads = window, causal, skip, reads
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.layers = nn.ModuleList(HandmadeLayer(order, causal, dropout) for _ in range(3))
        self.classifier = nn.Linear(HIDDEN_SIZE, NUM_LABELS)
        randomise(self, seed=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        hidden = embedded = self.embedding(input_ids)
        mask = self._mask(attention_mask)
        for layer in self.layers:
            hidden = layer(hidden + embedded if self.skip else hidden, mask)
        pooled = hidden[:, 0]
        if self.reads == "attention_mask":
            weight = attention_mask[:, :, None].float()
            pooled = (hidden * weight).sum(1) / weight.sum(1)
        elif self.reads == "input_ids":
            pooled = pooled + self.embedding(input_ids[:, 0])
        elif self.reads == "token_type_ids":
            assert token_type_ids is not None
            pooled = pooled + token_type_ids[:, :1].float()
        return self.classifier(pooled)

    def _mask(self, attention_mask: Tensor) -> Tensor | None:
        if self.causal:
            return None
        mask = (attention_mask != 0)[:, None, None, :]
        if self.window is not None:
            position = torch.arange(attention_mask.shape[1])
            mask = mask & ((position[:, None] - position).abs() <= self.window)
        return mask


def export_graph(model: nn.Module, has_types: bool = False) -> GraphModule:
    """What torch.export gives for a module of text inputs, dynamic in batch and length."""
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))
    inputs = {name: torch.zeros((3, 7), dtype=torch.int64) + (name != "token_type_ids") for name in names}
    sizes = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("length", min=2, max=38)}
    return torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(names, sizes)).module()


@functools.cache
def family_model(family: str) -> PreTrainedModel:
    """The one model of a family that tests share and none of them changes."""
    return build_model(family)


@functools.cache
def _exported(family: str) -> GraphModule:
    model = family_model(family)
    return export_graph(LogitsOnly(model), has_types=getattr(model.config, "type_vocab_size", 0) > 1)


@functools.cache
def _canonical(family: str) -> GraphModule:
    return run_passes(exported_graph(family), [FuseAttention(), Canonicalize()])


def exported_graph(family: str) -> GraphModule:
    """A fresh copy of a family's exported graph, before any pass."""
    return copy_graph(_exported(family))


def canonical_graph(family: str) -> GraphModule:
    """A fresh copy of a family's canonical graph."""
    return copy_graph(_canonical(family))


def copy_graph(gm: GraphModule) -> GraphModule:
    """A copy of a graph that shares its weights."""
    return GraphModule(gm, copy.deepcopy(gm.graph))


def count_ops(gm: GraphModule, target: object) -> int:
    """Nodes of the graph that call `target`."""
    return sum(node.target is target for node in gm.graph.nodes)


def run_recorded(gm: GraphModule, nodes: Sequence[Node], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Runs a graph and returns the values that some of its nodes had."""
    recorder = _Recorder(gm)
    names = [node.target for node in gm.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        recorder.run(*(inputs[name] for name in names))
    return [recorder.values[node] for node in nodes]


class _Recorder(Interpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> object:
        self.values[n] = value = super().run_node(n)
        return value
