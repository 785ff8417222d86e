"""What the data modules for the segmentation of photos share: the paper's augmentation, and native sizes elsewhere."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from datamodules.base import Split
from datamodules.layouts.submission import Submission
from datamodules.photos.annotated import AnnotatedPhotos, Photos
from datamodules.photos.joint_augmentation import JointAugmentation
from datamodules.segmentation import SegmentationDataModule, WithoutMasks
from datamodules.splits import random_split


class PhotoSegmentationDataModule(SegmentationDataModule):
    """Photos in files with masks, decoded by the workers: batches as `SegmentationDataModule` describes them.

    Training batches hold crops, augmented as `JointAugmentation` says. Validation, test and prediction give whole
    photos, one a batch. On the device images are normalised by the mean and standard deviation of ImageNet.

    A subclass sets `num_classes` and `class_names`, and implements `photos`, `photos_to_predict` and, where a server
    measures predictions, `server_submission`.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        batch_size: Training crops a batch and process; whole photos come one by one.
        num_workers: Processes that decode and augment.
        train_size: Number of training photos, a subset f(seed) in which smaller ones are contained.
        val_size: Number of validation photos taken from the training photos; None: the published validation set.
        seed: Seed of subsets, order and augmentation.
        predict_root: Folder of images to predict at native size; default: predict the published test set.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        crop_size: Height and width of a training crop.
        scale: Smallest and largest factor that training photos are scaled by; None: they are not.
        flip: Mirror half of the training crops left to right.
        rotation: Largest angle, in degrees, that training crops are turned by; 0: they are not.
        resize: The longer side, in pixels, to which every published photo and mask is resized first, in training and in
            evaluation. What is measured then are reduced photos: such numbers do not compare with published ones, and
            what is predicted is no `submission`. None: native sizes.

    Raises:
        ValueError: A value is out of range.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str | None,
        batch_size: int,
        num_workers: int,
        train_size: int | None,
        val_size: int | None,
        seed: int | None,
        predict_root: str | None,
        drop_last: bool,
        crop_size: int,
        scale: tuple[float, float] | None,
        flip: bool,
        rotation: float,
        resize: int | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        if resize is not None and resize < 1:
            raise ValueError(f"resize must be at least 1 pixel, or null for native sizes, got {resize}.")
        red, green, blue = (round(255 * channel) for channel in self.mean)
        self.augmentation = JointAugmentation(self.seed, crop_size, (red, green, blue), scale, flip, rotation)
        self.image_size = crop_size
        self.resize = resize

    @abstractmethod
    def photos(self, split: Split) -> Photos:
        """The published photos of a split, with masks.

        Raises:
            FileNotFoundError: Files are missing; the message says what is expected where.
            ValueError: There is no such split with these options.
        """

    @abstractmethod
    def photos_to_predict(self) -> Photos:
        """The published photos to predict; masks are not read.

        Raises:
            FileNotFoundError: Files are missing; the message says what is expected where.
        """

    def server_submission(self) -> Submission | None:
        """What the server that measures predictions of `photos_to_predict` takes; None: there is none."""
        return None

    @property
    def submission(self) -> Submission | None:
        """How `predict` is to name and code its masks; None: as it likes.

        There is none for images of `predict_root`, nor with `resize`: a server wants masks of native size.
        """
        return None if self.predict_root is not None or self.resize is not None else self.server_submission()

    def make_train_and_val(self) -> tuple[AnnotatedPhotos, AnnotatedPhotos | None]:
        published = self.photos("train")
        kept, carved = random_split(len(published.files), self.train_size, self.val_size or 0, self.seed)
        train = AnnotatedPhotos(published, kept, self.resize, self.augmentation)
        if self.val_size is None:
            return train, AnnotatedPhotos(self.photos("val"), resize=self.resize)
        return train, AnnotatedPhotos(published, carved, self.resize) if self.val_size else None

    def make_test(self) -> AnnotatedPhotos:
        return AnnotatedPhotos(self.photos("test"), resize=self.resize)

    def make_predict(self) -> WithoutMasks:
        return WithoutMasks(AnnotatedPhotos(replace(self.photos_to_predict(), masks=None), resize=self.resize))
