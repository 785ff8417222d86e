"""A subject's NIfTI files: where they are, what they must agree on, and the messages where they do not."""

from __future__ import annotations

import errno
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.images.image_folder import DamagedFileError
from datamodules.listing import list_paths

EXTENSIONS = (".nii.gz", ".nii")
LARGEST_SHIFT = 0.1
"""Of a voxel's shortest side, between the places that two files of a subject give a voxel: rounding is below."""
OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
"""Errors that say nothing of a file's content."""


@dataclass(frozen=True)
class SubjectFiles:
    """Where a subject's volume is stored.

    Attributes:
        subject: Its name.
        patient: Who was scanned: subjects of one patient belong into one set.
        site: Where it was acquired, where that is known.
        images: The file of each modality, in the order of the channels.
        mask: The file of the labels; None: there are none.
        classes: The class (or 255: ignored) for each value that may stand in the mask.
    """

    subject: str
    patient: str
    site: str | None
    images: Mapping[str, Path]
    mask: Path | None
    classes: Mapping[int, int]

    @property
    def paths(self) -> list[Path]:
        """The images, and the mask where there is one."""
        return [*self.images.values(), *([] if self.mask is None else [self.mask])]

    @property
    def values(self) -> list[int]:
        """The value that stands in the mask for each class, the least where there are several."""
        least: dict[int, int] = {}
        for value, number in sorted(self.classes.items()):
            least.setdefault(number, value)
        return [least[number] for number in range(len(least)) if number in least]

    def digest(self) -> str:
        """A hex digest that changes with the files, their order and the classes, not when the folder is moved."""
        stamps = [list_paths(path.parent, [path.name]).digest() for path in self.paths]
        content = (self.subject, list(self.images), sorted(self.classes.items()), stamps)
        return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


def find_home(root: Path, folder: str | None, is_home: Callable[[Path], bool], expected: str) -> Path:
    """The folder of a data set.

    Args:
        root: Where it is looked for.
        folder: Its path, absolute or relative to `root`; None: the only one directly in `root` that `is_home`.
        is_home: Whether a folder looks like the data set's.
        expected: What it holds, for messages.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There are several, and no `folder`.
    """
    if folder is not None:
        home = root / Path(folder).expanduser()
        if home.is_dir():
            return home
        raise FileNotFoundError(f"folder is not a folder: {home}. Expected: {expected}.")
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and is_home(path)] if root.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"There is no such data set in {root.absolute()}: set root or CONVSUITE_DATA to the folder that holds the "
            f"data set's, or folder to that one. Expected: {expected}."
        )
    if len(found) > 1:
        raise ValueError(
            f"{root} holds several such data sets: set folder to one of {', '.join(path.name for path in found)}."
        )
    return found[0]


def volumes_in(folder: Path) -> dict[str, Path]:
    """The NIfTI files directly in a folder by their names without extension, sorted; hidden ones are left out.

    Raises:
        DamagedFileError: Two have the same name, with .nii and .nii.gz.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        end = next((end for end in EXTENSIONS if path.name.endswith(end)), None)
        if end is None or path.name.startswith(".") or not path.is_file():
            continue
        name = path.name.removesuffix(end)
        if name in found:
            raise DamagedFileError(f"{folder} holds both {found[name].name} and {path.name}: take one of them away.")
        found[name] = path
    return found


@dataclass(frozen=True)
class Header:
    """The grid of a file.

    Attributes:
        path: The file.
        shape: Voxels along each axis, as stored.
        affine: float64 (4, 4), from the index of a voxel to its place in mm.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """mm between neighbouring voxels along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def orientation(self) -> str:
        """Where each axis points, such as "LPS"."""
        import nibabel

        return "".join(map(str, nibabel.orientations.aff2axcodes(self.affine)))


def read_header(path: Path) -> Header:
    """The grid of a NIfTI file; voxels are not read.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is no NIfTI file, has not three axes, no usable affine, or more than a number a voxel.
    """
    import nibabel

    with _naming_damage(path):
        image: Any = nibabel.load(path)
    shape, affine = tuple(image.shape), np.asarray(image.affine, dtype=np.float64)
    if len(shape) != 3:
        raise DamagedFileError(
            f"{path} has {len(shape)} axes ({by(shape)}) where a volume has 3: give each volume of a series, or each "
            "channel, a file of its own (nibabel.four_to_three splits)."
        )
    if image.get_data_dtype().kind not in "biuf":
        raise DamagedFileError(f"{path} holds {image.get_data_dtype()}, not one real number a voxel: convert it.")
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise DamagedFileError(f"{path} has an affine that places no voxel: {in_rows(affine)}. Write it anew.")
    return Header(path, shape, affine)


def check_headers(headers: Sequence[Header]) -> None:
    """Refuse files of one subject that do not lie on one grid.

    Raises:
        DamagedFileError: Shapes, orientations or affines differ; names both files and shows both values.
    """
    first = headers[0]
    for other in headers[1:]:
        mend = "Resample one of them to the grid of the other, or fetch them again."
        if other.shape != first.shape:
            raise DamagedFileError(
                f"{first.path} has {by(first.shape)} voxels, {other.path} {by(other.shape)}: files of a subject must "
                f"share one grid. {mend}"
            )
        if other.orientation != first.orientation:
            raise DamagedFileError(
                f"{first.path} is stored in orientation {first.orientation} (affine {in_rows(first.affine)}), "
                f"{other.path} in {other.orientation} (affine {in_rows(other.affine)}): files of a subject must share "
                f"one grid. {mend}"
            )
        shift = _largest_shift(first, other)
        if shift > LARGEST_SHIFT * first.spacing.min():
            raise DamagedFileError(
                f"{first.path} and {other.path} place the same voxel up to {shift:.3g} mm apart: their affines are "
                f"{in_rows(first.affine)} and {in_rows(other.affine)}. {mend}"
            )


def check_anisotropy(header: Header, most: float) -> None:
    """Refuse voxels whose longest side is more than `most` times the shortest.

    Raises:
        DamagedFileError: Names the file, its spacing and the keys to set.
    """
    ratio = header.spacing.max() / header.spacing.min()
    if ratio > most * (1 + 1e-4):  # sides are stored in float32
        raise DamagedFileError(
            f"{header.path} has voxels of {by(header.spacing)} mm, whose longest side is {ratio:.3g} times the "
            f"shortest; max_anisotropy allows {most:g}. Set spacing to resample, or raise max_anisotropy."
        )


def read_voxels(path: Path) -> NDArray[Any]:
    """A file's voxels as stored, scaled as its header says.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is truncated, damaged or no NIfTI file.
    """
    import nibabel

    with _naming_damage(path):
        image: Any = nibabel.load(path)
        return np.asanyarray(image.dataobj)


def check_compression(path: Path) -> None:
    """Refuse a compressed file that holds something else than was written.

    nibabel stops at the last voxel, before the checksum, so that damage which can still be decompressed passes it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: It is truncated or damaged.
    """
    if path.suffix == ".gz":
        with _naming_damage(path), gzip.open(path) as stream:
            while stream.read(2**20):
                pass


def check_finite(path: Path) -> None:
    """Refuse a file with voxels that are NaN or infinite.

    Raises:
        DamagedFileError: Counts them and names the first.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite in a volume
        bad = np.argwhere(~np.isfinite(read_voxels(path).astype(np.float32)))
    if len(bad):
        raise DamagedFileError(
            f"{path} has {len(bad):,} voxels that are NaN or infinite, the first at {place(bad[0])}: replace them (by "
            "0 where there is no tissue), or leave this subject out."
        )


def check_labels(path: Path, classes: Mapping[int, int]) -> None:
    """Refuse a mask with a value that is no class.

    Raises:
        DamagedFileError: Names the value, where it first stands, and the values that are classes.
    """
    with np.errstate(over="ignore"):
        voxels = read_voxels(path).astype(np.float32)  # as in a volume, where labels that are scaled are rounded
    unknown = ~np.isin(voxels, np.array([*classes], voxels.dtype))
    if unknown.any():
        first, values = np.argwhere(unknown)[0], np.unique(voxels[unknown])
        more = f" (and {len(values) - 1:,} more such values)" if len(values) > 1 else ""
        raise DamagedFileError(
            f"The mask {path} holds the value {voxels[*first]:g} at {place(first)}{more}, which is no class: the "
            f"values are {', '.join(map(str, sorted(classes)))}. Repair the mask or fetch it again."
        )


def by(numbers: Sequence[float] | NDArray[np.float64]) -> str:
    """Numbers along the axes for a message: "240x240x155"."""
    return "x".join(f"{number:.6g}" for number in numbers)


def place(voxel: NDArray[np.int64]) -> str:
    """The index of a voxel for a message."""
    return f"voxel ({', '.join(map(str, voxel.tolist()))})"


def in_rows(affine: NDArray[np.float64]) -> str:
    """The rows of an affine for a message, without the last, which is always the same."""
    return "[" + "; ".join(" ".join(f"{number:.6g}" for number in row) for row in affine[:-1]) + "]"


def not_opened(path: Path, error: OSError) -> OSError:
    """`error`, of its own kind, with the file's name and what to do where files are too many."""
    many = error.errno in (errno.EMFILE, errno.ENFILE)
    mend = ": raise the limit (ulimit -n), or lower num_workers" if many else ""
    return OSError(error.errno, f"{error.strerror}{mend}", str(path))


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what nibabel and the decompression raise into an error that names the file."""
    from nibabel.filebasedimages import ImageFileError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path}: put it there, or leave this subject out.") from error
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            raise not_opened(path, error) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedFileError(f"{path} is truncated, damaged or no NIfTI file ({reason}): fetch it again.") from error


def _largest_shift(first: Header, other: Header) -> float:
    """The distance, in mm, between the places of one corner voxel, where it is largest: it is largest at a corner."""
    corners = np.array([[*corner, 1] for corner in product(*((0, side - 1) for side in first.shape))])
    return float(np.linalg.norm(corners @ (first.affine - other.affine).T, axis=1).max())
