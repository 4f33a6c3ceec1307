"""The pictures of a run folder hold what their JSON says, pixel for pixel."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from velodrome.config import AugmentSection
from velodrome.data.imageset import ImageSet, channel_statistics
from velodrome.data.loader import Loader
from velodrome.evaluation.gallery import as_bytes, maps_of, sprite, write_mistakes, write_samples
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
