"""Image files, decoded when they are read; the class is a sub-folder, a row of a CSV file, or a mask.

`images:<folder>[?size=96 | ?size=HxW][&channels=1|3][&labels=<csv>][&masks=<folder>][&values=0,255][&classes=a,b]
[&skip=0.01]`

- Without `labels` and `masks`: one sub-folder per class. A folder whose only sub-folders are `train` and `test` has a
  test set, each of the two with the same class folders.
- `labels`: a CSV file with the columns `file`, relative to the folder, and `label`: a class's name, a whole number, or
  a number with decimals (regression). Class names are sorted, unless `classes` orders them.
- `masks`: the images are in the folder itself, and this folder has a PNG or BMP file of the same name, whatever the
  suffix, for each; a pixel's value is its class. `values` gives the value of each class where it is not (`0,255`: two
  classes). `classes` names the classes; for more than `CHECKED_FILES` masks, one of the two has to be there. Pixels
  that belong to nothing are a class, too.

Without `size` and `channels`, the first image sets them.

Every file is looked at before anything is trained: up to `CHECKED_FILES` images are decoded; of more of them only the
begin and the end of each file is read, which finds files that were cut off or are no images. A file that is found
broken later ends the training with its path. `skip` is the share of broken files that may be left out, named and
counted.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_ops.data.columns import Array
from tfmot_ops.data.sources.checked_images import Checked, ImageOptions, check_images
from tfmot_ops.data.sources.folders import Labelled, check_classes_left, list_classes
from tfmot_ops.data.sources.masks import read_with_masks
from tfmot_ops.data.sources.pictures import IMAGES
from tfmot_ops.data.sources.query import Query
from tfmot_ops.data.sources.source import Reader, Source
from tfmot_ops.data.sources.targets import targets_of
from tfmot_ops.errors import SpecError
from tfmot_ops.system import files

FORM = "images:<folder>"
OPTIONS = ("size", "channels", "labels", "masks", "values", "classes", "skip")


def read_images(text: str) -> Source:
    """Images uint8 [N, H, W, C], and labels int64 [N], targets float32 [N] or masks int64 [N, H, W]."""
    query = Query(FORM, text, OPTIONS)
    ImageOptions.of(query)  # wrong ones are refused before a folder is read
    folder = Path(query.location)
    labels, masks = query.text("labels"), query.text("masks")
    if labels and masks:
        query.refuse("masks", "labels= or masks=, not both")
    if query.text("values") and not masks:
        query.refuse("values", "masks= beside it")
    if query.text("classes") and not masks and not labels:
        query.refuse("classes", "labels= or masks= beside it; without them the sub-folders' names are the classes'")
    if masks:
        return read_with_masks(query, folder, Path(masks))
    return _with_labels(query, folder, Path(labels)) if labels else _in_classes(query, folder)


def _in_classes(query: Query, folder: Path) -> Source:
    listing = list_classes(folder, IMAGES)
    checked = check_images(query, [path for path, _ in [*listing.train, *(listing.test or [])]])
    train = [each for each in listing.train if each[0] not in checked.broken]
    check_classes_left(train, listing)
    test = [each for each in listing.test or [] if each[0] not in checked.broken]
    given: dict[str, Any] = _columns(checked, train, "")
    if listing.test is not None:
        given |= _columns(checked, test, "_test")
    files = [path for path, _ in [*train, *test]]
    return checked.source(files, class_names=listing.class_names, task="classification", **given)


def _columns(checked: Checked, files: list[Labelled], part: str) -> dict[str, Any]:
    labels: Array = np.array([label for _, label in files], np.int64)
    return {f"x{part}": checked.column([path for path, _ in files]), f"y{part}": labels}


def _with_labels(query: Query, folder: Path, table: Path) -> Source:
    rows = _table(table)
    missing = [name for name, _ in rows if not (folder / name).is_file()]
    if missing or not rows:
        raise SpecError(
            f"{table} does not name the images in {folder}",
            required="a row per image, with the path of a file relative to the folder",
            received=f"{len(missing)} files that do not exist, the first is {missing[0]}" if missing else "no row",
            remedy="check the folder and the column file of the table",
        )
    checked = check_images(query, [folder / name for name, _ in rows])
    left = [(folder / name, label) for name, label in rows if folder / name not in checked.broken]
    files, values = [path for path, _ in left], [label for _, label in left]
    where = f"{table}, column label"
    targets = targets_of(values, query.names("classes"), where)
    return checked.source(
        [table, *files],
        x=checked.column(files),
        y=targets.read(values, where),
        class_names=targets.class_names,
        task=targets.task,
    )


def _table(path: Path) -> list[tuple[str, str]]:
    """The rows (file, label) of a CSV file."""
    try:
        with io.TextIOWrapper(files.open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = [((row.get("file") or "").strip(), (row.get("label") or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(
            f"{path} cannot be read",
            required="a CSV file with the columns file and label",
            received=f"{type(error).__name__}: {error}",
            remedy="check the path, and save the table as UTF-8 with commas",
        ) from error
    if not {"file", "label"} <= set(columns):
        raise SpecError(
            f"{path} lacks a column",
            required="the columns file and label, named in the first row",
            received=f"the columns {', '.join(columns)}",
            remedy="name the columns in the first row",
        )
    return rows


READER = Reader(
    FORM,
    "JPEG, PNG or BMP files: one sub-folder per class, ?labels=<csv> or ?masks=<folder>; ?size=32 resizes to 32x32",
    read_images,
)
