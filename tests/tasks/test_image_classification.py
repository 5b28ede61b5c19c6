import numpy as np
import pytest
import torch
from PIL import Image

from autoquant.errors import DataError
from autoquant.models.loading import load_model
from autoquant.tasks import Facts, make
from tests import tiny

PETS = Facts(head="classifier", images=True, labels=2, label2id={"dog": 0, "cat": 1})


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return load_model(str(tiny.vit(tmp_path_factory.mktemp("vit"))), "AutoModelForImageClassification").processor


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {
        "x_train": pictures(40),
        "y_train": np.zeros(40, int),
        "x_test": pictures(60, 1),
        "y_test": np.arange(60) // 30,
    }
    np.savez(path, **arrays, classes=["cat", "dog"])
    return path


def test_train_calibrates_and_test_is_judged(npz, processor):
    task = make("image-classification", npz, processor)
    assert {split: task.items(split) for split in ("calibration", "search", "certification")} == {
        "calibration": 40,
        "search": 18,
        "certification": 42,
    }
    first = processor(images=Image.fromarray(pictures(40)[0]), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(task.batch("calibration", [0])["pixel_values"][0], first)


def test_rows_sorted_by_class_are_shuffled(npz, processor):
    task = make("image-classification", npz, processor)
    assert 0 < task._labels["search"].mean() < 1


def test_class_names_beat_their_numbers(npz, processor):
    """The data call 0 a cat, the model calls 1 a cat."""
    task = make("image-classification", npz, processor, model=PETS)
    assert task._labels["calibration"].tolist() == [1] * 40
    oracle = torch.nn.functional.one_hot(torch.from_numpy(task._labels["certification"]), 2).float()
    assert task.score("certification", oracle).mean() == 1
    assert task.score("certification", -oracle).mean() == 0


@pytest.mark.parametrize("names", [("cat", "dog"), ("n01", "n02")])
def test_a_folder_has_one_subfolder_a_class(tmp_path, processor, names):
    for number, pixels in enumerate(pictures(60)):
        folder = tmp_path / "images" / names[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    task = make("image-classification", tmp_path / "images", processor, model=PETS)
    # Known names go by the model's numbers, others by their order.
    openers = task.inputs._openers["certification"]
    files = [opener.args[0] for opener in openers]
    expected = [PETS.label2id.get(file.parent.name, names.index(file.parent.name)) for file in files]
    assert task._labels["certification"].tolist() == expected


def test_a_table_may_hold_images(tmp_path, processor):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(pixels) for pixels in pictures(60)]
    table = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1] * 30},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "a.parquet"))
    saved, parquet = (make("image-classification", tmp_path / name, processor) for name in ("saved", "a.parquet"))
    assert saved.fingerprint() == parquet.fingerprint()
    assert saved.batch("search", [0, 1])["pixel_values"].shape == (2, 3, 16, 16)


def test_equal_images_stay_in_one_split(tmp_path, processor):
    np.savez(tmp_path / "a.npz", x=np.concatenate([pictures(40)] * 2), y=np.zeros(80, int))
    task = make("image-classification", tmp_path / "a.npz", processor)
    rows = {
        s: {task.batch(s, [i])["pixel_values"].numpy().tobytes() for i in range(task.rows(s))}
        for s in ("search", "certification")
    }
    assert not rows["search"] & rows["certification"]


def test_grey_images_become_colour(tmp_path, processor):
    np.savez(tmp_path / "a.npz", x=pictures(60)[..., 0], y=np.zeros(60, int))
    assert make("image-classification", tmp_path / "a.npz", processor).example(2)["pixel_values"].shape == (
        2,
        3,
        16,
        16,
    )


def test_a_small_cache_changes_nothing(npz, processor, monkeypatch):
    whole = make("image-classification", npz, processor).batch("search", range(18))["pixel_values"]
    monkeypatch.setattr("autoquant.tasks.inputs.CACHE_BYTES", 4000)
    task = make("image-classification", npz, processor)
    for _ in range(2):
        torch.testing.assert_close(task.batch("search", range(18))["pixel_values"], whole)
    assert len(task.inputs._cache) == 1


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros(3)}, "needs arrays x and y.*Found: z"),
        ({"x": np.zeros((60, 8, 8, 3))}, "uint8"),
        ({"x": np.zeros((60, 8, 8, 3), np.uint8)}, "labels y are missing"),
        ({"x": pictures(60), "y": np.full(60, 7)}, "label 7.*dog, cat"),
        (
            {"x": pictures(60), "y": np.zeros(60, int), "classes": np.array(["cat", "bird"])},
            "not know the classes bird",
        ),
    ],
)
def test_arrays_that_cannot_work_are_explained(tmp_path, processor, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        make("image-classification", tmp_path / "a.npz", processor, model=PETS)


def test_no_pickle_is_opened(tmp_path, processor):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(1, int))
    with pytest.raises(DataError, match="cannot be read as npz"):
        make("image-classification", tmp_path / "a.npz", processor)


def test_a_folder_without_classes_or_processor_is_explained(tmp_path, npz, processor):
    with pytest.raises(DataError, match="one subfolder for each class"):
        make("image-classification", tmp_path, processor)
    with pytest.raises(DataError, match="no image processor"):
        make("image-classification", npz, None)
