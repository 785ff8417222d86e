"""Training images beside generated ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.callbacks import RealAndGenerated
from lightning_modules.pictures.images import image_grid
from tests.helpers.tiny_gans import gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer


@pytest.mark.parametrize(("columns", "shown"), [(4, 12), (20, 24)], ids=["several batches", "more than there are"])
def test_the_first_training_images_as_they_are(tmp_path, columns, shown):
    data = gan_data()  # 24 images, 8 a batch
    tiny_trainer(tmp_path, [RealAndGenerated(3, columns)], max_epochs=1).fit(tiny_gan(), datamodule=data)
    real = torch.cat([batch["image"] for batch in data.evaluation_loader("train")])[:shown]
    expected = image_grid(real, columns)
    picture = np.asarray(Image.open(tmp_path / "media" / "real_and_generated.png").convert("RGB"))
    height, width = expected.shape[:2]
    np.testing.assert_array_equal(picture[36 : 36 + height, 12 : 12 + width], expected)


@pytest.mark.parametrize("options", [{"rows": 0}, {"columns": 0}])
def test_impossible_grids(options):
    with pytest.raises(ValueError, match="rows and columns must be 1 or more"):
        RealAndGenerated(**options)
