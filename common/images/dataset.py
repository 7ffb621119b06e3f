"""Labelled images: read, checked, decoded and split."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data import splits
from common.data.folders import printable
from common.data.splits import SPLITS, some, split_labelled, untested_classes
from common.errors import UserError
from common.images.listing import ImageList, list_images
from common.images.pixels import Pixels, check_images
from common.images.readers import ImageColumns


@dataclass(frozen=True)
class Examples:
    """The images of one split.

    Attributes:
        pixels: the images; their files are `paths`.
        labels: class number of each image, int64 [n].
        thumbnails: tiny grey copy of each image, uint8 [n, pixels].
        groups: number of the group of each image, int64 [n]; None without `--group`.
    """

    pixels: Pixels
    labels: np.ndarray
    thumbnails: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> np.ndarray:
        """File of each image, str [n]."""
        return self.pixels.paths

    @property
    def names(self) -> list[str]:
        """What identifies each image: its path."""
        return [printable(path) for path in self.paths]

    def take(self, places: np.ndarray) -> Examples:
        """Return the images at these places."""
        groups = None if self.groups is None else self.groups[places]
        return Examples(self.pixels.take(places), self.labels[places], self.thumbnails[places], groups)


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images, split, checked and ready to stream.

    Attributes:
        name: value of `--data`.
        class_names: name of each class number, sorted.
        train: training split.
        val: validation split; every choice is made on it.
        test: test split, used once, at the end.
        skipped: (file, reason) of each skipped file.
        mirrors: whether a mirrored image still shows the same class (not so for digits and letters).
        turned: number of images with an EXIF orientation, which training and serving both ignore.
        notes: sentences on the groups of `--group`.
        by_content: the splits that were made without groups.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples
    skipped: tuple[tuple[str, str], ...] = ()
    mirrors: bool = True
    turned: int = 0
    notes: tuple[str, ...] = ()
    by_content: tuple[str, ...] = ()

    counts = splits.count_examples

    def safe_augmentations(self) -> tuple[str, ...]:
        """Return the augmentations that preserve the class of these images."""
        return ("flip", "crop", "color") if self.mirrors else ("rotate",)  # half a digit is no digit

    def advice(self) -> tuple[str, ...]:
        """Return sentences on properties of these images that matter when reading the results."""
        sentences = [*untested_classes(self.class_names, self.test.labels, "image"), *self.notes]
        if self.turned:
            sentences.append(
                f"{self.turned:,} of {sum(len(getattr(self, split)) for split in SPLITS):,} images have an EXIF "
                "orientation, which training and serving both ignore: the model processes them as stored. "
                "To rotate them permanently (ImageMagick): mogrify -auto-orient FILES"
            )
        return tuple(sentences)

    def fingerprint(self) -> str:
        """Return a hash of paths, contents and labels: equal for the same set of files."""
        digest = hashlib.sha256()
        for split in SPLITS:
            examples = getattr(self, split)
            for path, content, label in zip(examples.paths, examples.pixels.hashes, examples.labels, strict=True):
                digest.update(f"{split}\0{path}\0{content}\0{label}\n".encode())
        return digest.hexdigest()[:16]


def load_image_set(
    data: str, out: Path, size: tuple[int, int], *, columns: ImageColumns | None = None, group: str | None = None,
    limit: int | None = None, **options,
) -> ImageSet:  # fmt: skip
    """List the images of a data set, then read, check, decode and split them.

    Args:
        data, out, columns, group, limit: as for `list_images`.
        size, **options: as for `split_images`.
    """
    listed = list_images(data, out, columns=columns, group=group, limit=limit)
    return split_images(listed, size, folder=out, limit=limit, **options)


def split_images(
    listed: ImageList, size: tuple[int, int], *, resize: str = "crop", folder: Path | None = None,
    limit: int | None = None, strict: bool = False, val_share: float = splits.VALIDATION_SHARE,
) -> ImageSet:  # fmt: skip
    """Read, check, decode and split the images of a list.

    Images whose exact content has two labels are useless: they are removed from every split, except from a given
    test split, which stays as it is.

    Args:
        listed: the images.
        size: (height, width) at which they are kept, in pixels.
        resize: as for `decode_image`.
        folder: as for `check_images`.
        limit: keep at most this many images of each split.
        strict: treat an unreadable file as an error instead of a counted skip.
        val_share: the share of the train split that becomes validation where none is given.

    Returns:
        The ImageSet; exact copies across splits are removed from the split of lower priority.

    Raises:
        UserError: no readable image, one class only, a class or a split without images.
    """
    data, rows = listed.data, listed.rows
    names = {row.label for row in rows if row.label}
    found = check_images(rows, size, resize, folder)
    skipped = [(printable(row.path), reason) for row, reason in zip(rows, found.reasons, strict=True) if reason]
    first = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else ""
    if strict and skipped:
        raise UserError(f"--strict: {len(skipped)} file(s) cannot be used; the first: {first}")
    usable = np.array([place for place, reason in enumerate(found.reasons) if not reason], dtype=np.int64)
    rows, pixels = [rows[place] for place in usable], found.pixels.take(usable)
    left_out = f"{len(skipped)} file(s) skipped{first and ', the first: ' + first}"
    if unreadable := names - {row.label for row in rows} if len({row.label for row in rows}) > 1 else ():
        raise UserError(
            f"--data {data!r} has no readable image for {some(sorted(unreadable))}. Each class needs at least one: "
            f"add images, or remove the class. {left_out}."
        )
    assigned = split_labelled(
        data, "image", [row.label for row in rows], [row.split for row in rows], pixels.hashes.tolist(),
        limit=limit, val_share=val_share, left_out=left_out,
        groups=[row.group for row in rows] if listed.grouped else None,
    )  # fmt: skip
    skipped += [(row.path, reason) for row, reason in zip(rows, assigned.reasons, strict=True) if reason]
    whole = Examples(pixels, assigned.labels, found.thumbnails[usable], assigned.groups)
    turned = found.turned[usable]
    return ImageSet(
        data, assigned.class_names, **{name: whole.take(chosen) for name, chosen in assigned.indices.items()},
        skipped=tuple(skipped), mirrors=data != "demo:digits",
        turned=sum(int(turned[chosen].sum()) for chosen in assigned.indices.values()),
        notes=assigned.notes, by_content=assigned.by_content,
    )  # fmt: skip


def draw_shots(data: ImageSet, shots: int, seed: int) -> ImageSet:
    """Return the set with N training images per class and at most as many for validation; test stays the same.

    Raises:
        UserError: a class has fewer.
    """
    draw = importlib.import_module("common.data.shots").draw_shots  # few need it
    train, val = draw(data.train.labels, data.val.labels, data.class_names, shots, seed, "image")
    return replace(data, train=data.train.take(train), val=data.val.take(val))
