"""Tiny models as transformers opens them: each function fills a folder and returns its model."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification

from tests import tiny


def tied_llama(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny.llama(folder, tied=True))


def gpt2(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny.gpt2(folder))


def vit(folder: Path) -> nn.Module:
    return AutoModelForImageClassification.from_pretrained(tiny.vit(folder))


def bert(folder: Path) -> nn.Module:
    return AutoModel.from_pretrained(tiny.bert(folder))
