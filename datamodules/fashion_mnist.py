"""Fashion-MNIST, read from its archives as published."""

import gzip
import hashlib
import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.in_memory import InMemoryDataModule, InMemoryDataset, Normalisation


class FashionMNISTDataModule(InMemoryDataModule):
    """60,000 training and 10,000 test images of 28x28 pixels in 10 classes (Xiao, Rasul and Vollgraf, 2017).

    `train_size` and `val_size` share the official training set, test is the official test set; `index` is an image's
    position in its official file. `mean` and `std` are those of the 60,000 training images.

    The four `.gz` archives are read where they lie, in `<root>/FashionMNIST/raw`, after their MD5 was compared with
    torchvision's table; nothing is unpacked and no file is replaced. An unpacked file counts where its archive is
    absent; there is no published checksum for it, so only its header, its length and its labels are checked.

    Args:
        root: The folder that holds `FashionMNIST/`; default $CONVSUITE_DATA, else ./data.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead; 0 is fastest here.
        train_size: Number of training images, a stratified subset f(seed) (class counts differ by at most one);
            default: all outside `val_size`. With one seed a smaller subset is part of a larger one.
        val_size: Number of validation images (default 5,000), disjoint from the training images; 0: no validation.
        seed: Seed of subsets and order; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict; default: predict the test set.
        download: Fetch missing archives, with torchvision's mirrors and checksums.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        normalisation: "standardised": by `mean` and `std`. "symmetric": to [-1, 1], as generators make images.

    Raises:
        ValueError: A size is out of range.
    """

    in_channels = 1
    num_classes = 10
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    image_size = 28
    mean = (0.2860406,)
    std = (0.3530242,)
    train_samples = 60_000

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int | None = None,
        predict_root: str | None = None,
        download: bool = True,
        drop_last: bool = False,
        normalisation: Normalisation = "standardised",
    ) -> None:
        super().__init__(
            root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last, normalisation
        )
        self.download = download

    @property
    def folder(self) -> Path:
        """Where the archives lie."""
        return Path(self.root) / "FashionMNIST" / "raw"

    def prepare_data(self) -> None:
        """Download the archives that are missing.

        Raises:
            FileNotFoundError: Names the missing files and how to get them.
        """
        missing = self._missing()
        if not missing or self.predicts_folder:
            return
        if not self.download:
            raise FileNotFoundError(self._how_to_get(missing, "download is off"))
        try:
            download_archives(self.folder, missing)
        except (OSError, RuntimeError) as error:  # torchvision reports a wrong checksum as RuntimeError
            raise FileNotFoundError(self._how_to_get(missing, f"the download failed: {error}")) from error

    def read_train(self) -> InMemoryDataset:
        return self._read("train")

    def read_test(self) -> InMemoryDataset:
        return self._read("t10k")

    def _read(self, part: str) -> InMemoryDataset:
        if missing := self._missing():
            raise FileNotFoundError(self._how_to_get(missing, "prepare_data() has not been called"))
        images = read_idx(self.folder / f"{part}-images-idx3-ubyte.gz", (28, 28))
        labels = read_idx(self.folder / f"{part}-labels-idx1-ubyte.gz", ()).long()
        if len(images) != len(labels):
            raise DamagedFileError(
                f"{self.folder} holds {len(images)} {part} images and {len(labels)} labels: fetch both files again."
            )
        if labels.max() >= self.num_classes:
            raise DamagedFileError(
                f"{part}-labels in {self.folder} hold the label {labels.max().item()}; the largest is 9. "
                "Fetch the file again."
            )
        return InMemoryDataset(images.unsqueeze(1), labels)

    def _missing(self) -> list[str]:
        names = [self.folder / name for name in checksums()]
        return [path.name for path in names if not (path.is_file() or path.with_suffix("").is_file())]

    def _how_to_get(self, missing: list[str], reason: str) -> str:
        from torchvision.datasets import FashionMNIST

        return (
            f"Fashion-MNIST is incomplete ({reason}). Missing in {self.folder.absolute()}: {', '.join(missing)}. "
            f"Put them there (published at {FashionMNIST.mirrors[0]}), or set root or CONVSUITE_DATA to the folder "
            "that holds FashionMNIST/, or run once with download on and a network. DigitsDataModule needs no network."
        )


def checksums() -> dict[str, str]:
    """MD5 of every published archive, as torchvision lists them."""
    from torchvision.datasets import FashionMNIST

    return dict(FashionMNIST.resources)


def download_archives(folder: Path, names: list[str]) -> None:
    """Fetch archives into `folder`; each appears there whole and verified, or not at all.

    Raises:
        OSError: Every mirror failed, or the folder cannot be written.
        RuntimeError: The last mirror sent something else.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    # On the file system of `folder`, which is not made before there is something to put in it.
    home = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as unfinished:
        for name in names:
            for mirror in FashionMNIST.mirrors:
                try:
                    download_url(f"{mirror}{name}", unfinished, name, checksums()[name])
                    break
                except (OSError, RuntimeError):
                    if mirror == FashionMNIST.mirrors[-1]:
                        raise
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(Path(unfinished) / name, folder / name)


def read_idx(archive: Path, item_shape: tuple[int, ...]) -> Tensor:
    """The uint8 array (N, *item_shape) in a `.gz` archive, or in the unpacked file beside its place if it is absent.

    Raises:
        DamagedFileError: Wrong checksum (both are named), header or length.
    """
    path = archive if archive.is_file() else archive.with_suffix("")
    content = path.read_bytes()
    if path == archive:
        expected, found = checksums()[archive.name], hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise DamagedFileError(
                f"{path} is damaged or altered: MD5 expected {expected}, found {found}. "
                "Remove it (it is then downloaded again) or put the published archive in its place."
            )
        content = gzip.decompress(content)
    # idx: two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension as 4 bytes, then the values
    header = 4 + 4 * (1 + len(item_shape))
    magic = bytes((0, 0, 8, 1 + len(item_shape)))
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4))
    if content[:4] != magic or shape[1:] != item_shape or len(content) != header + math.prod(shape) or not shape[0]:
        raise DamagedFileError(
            f"{path} is no complete idx file of items of shape {item_shape} ({len(content)} bytes). "
            "Remove it (it is then downloaded again) or put the published file in its place."
        )
    # A bytearray, because a tensor on read-only bytes could be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
