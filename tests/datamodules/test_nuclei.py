"""Nuclei in the three published layouts: pairs, splits, tiles, objects, download, bad input."""

import hashlib
import io
import os
import shutil
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.tiles import to_grey
from datamodules.layouts import nuclei_download
from datamodules.layouts.nuclei_download import unpack
from datamodules.layouts.nuclei_objects import read_object_masks, read_outlines
from datamodules.nuclei import MEAN_AND_STD, NucleiDataModule
from tests.helpers.nuclei import TEST_SLIDES, TRAIN_SLIDES, aperio_xml, write_dsb2018, write_monuseg, write_tnbc

REAL_DATA = os.environ.get("CONVSUITE_DATA", "")


def opened(root: Path, **options) -> NucleiDataModule:
    data = NucleiDataModule(str(root), **{"tile_size": 16, "batch_size": 8, "seed": 0, **options})
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def patients(data: NucleiDataModule) -> list[set[str]]:
    return [set(part.groups()) for part in (data.train_dataset, data.val_dataset, data.test_dataset)]


def whole_images(data: NucleiDataModule, split: str = "test") -> dict[str, dict]:
    return {batch["file"][0]: batch for batch in data.evaluation_loader(split)}


def test_the_data_are_described_before_any_file_is_read():
    data = NucleiDataModule("/nowhere", tile_size=64)
    assert (data.num_classes, data.class_names) == (2, ("background", "nucleus"))
    assert (data.in_channels, data.image_size, len(data.mean), len(data.std)) == (3, 64, 3, 3)
    data = NucleiDataModule("/nowhere", colour="grey")
    assert (data.in_channels, data.image_size, len(data.mean), len(data.std)) == (1, 128, 1, 1)


def test_tnbc_pairs_slides_with_masks_and_tiles_them(tmp_path):
    masks = write_tnbc(tmp_path)
    data = opened(tmp_path, val_size=0, test_size=0)
    assert len(data.train_dataset) == 8 * 4  # images of 32x32, tiles of 16x16
    loader = data.evaluation_loader("train")
    batches = list(loader)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(32))
    assert batches[0]["file"][:3] == [f"Slide_01/01_1_{place}.png" for place in ("0_0", "0_16", "16_0")]
    found = torch.cat([batch["mask"] for batch in batches])
    expected = np.concatenate([mask.reshape(2, 16, 2, 16).swapaxes(1, 2).reshape(4, 16, 16) for mask in masks.values()])
    assert found.tolist() == expected.tolist()
    assert "instances" not in batches[0]
    image = Image.open(tmp_path / "TNBC_NucleiSegmentation" / "Slide_01" / "01_1.png").convert("RGB")
    assert batches[0]["image"][1].permute(1, 2, 0).tolist() == np.asarray(image)[:16, 16:].tolist()


def test_a_512_image_gives_the_16_tiles_of_the_paper(tmp_path):
    write_tnbc(tmp_path, images=(1, 1), size=512)
    data = opened(tmp_path, tile_size=128, split="random", test_size=8, val_size=0)
    assert (len(data.train_dataset), len(data.test_dataset)) == (24, 8)


@pytest.mark.parametrize("official", [True, False])
def test_monuseg_in_both_layouts(tmp_path, official):
    objects = write_monuseg(tmp_path, official)
    data = opened(tmp_path, split="published", evaluate="images", val_size=1)
    assert [len(part) for part in patients(data)] == [3, 1, 2]
    assert patients(data)[2] == {"TCGA-AC-A2FO", "TCGA-AO-A0J2"}
    assert set.union(*patients(data)[:2]) == {name[:12] for name in TRAIN_SLIDES}
    images = whole_images(data)
    assert {Path(name).stem for name in images} == set(TEST_SLIDES)
    for name, batch in images.items():
        assert batch["image"].shape == (1, 3, 40, 48)
        assert torch.equal(batch["mask"][0], torch.from_numpy(objects[name] > 0).to(torch.uint8))
        assert ("instances" in batch) == official
        if official:
            assert batch["instances"][0].tolist() == objects[name].tolist()
            assert batch["instances"].dtype == torch.int32
    assert [images[name]["index"].item() for name in sorted(images)] == [0, 1]


def test_monuseg_unpacked_into_folders_of_the_archives_names(tmp_path):
    write_monuseg(tmp_path, official=True)
    for name in ("MoNuSeg 2018 Training Data", "MoNuSegTestData"):
        (tmp_path / name).mkdir()
        shutil.move(tmp_path / "monuseg" / name, tmp_path / name / name)
    data = opened(tmp_path, split="published")
    assert [len(part) for part in patients(data)] == [3, 1, 2]


def test_dsb2018_joins_the_masks_of_objects(tmp_path):
    objects = write_dsb2018(tmp_path)
    data = opened(tmp_path, evaluate="images", test_size=3, val_size=0)
    images = whole_images(data)
    assert len(images) == 3
    for name, batch in images.items():
        assert batch["instances"][0].tolist() == objects[name].tolist()
        assert batch["mask"][0].tolist() == (objects[name] > 0).astype(int).tolist()
        assert batch["image"].shape[2:] == objects[name].shape
    assert len(data.train_dataset) in (4, 6)  # 32x32, or one side longer


def test_tiles_carry_the_objects_of_their_image(tmp_path):
    objects = write_dsb2018(tmp_path, sizes=((32, 32), (32, 32)))
    data = opened(tmp_path, val_size=0, test_size=1)
    (batch,) = data.evaluation_loader("test")
    (name,) = [name for name in objects if Path(batch["file"][0]).parent == Path(name).parent]
    assert batch["instances"][3].tolist() == objects[name][16:, 16:].tolist()


@pytest.mark.parametrize("evaluate", ["tiles", "images"])
def test_no_patient_is_in_two_sets(tmp_path, evaluate):
    write_tnbc(tmp_path, images=(3, 2, 2, 1, 1))
    splits = []
    for seed in range(4):
        data = opened(tmp_path, seed=seed, evaluate=evaluate)
        train, val, test = patients(data)
        assert (len(train), len(val), len(test)) == (2, 1, 2)  # a tenth and a quarter, rounded up
        assert train | val | test == {f"Slide_{number:02d}" for number in range(1, 6)}
        splits.append((train, test))
    assert len({frozenset(test) for _, test in splits}) > 1
    assert patients(opened(tmp_path, seed=3, evaluate=evaluate))[::2] == list(splits[3])
    smaller = opened(tmp_path, seed=3, train_size=1)
    assert patients(smaller)[0] < splits[3][0]
    assert patients(smaller)[2] == splits[3][1]


def test_patients_of_all_parts_are_dealt_out(tmp_path):
    write_monuseg(tmp_path, official=False)
    data = opened(tmp_path)
    assert [len(part) for part in patients(data)] == [3, 1, 2]
    indices = torch.cat([part.members for part in (data.train_dataset, data.val_dataset, data.test_dataset)])
    assert sorted(indices.tolist()) == list(range(6 * 9))  # 40x48 pixels: 3x3 tiles of 16


def test_a_random_split_deals_out_tiles(tmp_path):
    write_tnbc(tmp_path)
    data = opened(tmp_path, split="random", test_size=8, val_size=4)
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (20, 4, 8)
    members = torch.cat([part.members for part in (data.train_dataset, data.val_dataset, data.test_dataset)])
    assert sorted(members.tolist()) == list(range(32))
    assert patients(data)[0] & patients(data)[2]  # the leak
    assert len(opened(tmp_path, split="random").test_dataset) == 8  # a quarter
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["image"].shape == (8, 3, 16, 16)
    assert len(set(batch["file"])) == 8


def test_test_images_are_predicted_at_native_size(tmp_path):
    write_monuseg(tmp_path, official=True)
    data = opened(tmp_path, split="published")
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["file"] for batch in batches] == [[f"MoNuSegTestData/{name}.tif"] for name in TEST_SLIDES]
    assert all(batch.keys() == {"image", "file"} and batch["image"].shape == (1, 3, 40, 48) for batch in batches)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing(tmp_path):
    write_tnbc(tmp_path)
    epochs = []
    for workers in (0, 2):
        data = opened(tmp_path, num_workers=workers, stain_jitter=0.1, colour="grey")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        epochs.append(list(loader))
        assert epochs[-1][0].keys() == {"image", "mask", "index"}
        assert epochs[-1][0]["image"].shape[1] == 1
    for single, parallel in zip(*epochs, strict=True):
        assert all(torch.equal(single[name], parallel[name]) for name in single)


def test_training_tiles_are_augmented_as_asked_and_by_the_seed(tmp_path):
    write_tnbc(tmp_path)

    def drawn(**options) -> torch.Tensor:
        data = opened(tmp_path, **{"split": "random", "val_size": 0, "test_size": 1, **options})
        data.train_dataset.members = torch.arange(8)  # whatever the split
        return data.train_dataset.__getitems__([(0, index) for index in range(8)])["image"]

    plain = drawn(orientations=False)
    assert torch.equal(plain, drawn(orientations=False, seed=1))
    turned, jittered = drawn(orientations=True), drawn(orientations=False, stain_jitter=0.2)
    assert not torch.equal(turned, plain)
    assert torch.equal(turned.flatten(1).sort().values, plain.flatten(1).sort().values)
    assert not torch.equal(jittered.flatten(1).sort().values, plain.flatten(1).sort().values)
    assert not torch.equal(turned, drawn(orientations=True, seed=1))


def test_fingerprints_name_what_is_measured_on(tmp_path):
    write_tnbc(tmp_path)
    fingerprints = [
        opened(tmp_path).fingerprint("test"),
        opened(tmp_path).fingerprint("train"),
        opened(tmp_path, seed=1).fingerprint("test"),
        opened(tmp_path, tile_size=32).fingerprint("test"),
        opened(tmp_path, evaluate="images").fingerprint("test"),
        opened(tmp_path, colour="grey").fingerprint("test"),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert opened(tmp_path, stain_jitter=0.1, orientations=False, batch_size=3).fingerprint("test") == fingerprints[0]


def test_sets_without_samples_say_how_to_get_some(tmp_path):
    write_tnbc(tmp_path)
    data = opened(tmp_path, val_size=0, test_size=0)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="val_size is 0: there is nothing to validate"):
        data.evaluation_loader("val")
    with pytest.raises(ValueError, match="test_size is 0: there is nothing to test"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "voc"}, "layout must be one of auto, tnbc, monuseg, dsb2018, got 'voc'"),
        ({"colour": "gray"}, "colour must be one of rgb, grey"),
        ({"split": "published", "test_size": 2}, "test_size must be null with split: published"),
        ({"split": "random", "evaluate": "images"}, "no image is whole in any set"),
        ({"test_size": -1}, "test_size must be 0"),
        ({"tile_size": 0}, "tile_size must be at least 1"),
        ({"stain_jitter": 1.0}, "stain_jitter must be 0"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        NucleiDataModule("/nowhere", **options)


def test_sizes_that_the_data_cannot_give(tmp_path):
    write_tnbc(tmp_path)
    with pytest.raises(
        ValueError, match=r"train_size \(2\), val_size \(1\) and test_size \(2\) share the 4 patients in"
    ):
        opened(tmp_path, train_size=2, val_size=1, test_size=2)
    with pytest.raises(ValueError, match=r"share the 32 tiles in .*: choose smaller ones"):
        opened(tmp_path, split="random", val_size=30, test_size=2)
    with pytest.raises(ValueError, match=r"has no published test images \(layout tnbc\): set split: patient or random"):
        opened(tmp_path, split="published")


def test_missing_data_say_what_is_expected_where(tmp_path):
    for layout, expected in (
        ("auto", "TNBC_Nuclei.*monuseg/.*stage1_train/"),
        ("dsb2018", "dsb2018/stage1_train/<id>"),
    ):
        with pytest.raises(FileNotFoundError, match=f"(?s)No images of nuclei in {tmp_path}.*Expected: .*{expected}"):
            opened(tmp_path, layout=layout)
    write_tnbc(tmp_path)
    write_dsb2018(tmp_path)
    with pytest.raises(ValueError, match="holds several sets of nuclei: set layout to one of tnbc, dsb2018"):
        opened(tmp_path)
    opened(tmp_path, layout="dsb2018", tile_size=8)


def test_missing_pairs_are_listed(tmp_path):
    write_tnbc(tmp_path, images=(13, 1))
    home = tmp_path / "TNBC_NucleiSegmentation"
    for number in range(1, 13):
        (home / "GT_01" / f"01_{number}.png").unlink()
    (home / "Slide_02" / "02_1.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        opened(tmp_path)
    assert "12 without annotation: 01/01_1.png, 01/01_10.png" in str(error.value)
    assert "01/01_7.png ...; 1 without image: 02/02_1.png" in str(error.value)
    assert "01/01_8.png" not in str(error.value)
    write_dsb2018(tmp_path / "b")
    shutil.rmtree(next((tmp_path / "b").glob("dsb2018/stage1_train/*/masks")))
    with pytest.raises(FileNotFoundError, match="1 without annotation: 0"):
        opened(tmp_path / "b")
    write_monuseg(tmp_path / "c", official=True)
    next((tmp_path / "c").glob("monuseg/*/Annotations/*.xml")).unlink()
    with pytest.raises(FileNotFoundError, match="1 without annotation: TCGA-"):
        opened(tmp_path / "c")
    write_monuseg(tmp_path / "d", official=False)
    shutil.rmtree(tmp_path / "d" / "monuseg" / "train" / "masks")
    with pytest.raises(FileNotFoundError, match=r"train holds tissue images, but neither Annotations/ nor masks/"):
        opened(tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / "monuseg" / "train")
    with pytest.raises(FileNotFoundError, match="monuseg has test images only"):
        opened(tmp_path / "d")


def damage_size(image: Path, mask: Path) -> None:
    Image.new("L", (31, 32)).save(mask)


def damage_value(image: Path, mask: Path) -> None:
    Image.new("L", (32, 32), 128).save(mask)


def damage_colour(image: Path, mask: Path) -> None:
    Image.new("RGB", (32, 32)).save(mask)


def damage_alpha(image: Path, mask: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 128)).save(image)


def damage_image(image: Path, mask: Path) -> None:
    image.write_bytes(image.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, r"02_1\.png has 32x32 pixels \(height x width\), its mask .*GT_02.02_1\.png 32x31"),
        (damage_value, r"GT_02.02_1\.png holds the value 128 at row 0, column 0, which is no class: .* 0, 1, 255"),
        (damage_colour, r"GT_02.02_1\.png is a colour image"),
        (damage_alpha, r"Slide_02.02_1\.png has an alpha channel with transparent pixels"),
        (damage_image, r"Cannot read the image .*Slide_02.02_1\.png"),
    ],
)
def test_bad_files_are_named(tmp_path, damage, message):
    write_tnbc(tmp_path)
    home = tmp_path / "TNBC_NucleiSegmentation"
    damage(home / "Slide_02" / "02_1.png", home / "GT_02" / "02_1.png")
    with pytest.raises(DamagedFileError, match=message):
        opened(tmp_path)


def test_an_image_smaller_than_a_tile_is_named(tmp_path):
    write_tnbc(tmp_path)
    with pytest.raises(ValueError, match=r"Slide_01/01_1\.png has 32x32 pixels .* fewer than a tile of 128x128"):
        opened(tmp_path, tile_size=128)


def outlined(tmp_path: Path, *outlines: str) -> Path:
    """An XML file of regions with these vertices, as in "2,3 6,3 6,9"."""
    regions = "".join(
        "<Region><Vertices>{}</Vertices></Region>".format(
            "".join('<Vertex X="{}" Y="{}"/>'.format(*vertex.split(",")) for vertex in outline.split())
        )
        for outline in outlines
    )
    path = tmp_path / "slide.xml"
    path.write_text(f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>")
    return path


def test_outlines_cover_the_pixels_whose_centres_they_hold(tmp_path):
    path = outlined(tmp_path, "2,3 6,3 6,9 2,9", "4,5 12,5 12,7 4,7", "8,8", "9.6,-3 30,-3 30,1.6 9.6,1.6", "")
    numbers = read_outlines(path, (10, 12))
    expected = np.zeros((10, 12), dtype=int)
    expected[3:9, 2:6] = 1
    expected[5:7, 6:12] = 2  # where both lie the first stays
    expected[0:2, 10:12] = 4  # cut off at the border; the third has no area
    assert numbers.tolist() == expected.tolist()
    assert numbers.dtype == torch.int32


def test_what_the_writer_outlines_is_read_back(tmp_path):
    numbers = np.zeros((20, 20), dtype=np.int32)
    numbers[2:9, 3:7], numbers[2:9, 7:12], numbers[15:16, 19:20] = 1, 2, 3
    (tmp_path / "a.xml").write_text(aperio_xml(numbers))
    assert read_outlines(tmp_path / "a.xml", (20, 20)).tolist() == numbers.tolist()


def test_broken_outlines_are_named(tmp_path):
    size = (10, 12)
    with pytest.raises(DamagedFileError, match=r"slide\.xml: a vertex of region 2 has X='x' and Y='1' in place of two"):
        read_outlines(outlined(tmp_path, "1,1 5,1 5,5", "x,1 2,2"), size)
    with pytest.raises(
        DamagedFileError, match=r"slide\.xml: none of its 1 regions covers a pixel of the image \(10x12"
    ):
        read_outlines(outlined(tmp_path, "100,100 120,100 120,120"), size)
    path = outlined(tmp_path, "1,1 5,1 5,5")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DamagedFileError, match=r"Cannot read the annotations .*slide\.xml"):
        read_outlines(path, size)
    path.write_text("<kml/>")
    with pytest.raises(DamagedFileError, match=r"slide\.xml holds 'kml' in place of Aperio's 'Annotations'"):
        read_outlines(path, size)
    path.write_text("<Annotations/>")
    assert not read_outlines(path, size).any()


def test_the_first_of_overlapping_object_files_keeps_a_pixel(tmp_path):
    folder = tmp_path / "id" / "masks"
    folder.mkdir(parents=True)
    for name, (left, right) in {"a.png": (0, 3), "b.png": (2, 5)}.items():
        mask = np.zeros((2, 6), dtype=np.uint8)
        mask[:, left:right] = 255
        Image.fromarray(mask).save(folder / name)
    assert read_object_masks(folder, (2, 6)).tolist() == [[1, 1, 1, 2, 2, 0]] * 2
    with pytest.raises(DamagedFileError, match=r"id has 2x7 pixels .*, its mask .*a\.png 2x6"):
        read_object_masks(folder, (2, 7))


class Response(io.BytesIO):
    """What `urlopen` returns."""

    url = None

    @property
    def length(self) -> int:
        return len(self.getvalue())


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A zip of a tiny TNBC set that counts as the published one; every address gives what lies there."""
    write_tnbc(tmp_path / "source")
    path = tmp_path / "TNBC.zip"
    with zipfile.ZipFile(path, "w") as content:
        for file in sorted((tmp_path / "source").rglob("*.png")):
            content.write(file, file.relative_to(tmp_path / "source"))
        content.writestr("__MACOSX/._x", "macOS")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(path.read_bytes()))
    monkeypatch.setattr(nuclei_download, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_tnbc_is_downloaded_once(archive, tmp_path, capsys):
    root = tmp_path / "new" / "data"
    assert len(opened(root, download=True, val_size=0, test_size=0).train_dataset) == 32
    assert [path.name for path in root.iterdir()] == ["TNBC_NucleiSegmentation"]
    archive.unlink()
    opened(root, download=True)


def test_a_download_that_is_not_what_was_published_leaves_nothing(archive, tmp_path, capsys):
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    root = tmp_path / "new"
    with pytest.raises(FileNotFoundError, match=r"(?i)the download failed: .*corrupt"):
        opened(root, download=True)
    assert not root.exists()
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=r"the download failed: .*Set root or CONVSUITE_DATA"):
        opened(root, download=True)
    with pytest.raises(FileNotFoundError, match="No images of nuclei"):
        opened(root, download=True, layout="monuseg")
    assert not list(tmp_path.glob(".download-*"))


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png", "C:\\outside.png", "link"])
def test_archives_with_paths_outside_or_links_are_refused(tmp_path, name):
    member = zipfile.ZipInfo(name)
    if name == "link":
        member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as content:
        content.writestr("a.png", "first")
        content.writestr(member, "/etc/hostname")
    with pytest.raises(DamagedFileError, match=r"bad\.zip holds .* which is a link or lies outside of its folder"):
        unpack(tmp_path / "bad.zip", tmp_path / "unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


@pytest.mark.real_data("monuseg")
def test_the_real_monuseg_images():
    data = opened(Path(REAL_DATA), layout="monuseg", split="published", tile_size=128, val_size=0)
    data.setup("predict")
    assert (len(data.train_dataset), len(data.test_dataset)) == (6 * 64, 2 * 64)
    assert [batch["image"].shape for batch in data.predict_dataloader()] == [(1, 3, 1000, 1000)] * 2
    assert data.train_dataset.groups() == [
        f"TCGA-{name}" for name in ("A7-A13E", "A7-A13F", "AR-A1AK", "AR-A1AS", "E2-A14V", "E2-A1B5")
    ]
    assert data.test_dataset.groups() == ["TCGA-AC-A2FO", "TCGA-AO-A0J2"]
    masks = torch.stack([image.mask for image in data.train_dataset.images])
    assert masks.double().mean().item() == pytest.approx(0.1992, abs=1e-4)
    pixels = torch.stack([image.image for image in data.train_dataset.images]).view(-1, 3).double() / 255
    mean, std = (torch.tensor(values) for values in MEAN_AND_STD["rgb"])
    torch.testing.assert_close(pixels.mean(0).float(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.std(0).float(), std, atol=1e-6, rtol=0)
    grey = to_grey(torch.stack([image.image for image in data.train_dataset.images])).double() / 255
    mean, std = MEAN_AND_STD["grey"]
    assert (grey.mean().item(), grey.std().item()) == (
        pytest.approx(mean[0], abs=1e-5),
        pytest.approx(std[0], abs=1e-5),
    )
