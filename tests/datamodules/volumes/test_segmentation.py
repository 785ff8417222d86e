"""What data modules for segmenting volumes share, and no test of theirs shows."""

import pytest
from lightning.pytorch import Trainer

from datamodules.brats import BraTSDataModule
from datamodules.volumes import segmentation


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (3, 2)])
def test_the_processes_of_a_machine_share_its_memory(monkeypatch, tmp_path, devices, nodes):
    asked = []
    monkeypatch.setattr(segmentation, "open_volumes", lambda *options: asked.append(options[-1]))
    data = BraTSDataModule(str(tmp_path), patch_size=4, seed=0)
    data._open("train", ["a subject"])
    data.trainer = Trainer(
        accelerator="cpu", devices=devices, num_nodes=nodes, logger=False, default_root_dir=tmp_path, max_steps=1
    )
    data._open("val", ["another"])
    assert asked == [1, devices]
