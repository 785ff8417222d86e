"""Scikit-learn's handwritten digits: real images that need no download."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.images.in_memory import InMemoryDataModule, InMemoryDataset, Normalisation

TEST_SAMPLES_A_DIGIT = 36


class DigitsDataModule(InMemoryDataModule):
    """The 1,797 scans of 8x8 pixels that ship with scikit-learn, 10 classes; `index` is a scan's position there.

    Test: the last 36 scans of each digit in the published order, 360 in all, whatever the seed. Their writers are
    mostly not those of the other 1,437 scans, which `train_size` and `val_size` share.

    Grey values 0-16 are spread over 0-255. `mean` and `std` are those of the 1,437 scans at 8x8.

    Args:
        root: Not used; every data module takes it.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead; 0 is fastest here.
        train_size: Number of training samples, a stratified subset f(seed); default: all outside `val_size`.
        val_size: Number of validation samples, disjoint from the training samples; 0: no validation.
        seed: Seed of subsets and order; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict; default: predict the test set.
        image_size: Height and width in pixels, at least 8; scans are enlarged bilinearly when they are read.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        normalisation: "standardised": by `mean` and `std`. "symmetric": to [-1, 1], as generators make images.

    Raises:
        ValueError: A size is out of range.
    """

    in_channels = 1
    num_classes = 10
    class_names = tuple("0123456789")
    mean = (0.3053695,)
    std = (0.3753230,)
    train_samples = 1437

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int = 200,
        seed: int | None = None,
        predict_root: str | None = None,
        image_size: int = 8,
        drop_last: bool = False,
        normalisation: Normalisation = "standardised",
    ) -> None:
        super().__init__(
            root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last, normalisation
        )
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8, the size of the scans, got {image_size}.")
        self.image_size = image_size

    def read_train(self) -> InMemoryDataset:
        images, labels, is_test = self._read()
        return InMemoryDataset(images, labels, torch.nonzero(~is_test).flatten())

    def read_test(self) -> InMemoryDataset:
        images, labels, is_test = self._read()
        return InMemoryDataset(images, labels, torch.nonzero(is_test).flatten())

    def _read(self) -> tuple[Tensor, Tensor, Tensor]:
        """All images uint8 (1797, 1, H, W), labels int64 (1797,), and which of them are for the test, bool (1797,)."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        grey = torch.from_numpy(scans.images).unsqueeze(1) * (255 / 16)
        images = interpolate(grey, (self.image_size, self.image_size), mode="bilinear").round().to(torch.uint8)
        labels = torch.from_numpy(scans.target).long()
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        for digit in range(self.num_classes):
            is_test[torch.nonzero(labels == digit).flatten()[-TEST_SAMPLES_A_DIGIT:]] = True
        return images, labels, is_test
