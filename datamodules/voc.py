"""PASCAL VOC 2012 for semantic segmentation, with the annotations of SBD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from datamodules.base import Split
from datamodules.images.image_folder import DamagedFileError, opened_image
from datamodules.images.masks import IGNORE_INDEX, class_values, read_mask
from datamodules.layouts.sbd import ARCHIVE, PNG_FOLDER, annotations_in, find_annotations, read_sbd_mask
from datamodules.layouts.sbd import PUBLISHED_AT as SBD_PUBLISHED_AT
from datamodules.layouts.submission import Submission
from datamodules.listing import first_ten
from datamodules.photos.annotated import MaskFiles, Photos, check_present
from datamodules.photos.segmentation import PhotoSegmentationDataModule

TrainSplit = Literal["train", "trainaug", "trainval"]

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
TRAIN_SIZE, VAL_SIZE, TRAINAUG_SIZE = 1_464, 1_449, 10_582
LISTS = "ImageSets/Segmentation"
PUBLISHED_AT = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"


class PascalVOCDataModule(PhotoSegmentationDataModule):
    """Photos whose pixels are one of 20 classes or background (Everingham et al., 2010): `VOCdevkit/VOC2012`.

    Photos are `JPEGImages/<name>.jpg`, masks the palette images `SegmentationClass/<name>.png` of 0 to 20, and 255 for
    outlines and what is hard to tell. The lists are `ImageSets/Segmentation/{train,val,trainval,test}.txt`. Training is
    on one of

    - `train`: 1,464 photos;
    - `trainaug`: `train`, and the photos of SBD (Hariharan et al., 2011) that are not in `val`: 10,582, or those of
      `trainaug.txt` where it is among the lists. A photo that VOC has a mask for keeps it; SBD's masks have no
      outlines. They are found as `SegmentationClassAug/*.png` beside `SegmentationClass`, or as published
      (`benchmark_RELEASE/dataset/cls/*.mat` below `root`); photos and their order (by name) are the same;
    - `trainval`: 2,913 photos, all that have VOC's masks, for the last step before the test server. It holds the photos
      that are validated and tested on elsewhere: `val_size` must be given, and there is no test.

    Validation and test both are `val`, 1,449 photos, because the masks of the test set are not published. `predict`
    takes the photos of `test.txt`, which comes with them in an archive of its own, else those of `val`, and writes
    masks as the PASCAL server wants them (competition 6: trained on other data too).

    `index` is the position in the list of the split. See `PhotoSegmentationDataModule` for what batches hold.

    Args:
        root: The folder that holds `VOCdevkit/`; default $CONVSUITE_DATA, else ./data.
        batch_size: Training crops a batch and process; whole photos come one by one.
        num_workers: Processes that decode and augment.
        train_size: Number of training photos, a subset f(seed) in which smaller ones are contained; default: all.
        val_size: Number of validation photos taken from the training photos, f(seed), and not trained on; 0: no
            validation; default (null): `val`.
        seed: Seed of subsets, order and augmentation; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict at native size, searched recursively.
        train_split: `train`, `trainaug` or `trainval`.
        sbd: Folder of SBD's masks (`.mat` or `.png`, or the archive's folder), absolute or relative to `root`; default:
            where it is looked for, see above.
        crop_size: Height and width of a training crop.
        scale: Smallest and largest factor that training photos are scaled by; null: they are not.
        flip: Mirror half of the training crops left to right.
        rotation: Largest angle, in degrees, that training crops are turned by; 0: they are not.
        resize: The longer side, in pixels, to which every photo and mask is resized first, in training and evaluation;
            measures are then those of reduced photos, and predictions none to submit. Default (null): native sizes.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    num_classes = len(CLASSES)
    class_names = CLASSES

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 22,
        num_workers: int = 2,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        train_split: TrainSplit = "train",
        sbd: str | None = None,
        crop_size: int = 512,
        scale: tuple[float, float] | None = (0.5, 2.0),
        flip: bool = True,
        rotation: float = 10.0,
        resize: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            train_size=train_size,
            val_size=val_size,
            seed=seed,
            predict_root=predict_root,
            drop_last=drop_last,
            crop_size=crop_size,
            scale=scale,
            flip=flip,
            rotation=rotation,
            resize=resize,
        )
        if train_split not in get_args(TrainSplit):
            raise ValueError(f"train_split must be one of {', '.join(get_args(TrainSplit))}, got {train_split!r}.")
        if train_split == "trainval" and val_size is None:
            raise ValueError(
                "train_split: trainval holds the published validation photos: set val_size to 0 (no validation), or to "
                "a number of photos that are then not trained on."
            )
        self.train_split = train_split
        self.sbd = sbd

    def photos(self, split: Split) -> Photos:
        if split == "train" and self.train_split == "trainaug":
            return self._augmented()
        if split == "test" and self.train_split == "trainval":
            raise ValueError(
                "train_split: trainval leaves no photos to test on, because those with published masks are all trained "
                "on. Use fit, then predict, and have the server measure what that writes; or another train_split."
            )
        return self._listed(self.train_split if split == "train" else "val")

    def photos_to_predict(self) -> Photos:
        return self._listed(self._predicted_split, with_masks=False)

    def server_submission(self) -> Submission:
        return Submission(f"results/VOC2012/Segmentation/comp6_{self._predicted_split}_cls")

    @property
    def _folder(self) -> Path:
        return Path(self.root) / "VOCdevkit" / "VOC2012"

    @property
    def _predicted_split(self) -> Literal["test", "val"]:
        return "test" if (self._folder / LISTS / "test.txt").is_file() else "val"

    def _listed(self, split: str, with_masks: bool = True) -> Photos:
        names = self._read_list(split)
        photos = self._existing_photos(names, split)
        if not with_masks:
            return photos
        masks = [f"SegmentationClass/{name}.png" for name in names]
        check_present(self._folder, masks, f"masks of {split}")
        return replace(photos, masks=MaskFiles(self._folder, masks, read_voc_mask))

    def _augmented(self) -> Photos:
        """VOC's `train` and what SBD annotates outside of VOC's `val`."""
        train, val = self._read_list("train"), self._read_list("val")
        sbd = self._find_sbd()
        added = annotations_in(sbd)
        listed = (self._folder / LISTS / "trainaug.txt").is_file()
        names = self._read_trainaug(val) if listed else sorted({*train, *added} - {*val})
        if (len(train), len(val)) == (TRAIN_SIZE, VAL_SIZE) and len(names) != TRAINAUG_SIZE:
            rank_zero_warn(
                f"trainaug has {len(names):,} photos, where VOC 2012 and SBD make {TRAINAUG_SIZE:,}: the masks in "
                f"{sbd}, or trainaug.txt, are not the whole. Results do not compare with published ones."
            )
        photos = self._existing_photos(names, "trainaug")
        masks = {name: str((sbd / file).absolute()) for name, file in added.items()}
        own = annotations_in(self._folder / "SegmentationClass")
        masks |= {name: f"SegmentationClass/{file}" for name, file in own.items()}
        if unannotated := [name for name in names if name not in masks]:
            raise FileNotFoundError(
                f"{len(unannotated):,} of the {len(names):,} photos of trainaug have no mask, neither in "
                f"{self._folder / 'SegmentationClass'} nor in {sbd}: {first_ten(unannotated)}."
            )
        return replace(photos, masks=MaskFiles(self._folder, [masks[name] for name in names], read_voc_mask))

    def _read_trainaug(self, val: list[str]) -> list[str]:
        """The names in `trainaug.txt`, sorted; none may be in `val`."""
        names = sorted(self._read_list("trainaug"))
        if leaking := sorted({*names} & {*val}):
            raise ValueError(
                f"{self._folder / LISTS / 'trainaug.txt'} lists {len(leaking):,} photos of val.txt, {leaking[0]} "
                "first: take them off, or remove the list, and it is made of what SBD annotates."
            )
        return names

    def _find_sbd(self) -> Path:
        found = find_annotations(Path(self.root), self._folder, self.sbd)
        if found is None:
            looked = self.sbd or f"{self._folder / PNG_FOLDER} (PNG) and {Path(self.root) / ARCHIVE}/dataset/cls (.mat)"
            raise FileNotFoundError(
                f"train_split: trainaug needs the masks of SBD, and there is none in {looked}. Unpack the archive "
                f"({SBD_PUBLISHED_AT}) in {Path(self.root).absolute()}, or set sbd to its folder; train_split: train "
                "does without."
            )
        return found

    def _existing_photos(self, names: list[str], split: str) -> Photos:
        files = [f"JPEGImages/{name}.jpg" for name in names]
        check_present(self._folder, files, f"photos of {split}")
        return Photos(self._folder, files)

    def _read_list(self, split: str) -> list[str]:
        if not self._folder.is_dir():
            raise FileNotFoundError(self._how_to_get())
        path = self._folder / LISTS / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"The list {path} is missing: unpack VOC 2012 again ({PUBLISHED_AT}).")
        lines = [line.split() for line in path.read_text().splitlines()]
        # Some lists of trainaug give the paths of photo and mask in place of a name.
        names = [PurePosixPath(line[0]).stem for line in lines if line]
        if not names:
            raise ValueError(f"The list {path} names no photo: unpack VOC 2012 again ({PUBLISHED_AT}).")
        return names

    def _how_to_get(self) -> str:
        sbd = find_annotations(Path(self.root), self._folder, self.sbd)
        alone = f" The masks of SBD in {sbd} are for photos of VOC 2012 and need its lists too." if sbd else ""
        return (
            f"There is no VOC 2012 in {Path(self.root).absolute()}: expected VOCdevkit/VOC2012 with JPEGImages/, "
            f"SegmentationClass/ and {LISTS}/.{alone} Set root or CONVSUITE_DATA to the folder that holds VOCdevkit/ "
            f"(published at {PUBLISHED_AT})."
        )


def read_voc_mask(path: Path) -> Tensor:
    """The classes in a mask of VOC (PNG) or of SBD (PNG or `.mat`), uint8 (H, W).

    Raises:
        DamagedFileError: The file cannot be read, is a colour image, holds a value that is no class, or gives the
            classes colours that are neither VOC's nor grey.
    """
    if path.suffix == ".mat":
        return read_sbd_mask(path, len(CLASSES))
    mask = read_mask(path, class_values(len(CLASSES)))
    with opened_image(path, "mask") as image:
        palette = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    if palette is not None:
        _check_palette(path, palette, mask.flatten().bincount().nonzero().flatten().tolist())
    return mask


def voc_colour(value: int) -> tuple[int, ...]:
    """The colour (R, G, B) of a value in VOC's masks.

    Bits 0, 1 and 2 are the highest ones of red, green and blue, bits 3, 4 and 5 the next, 6 and 7 the third.
    """
    return tuple(sum((value >> 3 * place + channel & 1) << 7 - place for place in range(3)) for channel in range(3))


def _check_palette(path: Path, palette: list[int], values: list[int]) -> None:
    """Refuse a palette of a program's own, whose indices count colours and not classes.

    Grey palettes are those of masks that were grey images before: indices are what they were. The colour of what is
    ignored proves nothing: programs show it in black or white, and classes in VOC's colours.
    """
    colours = {
        value: tuple(palette[3 * value : 3 * value + 3])
        for value in values
        if value != IGNORE_INDEX and 3 * value < len(palette)
    }
    if all(colour == (value,) * 3 for value, colour in colours.items()):
        return
    for value, colour in colours.items():
        if colour != voc_colour(value):
            raise DamagedFileError(
                f"The mask {path} shows the value {value} in the colour {colour}, where VOC has {voc_colour(value)}: "
                "its values are likely to be no classes, as after a colour image was reduced to a palette. Fetch the "
                "original; or, if they are classes, save them as a grey image: "
                "Image.fromarray(numpy.array(Image.open(mask)))."
            )
