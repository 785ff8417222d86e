"""Semantic segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_modules.base import BaseTask, LRSchedulerCallable, OptimizerCallable, naming_files
from lightning_modules.inference.inference import Inference
from lightning_modules.inference.instances import Method, label_objects
from lightning_modules.inference.slabs import likeliest, loss_in_slabs, slabs, softmax_
from lightning_modules.inference.tiling import SlidingWindow
from lightning_modules.labels import class_names
from lightning_modules.losses.segmentation import segmentation_loss
from lightning_modules.metrics.confusion import Absent, PixelConfusion, segmentation_measures
from lightning_modules.metrics.instances import InstanceMetrics
from lightning_modules.metrics.subjects import MeasuredSubject, SubjectMeasures, of_all_processes, subject_means
from lightning_modules.processes import sum_over_processes
from models.convs.octave import get_betas
from models.names import check_name
from models.slice_wise import SliceWise
from models.voxelwise import VoxelwiseNetwork, window

Batch = dict[str, Any]

FEW_CLASSES = 5
"""Up to this many, measures of each class are logged in validation too, not only in the test."""
TRAIN_CONFUSION = "train_confusion"
"""The running epoch's confusion matrix in a checkpoint."""


class SegmentationTask(BaseTask):
    """A class for every pixel of images, or voxel of volumes.

    Batches hold `image` (N, C, H, W) and `mask` int64 (N, H, W), numbers of classes or `ignore_index`; pixels of that
    value are in no loss and no metric. Evaluation batches may hold `instances` int32 (N, H, W), numbered objects, 0 for
    none. Of volumes, images are (N, C, X, Y, Z) and masks (N, X, Y, Z); what is said of pixels holds for voxels.

    Images to train on may show context: reach, at every border, so many pixels beyond their masks. A network that does
    not pad, whose logits are smaller than the image by its `margin` at every border, needs just that much context
    (`data.context`). Of one that pads, the logits of the context are left out: they are in no loss. Evaluation is of
    whole images, with masks of their size; networks that do not pad see them continued at their borders, as `inference`
    says.

    Logs `train/loss`, and `train/pixel_accuracy`, the mean over the batches of an epoch. Both are those of the global
    batch: all its pixels weigh alike, however many are ignored in each process, so that several processes with
    synchronised batch norm train as one does. (`trainer.accumulate_grad_batches` is not the same as a larger batch: it
    takes the mean of the losses of its batches, as the published code of Stacked U-Nets does, whatever they ignore.)
    `train/miou` comes from one confusion matrix of an epoch: of its images as they were augmented, each predicted in
    training mode by the weights of its step. It goes into checkpoints, thus a resumed epoch is measured whole.

    Of validation and test it logs measures of the whole data set from one confusion matrix, equal for any number of
    processes and any batch size:

    - `<stage>/miou` and `<stage>/dice`: means over classes of intersection over union, and of Dice's coefficient.
      `iou_<class>` and `dice_<class>` besides, of more than five classes in the test only.
    - `<stage>/pixel_accuracy`, and `<stage>/class_accuracy`, the mean over classes of the accuracy within each.
    - `<stage>/loss`: the mean over images of each image's own loss, weighted by its pixels that are not ignored. Of
      cross-entropy without class weights that is the mean over all pixels.
    - With `instances`, what `lightning_modules.metrics.instances` measures of objects: `<stage>/aji`, `<stage>/pq` ...
      against annotated objects. Where the data have none, the connected components of the true mask take their place,
      which merge objects that touch: `<stage>/aji_components` and so on.
    - With `subject_measures`, means over subjects of what `lightning_modules.metrics.subjects` measures of each region
      of each, in mm and ml of the batches' `affine` (N, d + 1, d + 1): `<stage>/subject_dice_<region>`,
      `<stage>/hd95_<region>`, `<stage>/surface_dice_<region>`, `<stage>/volume_difference_<region>` ...

    A class that neither truth nor prediction holds has no IoU and no Dice, one that the truth does not hold has no
    accuracy; `absent` says what becomes of it. A class whose number is `ignore_index` is in no mean.

    Args:
        model: A name of `models.list_models()`, or `timm/<name>`: a network that gives logits (N, K, H, W) of images.
        model_options: Options of that network.
        conv: The convolution variant, a name or `{name: ..., **options}`.
        in_channels: Channels of the images; the command line links it from the data.
        num_classes: Number of classes, K; the command line links it from the data.
        loss: A name of `lightning_modules.losses.segmentation`: "cross_entropy", "dice", "generalized_dice", "focal" or
            "focal_tversky"; or names with weights, `{cross_entropy: 1, dice: 0.5}`: their sum.
        loss_options: Options by name of the loss, `{focal: {gamma: 1}}`.
        ignore_index: Mask value of pixels that are ignored; it may be the number of a class.
        binary: Two classes through one logit: the network is built with one class, and its logit x is that of class 1
            against 0. All that is not the network sees two logits, (0, x), whose softmax is the sigmoid of x.
        inference: How whole images are predicted (tiles, flips, scales) in validation, test and prediction; default:
            in one pass. Checkpoints do not hold it.
        subject_measures: What is measured of each subject besides; default: nothing. Checkpoints do not hold it.
        instances: How predicted objects are made from the pixels of class 1, as connected "components" or by
            "watershed"; default: objects are not measured.
        min_object_size: Predicted objects of fewer pixels are removed; specks would count as mistakes.
        absent: What becomes of undefined measures in means over classes: "skip" leaves them out, "one" and "zero" put
            this value in their place.
        optimizer: Called with the parameter groups.
        lr_scheduler: Called with the optimiser; see `BaseTask`.
        geometry_lr_factor: See `BaseTask`, for all from here on.
        compile: Compile the network with `torch.compile`, in place: checkpoints stay interchangeable.
        init_from: Start from the weights of this file.
        init_skip: Patterns of the network's parameters that keep their own initialisation.
        fit_replaced: Initialise synthesised filters by least squares to those that `init_from` has in their place.
        trainable: Patterns of the network's parameters that are trained; all others are frozen.
        lr_factors: Patterns of the network's parameters, each with a factor on their learning rate.
        batch_norm_momentum: The share of a batch in the running statistics of batch norms.
        freeze_batch_norm: Batch norms neither move their statistics nor train gains and shifts.
        select: Whether the "best" weights on validation count, the default, or the "last".

    Attributes:
        confusion: Stage ("val", "test") to the confusion matrix of its last epoch, int64 (K, K), rows are the truth.
        subjects: Stage to what was measured in its last epoch of the subjects of all processes, in the data's order.

    Raises:
        ValueError: Options that contradict each other, or `inference` asks for what the network cannot do; the message
            names them. In a step: the network's output does not fit the images, or masks do not fit the images or hold
            a value that is no class.
    """

    monitor = "val/miou"
    mode = "max"
    head = "segment"

    def __init__(
        self,
        model: str,
        model_options: dict[str, Any] | None = None,
        conv: str | dict[str, Any] = "standard",
        in_channels: int = 3,
        num_classes: int = 2,
        loss: str | dict[str, float] = "cross_entropy",
        loss_options: dict[str, dict[str, Any]] | None = None,
        ignore_index: int = 255,
        binary: bool = False,
        inference: Inference | None = None,
        subject_measures: SubjectMeasures | None = None,
        instances: Method | None = None,
        min_object_size: int = 0,
        absent: Absent = "skip",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        geometry_lr_factor: float = 1.0,
        compile: bool = False,
        init_from: str | None = None,
        init_skip: list[str] | None = None,
        fit_replaced: bool | None = None,
        trainable: list[str] | None = None,
        lr_factors: dict[str, float] | None = None,
        batch_norm_momentum: float | None = None,
        freeze_batch_norm: bool | None = None,
        select: Literal["best", "last"] | None = None,
    ) -> None:
        if not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes must be 2 to 256, what a mask of bytes can tell apart, got {num_classes}")
        for name, value in (("binary", binary), ("instances", instances)):
            if value and num_classes != 2:
                raise ValueError(f"{name} ({value}) is for two classes, and there are {num_classes}: leave it out")
        if min_object_size < 0 or (min_object_size and instances is None):
            raise ValueError(f"min_object_size ({min_object_size}) must be 0 or more, and is for `instances`: set that")
        if not 0 <= ignore_index <= 255:
            raise ValueError(f"ignore_index must be 0 to 255, what a mask of bytes can hold, got {ignore_index}")
        check_name("absent", absent, get_args(Absent))
        if instances is not None:
            check_name("instances", instances, get_args(Method))
        made = segmentation_loss(loss, loss_options, ignore_index)
        made(torch.zeros(1, num_classes, 1), torch.zeros(1, 1, dtype=torch.int64))  # now, not after a first batch
        if subject_measures is not None:
            subject_measures.check_classes(num_classes)
        super().__init__(
            model,
            model_options=model_options,
            conv=conv,
            in_channels=in_channels,
            num_classes=1 if binary else num_classes,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            geometry_lr_factor=geometry_lr_factor,
            compile=compile,
            init_from=init_from,
            init_skip=init_skip,
            fit_replaced=fit_replaced,
            trainable=trainable,
            lr_factors=lr_factors,
            batch_norm_momentum=batch_norm_momentum,
            freeze_batch_norm=freeze_batch_norm,
            select=select,
        )
        self.loss = made
        self.image_loss = segmentation_loss(loss, _without("per_image", loss_options), ignore_index)
        self.margin: int = getattr(self.network, "margin", 0)
        self.inference = Inference(average="logits") if inference is None and self.margin else inference
        self.subject_measures = subject_measures
        self._check_inference()

    def _check_inference(self) -> None:
        """Refuse now, not after a training, what the network cannot do when whole images are predicted."""
        if not isinstance(self.inference, Inference):
            return
        dimensions = getattr(self.network, "dimensions", None)
        fits: Any = self.network.fits if self.margin else None
        self.inference.check(dimensions, fits)
        tiles = self.inference.tiles
        if tiles is None:
            return
        self._check_alignment(tiles)
        if dimensions is not None:
            sides = [layout.tile_size for layout in tiles.layouts_of(dimensions)]
            self._check_input("inference.tile_size", sides, self.margin)

    def _check_alignment(self, tiles: SlidingWindow) -> None:
        """Off a network's own grid tiles are seen by another function, everywhere and not only near their borders."""
        multiple = getattr(self.network, "multiple", None)
        if multiple is None:
            return
        multiple *= 1 if get_betas(self.network) is None else 2
        if tiles.align % multiple:
            raise ValueError(
                f"inference.align is {tiles.align}, and this network needs a multiple of {multiple}: "
                f"tiles must start on the grid of its coarsest maps. Set align: {multiple}"
            )

    def check_data(self, data: Any) -> None:
        """Refuse patches that the network cannot be trained on, before any image is read.

        Args:
            data: The data module. One that trains on patches has a `cutter`, which says their `patch_size` and the
                `context` around them; of others nothing is asked.

        Raises:
            ValueError: The context is not the network's margin, or it takes no patches of that size.
        """
        cutter = getattr(data, "cutter", None)
        if cutter is None:
            return
        if self.margin and cutter.context != self.margin:
            raise self._other_context(f"data.context is {cutter.context}")
        self._check_input("data.patch_size", cutter.patch_size, cutter.context)

    def _check_input(self, key: str, sides: Sequence[int], around: int) -> None:
        """Raise `ValueError`, naming `key`, where the network takes no `sides` with `around` more at each border."""
        network, of_slices = self.network, list(sides)
        if len(sides) != getattr(network, "dimensions", len(sides)):
            raise ValueError(
                f"{key} has {len(sides)} axes, and model {self.hparams['model']!r} takes images of "
                f"{network.dimensions}: set its option dimensions to {len(sides)}, or change the data"
            )
        if isinstance(network, SliceWise):  # of which there may be any number
            del of_slices[network.axis]
            network = network.network
        if not isinstance(network, VoxelwiseNetwork):
            return
        try:
            # Nothing is computed on the meta device.
            network.continued(torch.empty(1, 1, *(side + 2 * around for side in of_slices), device="meta"))
        except ValueError as error:
            raise ValueError(f"{key} {'x'.join(map(str, sides))}: {error}") from error

    def setup(self, stage: str) -> None:
        """Comes after the data module's; who has both before that may ask `check_data` earlier."""
        if stage == "fit":
            self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_metrics(self) -> None:
        self.train_confusion = self._confusion()
        self.val_metrics = self._metrics()
        self.test_metrics = self._metrics()
        self.confusion: dict[str, Tensor] = {}
        self.subjects: dict[str, list[MeasuredSubject]] = {}
        self.measured: dict[str, list[MeasuredSubject]] = {"val": [], "test": []}  # by this process, in this epoch
        self.objects_suffix = {"val": "", "test": ""}  # of the names of what is measured of objects

    def _metrics(self) -> nn.ModuleDict:
        metrics = nn.ModuleDict(
            {
                # A loss that is not a number shall show as that; "disable" would leave out the weights.
                "loss": MeanMetric(nan_strategy=math.nan),
                "confusion": self._confusion(),
            }
        )
        if self.hparams["instances"] is not None:
            metrics["objects"] = InstanceMetrics()
        return metrics

    def _confusion(self) -> PixelConfusion:
        return PixelConfusion(self.hparams["num_classes"], self.hparams["ignore_index"])

    def on_train_epoch_start(self) -> None:
        """Does not come where a run is resumed within an epoch."""
        self.train_confusion.reset()

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Log `train/miou` after an epoch's last batch: callbacks come before the hook at the end of the epoch."""
        if not self.trainer.is_last_batch and self.global_step != self.trainer.max_steps:
            return
        ignored, absent = self.hparams["ignore_index"], self.hparams["absent"]
        means, _ = segmentation_measures(self._global_train_confusion().cpu(), ignored, absent)
        self.log("train/miou", means["miou"].float(), on_step=False, on_epoch=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[TRAIN_CONFUSION] = self._global_train_confusion().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.train_confusion.reset()
        if TRAIN_CONFUSION in checkpoint and self.global_rank == 0:  # it is the sum over all processes
            self.train_confusion.confmat = checkpoint[TRAIN_CONFUSION].to(self.train_confusion.device, copy=True)

    def _global_train_confusion(self) -> Tensor:
        """Every process must call this."""
        return sum_over_processes(self.train_confusion.confmat)

    def _other_logits(self, theirs: int) -> str:
        """A binary checkpoint has one logit and is for two classes."""
        if self.hparams["num_classes"] > 2 or theirs > 2:
            return super()._other_logits(max(theirs, 2))
        if self.hparams["binary"]:
            return "this checkpoint has two logits, and this task one (binary: true): set model.binary to false"
        return "this checkpoint has one logit (binary: true), and this task two: set model.binary to true"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, H, W) of images (N, C, H, W), at their size less the network's margin at every border.

        Of a binary task, too, there are two.
        """
        logits = self.network(images)
        classes = 1 if self.hparams["binary"] else self.hparams["num_classes"]
        expected = (len(images), classes, *(side - 2 * self.margin for side in images.shape[2:]))
        if logits.shape != expected:
            raise ValueError(
                f"model {self.hparams['model']!r} gives {tuple(logits.shape)} for images {tuple(images.shape)}: "
                f"segmentation needs {expected}, a logit for each class and pixel. Choose a network for segmentation"
            )
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.hparams["binary"] else logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        context = self._context(batch)
        self._check_margin(batch, context)
        if batch_idx == 0 or self.device.type == "cpu":  # a GPU would have to be waited for in each batch
            self._check_classes(batch)
        mask = batch["mask"]
        logits = window(self(batch["image"]), context - self.margin, mask.shape[1:])
        loss = self.loss(logits, mask, sum_over_processes)
        self.watch(loss)
        self.log("train/loss", loss.detach(), prog_bar=True)
        is_known = mask != self.hparams["ignore_index"]
        prediction = logits.detach().argmax(1)
        is_right = (prediction == mask) & is_known
        right, known = sum_over_processes(torch.stack([is_right.sum(), is_known.sum()]))
        accuracy = right / known.clamp(min=1)
        self.log("train/pixel_accuracy", accuracy, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(mask))
        self.train_confusion.update(prediction, mask)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        with naming_files(batch):
            logits = self._infer(batch["image"])
        outputs = {"file": batch["file"], "prediction": likeliest(logits)}
        # Volumes may have been resampled, and probabilities are what can be resampled on their way back.
        return outputs if logits.ndim == 4 else {**outputs, "probabilities": softmax_(logits)}

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _infer(self, images: Tensor) -> Tensor:
        """Logits (N, K, H, W) float32 of whole images, at their size."""
        if self.inference is None:
            return self(images).float()
        unpadded: dict[str, Any] = {"margin": self.margin, "fits": self.network.fits} if self.margin else {}
        return self.inference(self, images, **unpadded).float()

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        if self._context(batch):
            raise ValueError(
                f"masks {tuple(batch['mask'].shape)} do not fit images {tuple(batch['image'].shape)}: whole images "
                "are measured, without context"
            )
        self._check_classes(batch)
        mask = batch["mask"]
        with naming_files(batch):
            logits = self._infer(batch["image"])
        prediction = likeliest(logits)
        metrics = getattr(self, f"{stage}_metrics")
        # One image after the other: its loss must not depend on which others share its batch.
        losses = [loss_in_slabs(self.image_loss, logits[i : i + 1], mask[i : i + 1]) for i in range(len(mask))]
        metrics["loss"].update(torch.stack(losses), (mask != self.hparams["ignore_index"]).flatten(1).sum(1))
        for _, predicted, true in slabs(logits, prediction, mask):
            metrics["confusion"].update(predicted, true)
        if "objects" in metrics:
            self._measure_objects(logits, prediction, batch, stage)
        if self.subject_measures is not None:
            self._measure_subjects(self.subject_measures, prediction, batch, stage)
        return {"prediction": prediction, "mask": mask, "index": batch["index"]}

    def _measure_objects(self, logits: Tensor, prediction: Tensor, batch: Batch, stage: str) -> None:
        metric = getattr(self, f"{stage}_metrics")["objects"]
        foreground = (prediction == 1).cpu().numpy()
        probability = logits.softmax(1)[:, 1].cpu().numpy()
        masks = batch["mask"].cpu().numpy()
        annotated = batch.get("instances")
        self.objects_suffix[stage] = "_components" if annotated is None else ""
        truth = [label_objects(mask == 1) for mask in masks] if annotated is None else annotated.cpu().numpy()
        for i, mask in enumerate(masks):
            options = {"method": self.hparams["instances"], "min_size": self.hparams["min_object_size"]}
            found = label_objects(foreground[i], probability[i], **options)
            metric.update(found, truth[i], mask == self.hparams["ignore_index"])

    def _measure_subjects(self, measures: SubjectMeasures, prediction: Tensor, batch: Batch, stage: str) -> None:
        regions = measures.regions_of(class_names(self.trainer, self.hparams["num_classes"]))
        options = {
            "ignore_index": self.hparams["ignore_index"],
            "with_surfaces": stage == "test" or measures.surfaces_in_validation,
        }
        for i, index in enumerate(batch["index"].tolist()):
            affine = batch["affine"][i] if "affine" in batch else None
            of_regions = measures(prediction[i], batch["mask"][i], affine, regions, **options)
            name = batch["file"][i] if "file" in batch else f"#{index}"
            self.measured[stage].append(MeasuredSubject(index, name, of_regions))

    def _context(self, batch: Batch) -> int:
        """Pixels that images show beyond their masks, at every border.

        Raises:
            ValueError: The masks do not lie in the middle of the images.
        """
        mask, image = batch["mask"], batch["image"]
        if mask.ndim == image.ndim - 1 and len(mask) == len(image):
            excess = {side - masked for side, masked in zip(image.shape[2:], mask.shape[1:], strict=True)}
            if len(excess) == 1 and min(excess) >= 0 and min(excess) % 2 == 0:
                return min(excess) // 2
        raise ValueError(
            f"masks {tuple(mask.shape)} do not fit images {tuple(image.shape)}: a mask has a class for each pixel, "
            "but for the context in training, which is the same at every border"
        )

    def _check_margin(self, batch: Batch, context: int) -> None:
        """Raise `ValueError` where images to train on show more context than a network that does not pad, or less."""
        if self.margin and context != self.margin:
            image, mask = tuple(batch["image"].shape), tuple(batch["mask"].shape)
            raise self._other_context(f"images {image} show {context} beyond masks {mask}")

    def _other_context(self, shown: str) -> ValueError:
        return ValueError(
            f"model {self.hparams['model']!r} does not pad: its logits are smaller than the image by {self.margin} "
            f"pixels at every border, and {shown}. Set data.context to {self.margin}, or choose a network that pads"
        )

    def _check_classes(self, batch: Batch) -> None:
        """Raise `ValueError` where masks hold a value that is no class."""
        mask, ignored = batch["mask"], self.hparams["ignore_index"]
        last = self.hparams["num_classes"] - 1
        is_wrong = ((mask < 0) | (mask > last)) & (mask != ignored)
        if is_wrong.any():
            place = int(is_wrong.flatten(1).any(1).nonzero()[0])
            name = batch["file"][place] if "file" in batch else f"sample {int(batch['index'][place])}"
            raise ValueError(
                f"the mask of {name} holds {int(mask[is_wrong][0])}, which is neither a class (0 to {last}) nor "
                f"ignore_index ({ignored}). Mend the mask, or set ignore_index"
            )

    def _report(self, stage: str) -> None:
        metrics = getattr(self, f"{stage}_metrics")
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        confusion = self.confusion[stage] = values.pop("confusion").cpu()
        objects = values.pop("objects", {})
        if self.subject_measures is not None:
            subjects = self.subjects[stage] = of_all_processes(self.measured[stage])
            self.measured[stage] = []
            values |= {name: torch.tensor(value) for name, value in subject_means(subjects).items()}
        values |= {f"{name}{self.objects_suffix[stage]}": value for name, value in objects.items()}
        means, by_class = segmentation_measures(confusion, self.hparams["ignore_index"], self.hparams["absent"])
        values |= means
        names = class_names(self.trainer, len(confusion))
        if stage == "test" or len(confusion) <= FEW_CLASSES:
            for measure, of_class in by_class.items():
                pairs = zip(names, of_class, strict=True)
                values |= {f"{measure}_{name}": value for name, value in pairs if not value.isnan()}
        # Every process has computed the same values, so nothing is left to reduce.
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})


def _without(option: str, options: dict[str, dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Options of losses, this one left out."""
    return {
        loss: {name: value for name, value in of_loss.items() if name != option}
        for loss, of_loss in (options or {}).items()
    }
