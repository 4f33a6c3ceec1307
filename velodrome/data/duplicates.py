"""Test images that are in the training set too, and so measure memory rather than learning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

from velodrome.data.imageset import ImageSet

MOST_EXAMPLES = 20
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Duplicate:
    """A test image that is in the training set too.

    Attributes:
        test: its index in the test set.
        train: index of the first training image with the same pixels.
        same_label: whether those two have the same class.
    """

    test: int
    train: int
    same_label: bool


@dataclass(frozen=True)
class Duplicates:
    """All test images that are in the training set too, in the order of the test set."""

    found: tuple[Duplicate, ...]

    def __len__(self) -> int:
        return len(self.found)

    def to_dict(self) -> dict[str, Any]:
        """As evaluation.json has it: how many test images, and the first 20 of them."""
        examples = [asdict(duplicate) for duplicate in self.found[:MOST_EXAMPLES]]
        return {"images": len(self.found), "examples": examples}


def exact_duplicates(test: ImageSet, train: ImageSet) -> Duplicates:
    """The test images that are, byte for byte, in the training set too.

    Where both have checksums, these are compared. Else images of another size are never the same. Labels are
    compared by the names of their classes.

    Args:
        test: images to look for.
        train: images to look among.
    """
    if test.digests is not None and train.digests is not None:
        return _same(test, map(bytes, test.digests), train, map(bytes, train.digests))
    if test.images_u8.shape[1:] != train.images_u8.shape[1:]:
        return Duplicates(())
    return _same(test, _digests(test), train, _digests(train))


def _same(
    test: ImageSet, test_digests: Iterable[bytes], train: ImageSet, train_digests: Iterable[bytes]
) -> Duplicates:
    first: dict[bytes, int] = {}
    for index, digest in enumerate(train_digests):
        first.setdefault(digest, index)
    matches = ((index, first.get(digest)) for index, digest in enumerate(test_digests))
    return Duplicates(
        tuple(
            Duplicate(index, match, _class_of(test, index) == _class_of(train, match))
            for index, match in matches
            if match is not None
        )
    )


def _digests(images: ImageSet) -> Iterable[bytes]:
    """A hash of the pixels of each image; two images with the same one are taken to be the same."""
    return (blake2b(image.data, digest_size=_DIGEST_BYTES).digest() for image in images.images_u8)


def _class_of(images: ImageSet, index: int) -> str:
    return images.classes[int(images.labels[index])]
