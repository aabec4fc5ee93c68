"""A tiny classifier that has learned its task, and texts of the task with their true labels.

Random weights answer nothing in particular, so that a compiler of them can be wrong without a test noticing it.
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from tests.models import NUM_LABELS, WORDS, build_model, build_tokenizer

NUM_LAYERS = 4
STEPS, BATCH_SIZE, LEARNING_RATE = 150, 32, 3e-3
_TOPICS, SHIFT, _FILLERS = WORDS[:NUM_LABELS], WORDS[NUM_LABELS], WORDS[NUM_LABELS + 1 : 34]


def draw_texts(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of 4 to 11 words, and their labels.

    One word says the label; in a third of the texts another word, anywhere, turns it into the next label. All others
    say nothing.
    """
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        words = list(random.choice(_FILLERS, random.integers(4, 12)))
        topic, is_shifted = int(random.integers(NUM_LABELS)), random.random() < 1 / 3
        first, second = random.choice(len(words), 2, replace=False)
        words[first] = _TOPICS[topic]
        if is_shifted:
            words[second] = SHIFT
        texts.append(" ".join(words))
        labels.append((topic + is_shifted) % NUM_LABELS)
    return texts, labels


def teach_model() -> PreTrainedModel:
    """A BERT of four layers that is right about nearly all texts of `draw_texts`, after a few seconds of training."""
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    model = build_model("bert", num_layers=NUM_LAYERS, **config)
    texts, labels = draw_texts(STEPS * BATCH_SIZE, seed=0)
    batches = {**build_tokenizer()(texts, padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.apply(model._init_weights)
        model.bert.embeddings.position_embeddings.weight.data.mul_(0.1)  # where a word stands says nothing
        for index in torch.arange(len(texts)).split(BATCH_SIZE):
            optimizer.zero_grad()
            model(**{name: value[index] for name, value in batches.items()}).loss.backward()
            optimizer.step()
            schedule.step()
    return model
