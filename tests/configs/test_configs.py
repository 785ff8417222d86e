"""Every file in configs/ builds; every complete experiment trains, resumes, tests and predicts on tiny data."""

from __future__ import annotations

import csv
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules import load_run
from lightning_modules.base import BaseTask
from lightning_modules.cli import main
from lightning_modules.commands.config_files import configs_before
from lightning_modules.commands.training import ConvsuiteCLI
from lightning_modules.files import CheckpointError
from lightning_modules.grids.grid import Grid
from models import create_model
from tests.helpers.cats_dogs import write_class_folders
from tests.helpers.data import trust_fashion_mnist, write_celeba, write_fashion_mnist
from tests.helpers.imagenet import CLASSES, write_official
from tests.helpers.nuclei import write_tnbc
from tests.helpers.photos import box, write_cityscapes, write_coco, write_sbd, write_voc
from tests.helpers.volumes import write_brats, write_image_label_folders

CONFIGS = Path(__file__).parents[2] / "configs"
NO_EXPERIMENTS = ("grids", "sweeps")  # read by `convsuite reproduce` and by W&B, with tests of their own
TESTED = ("test/accuracy", "test/pixel_accuracy", "test/fid_contrastive_20")
TINY_VGG = {"head_width": 16, "pool_size": 1}
TINY_VOLUMES = {  # network, inference and patch
    "folder": ("{dimensions: 3, widths: [2, 2], kernel_size: 3, norm: instance}", "{tile_size: 8, align: 2}", 8),
    "unet": ("{dimensions: 3, widths: [2, 2], kernel_size: 3, norm: instance}", "{tile_size: 8, align: 2}", 8),
    "fcn": ("{dimensions: 3, widths: [2, 2], output_stride: 2, norm: instance}", "{tile_size: 12, align: 4}", 12),
    "deepmedic": ("{dimensions: 3, widths: [2], classifier_widths: [], padding: valid}", "{tile_size: 9, align: 3}", 9),
}
TINY_SUNET = "{filters: 4, block_depths: [1, 1, 1, 1], block_widths: [8, 8, 8, 8], output_stride: 8}"


def names(*, complete: bool) -> list[str]:
    """Configurations by name: complete experiments (with task and data), or overlays."""
    found = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        is_complete = all("class_path" in content.get(part, {}) for part in ("model", "data"))
        if path.relative_to(CONFIGS).parts[0] not in NO_EXPERIMENTS and is_complete == complete:
            found.append(path.relative_to(CONFIGS).as_posix())
    return found


@pytest.fixture
def tiny_data(tmp_path, monkeypatch) -> Path:
    trust_fashion_mnist(monkeypatch, write_fashion_mnist(tmp_path / "data", train=80, test=21))
    write_celeba(tmp_path / "data", train=70, size=(89, 109))
    write_tnbc(tmp_path / "data")
    write_class_folders(tmp_path / "data")
    write_official(tmp_path / "data" / "ILSVRC2012", train=6, val=4)
    write_voc(tmp_path / "data", train=6)
    write_sbd(tmp_path / "data")
    write_cityscapes(tmp_path / "data", train=6, test=2)
    write_brats(tmp_path / "data" / "brats_2018", size=(20, 18, 16))
    write_image_label_folders(tmp_path / "data", [f"case{number}" for number in range(6)], size=(20, 18, 16))
    write_coco(tmp_path / "data", [[{"category": "dog", "segmentation": box(0, 0, 39, 35)}]] * 6)
    torch.save(create_model("vgg16", num_classes=2, **TINY_VGG).state_dict(), tmp_path / "vgg16.pth")
    monkeypatch.setenv("CONVSUITE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", names(complete=True))
def test_experiments_build_without_data(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONVSUITE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["describe", "--config", name]) == 0
    assert "parameters" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", names(complete=False))
def test_overlays_build_over_what_is_said_to_go_before_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [word for config in (*configs_before(CONFIGS / name), name) for word in ("--config", config)]
    # On whatever machine this is: where to run is the overlay's, whether that exists here is not.
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
    with ExitStack() as cleanup:
        cli = ConvsuiteCLI("fit", [*configs, *here], cleanup)
        assert cli.model.network is not None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("layer", ["octave", "gaussian", "depthwise_separable"])
@pytest.mark.parametrize("network", ["unet", "fcn", "deepmedic"])
def test_variants_go_into_every_network_for_volumes(network, layer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    padded = ["--config", "medical/brats/padded.yaml"] if network == "deepmedic" else []
    configs = ["--config", f"medical/brats/{network}.yaml", *padded, "--config", f"medical/brats/layers/{layer}.yaml"]
    with ExitStack() as cleanup:
        cli = ConvsuiteCLI("fit", configs, cleanup)
        assert cli.model.network is not None


@pytest.mark.parametrize(
    ("folder", "plain", "gaussian"),
    [("nuclei", "unet.yaml", "gaussian_unet.yaml"), ("cats_dogs", "vgg16_free_form.yaml", "vgg16_gaussian.yaml")],
)
def test_experiments_that_are_compared_differ_in_the_convolution_alone(folder, plain, gaussian):
    contents = [
        yaml.safe_load((CONFIGS / "gaussian" / folder / name).read_text())
        for name in (plain, gaussian, "layers/gaussian.yaml")
    ]
    convs = [content["model"]["init_args"].pop("conv") for content in contents]
    assert contents[0] == contents[1]
    assert convs[0] == "standard"
    assert convs[1] == convs[2]


@pytest.mark.parametrize("name", ["gaussian_nuclei", "gaussian_cats_dogs"])
def test_cells_of_a_row_see_the_same_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = []
    for cell in Grid.read(CONFIGS / "grids" / f"{name}.yaml").cells(seeds=[0]):
        with ExitStack() as cleanup:
            data.append(ConvsuiteCLI("fit", cell.arguments(), cleanup).config_plain["data"])
    assert len(data) == 4
    assert all(each == data[0] for each in data)


def experiment(name: str) -> list[str]:
    few = ["--data.train_size=64"]
    if name.startswith("ocgan/"):
        few += ["--model.num_generated=20", "--model.num_predicted=9"]
    if name.startswith("gaussian/nuclei/"):
        few = ["--data.train_size=3", "--data.tile_size=32", "--data.batch_size=4"]
    if name.startswith("medical/toy/"):
        few = ["--data.train_size=4", "--data.test_size=3", "--data.patches_per_epoch=8", "--data.batch_size=2"]
    if name.startswith("medical/") and not name.startswith("medical/toy/"):
        options, inference, patch = TINY_VOLUMES[Path(name).stem]
        few = [
            f"--model.model_options={options}",
            f"--model.inference={inference}",
            f"--data.patch_size={patch}",
            "--data.patches_per_epoch=4",
            "--data.batch_size=2",
            "--data.num_workers=0",
            "--trainer.check_val_every_n_epoch=1",
        ]
        few += ["--data.context=3"] if name.endswith("deepmedic.yaml") else []
        few += ["--data.modalities=null", "--data.class_names=null"] if name.endswith("folder.yaml") else []
    if name.startswith("gaussian/cats_dogs/"):
        options = f"{{conv_layers: features.0, head_width: {TINY_VGG['head_width']}, pool_size: 1}}"
        few = [f"--model.model_options={options}", "--data.train_size=16", "--data.image_size=32"]
        if name != "gaussian/cats_dogs/vgg16.yaml":
            few.append("--model.init_from=vgg16.pth")
    if name.startswith("sunet/"):
        few = [
            f"--model.model_options={TINY_SUNET}",
            "--data.train_size=6",
            "--data.batch_size=2",
            "--data.num_workers=0",
        ]
        few += ["--trainer.max_steps=-1", "--trainer.check_val_every_n_epoch=1"]
        few += (
            [f"--data.num_classes={len(CLASSES)}", "--data.image_size=48"]
            if name.startswith("sunet/imagenet/")
            else ["--model.init_from=null", "--model.init_skip=null", "--data.crop_size=48"]
        )
    return ["--config", name, *few, "--trainer.max_epochs=2", "--trainer.default_root_dir=run"]


@pytest.mark.smoke
@pytest.mark.parametrize("name", names(complete=True))
def test_experiments_run_resume_test_and_predict(name, tiny_data, monkeypatch):
    class Interrupted(Exception):
        pass

    watch = BaseTask.watch

    def interrupt(task: BaseTask, *args: object) -> None:
        if task.current_epoch == 1:
            raise Interrupted
        watch(task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTask, "watch", interrupt)
        with pytest.raises(Interrupted):
            main(["fit_test", *experiment(name)])
    assert main(["fit_test", *experiment(name)]) == 0
    with Path("run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})
    (tested,) = [rows[-1][metric] for metric in TESTED if metric in rows[-1]]
    assert float(tested) >= 0

    assert main(["fit_test", *experiment(name)]) == 0  # nothing is left to do
    assert main(["test", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    assert main(["predict", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    if name.startswith("ocgan/"):
        assert sorted(os.listdir("run/samples")) == [f"{index:06d}.png" for index in range(9)]
    elif name.startswith("gaussian/nuclei/"):
        written = sorted(path.name for path in Path("run/predictions").rglob("*.png"))
        assert written
        assert all(re.fullmatch(r"\d\d_\d\.png", name) for name in written)  # whole images, by their names
    elif name.startswith("medical/") and not name.startswith("medical/toy/"):
        assert list(Path("run/predictions").glob("*.nii.gz"))
    elif name.startswith(("medical/toy/", "sunet/")) and not name.startswith("sunet/imagenet/"):
        assert list(Path("run/predictions").rglob("*.png"))
    else:
        with Path("run/predictions.csv").open() as file:
            predictions = list(csv.reader(file))
        assert predictions[0][:2] == ["file", "class"]
        assert len(predictions) > 8
    assert {"config.yaml", "environment.json", "media"} <= set(os.listdir("run"))


@pytest.mark.smoke
def test_the_two_steps_of_cats_and_dogs(tiny_data):
    """In small, as the files say it: the second step starts from the first one's run, and trains one layer."""
    folder = "gaussian/cats_dogs"
    tiny = ["--data.train_size=16", "--data.image_size=32", "--trainer.max_epochs=1"]
    first = ["--config", f"{folder}/vgg16.yaml", "--config", f"{folder}/small_from_scratch.yaml"]
    second = ["--config", f"{folder}/vgg16_gaussian.yaml", "--config", f"{folder}/small.yaml", *tiny]
    with pytest.raises(CheckpointError, match="there is no file or run runs/cats_dogs/vgg16_small"):
        main(["fit_test", *second])
    assert main(["fit_test", *first, *tiny, "--trainer.default_root_dir=runs/cats_dogs/vgg16_small"]) == 0
    assert main(["fit_test", *second, "--model.fit_replaced=true", "--trainer.default_root_dir=second"]) == 0
    before, after = (load_run(folder).state_dict() for folder in ("runs/cats_dogs/vgg16_small", "second"))
    assert {name for name in after if name not in before or not torch.equal(before[name], after[name])} == {
        name for name in after if name.startswith("features.0.")
    }
