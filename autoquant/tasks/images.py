"""Read labelled images: an npz of arrays, a folder with one subfolder a class, or a table with an image column."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from autoquant.errors import DataError
from autoquant.tasks.data import read_columns
from autoquant.tasks.splitting import Pool, pools

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_NAMES = ("image", "img", "pixel_values", "picture", "file", "path")
ROLES = {"image": IMAGE_NAMES, "label": ("label", "labels", "fine_label", "class", "category", "target", "y")}


@dataclass(frozen=True)
class Images:
    """Images that open on demand.

    Attributes:
        openers: for each image, a function that returns it in RGB.
        digests: for each image, a hash of its content (equal images have equal ones).
        labels: class names or numbers; empty when there are none.
        names: the class names that whole numbers stand for; empty when there are none.
    """

    openers: Sequence[Callable[[], Image.Image]]
    digests: Sequence[str]
    labels: Sequence[Any] = ()
    names: Sequence[str] = ()


def read_sources(
    data: str, test_data: str | None, columns: Mapping[str, str | int], labelled: bool = True
) -> tuple[list[Images], list[Pool]]:
    """The sources in order, and which splits each serves.

    An npz (or a folder) with a train and a test part calibrates on train and is searched and certified on test.

    Raises:
        DataError: nothing readable is there, or labels are missing.
    """
    main = _read(data, columns, labelled)
    if test_data is not None:
        test = _read(test_data, columns, labelled)
        sources = [_last(main), _last(test)]
        return sources, pools(sources[0].digests, sources[1].digests)
    if len(main) == 1:
        return main, pools(main[0].digests)
    return main, [(("calibration",), main[0].digests), (("search", "certification"), main[1].digests)]


def _last(parts: Sequence[Images]) -> Images:
    return parts[-1]


def _read(source: str, columns: Mapping[str, str | int], labelled: bool) -> list[Images]:
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path, labelled)
    if path.is_dir() and not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
        parts = {folder.name: folder for folder in path.iterdir() if folder.is_dir()}
        test = next((parts[name] for name in ("test", "val", "validation") if name in parts), None)
        if test is not None and "train" in parts:
            return [_folder(parts["train"], labelled), _folder(test, labelled)]
        return [_folder(path, labelled)]
    return [_table(source, columns, labelled)]


def _npz(path: Path, labelled: bool) -> list[Images]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as npz: {error}") from error
    endings = [ending for ending in ("_train", "_test", "") if f"x{ending}" in arrays]
    if not endings:
        raise DataError(
            f"{path} needs arrays x and y, or x_train, y_train, x_test, y_test. Found: {', '.join(arrays)}."
        )
    names = tuple(str(name) for name in arrays.get("classes", ()))
    return [_arrays(path, arrays[f"x{end}"], arrays.get(f"y{end}"), names, labelled) for end in endings[:2]]


def _arrays(
    path: Path, pixels: np.ndarray, labels: np.ndarray | None, names: tuple[str, ...], labelled: bool
) -> Images:
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (3, 4)
        or (pixels.ndim == 4 and pixels.shape[-1] not in (1, 3, 4))
    ):
        raise DataError(
            f"{path}: images should be uint8 (n, height, width, channels), not {pixels.dtype} {pixels.shape}."
        )
    if labelled and (labels is None or labels.shape != pixels.shape[:1]):
        shape = "missing" if labels is None else str(labels.shape)
        raise DataError(f"{path}: there are {len(pixels)} images, but the labels y are {shape}.")
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Images(
        [partial(_of_array, image) for image in pixels],
        [_digest(image.tobytes()) for image in pixels],
        labels.tolist() if labels is not None else (),
        names,
    )


def _folder(path: Path, labelled: bool) -> Images:
    files = sorted(file for file in path.rglob("*") if file.suffix.casefold() in SUFFIXES and file.is_file())
    names = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
    if not files or (labelled and (not names or any(file.parent == path for file in files))):
        raise DataError(
            f"{path} should hold one subfolder for each class with images in it ({', '.join(SUFFIXES)}). Found "
            f"{len(files)} images and {len(names)} subfolders with images."
        )
    labels = [names.index(file.relative_to(path).parts[0]) for file in files] if labelled else []
    return Images([partial(_of_file, file) for file in files], [_digest(f.read_bytes()) for f in files], labels, names)


def _table(source: str, columns: Mapping[str, str | int], labelled: bool) -> Images:
    found = read_columns(source, ROLES, optional=() if labelled else ("label",), columns=columns)
    content = [_bytes(value, row, source) for row, value in enumerate(found["image"])]
    return Images(
        [partial(_of_bytes, item) for item in content], [_digest(item) for item in content], found.get("label", ())
    )


def _bytes(value: Any, row: int, source: str) -> bytes:
    if isinstance(value, dict):  # an image column of the datasets library
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        path = Path(value) if Path(value).is_absolute() else Path(source).parent / value
        value = path.read_bytes() if path.is_file() else None
    if not isinstance(value, bytes):
        raise DataError(
            f"{source}: row {row} has no image: neither bytes nor the path of a file. Type: --columns image=NAME"
        )
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _of_array(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")


def _of_file(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file} is not an image that Pillow can open: {error}") from error


def _of_bytes(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"An image of the table cannot be opened: {error}") from error
