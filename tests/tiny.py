"""Tiny real transformers models with random weights, saved as folders with their tokenizer or image processor.

Every function takes a folder, fills it and returns it. Hidden width is 32, so that a test takes milliseconds; the same
seed gives the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = tuple(f"{first}{last}" for first in "bcdfghklmnprstvw" for last in ("a", "e", "i", "o", "u", "an", "el", "or"))
"""128 words that the tiny tokenizer knows; all others are [UNK]."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WIDTH = 32


def tokenizer(*, bert: bool = True) -> PreTrainedTokenizerFast:
    """Splits at white space. `bert` puts [CLS] and [SEP] around a text; otherwise nothing is added."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    ends = {} if bert else {"eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **names, **ends
    )


def bert(folder: Path, *, seed: int = 0, pooling: str | None = "mean") -> Path:
    """A `BertModel`; with `pooling`, also the files that sentence-transformers writes."""
    _save(BertModel, _bert_config(), folder, seed)
    tokenizer().save_pretrained(folder)
    if pooling is not None:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        steps = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
                 for i, (p, k) in enumerate(kinds.items())]  # fmt: skip
        _write(folder / "modules.json", steps)
        _write(folder / "1_Pooling" / "config.json", {"embedding_dimension": WIDTH, "pooling_mode": pooling})
        _write(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    return folder


def bert_classifier(
    folder: Path, *, seed: int = 0, labels: Mapping[str, int] | None = None, num_labels: int | None = None
) -> Path:
    """A `BertForSequenceClassification` with labels `negative` and `positive`, the given ones, or `num_labels`."""
    named = dict(labels or {"negative": 0, "positive": 1})
    width = {"num_labels": num_labels} if num_labels else _labels(named)
    _save(BertForSequenceClassification, _bert_config(**width), folder, seed)
    tokenizer().save_pretrained(folder)
    return folder


def gpt2(folder: Path, *, seed: int = 0) -> Path:
    """A `GPT2LMHeadModel`: Conv1D layers, output tied to the embedding."""
    config = GPT2Config(
        vocab_size=len(SPECIAL + WORDS),
        n_positions=64,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        bos_token_id=3,
        eos_token_id=3,
    )
    _save(GPT2LMHeadModel, config, folder, seed)
    tokenizer(bert=False).save_pretrained(folder)
    return folder


def llama(folder: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """A `LlamaForCausalLM` with grouped key and value heads."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    _save(LlamaForCausalLM, config, folder, seed)
    tokenizer(bert=False).save_pretrained(folder)
    return folder


def vit(folder: Path, *, seed: int = 0, labels: Mapping[str, int] | None = None) -> Path:
    """A `ViTForImageClassification` of 16 × 16 pixels in 8 × 8 patches; classes `cat` and `dog` or the given ones."""
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, **_labels(dict(labels or {"cat": 0, "dog": 1})),
    )  # fmt: skip
    _save(ViTForImageClassification, config, folder, seed)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": 16, "width": 16},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    return folder


def texts(count: int, *, seed: int = 0, words: tuple[int, int] = (3, 12)) -> list[str]:
    """`count` distinct texts of known words."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(WORDS[pick(0, len(WORDS))] for _ in range(pick(words[0], words[1] + 1)))] = None
    return list(found)


def _bert_config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, **more,
    )  # fmt: skip


def _labels(names: Mapping[str, int]) -> dict[str, Any]:
    return {"num_labels": len(names), "label2id": dict(names), "id2label": {v: k for k, v in names.items()}}


def _save(kind: Any, config: Any, folder: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        # Freshly initialised weights are so small that all outputs are nearly alike: nothing could be ranked.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
    model.save_pretrained(folder)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf8")
