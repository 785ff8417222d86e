"""ImageNet, Tiny ImageNet, or any photos in class folders."""

from pathlib import Path
from typing import Any

import torch

from datamodules.base import BaseDataModule, Split
from datamodules.images.mapped_images import NamedImages
from datamodules.layouts.imagenet import Classes, Layout, find_copy, list_photos
from datamodules.photos.augmentation import PhotoAugmentation, ResizedCentre
from datamodules.photos.labelled import CutFolder, LabelledPhotos, Part, PhotoDataset
from datamodules.shards import read_shards
from datamodules.splits import stratified_split


class ImageNetDataModule(BaseDataModule):
    """1.28 million photos of 1000 classes (ILSVRC 2012), or others in the same layouts, decoded as they are drawn.

    Three layouts are found by themselves, in one of the folders `FOLDERS` below `root` or in `folder`:

    - `official`: `train/<wnid>/*.JPEG`, and the validation images in `val/<wnid>/` or all in `val/`. Then their labels
      are in the devkit (`ILSVRC2012_devkit_t12/data/`) or in Kaggle's `LOC_val_solution.csv`, in the data set's folder
      or, for `ILSVRC/Data/CLS-LOC`, where Kaggle's zip has it;
    - `tiny_imagenet`: `wnids.txt`, `train/<wnid>/images/*.JPEG`, `val/images/` and `val/val_annotations.txt`;
    - `class_folders`: `train/<class>/`, and `val/<class>/` or `test/<class>/` or both, with any names.

    Labels count the sorted names of the classes. The test set is that of the data set: where it has no labelled one, as
    ImageNet and Tiny ImageNet, it is the published validation set. So with `val_size: null`, as is usual, validation
    and test are the same images; a `val_size` takes validation images from the training images, and keeps what is
    tested out of all choices.

    Training images are augmented in the workers as in He et al. (2016) and Stacked U-Nets, see `PhotoAugmentation`;
    evaluation resizes the shorter side to `resize_size` and cuts out the centre, see `ResizedCentre`. Batches hold
    `image` uint8 (N, 3, H, W), channels last in memory, `label` int64 (N,) and `index` (N,), the position in the list
    of the training or of the validation images, sorted by path. On the device images are normalised by the mean and
    standard deviation of ImageNet. Batches of prediction hold `image` and `file`, the path below the data set's folder
    (or below `predict_root`).

    Files are decoded by their content, whatever their name says (one of ImageNet's is a PNG, some are CMYK); images of
    any mode become RGB, turned as their EXIF orientation says.

    A checkpoint keeps the classes: it names predictions on a folder, and is not evaluated on other classes.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        folder: The data set's folder in `root`, where there are several, or under another name; default: find it.
        layout: `official`, `tiny_imagenet` or `class_folders`; default: what it looks like.
        classes: `listed`: a class that `wnids.txt` lists (without it: that `train/` has a folder for) and that has no
            training images is an error, and so are other classes in validation than in training. `present`: the
            classes are those that have training images, for reduced copies.
        num_classes: How many classes there are, which the network has to know before any file is read. Another number
            on disk is an error that says it.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead, as many as there are cores.
        train_size: Number of training images, a stratified subset f(seed); default: all outside `val_size`. With one
            seed a smaller subset is part of a larger one.
        val_size: Number of validation images taken from the training images, stratified, f(seed); 0: no validation;
            default (null): the published validation set.
        seed: Seed of subsets, order and augmentation; default: that of `seed_everything`, else 0.
        image_size: Height and width of the square, in pixels.
        resize_size: What evaluation resizes the shorter side to, in pixels; null: `image_size`.
        crop_scale: Smallest and largest area of training crops, as fractions of the image's.
        flip: Mirror half of the training images left to right.
        colour_jitter: Change of brightness, contrast and saturation in training: each is multiplied by a number in
            [1 - colour_jitter, 1 + colour_jitter]; 0: none.
        lighting: Standard deviation of the noise along the principal axes of colour, as in AlexNet; 0: none.
        shards: What `python -m datamodules.shards` wrote, in place of the data set's folder; `folder`, `layout` and
            `classes` then keep their defaults. Needs litdata (extra `streaming`).
        predict_root: Folder of images to predict, searched recursively; they are cut as in evaluation. Default: predict
            the test set.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | None = None,
        folder: str | None = None,
        layout: Layout = "auto",
        classes: Classes = "listed",
        num_classes: int = 1000,
        batch_size: int = 256,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        image_size: int = 224,
        resize_size: int | None = 256,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        colour_jitter: float = 0.4,
        lighting: float = 0.1,
        shards: str | None = None,
        predict_root: str | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        if shards is not None and (folder, layout, classes) != (None, "auto", "listed"):
            raise ValueError(
                "shards hold a data set as it was written: leave folder, layout and classes out with them."
            )
        self.folder = folder
        self.layout = layout
        self.classes = classes
        self.num_classes = num_classes
        self.image_size = image_size
        self.cut = ResizedCentre(image_size, image_size if resize_size is None else resize_size)
        self.augmentation = PhotoAugmentation(self.seed, image_size, crop_scale, flip, colour_jitter, lighting)
        self.shards = shards
        self._opened: LabelledPhotos | None = None

    def setup(self, stage: str) -> None:
        """List the images, once, and open what `stage` needs.

        Raises:
            FileNotFoundError: Data are missing.
            DamagedFileError: A file with annotations is not what was published.
            ValueError: Sizes or classes do not fit the data.
        """
        if stage == "predict" and self.predict_root is not None and self.predict_dataset is None:
            self.predict_dataset = CutFolder(self.predict_root, self.cut)
        super().setup(stage)

    def make_train_and_val(self) -> tuple[PhotoDataset, PhotoDataset | None]:
        parts = self._open().parts
        train = parts["train"]
        kept, carved = stratified_split(train.labels, self.train_size, self.val_size or 0, self.seed)
        training = PhotoDataset(train, kept, self.cut, self.augmentation)
        if self.val_size:
            return training, PhotoDataset(train, carved, self.cut)
        return training, self._whole(parts["val"]) if self.val_size is None and "val" in parts else None

    def make_test(self) -> PhotoDataset:
        parts = self._open().parts
        part = parts.get("test") or parts.get("val")
        if part is None:
            raise ValueError(self.how_to_fill("test"))
        return self._whole(part)

    def make_predict(self) -> NamedImages:
        test = self.make_test()
        return NamedImages(test, test.part.photos.files.tolist())

    def how_to_fill(self, split: Split) -> str:
        if self.val_size == 0 and split == "val":
            return super().how_to_fill(split)
        place = self._open().place
        if split == "val":
            return f"{place} has no val folder: set val_size to take some training images, or 0 for no validation."
        if split == "test":
            return f"{place} has neither a test nor a val folder: there is nothing to test on. Add one."
        return super().how_to_fill(split)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the seed of its subsets, and the classes."""
        if self._opened is None:
            return super().state_dict()
        return {
            **super().state_dict(),
            "classes": list(self._opened.classes),
            "class_names": list(self._opened.class_names),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Name predictions as in training, and refuse other classes than those of a checkpoint.

        Raises:
            ValueError: The seeds or the classes differ; the message says how.
        """
        super().load_state_dict(state_dict)
        trained = tuple(state_dict.get("classes", ()))
        if self._opened is None:
            self.class_names = tuple(state_dict.get("class_names", ()))
        elif trained and trained != self._opened.classes:
            pairs = zip(trained, self._opened.classes, strict=False)
            label = next((label for label, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
            differ = "" if label is None else f": label {label} is {trained[label]} and {self._opened.classes[label]}"
            raise ValueError(
                f"The checkpoint was trained on other classes than those of {self._opened.place}{differ}. Use the data "
                "that it was trained on, or start from it with init_from."
            )

    def _open(self) -> LabelledPhotos:
        if self._opened is None:
            photos = self._read()
            if len(photos.classes) != self.num_classes:
                raise ValueError(
                    f"{photos.place} has {len(photos.classes):,} classes, and num_classes is {self.num_classes:,}: set "
                    f"--data.num_classes {len(photos.classes)}, or look for what is missing."
                )
            self._opened, self.class_names = photos, photos.class_names
        return self._opened

    def _read(self) -> LabelledPhotos:
        if self.shards is not None:
            return read_shards(self.shards)
        return list_photos(find_copy(Path(self.root), self.folder, self.layout), self.classes)

    def _whole(self, part: Part) -> PhotoDataset:
        return PhotoDataset(part, torch.arange(len(part.labels)), self.cut)
