"""What configurations and flags come to, before anything is trained."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
import yaml

from lightning_modules.cli import main
from lightning_modules.commands.training import ConvsuiteCLI
from lightning_modules.files import CheckpointError
from lightning_modules.runs import MissingRunError
from tests.helpers.commands import tiny
from tests.helpers.data import write_fashion_mnist

EXPERIMENT = """
seed_everything: 3
model:
  class_path: ClassificationTask
  init_args:
    model: fashion_cnn
    model_options: {widths: [4, 4, 4, 4]}
    conv: {name: gaussian, order: 3, num_bases: 4, separated: true}
    optimizer: {class_path: Adam, init_args: {lr: 0.01}}
data:
  class_path: DigitsDataModule
  init_args: {train_size: 100}
trainer:
  max_epochs: 2
  accelerator: cpu
  callbacks:
    - class_path: LearningRateMonitor
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)


def parsed(*args, command="fit"):
    with ExitStack() as cleanup:
        return ConvsuiteCLI(command, ["--config", "experiment.yaml", *args], cleanup)


def conv(*args):
    return parsed(*args).config_plain["model"]["init_args"]["conv"]


def test_short_names_and_links():
    cli = parsed()
    assert type(cli.model).__name__ == "ClassificationTask"
    assert (cli.model.hparams["in_channels"], cli.model.hparams["num_classes"]) == (1, 10)
    assert cli.config_plain["model"]["class_path"] == "lightning_modules.ClassificationTask"
    assert cli.trainer.max_epochs == 2


def test_a_seed_makes_the_weights():
    """Also without one in the configuration: 0."""
    first, again, other = (parsed(f"--seed_everything={seed}").model.network.fc.weight.sum() for seed in (1, 1, 2))
    assert first == again != other
    with ExitStack() as cleanup:
        assert ConvsuiteCLI("fit", tiny(), cleanup).config_plain["seed_everything"] == 0


@pytest.mark.parametrize("given", ["standard", {"name": "rfnn", "order": 2}])
def test_a_flag_replaces_the_whole_variant(given):
    assert conv("--model.conv", given if isinstance(given, str) else json.dumps(given)) == given


def test_an_overlay_replaces_the_whole_variant(tmp_path):
    (tmp_path / "overlay.yaml").write_text("model: {init_args: {conv: {name: dau, num_units: 2}}}")
    assert conv("--config", "overlay.yaml") == {"name": "dau", "num_units": 2}
    assert conv("--config", "gaussian/layers/rfnn.yaml")["name"] == "rfnn"


def test_flags_reach_into_the_task_and_the_data():
    cli = parsed("--model.geometry_lr_factor=2", "--model.optimizer.lr=0.5", "--data.train_size", "70")
    assert cli.model.geometry_lr_factor == 2
    assert cli.model.configure_optimizers().defaults["lr"] == 0.5
    assert cli.datamodule.train_size == 70


def test_later_configs_win_and_lists_can_grow(tmp_path):
    (tmp_path / "overlay.yaml").write_text(
        "data: {init_args: {train_size: 50}}\n"
        "trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}"
    )
    cli = parsed("--config", "overlay.yaml", "--trainer.callbacks+=LastCheckpoint")
    names = [callback["class_path"].rpartition(".")[2] for callback in cli.config_plain["trainer"]["callbacks"]]
    assert names == ["LearningRateMonitor", "EarlyStopping", "LastCheckpoint"]
    assert cli.datamodule.train_size == 50


def test_any_overlay_keeps_the_metrics_file(tmp_path):
    (tmp_path / "overlay.yaml").write_text("trainer: {logger: false}")
    assert [type(logger).__name__ for logger in parsed("--config", "overlay.yaml").trainer.loggers] == [
        "MetricsCSVLogger"
    ]


@pytest.mark.parametrize("name", ["cpu", "ddp"])
def test_trainer_overlays_change_no_settings(name):
    assert parsed().run.folder == parsed("--config", f"trainer/{name}.yaml", "--trainer.accelerator=cpu").run.folder


def test_the_slurm_overlay_saves_by_the_clock():
    with pytest.raises(Exception, match=r"(?i)gpu"):  # there is none in tests
        parsed("--config", "trainer/slurm.yaml")
    cli = parsed(
        "--config", "trainer/slurm.yaml", "--trainer.accelerator=cpu", "--trainer.strategy=auto", command="fit"
    )
    (last,) = [callback for callback in cli.trainer.checkpoint_callbacks if type(callback).__name__ == "LastCheckpoint"]
    assert last.train_time_interval.total_seconds() == 15 * 60


def test_the_run_folder_is_named_by_the_experiment_and_its_settings():
    first, same, other = parsed(), parsed("--data.num_workers=1"), parsed("--data.batch_size=8")
    assert first.run.folder.parent.name == "experiment"
    assert first.run.folder == same.run.folder != other.run.folder
    assert not first.run.folder.parent.parent.exists()


def test_without_a_config_the_network_names_the_run():
    with ExitStack() as cleanup:
        assert ConvsuiteCLI("fit", tiny(), cleanup).run.folder.parent.name == "fashion_cnn"


def test_checkpoints_are_written_whatever_the_config_says(tmp_path):
    def names(*args):
        return [type(callback).__name__ for callback in parsed(*args).trainer.checkpoint_callbacks]

    assert names() == ["BestCheckpoint", "LastCheckpoint", "GracefulStop"]
    assert names("--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=5") == names()
    assert names("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true") == [
        "ModelCheckpoint",
        "BestCheckpoint",
        "GracefulStop",
    ]
    assert names("--trainer.enable_checkpointing=false") == []


def test_best_follows_the_metric_that_the_config_monitors():
    cli = parsed("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss")
    best = cli.trainer.checkpoint_callbacks[1]
    assert (best.monitor, best.mode, best.filename) == ("val/loss", "min", "best")
    assert (parsed().trainer.checkpoint_callbacks[0].monitor, parsed().trainer.checkpoint_callbacks[0].mode) == (
        "val/accuracy",
        "max",
    )


def test_no_slash_of_a_metric_reaches_a_file_name():
    cli = parsed("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={epoch}-{val/accuracy:.2f}")
    own = cli.trainer.checkpoint_callbacks[0]
    assert own.format_checkpoint_name({"epoch": 3, "val/accuracy": 0.912}).endswith("epoch=3-val_accuracy=0.91.ckpt")


def test_what_comes_from_the_data_is_not_given():
    with pytest.raises(ValueError, match=r"model\.num_classes is 4, but DigitsDataModule has 10: leave it out"):
        parsed("--model.num_classes=4")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data.train_siz=3"], "Did you mean 'train_size'?"),
        (["--model.optimizer.learning_rate=3"], "'learning_rate' is not"),
        (["--trainer.max_epoch=3"], "Did you mean '--trainer.max_epochs'?"),
        (["--trainer.max_epochs=many"], "max_epochs"),
        (["--model=ClassificationTsk"], "ClassificationTsk"),
    ],
)
def test_wrong_usage_is_short_and_ends_with_2(capsys, args, said):
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "experiment.yaml", *args])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert "NoneType" not in err
    assert len(err.splitlines()) < 9


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ([], "required: data, model\nAn experiment has both: --config gaussian/digits.yaml"),
        (
            ["gaussian/layers/ours.yaml"],
            "gaussian/layers/ours.yaml is an overlay: put a complete experiment before it, e.g. --config "
            "gaussian/fashion_mnist.yaml\n",
        ),
        (
            ["trainer/cpu.yaml", "gaussian/strided.yaml"],
            "trainer/cpu.yaml and gaussian/strided.yaml are overlays: put a complete experiment before them, e.g. "
            "--config gaussian/digits.yaml\n",
        ),
        (["experiment.yaml", "grids/digits.yaml"], "grids/digits.yaml is a grid of experiments: convsuite reproduce"),
        (
            ["sweeps/gaussian_fashion_mnist.yaml"],
            "sweeps/gaussian_fashion_mnist.yaml is a sweep of W&B: wandb sweep /",
        ),
    ],
)
def test_what_is_no_experiment_is_named(capsys, configs, said):
    with pytest.raises(SystemExit) as exit:
        main(["fit", *(f"--config={name}" for name in configs)])
    assert exit.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err.replace("the following arguments are ", "")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_config_that_is_not_yaml_is_named(tmp_path, command):
    (tmp_path / "overlay.yaml").write_text("model: {")
    with pytest.raises(ValueError, match=r"(?s)overlay\.yaml is not YAML: while parsing .* line 1"):
        main([command, "--config", "overlay.yaml"])


def test_a_task_without_its_network_is_no_overlay(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model=ClassificationTask", "--data=DigitsDataModule"])
    assert "ClassificationTask" in capsys.readouterr().err


def test_the_help_tells_the_defaults_of_the_suite(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "trainer/cpu.yaml", "--help"])
    assert exit.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Loggers besides that of metrics.csv, which every run has" in out
    assert "TensorBoardLogger`` if it is installed" not in out
    assert "os.getcwd" not in out


def test_without_a_gpu_the_overlay_for_the_cpu_is_named(monkeypatch):
    for backend in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{backend}.is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"accelerator is gpu, but torch finds no GPU here: put --config trainer/cpu\."
    ):
        parsed("--config", "trainer/gpu.yaml")
    assert parsed("--config", "trainer/gpu.yaml", "--config", "trainer/cpu.yaml").trainer.num_devices == 1


@pytest.mark.parametrize("args", [[], ["--config", "experiment.yaml"]])
def test_a_missing_checkpoint_comes_with_those_beside_it(tmp_path, args):
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "epoch=3.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    with pytest.raises(MissingRunError) as error:
        main(["predict", *args, "--ckpt_path=checkpoints/best.ckpt"])
    assert str(error.value) == "there is no checkpoint checkpoints/best.ckpt; beside it: epoch=3.ckpt, last.ckpt"
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(MissingRunError, match=r"beside it: epoch=3\.ckpt$"):
        main(["fit", "--config", "experiment.yaml", "--ckpt_path=checkpoints/last.ckpt"])


def test_a_run_to_start_from_comes_with_how_it_is_made(tmp_path):
    with pytest.raises(CheckpointError) as error:
        main(["fit", "--config", "experiment.yaml", "--model.init_from=runs/cats_dogs/vgg16"])
    assert str(error.value) == (
        "init_from: there is no file or run runs/cats_dogs/vgg16: make it first, or set init_from to another. This "
        "makes it: convsuite fit_test --config gaussian/cats_dogs/vgg16.yaml --trainer.default_root_dir "
        "runs/cats_dogs/vgg16"
    )
    (tmp_path / "overlay.yaml").write_text("# From runs/own.\nmodel: {init_args: {init_from: runs/own}}")
    with pytest.raises(CheckpointError, match=r"runs/own: make it first, .* another\. See the head of overlay\.yaml$"):
        main(["fit", "--config", "experiment.yaml", "--config", "overlay.yaml"])
    with pytest.raises(CheckpointError, match=r"set init_from to another$"):
        main(["fit", "--config", "experiment.yaml", "--model.init_from=runs/another"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config", "experimnt.yaml"], "no config file 'experimnt.yaml'"),
        (["--model.model=fashion_cn"], "Did you mean 'fashion_cnn'?"),
        (["--model.conv={name: gaussian, oder: 2}"], "Did you mean 'order'?"),
        (["--model.model_options={width: [4]}"], "Did you mean 'widths'?"),
        (["--data.train_size=0"], "train_size must be at least 1"),
        (["--data.val_size=5000"], "share the 1437 training samples"),
        (["--ckpt_path=best"], "fit goes on from the last checkpoint by itself"),
    ],
)
def test_an_impossible_option_is_the_error_of_its_owner(args, said):
    with pytest.raises(ValueError, match=r"(?s).") as error:
        parsed(*args)
    assert said in str(error.value)
    assert "Union" not in str(error.value)


def test_describe_needs_no_data_and_writes_nothing(tmp_path, capsys):
    assert main(["describe", "--config", "gaussian/fashion_mnist.yaml", "--data.root", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert "parameters" in out
    assert "conv4" in out
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_missing_data_is_an_error_that_leaves_no_folder(tmp_path):
    """Fashion-MNIST is downloaded where it is missing; a folder in its place can not be."""
    write_fashion_mnist(tmp_path, unpacked=True)
    for path in (tmp_path / "FashionMNIST" / "raw").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match="idx"):
        main(["fit", "--config", "gaussian/fashion_mnist.yaml", "--data.root", str(tmp_path)])
    assert not (tmp_path / "runs").exists()


def test_print_config_shows_what_would_run(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "experiment.yaml", "--trainer.max_epochs=7", "--print_config"])
    assert exit.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 7
