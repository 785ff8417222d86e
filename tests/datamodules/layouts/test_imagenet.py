"""ImageNet in its layouts: found, labelled, named; what is missing or does not fit is said."""

from pathlib import Path

import pytest

from datamodules.images.image_folder import DamagedFileError
from datamodules.layouts.imagenet import Copy, find_copy, list_photos
from datamodules.photos.labelled import LabelledPhotos
from tests.helpers.cats_dogs import write_photo
from tests.helpers.imagenet import CLASSES, flat_label, write_class_tree, write_official, write_tiny_imagenet

NAMES = ("tench", "crane (n02012849)", "crane (n03126707)")


def listed(root: Path, folder: str | None = None, layout: str = "auto", classes: str = "listed") -> LabelledPhotos:
    return list_photos(find_copy(root, folder, layout), classes)


def labelled(photos: LabelledPhotos, part: str) -> dict[str, int]:
    of_part = photos.parts[part]
    return dict(zip(of_part.photos.files.tolist(), of_part.labels.tolist(), strict=True))


# Finding and labelling


def test_official_folders(tmp_path):
    write_official(tmp_path / "ILSVRC2012", train=2, val=1)
    photos = listed(tmp_path)
    assert photos.classes == CLASSES
    assert photos.class_names == CLASSES  # nothing says what they stand for
    assert list(labelled(photos, "train").items())[1:3] == [
        ("train/n01440764/n01440764_1.JPEG", 0),
        ("train/n02012849/n02012849_0.JPEG", 1),
    ]
    assert list(labelled(photos, "val").values()) == [0, 1, 2]


@pytest.mark.parametrize("labels", ["devkit", "kaggle"])
def test_official_folders_with_flat_validation(tmp_path, labels):
    folder = tmp_path / ("ILSVRC/Data/CLS-LOC" if labels == "kaggle" else "imagenet")
    write_official(folder, train=1, val=2, labels=labels)
    photos = listed(tmp_path)
    assert photos.class_names == NAMES
    expected = {f"val/ILSVRC2012_val_{n:08d}.JPEG": CLASSES.index(flat_label(n)) for n in range(1, 7)}
    assert labelled(photos, "val") == expected
    assert photos.parts["val"].photos.files.tolist() == sorted(expected)


def test_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", train=2, val=2)
    photos = listed(tmp_path)
    assert photos.classes == CLASSES  # sorted; wnids.txt is in another order
    assert photos.class_names == NAMES
    assert labelled(photos, "train")["train/n02012849/images/n02012849_1.JPEG"] == 1
    assert labelled(photos, "val")["val/images/val_2.JPEG"] == 2
    assert len(labelled(photos, "val")) == 6


def test_any_class_folders(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("pear", "apple"), train=2, val=1, test=1)
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / "notes.txt").write_text("not a class")
    photos = listed(tmp_path, "fruit")
    assert photos.classes == photos.class_names == ("apple", "pear")
    assert labelled(photos, "test") == {"test/apple/apple_0.JPEG": 0, "test/pear/pear_0.JPEG": 1}
    assert listed(folder, ".").parts.keys() == {"train", "val", "test"}


def test_folders_of_classes_may_be_links(tmp_path):
    folder = write_class_tree(tmp_path / "imagenet", train=2, val=1)
    (tmp_path / "subset" / "train").mkdir(parents=True)
    for name in CLASSES[:2]:
        (tmp_path / "subset" / "train" / name).symlink_to(folder / "train" / name)
    assert listed(tmp_path, "subset").classes == CLASSES[:2]


def test_one_folder_under_two_names_is_one_copy(tmp_path):
    write_official(tmp_path / "ILSVRC2012", 1, 1)
    (tmp_path / "imagenet").symlink_to(tmp_path / "ILSVRC2012")
    assert find_copy(tmp_path, None, "auto") == Copy("official", tmp_path / "ILSVRC2012")


def test_several_copies_are_to_be_chosen_from(tmp_path):
    write_official(tmp_path / "ILSVRC2012", 1, 1)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    with pytest.raises(ValueError, match=r"choose one with folder: ILSVRC2012 \(official\), tiny-imagenet-200 \(tiny"):
        listed(tmp_path)
    assert listed(tmp_path, "tiny-imagenet-200").place == str(tmp_path / "tiny-imagenet-200")
    assert listed(tmp_path, layout="official").place == str(tmp_path / "ILSVRC2012")
    assert find_copy(tmp_path, "ILSVRC2012", "class_folders").layout == "class_folders"


def test_nothing_to_be_found_lists_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        listed(tmp_path)
    for part in (str(tmp_path), "ILSVRC2012, imagenet", "LOC_val_solution.csv", "val_annotations.txt", "image-net.org"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"in the layout official in .*: looked for train/ in photos"):
        listed(tmp_path, "photos", "official")
    with pytest.raises(ValueError, match="layout must be one of auto, official"):
        listed(tmp_path, layout="folders")


def test_a_root_that_is_the_data_set_itself(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("apple", "pear"), train=1, val=1)
    with pytest.raises(
        FileNotFoundError, match=r"in .*fruit: .* It holds a train/ itself: set --data\.folder \. if it is"
    ):
        listed(folder)
    assert listed(folder, ".").classes == ("apple", "pear")


# Classes


def test_an_empty_class_is_named_or_left_out(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("apple", "pear", "plum"), train=1, val=1)
    (folder / "train" / "pear" / "pear_0.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 folders in .*train have no training images in .*: pear\."):
        listed(tmp_path, "fruit")
    photos = listed(tmp_path, "fruit", classes="present")
    assert photos.classes == ("apple", "plum")
    assert labelled(photos, "val") == {"val/apple/apple_0.JPEG": 0, "val/plum/plum_0.JPEG": 1}


def test_wnids_without_images_are_named_or_left_out(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    with (folder / "wnids.txt").open("a") as wnids:
        wnids.writelines(f"n{number:08d}\n" for number in range(12))
    with pytest.raises(FileNotFoundError) as error:
        listed(tmp_path)
    for part in ("12 of the 15 classes", "wnids.txt", "n00000000", "n00000009 and 2 more", "classes: present"):
        assert part in str(error.value)
    assert listed(tmp_path, classes="present").classes == CLASSES


def test_class_folders_that_are_not_listed(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    (folder / "wnids.txt").write_text("n01440764\nn02012849\n")
    with pytest.raises(ValueError, match=r"1 class folders in .* are not among .*wnids\.txt lists: n03126707\."):
        listed(tmp_path)


def test_parts_with_other_classes(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("apple", "pear"), train=1)
    write_class_tree(folder, ("apple", "plum"), val=1)
    with pytest.raises(
        ValueError, match=r"of the 2 classes in .*train 1 have no images in .*val \(pear\), and .*val "
    ) as error:
        listed(tmp_path, "fruit")
    assert "has images of 1 others (plum)" in str(error.value)
    assert labelled(listed(tmp_path, "fruit", classes="present"), "val") == {"val/apple/apple_0.JPEG": 0}
    with pytest.raises(ValueError, match="classes must be one of listed, present"):
        listed(tmp_path, "fruit", classes="all")


def test_images_outside_of_class_folders(tmp_path):
    folder = write_class_tree(tmp_path / "fruit", ("apple",), train=1)
    write_photo(folder / "train" / "stray.jpg", "cat", 0)
    with pytest.raises(DamagedFileError, match=r"1 images lie directly in .*train, .*: stray\.jpg\. Move"):
        listed(tmp_path, "fruit")


def test_a_tree_without_images(tmp_path):
    (tmp_path / "fruit" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"fruit/train has no class folder with images"):
        listed(tmp_path, "fruit")


# Annotations


def test_annotations_of_missing_files_name_the_first_ten(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    with (folder / "val" / "val_annotations.txt").open("a") as annotations:
        annotations.writelines(f"val_{number}.JPEG\tn01440764\t0\t0\t1\t1\n" for number in range(50, 62))
    with pytest.raises(
        FileNotFoundError, match=r"names 12 images that are not in .*: val_50.JPEG, .*9.JPEG and 2 more"
    ):
        listed(tmp_path)


def test_images_without_annotations(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    write_photo(folder / "val" / "images" / "val_9.JPEG", "cat", 0)
    with pytest.raises(DamagedFileError, match=r"val_annotations.txt does not name 1 of the images in .*: val_9.JPEG"):
        listed(tmp_path)
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*val_annotations\.txt"):
        listed(tmp_path)


def test_a_line_that_is_no_annotation(tmp_path):
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet-200", 1, 1)
    with (folder / "val" / "val_annotations.txt").open("a") as annotations:
        annotations.write("\nval_9.JPEG n01440764\n")
    with pytest.raises(DamagedFileError, match=r"val_annotations.txt, line 5: expected .* got 'val_9.JPEG n0"):
        listed(tmp_path)


def test_a_devkit_that_does_not_fit(tmp_path):
    folder = write_official(tmp_path / "imagenet", 1, 1, labels="devkit")
    devkit = folder / "ILSVRC2012_devkit_t12" / "data"
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n7\n3\n")
    with pytest.raises(DamagedFileError, match=r"ground_truth.txt, line 2: expected the number of a class .* got '7'"):
        listed(tmp_path)
    (devkit / "meta.mat").write_bytes(b"not a matrix")
    with pytest.raises(DamagedFileError, match=r"Cannot read .*meta.mat: "):
        listed(tmp_path)
    (devkit / "meta.mat").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"val have no labels: put Kaggle's LOC_val_solution.csv, or the devkit"
    ):
        listed(tmp_path)
