from autoquant import tasks


def test_every_public_name_is_there_and_listed_once():
    assert sorted(tasks.__all__) == sorted(set(tasks.__all__))
    assert all(hasattr(tasks, name) for name in tasks.__all__)


def test_every_task_says_its_name_metrics_and_loader():
    for name, task in tasks.TASKS.items():
        assert task.name == name
        assert task.metrics
        assert task.auto_class.startswith("AutoModel")
        assert task.__doc__ and task.__doc__ != tasks.DataTask.__doc__


def test_a_crossencoder_is_loaded_as_one():
    assert tasks.STS.auto_class_for(["BertForSequenceClassification"]) == "AutoModelForSequenceClassification"
    assert tasks.STS.auto_class_for(["BertModel"]) == "AutoModel"
    assert tasks.Fidelity.auto_class_for(["GPT2LMHeadModel"]) == "AutoModelForCausalLM"
