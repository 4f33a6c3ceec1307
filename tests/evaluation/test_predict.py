"""Answers to whole image sets, the model that is handed to users, and the figures of merit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.errors import DataError
from velodrome.evaluation import predict
from velodrome.evaluation.metrics import accuracy, mean_loss
from velodrome.evaluation.predict import Classifier, logits_of, shifted

CPU = torch.device("cpu")
CONSTANTS = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def batches_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "EVAL_BATCH_SIZE", 4)


@pytest.fixture
def model() -> nn.Module:
    """Not symmetric, and with layers that behave differently in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
        )
        network[1].running_mean.normal_()
    return network


def answers(model: nn.Module, images: ImageSet, precision: str = "fp32", **settings: bool) -> Tensor:
    return logits_of(model, images, CONSTANTS, device=CPU, precision=precision, **settings)


def by_hand(model: nn.Module, images_u8: np.ndarray) -> Tensor:
    """One image at a time, in evaluation mode."""
    pixels = (images_u8 / 255 - np.array(CONSTANTS.mean)) / np.array(CONSTANTS.std)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = [
            model(torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32)) for image in pixels
        ]
    model.train(was_training)
    return torch.cat(logits)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_logits_equal_those_of_a_plain_forward(model, coloured_images, n):
    images = coloured_images(n)
    logits = answers(model, images)
    assert logits.shape == (n, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, by_hand(model, images.images_u8), rtol=1e-4, atol=1e-5)


def test_mirrored_answers_are_those_to_the_mirror_images(model, coloured_images):
    images = coloured_images(10)
    found = answers(model, images, mirrored=True)
    expected = by_hand(model, images.images_u8[:, :, ::-1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, by_hand(model, images.images_u8), atol=1e-2)


def test_bf16_answers_in_float32(model, coloured_images):
    images = coloured_images(6)
    logits, exact = answers(model, images, "bf16"), answers(model, images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_statistics_are_left_as_they_were(model, coloured_images, training):
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers(model, coloured_images(5))
    assert [module.training for module in model.modules()] == [training] * 7
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_mode_is_put_back_after_an_error_too(model, coloured_images):
    model.train()
    with pytest.raises(RuntimeError):
        answers(model, coloured_images(5, 9, 9))  # the linear layer expects 8x8
    assert model.training


# Images that are moved.


def moved_by_hand(image: np.ndarray, pixels: int) -> np.ndarray:
    """(H, W, 3): turned round by np.roll; the rows and columns that came in are mirrored at the border."""
    moved = np.roll(image, (pixels, pixels), (0, 1))
    for near in range(abs(pixels)):
        # The old border is now the line number `pixels` from its end, counted from 0; it is the mirror.
        far = 2 * abs(pixels) - near
        to, source = (near, far) if pixels > 0 else (-1 - near, -1 - far)
        moved[to] = moved[source]
        moved[:, to] = moved[:, source]
    return moved


@pytest.mark.parametrize("pixels", [-3, -1, 0, 1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12)])
def test_shifted_images_are_rolled_and_reflected(random_images, pixels, height, width):
    images = random_images(4, height, width)
    before = images.copy()
    found = shifted(images, pixels)
    assert np.array_equal(found, np.stack([moved_by_hand(image, pixels) for image in images]))
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
    assert np.array_equal(images, before)


def test_one_pixel_to_the_right_and_down():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    assert shifted(image, 1)[0, ..., 0].tolist() == [[4, 3, 4], [1, 0, 1], [4, 3, 4]]
    assert shifted(image, -1)[0, ..., 0].tolist() == [[4, 5, 4], [7, 8, 7], [4, 5, 4]]


# The classifier.


@pytest.fixture
def classifier(model: nn.Module) -> Classifier:
    return Classifier(model, ["cat", "dog", "frog"], CONSTANTS, (8, 8)).eval()


def test_a_classifier_takes_raw_images(classifier, model, random_images):
    images = random_images(5)
    expected = by_hand(model, images)
    torch.testing.assert_close(classifier(torch.from_numpy(images)).detach(), expected, rtol=1e-4, atol=1e-5)
    for given in (images, torch.from_numpy(images)):
        probabilities = classifier.probabilities(given)
        torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-4, atol=1e-5)
        assert not probabilities.requires_grad


def test_predict_names_the_most_probable_class(classifier, model, random_images):
    images = random_images(20)
    with torch.no_grad():
        model[5].weight.mul_(10)  # decided answers, which differ from image to image
    expected = by_hand(model, images).softmax(1).numpy()
    names, found = zip(*classifier.predict(images), strict=True)
    assert list(names) == [("cat", "dog", "frog")[best] for best in expected.argmax(1)]
    assert found == pytest.approx(expected.max(1), rel=1e-4)
    assert len(set(names)) > 1


def test_images_may_be_read_only(classifier, random_images):
    """As those of `numpy.asarray(PIL.Image.open(...))` are; torch warns of them, which is an error here."""
    images = random_images(2)
    images.flags.writeable = False
    assert len(classifier.predict(images)) == 2


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 8, 8, 3), np.float32, r"torch\.float32 .* must be uint8"),
        ((2, 8, 8, 3), np.int64, r"torch\.int64 .* must be uint8"),
        ((8, 8, 3), np.uint8, r"shape \(8, 8, 3\), but must be .* \(N, height, width, 3\)"),
        ((2, 3, 8, 8), np.uint8, r"shape \(2, 3, 8, 8\)"),
        ((2, 8, 8, 4), np.uint8, r"shape \(2, 8, 8, 4\)"),
        ((2, 9, 8, 3), np.uint8, r"9x8 pixels, but the model was trained on 8x8.* Resize them to 8x8"),
    ],
)
def test_other_images_are_refused(classifier, shape, dtype, message):
    with pytest.raises(DataError, match=message):
        classifier.predict(np.zeros(shape, dtype=dtype))


# Figures.

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 5.0, 1.0], [0.0, 1.0, 0.5]])
LABELS = torch.tensor([0, 2, 2, 1])


def test_accuracy():
    assert accuracy(LOGITS, LABELS) == 0.75
    assert accuracy(LOGITS, torch.tensor([1, 0, 0, 0])) == 0.0


def test_mean_loss_is_cross_entropy_in_float64():
    exact = LOGITS.double().numpy()
    each = np.log(np.exp(exact).sum(1)) - exact[np.arange(4), LABELS.numpy()]
    assert mean_loss(LOGITS, LABELS) == pytest.approx(each.mean(), rel=1e-12)
