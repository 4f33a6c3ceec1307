"""The pictures of a run folder hold what their JSON says, pixel for pixel."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from velodrome.config import AugmentSection
from velodrome.data.imageset import ImageSet, MappedImages, channel_statistics
from velodrome.data.loader import Loader
from velodrome.data.shapes import draw_shapes
from velodrome.evaluation.gallery import as_bytes, maps_of, write_mistakes, write_samples
from velodrome.evaluation.sprites import (
    LAYOUTS,
    LONGEST_SIDE,
    MOST_CLASSES,
    Plan,
    columns_for,
    plan_page,
    sprite,
    tile_of,
    tiles,
)
from velodrome.models.resnet9 import ResNet9
from velodrome.run.answers import Answers
from velodrome.run.folder import RunFolder

CPU = torch.device("cpu")


def tile(path, number, columns, side):
    row, column = divmod(number, columns)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    return sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]


def test_a_sprite_holds_its_images_exactly(random_images, tmp_path):
    images = random_images(7, 5, 3)
    (tmp_path / "s.webp").write_bytes(sprite(images, 4))
    sheet = np.asarray(Image.open(tmp_path / "s.webp").convert("RGB"))
    assert sheet.shape == (10, 12, 3)
    for number, image in enumerate(images):
        row, column = divmod(number, 4)
        part = sheet[row * 5 : row * 5 + 5, column * 3 : column * 3 + 3]
        assert np.array_equal(part, image)


def test_samples_show_each_class_in_its_row(coloured_images, tmp_path):
    images = coloured_images(20, 16, 16)  # seven red, seven green, six blue
    normalisation = channel_statistics(images.images_u8)
    loader = Loader(images, normalisation, AugmentSection(crop=0, flip=False, cutout=4), 12, 3, CPU)
    folder = RunFolder(tmp_path)
    write_samples(folder, images, loader)
    about = json.loads(folder.samples.read_text())
    assert about["counts"] == [7, 7, 6]
    assert about["classes"] == ["red", "green", "blue"]
    for label in range(3):
        members = np.flatnonzero(images.labels == label)
        for place, index in enumerate(members[:10]):
            shown = tile(folder.samples_image, label * 10 + place, about["columns"], 16)
            assert np.array_equal(shown, images.images_u8[index])
    assert tile(folder.samples_image, 29, 10, 16).max() == 0
    # The augmented batch is the first one of training: here, but for the cutout, the images themselves.
    order = np.random.default_rng([3, 0, 0]).permutation(20)[:12]
    assert about["augmented"]["labels"] == [images.classes[images.labels[index]] for index in order]
    mean = np.rint(255 * np.array(normalisation.mean))
    for place, index in enumerate(order):
        shown = tile(folder.augmented_image, place, about["augmented"]["columns"], 16)
        changed = (shown != images.images_u8[index]).any(2)
        assert 0 < changed.sum() <= 16
        assert np.array_equal(shown[changed], np.broadcast_to(mean, (changed.sum(), 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ResNet9(classes=3, width=4, image_size=16)


def answers_for(images, predictions):
    n = len(images)
    predictions = np.array(predictions, np.int64)
    probabilities = np.full((n, 3), 0.1, np.float32)
    probabilities[np.arange(n), predictions] = 0.8
    losses = np.linspace(0.1, 5, n)
    return Answers(images.classes, tuple(images.paths), images.labels, predictions, losses, probabilities)


def test_mistakes_have_their_images_and_both_maps(coloured_images, network, tmp_path):
    images = coloured_images(12, 16, 16)
    predictions = images.labels.copy()
    predictions[[2, 5, 7]] = [0, 1, 2]
    normalisation = channel_statistics(images.images_u8)
    folder = RunFolder(tmp_path)
    answers = answers_for(images, predictions)
    write_mistakes(folder, images, answers, network, normalisation, device=CPU, precision="fp32")
    about = json.loads(folder.mistakes.read_text())
    assert about["mistakes"] == 3
    assert about["indices"][:3] == [7, 5, 2]  # by falling loss
    # The best of each class, of those that are right: their losses rise with their index.
    assert about["indices"][3:] == [0, 3, 6, 1, 4, 10, 8, 11]
    maps = np.load(folder.maps)
    assert maps.shape == (11, 2, 4, 4)
    assert about["map_size"] == [4, 4]
    for place, index in enumerate(about["indices"]):
        assert np.array_equal(
            tile(folder.mistakes_image, place, about["columns"], 16), images.images_u8[index]
        )
        targets = np.array([[predictions[index], images.labels[index]]])
        expected = maps_of(
            network, images.images_u8[[index]], targets, normalisation, device=CPU, precision="fp32"
        )
        np.testing.assert_allclose(maps[place], as_bytes(expected)[0], atol=1)


def test_a_run_without_mistakes_and_a_class_without_images(coloured_images, network, tmp_path):
    some = coloured_images(3, 16, 16)
    images = ImageSet(some.images_u8[:2], some.labels[:2], some.classes, some.paths[:2])
    folder = RunFolder(tmp_path)
    normalisation = channel_statistics(images.images_u8)
    answers = answers_for(images, images.labels)
    write_mistakes(folder, images, answers, network, normalisation, device=CPU, precision="bf16")
    about = json.loads(folder.mistakes.read_text())
    assert (about["mistakes"], about["indices"]) == (0, [0, 1])


def test_each_map_is_scaled_to_its_own_maximum():
    maps = np.zeros((1, 2, 2, 2), np.float32)
    maps[0, 0] = [[0, 1e-6], [2e-6, 4e-6]]
    assert as_bytes(maps).tolist() == [[[[0, 64], [128, 255]], [[0, 0], [0, 0]]]]


# Large images and many classes


@pytest.mark.parametrize(("classes", "mistakes"), [(2, 1500), (10, 1500), (100, 700)])
def test_small_images_are_kept_as_they_are(classes, mistakes):
    assert plan_page(classes, (32, 32)) == Plan((32, 32), True, classes, 10, 3, mistakes)
    assert plan_page(10, (28, 28)).is_lossless


@pytest.mark.parametrize(
    ("classes", "side", "expected"),
    [
        (10, 48, Plan((48, 48), True, 10, 10, 3, 758)),
        (10, 64, Plan((64, 64), False, 10, 10, 3, 1500)),
        (10, 96, Plan((96, 96), False, 10, 10, 3, 758)),
        (10, 224, Plan((96, 96), False, 10, 10, 3, 758)),
        (100, 96, Plan((64, 64), False, 100, 10, 3, 700)),
        (1000, 96, Plan((48, 48), False, 1000, 1, 1, 1500)),
        (20_000, 1024, Plan((48, 48), False, MOST_CLASSES, 1, 1, 1500)),
    ],
)
def test_what_a_page_holds(classes, side, expected):
    assert plan_page(classes, (side, side)) == expected


@pytest.mark.parametrize("classes", [2, 10, 30, 100, 300, 1000, 5000])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (40, 40), (64, 64), (96, 96), (128, 128), (200, 50)])
def test_no_plan_makes_a_page_too_large(classes, size):
    plan = plan_page(classes, size)
    images = plan.classes * (plan.samples + plan.best) + plan.mistakes
    pixels = images * plan.tile[0] * plan.tile[1]
    # Of photographs; measured on crops of two of them, scaled down to tiles.
    image_bytes = pixels * (1.75 if plan.is_lossless else 0.35)
    map_bytes = (plan.mistakes + plan.classes * plan.best) * 2 * plan.tile[0] * plan.tile[1] / 16
    as_text = (image_bytes + map_bytes) * 4 / 3
    assert as_text < 6e6  # 2 MB for everything else
    assert max(plan.tile) <= 96
    assert plan.mistakes >= 500
    assert (plan.samples, plan.best) in {layout[1:] for layout in LAYOUTS}
    columns = columns_for(plan.classes, plan.tile[0])
    assert -(-plan.classes // columns) * plan.tile[0] <= LONGEST_SIDE
    assert columns * plan.samples * plan.tile[1] <= LONGEST_SIDE


@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((96, 96), (96, 96)),
        ((97, 97), (96, 96)),
        ((200, 100), (96, 48)),
        ((5, 1000), (1, 96)),
        ((8, 12), (8, 12)),
    ],
)
def test_tiles_keep_their_shape(size, tile):
    assert tile_of(size) == tile


def test_tiles_are_made_smaller_with_antialiasing(random_images):
    checks = (np.indices((192, 192)).sum(0) % 2 * 255).astype(np.uint8)
    smaller = tiles(np.stack([checks] * 3, -1)[None], (96, 96))
    assert smaller.shape == (1, 96, 96, 3)
    assert abs(smaller.astype(int) - 127).max() <= 5
    images = random_images(3)
    assert tiles(images, (8, 8)) is images


def test_a_sprite_with_loss_is_small_and_looks_the_same():
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((96, 96))) for image in draw_shapes(40, 0).images_u8]
    )
    content = sprite(images, 8, lossless=False)
    assert len(content) < len(sprite(images, 8)) / 3
    sheet = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert sheet.shape == (5 * 96, 8 * 96, 3)
    assert abs(sheet[96:192, :96] - images[8]).mean() < 8


def test_samples_of_1000_classes_stand_beside_each_other(tmp_path, random_images):
    n, side = 2000, 64
    images = ImageSet(
        random_images(n, side, side),
        np.arange(n) % 1000,
        tuple(f"class {number}" for number in range(1000)),
        [str(number) for number in range(n)],
    )
    loader = Loader(
        images, channel_statistics(images.images_u8), AugmentSection(crop=0, cutout=0), 50, 0, CPU
    )
    folder = RunFolder(tmp_path)
    write_samples(folder, images, loader)
    about = json.loads(folder.samples.read_text())
    assert (about["image_size"], about["samples"], about["columns"]) == ([48, 48], 1, 3)
    assert about["counts"] == [1] * 1000
    assert about["all_classes"] == 1000
    with Image.open(folder.samples_image) as sheet:
        assert sheet.size == (3 * 48, 334 * 48)
    shown = tile(folder.samples_image, 700, 3, 48).astype(int)
    assert abs(shown - tiles(images.images_u8[[700]], (48, 48))[0]).mean() < 40  # noise, with loss
    assert about["augmented"]["image_size"] == [64, 64]


def test_of_more_classes_than_that_the_first_have_samples(tmp_path, random_images):
    n = MOST_CLASSES + 200
    classes = tuple(str(number) for number in range(n))
    images = ImageSet(random_images(n), np.arange(n), classes, classes)
    loader = Loader(
        images, channel_statistics(images.images_u8), AugmentSection(crop=0, cutout=0), 50, 0, CPU
    )
    folder = RunFolder(tmp_path)
    write_samples(folder, images, loader)
    about = json.loads(folder.samples.read_text())
    assert (len(about["classes"]), len(about["counts"]), about["all_classes"]) == (1000, 1000, 1200)


@pytest.fixture
def large_network():
    torch.manual_seed(0)
    return ResNet9(classes=3, width=4, image_size=128)


def test_large_images_are_shown_smaller_with_coarser_maps(coloured_images, large_network, tmp_path):
    images = coloured_images(12, 128, 128)
    predictions = images.labels.copy()
    predictions[[2, 5]] = [0, 1]
    normalisation = channel_statistics(images.images_u8)
    folder = RunFolder(tmp_path)
    answers = answers_for(images, predictions)
    write_mistakes(folder, images, answers, large_network, normalisation, device=CPU, precision="fp32")
    about = json.loads(folder.mistakes.read_text())
    assert (about["image_size"], about["map_size"]) == ([96, 96], [24, 24])
    maps = np.load(folder.maps)
    assert maps.shape == (len(about["indices"]), 2, 24, 24)
    for place, index in enumerate(about["indices"]):
        shown = tile(folder.mistakes_image, place, about["columns"], 96).astype(int)
        assert abs(shown - tiles(images.images_u8[[index]], (96, 96))[0]).mean() < 20  # noise, with loss
        targets = np.array([[predictions[index], images.labels[index]]])
        fine = maps_of(
            large_network, images.images_u8[[index]], targets, normalisation, device=CPU, precision="fp32"
        )[0]
        assert fine.shape == (2, 32, 32)
        for coarse, exact in zip(maps[place], fine, strict=True):
            # Each position of 24 is the mean of those of 32 that it covers, at least in part.
            assert bool(coarse.max()) == bool(exact.max())
            if exact.max():
                assert coarse.max() == 255
                blocks = exact.reshape(8, 4, 8, 4).mean((1, 3))
                again = coarse.reshape(8, 3, 8, 3).mean((1, 3))
                assert np.corrcoef(blocks.ravel(), again.ravel())[0, 1] > 0.8


def test_more_images_than_are_looked_at_at_once(coloured_images, network, tmp_path, monkeypatch):
    images = coloured_images(30, 16, 16)
    predictions = (images.labels + 1) % 3
    answers, normalisation = answers_for(images, predictions), channel_statistics(images.images_u8)
    contents = []
    for name, block in (("whole", 500), ("blocks", 7)):
        monkeypatch.setattr("velodrome.evaluation.gallery.BLOCK", block)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        write_mistakes(folder, images, answers, network, normalisation, device=CPU, precision="fp32")
        maps = np.load(folder.maps).astype(int)
        contents.append((folder.mistakes_image.read_bytes(), folder.mistakes.read_text(), maps))
    assert contents[0][:2] == contents[1][:2]
    assert abs(contents[0][2] - contents[1][2]).max() <= 1


def test_images_in_a_file_are_shown_as_those_in_memory(coloured_images, network, tmp_path):
    images = coloured_images(20, 16, 16)
    np.save(tmp_path / "images.npy", images.images_u8)
    mapped = MappedImages(np.load(tmp_path / "images.npy", mmap_mode="r"))
    in_file = ImageSet(mapped, images.labels, images.classes, images.paths)
    predictions = images.labels.copy()
    predictions[3] = 2
    normalisation = channel_statistics(images.images_u8)
    loader = Loader(images, normalisation, AugmentSection(crop=0, cutout=0), 12, 3, CPU)
    contents = []
    for name, these in (("memory", images), ("file", in_file)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        write_samples(folder, these, loader)
        answers = answers_for(images, predictions)
        write_mistakes(folder, these, answers, network, normalisation, device=CPU, precision="fp32")
        contents.append([path.read_bytes() for path in sorted(folder.gallery.iterdir())])
    assert len(contents[0]) == 6
    assert contents[0] == contents[1]
