"""Images: what is decoded when, classes, tables and masks, broken files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfmot_ops.data.columns import Lazy, take
from tfmot_ops.data.sources.by_name import read_source
from tfmot_ops.data.sources.fingerprint import fingerprint
from tfmot_ops.data.sources.source import Source
from tfmot_ops.errors import SpecError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 4, 3), dtype=np.uint8)
OPTIONS = "size, channels, labels, masks, values, classes, skip"


def bmp(image: np.ndarray) -> bytes:
    """A BMP file of 24 bits, rows from the bottom, each padded to four bytes."""
    height, width, _ = image.shape
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    rows[:, : 3 * width] = image[::-1, :, ::-1].reshape(height, -1)
    head = b"BM" + (54 + rows.nbytes).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    info += (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24)
    return head + info + rows.tobytes()


def png(image: np.ndarray) -> bytes:
    return tf.io.encode_png(image).numpy()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def two_classes(folder: Path) -> Path:
    for index, image in enumerate(IMAGES):
        write(folder / ("cat" if index % 2 else "dog") / f"{index}.png", png(image))
    return folder


def read(name: str) -> Source:
    return read_source(f"images:{name}", 0)


def refused(name: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read(name)
    assert caught.value.required
    assert caught.value.received
    assert caught.value.remedy
    return caught.value


def test_images_are_bytes_that_are_decoded_when_they_are_read(tmp_path: Path):
    source = read(two_classes(tmp_path))
    assert isinstance(source.x, Lazy)
    assert (source.x.shape, source.x.dtype) == ((8, 6, 4, 3), np.uint8)
    assert np.array_equal(source.x[:], IMAGES[[1, 3, 5, 7, 0, 2, 4, 6]])
    assert np.array_equal(take(source.x, [5, 0])[:], IMAGES[[2, 1]])
    assert np.array_equal(source.y, [0, 0, 0, 0, 1, 1, 1, 1])
    assert (source.class_names, source.task, source.x_test) == (("cat", "dog"), "classification", None)
    assert source.record == {
        "size": [6, 4],
        "channels": 3,
        "checked": "every image was decoded",
        "fingerprint_of": "names and contents",
    }


def test_png_and_bmp_are_exact_and_jpeg_is_as_tensorflow_decodes_it(tmp_path: Path):
    smooth = np.broadcast_to(np.linspace(0, 255, 16).astype(np.uint8)[:, None, None], (16, 16, 3)).copy()
    write(tmp_path / "a" / "0.bmp", bmp(smooth))
    write(tmp_path / "a" / "1.PNG", png(smooth))
    jpeg = tf.io.encode_jpeg(smooth, quality=100).numpy()
    write(tmp_path / "a" / "2.jpeg", jpeg)
    images = read(tmp_path).x[:]
    assert np.array_equal(images[0], smooth)
    assert np.array_equal(images[1], smooth)
    assert np.array_equal(images[2], tf.io.decode_jpeg(jpeg))


@pytest.mark.parametrize(("size", "shape"), [("3", (3, 3)), ("2x8", (2, 8)), ("9", (9, 9))])
def test_a_size_resizes_with_antialias(tmp_path: Path, size: str, shape: tuple[int, int]):
    source = read(f"{two_classes(tmp_path)}?size={size}")
    expected = tf.image.resize(IMAGES[[1, 3, 5, 7]], shape, antialias=True)
    assert source.x.shape == (8, *shape, 3)
    assert np.abs(source.x[:4] - expected).max() <= 1
    grey = read(f"{tmp_path}?size={size}&channels=1")
    assert grey.x[:].shape == (8, *shape, 1)


def test_the_first_image_sets_size_and_channels(tmp_path: Path):
    write(tmp_path / "a" / "0.png", png(IMAGES[0, ..., :1]))
    write(tmp_path / "a" / "1.png", png(IMAGES[1]))
    write(tmp_path / "a" / "2.bmp", bmp(IMAGES[2][:4]))
    write(tmp_path / "a" / "3.png", png(np.concatenate([IMAGES[3], IMAGES[0, ..., :1]], axis=-1)))
    source = read(tmp_path)
    assert source.x.shape == (4, 6, 4, 1)
    images = source.x[:]
    assert np.array_equal(images[0], IMAGES[0, ..., :1])
    grey = np.rint(IMAGES @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(images[1, ..., 0] - grey[1]).max() <= 1
    assert np.abs(images[3, ..., 0] - grey[3]).max() <= 1


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_channels_repeat_grey_or_take_it(tmp_path: Path, kind: str):
    image = np.repeat(IMAGES[0, ..., :1], 3, axis=-1)
    write(tmp_path / "a" / f"0.{kind}", png(image[..., :1]) if kind == "png" else bmp(image))
    assert np.array_equal(read(f"{tmp_path}?channels=3").x[:][0], image)
    assert np.abs(read(f"{tmp_path}?channels=1").x[:][0].astype(int) - image[..., :1]).max() <= 1


def test_train_and_test_folders_give_a_test_set(tmp_path: Path):
    two_classes(tmp_path / "train")
    write(tmp_path / "test" / "cat" / "a.png", png(IMAGES[0]))
    write(tmp_path / "test" / "dog" / "b.png", png(IMAGES[1]))
    write(tmp_path / ".thumbnails" / "x.png", b"")
    source = read(tmp_path)
    assert np.array_equal(source.x_test[:], IMAGES[:2])
    assert np.array_equal(source.y_test, [0, 1])
    assert len(source.x) == 8
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    error = refused(tmp_path)
    assert error.summary == f"the test set in {tmp_path / 'test'} has other classes than the training set"
    assert (error.required, error.received) == ("the sub-folders cat, dog", "cat, wolf")


def test_an_empty_class_is_refused_by_name(tmp_path: Path):
    (two_classes(tmp_path) / "bird").mkdir()
    assert refused(tmp_path).received == "3 sub-folders, 1 of them without images: bird"


@pytest.mark.parametrize("content", [b"no image", b"", "cut"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | str):
    cut = png(IMAGES[0])[:-20]
    path = write(two_classes(tmp_path) / "cat" / "3.png", cut if content == "cut" else content)
    error = refused(tmp_path)
    assert error.summary == f"{path} cannot be decoded"
    assert error.required == "a PNG, JPEG or BMP image, or a share of broken files of at most skip=0"
    assert error.received == "InvalidArgumentError: no content that can be decoded"


def test_broken_files_are_skipped_up_to_a_share(tmp_path: Path):
    path = write(two_classes(tmp_path) / "cat" / "1.png", b"no image")
    source = read(f"{tmp_path}?skip=0.125")
    assert np.array_equal(source.x[:], IMAGES[[3, 5, 7, 0, 2, 4, 6]])
    assert np.array_equal(source.y, [0, 0, 0, 1, 1, 1, 1])
    assert (source.record["skipped"], source.record["skipped_files"]) == (1, [str(path)])
    write(tmp_path / "dog" / "2.png", b"no image")
    assert refused(f"{tmp_path}?skip=0.125").received.endswith("; 2 of 8 images are broken")


def test_a_class_of_broken_files_alone_is_refused(tmp_path: Path):
    write(two_classes(tmp_path) / "bird" / "1.png", b"no image")
    assert refused(f"{tmp_path}?skip=0.5").summary == "every file of the class bird is broken"


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_of_many_files_begin_and_end_are_checked(tmp_path: Path, kind: str):
    encoders = {"png": png, "jpg": lambda image: tf.io.encode_jpeg(image).numpy(), "bmp": bmp}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoders[kind](image)
    for index in range(2001):
        write(tmp_path / "a" / f"{index:04}.{kind}", content)
    if kind != "bmp":  # TensorFlow takes a BMP file of its own length only
        # The end is no marker where a camera appended something: such a file is decoded.
        write(tmp_path / "a" / f"0007.{kind}", content + bytes(5000))
    source = read(tmp_path)
    assert (source.record["checked"], len(source.x)) == ("begin and end of each image", 2001)
    path = write(tmp_path / "a" / f"1999.{kind}", content[:-2000])
    assert refused(tmp_path).summary == f"{path} cannot be decoded"


def test_a_file_that_breaks_later_is_named(tmp_path: Path):
    source = read(two_classes(tmp_path))
    path = write(tmp_path / "cat" / "3.png", b"no image")
    with pytest.raises(SpecError, match=f"{path} cannot be decoded"):
        source.x[:]


def test_a_table_names_labels_files_and_numbers(tmp_path: Path):
    for index, image in enumerate(IMAGES):
        write(tmp_path / "images" / f"{index}.png", png(image))
    table = tmp_path / "labels.csv"

    def source(labels: list[str], options: str = "") -> Source:
        table.write_text("label,file\n" + "".join(f"{label},{index}.png\n" for index, label in enumerate(labels)))
        return read(f"{tmp_path / 'images'}?labels={table}{options}")

    words = source(["dog", "cat", "dog"])
    assert (words.class_names, words.task, list(words.y)) == (("cat", "dog"), "classification", [1, 0, 1])
    assert np.array_equal(words.x[:], IMAGES[:3])
    ordered = source(["dog", "cat", "dog"], "&classes=dog,cat,bird")
    assert (ordered.class_names, list(ordered.y)) == (("dog", "cat", "bird"), [0, 1, 0])
    numbers = source(["3", "0"])
    assert (numbers.class_names, numbers.task, numbers.y.dtype, list(numbers.y)) == ((), None, np.int64, [3, 0])
    ages = source(["3.5", "4"])
    assert (ages.task, ages.y.dtype, list(ages.y)) == ("regression", np.float32, [3.5, 4.0])
    with pytest.raises(SpecError, match="1 targets are missing") as caught:
        source(["3.5", ""])
    assert caught.value.received == "no value in row 2"


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path):
    write(tmp_path / "images" / "0.png", png(IMAGES[0]))
    table = tmp_path / "labels.csv"
    name = f"{tmp_path / 'images'}?labels={table}"
    assert refused(name).summary == f"{table} cannot be read"
    table.write_text("name,label\n0.png,a\n")
    assert refused(name).received == "the columns name, label"
    table.write_text("file,label\n0.png,a\n1.png,a\n")
    assert refused(name).received == "1 files that do not exist, the first is 1.png"
    table.write_text("file,label\n")
    assert refused(name).received == "no row"


def write_masks(folder: Path, values: tuple[int, ...]) -> np.ndarray:
    masks = np.random.default_rng(1).choice(values, (8, 6, 4)).astype(np.uint8)
    masks[:, 0, : len(values)] = values
    for index, (image, mask) in enumerate(zip(IMAGES, masks, strict=True)):
        write(folder / "images" / f"{index}.jpg", tf.io.encode_jpeg(image).numpy())
        write(folder / "masks" / f"{index}.png", png(mask[..., np.newaxis]))
    return masks


def test_masks_are_the_targets_of_their_images(tmp_path: Path):
    masks = write_masks(tmp_path, (0, 1, 2))
    name = f"{tmp_path / 'images'}?masks={tmp_path / 'masks'}"
    source = read(name)
    assert isinstance(source.y, Lazy)
    assert (source.y.dtype, source.task, source.class_names) == (np.int64, "segmentation", ("0", "1", "2"))
    assert np.array_equal(source.y[:], masks)
    named = read(f"{name}&size=3x2&classes=sky,road,car")
    assert named.class_names == ("sky", "road", "car")
    assert named.y.shape == (8, 3, 2)
    assert set(np.unique(named.y[:])) <= {0, 1, 2}
    assert np.array_equal(named.y[:], masks[:, 1::2, 1::2])


def test_a_masks_palette_counts_by_index(tmp_path: Path):
    from PIL import Image

    masks = write_masks(tmp_path, (0, 1))
    for index, mask in enumerate(masks):
        image = Image.fromarray(mask)
        image.putpalette([9, 9, 9, 200, 100, 0])
        image.save(tmp_path / "masks" / f"{index}.png")
    assert np.array_equal(read(f"{tmp_path / 'images'}?masks={tmp_path / 'masks'}").y[:], masks)


def test_values_say_which_class_a_pixel_is(tmp_path: Path):
    masks = write_masks(tmp_path, (0, 255))
    name = f"{tmp_path / 'images'}?masks={tmp_path / 'masks'}"
    assert refused(name).received == "the values 0, 255"
    source = read(f"{name}&values=0,255&classes=background,cell")
    assert np.array_equal(source.y[:], masks == 255)
    assert source.class_names == ("background", "cell")
    error = refused(f"{name}&values=0,128")
    assert error.summary == f"{tmp_path / 'masks' / '0.png'} cannot be decoded"
    assert error.received.startswith("a pixel of 255, where the classes are [0, 128]; 8 of 8 masks")
    assert "?values=0,x" in str(refused(f"{name}&values=0,x"))
    assert "?values=0,255" in str(refused(f"{name}&values=0,255&classes=a,b,c"))


def test_of_many_masks_the_classes_have_to_be_named(tmp_path: Path):
    image, mask = png(IMAGES[0]), png(IMAGES[0, ..., :1] % 3)
    for index in range(2001):
        write(tmp_path / "images" / f"{index:04}.png", image)
        write(tmp_path / "masks" / f"{index:04}.png", mask)
    name = f"{tmp_path / 'images'}?masks={tmp_path / 'masks'}"
    assert refused(name).summary == "the classes of 2001 masks are not named"
    source = read(f"{name}&classes=a,b,c")
    assert np.array_equal(source.y[[2000]][0], IMAGES[0, ..., 0] % 3)
    with pytest.raises(SpecError, match=r"a pixel of 2, where the classes are \[0, 1\]"):
        read(f"{name}&classes=a,b").y[[0]]
    path = write(tmp_path / "masks" / "0007.png", mask[:-20])
    error = refused(f"{name}&classes=a,b,c")
    assert error.summary == f"{path} cannot be decoded"
    assert error.received == "a file that was cut off, or is no image"


def test_masks_that_do_not_fit_are_refused(tmp_path: Path):
    write_masks(tmp_path, (0, 1))
    name = f"{tmp_path / 'images'}?masks={tmp_path / 'masks'}"
    write(tmp_path / "masks" / "3.png", png(IMAGES[3]))
    assert refused(name).received == "an image of mode RGB"
    write(tmp_path / "masks" / "3.png", b"no image")
    assert refused(name).received == "UnidentifiedImageError: no content that can be decoded"
    source = read(f"{name}&skip=0.2")
    assert (len(source.x), len(source.y), source.record["masks_skipped"]) == (7, 7, 1)
    (tmp_path / "masks" / "3.png").unlink()
    assert refused(name).received == "8 images, 1 of them without a mask: 3.jpg"


@pytest.mark.parametrize(
    ("options", "required"),
    [
        ("size=0", "pixels, at least 1: one number for height and width, or HxW"),
        ("size=2x3x4", "pixels, at least 1: one number for height and width, or HxW"),
        ("channels=2", "one of 1, 3"),
        ("skip=2", "a number from 0 to 1"),
        ("labels=", "a value"),
        ("labels=a&masks=b", "labels= or masks=, not both"),
        ("values=0,255", "masks= beside it"),
        ("width=3", f"{OPTIONS}, each at most once, as ?name=value&name=value"),
        ("size=3&size=4", f"{OPTIONS}, each at most once, as ?name=value&name=value"),
    ],
)
def test_options_that_cannot_be_read_are_refused(tmp_path: Path, options: str, required: str):
    assert refused(f"{two_classes(tmp_path)}?{options}").required == required


def test_the_fingerprint_is_of_names_contents_and_options(tmp_path: Path):
    first = read(two_classes(tmp_path / "a")).fingerprint
    assert len(first) == len(hashlib.sha256().hexdigest())
    assert read(two_classes(tmp_path / "b")).fingerprint == first
    assert read(f"{tmp_path / 'b'}?size=3").fingerprint != first
    (tmp_path / "b" / "cat" / "1.png").rename(tmp_path / "b" / "cat" / "2.png")
    assert read(tmp_path / "b").fingerprint != first
    write(tmp_path / "a" / "cat" / "1.png", png(IMAGES[0]))
    assert read(tmp_path / "a").fingerprint != first


def test_of_large_sets_the_fingerprint_is_of_names_sizes_and_times(tmp_path: Path):
    path = write(tmp_path / "large.png", b"")
    with path.open("ab") as file:
        file.truncate(257 * 1024 * 1024)  # no space on the disk
    first, over = fingerprint([path], tmp_path, {})
    assert over == "names, sizes and times"
    assert fingerprint([path], tmp_path, {})[0] == first
    path.touch()
    assert fingerprint([path], tmp_path, {})[0] != first
