"""Segmentation losses against their formulas, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.losses.segmentation import (
    SEGMENTATION_LOSSES,
    cross_entropy,
    dice,
    focal,
    focal_tversky,
    generalized_dice,
    segmentation_loss,
)
from models.names import UnknownNameError

IGNORED = 255
# The probabilities of class 1 in four positions, their truth, and a fifth position that is ignored.
PROBABILITIES = (0.9, 0.2, 0.6, 0.3, 0.5)
TRUTH = (1, 0, 0, 1, IGNORED)
RIGHT = (0.9, 0.8, 0.4, 0.3)  # probabilities of the truth
VARIANTS = [
    ("cross_entropy", {}),
    ("cross_entropy", {"class_weights": [1.0, 3.0], "label_smoothing": 0.1}),
    ("dice", {}),
    ("dice", {"per_image": True, "squared": True}),
    ("dice", {"include_background": False}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "alpha": 0.25}),
    ("generalized_dice", {}),
    ("generalized_dice", {"per_image": True, "volume_weights": "simple"}),
    ("generalized_dice", {"include_background": False, "volume_weights": "uniform"}),
    ("focal_tversky", {}),
    ("focal_tversky", {"per_image": True, "gamma": 0.5}),
    ("focal_tversky", {"include_background": False, "false_positive_weight": 0.6}),
]


def case(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions above, laid out as (1, 2, *shape) and (1, *shape)."""
    p = torch.tensor(PROBABILITIES).reshape(shape)
    return torch.stack([(1 - p).log(), p.log()]).unsqueeze(0), torch.tensor(TRUTH).reshape(1, *shape)


def value(name: str, **options) -> float:
    return SEGMENTATION_LOSSES[name](*case(5), IGNORED, **options).item()


def dice_of(a: float, b: float, both: float) -> float:
    return 2 * both / (a + b)


def test_cross_entropy():
    assert value("cross_entropy") == pytest.approx(-sum(map(math.log, RIGHT)) / 4)
    weighted = -(3 * math.log(0.9) + math.log(0.8) + math.log(0.4) + 3 * math.log(0.3)) / 8
    assert value("cross_entropy", class_weights=[1, 3]) == pytest.approx(weighted)


@pytest.mark.parametrize("options", [{}, {"weight": [1.0, 3.0]}, {"label_smoothing": 0.2}])
def test_cross_entropy_is_that_of_torch(options):
    logits, target = torch.randn(2, 2, 4, 3), torch.randint(2, (2, 4, 3))
    target[0, 0] = IGNORED
    ours = {"class_weights" if name == "weight" else name: option for name, option in options.items()}
    theirs = {name: torch.tensor(o) if name == "weight" else o for name, o in options.items()}
    expected = F.cross_entropy(logits, target, ignore_index=IGNORED, **theirs)
    torch.testing.assert_close(cross_entropy(logits, target, IGNORED, **ours), expected)


def test_dice():
    foreground = dice_of(0.9 + 0.2 + 0.6 + 0.3, 2, 0.9 + 0.3)
    background = dice_of(0.1 + 0.8 + 0.4 + 0.7, 2, 0.8 + 0.4)
    assert value("dice") == pytest.approx(1 - (foreground + background) / 2)
    assert value("dice", include_background=False) == pytest.approx(1 - foreground)
    squares = [dice_of(0.81 + 0.04 + 0.36 + 0.09, 2, 1.2), dice_of(0.01 + 0.64 + 0.16 + 0.49, 2, 1.2)]
    assert value("dice", squared=True) == pytest.approx(1 - sum(squares) / 2)


def test_dice_of_images_and_of_the_batch():
    """The second image holds class 0 alone, so that its class 1 is in no mean."""
    logits, target = case(5)
    logits, target = torch.cat([logits, logits]), torch.cat([target, torch.zeros_like(target)])
    first = [dice_of(2.0, 2, 1.2), dice_of(2.0, 2, 1.2)]
    second = dice_of(0.1 + 0.8 + 0.4 + 0.7 + 0.5, 5, 2.5)
    assert dice(logits, target, IGNORED, per_image=True).item() == pytest.approx(1 - (sum(first) + second) / 3)
    batch = [dice_of(2.0 + 2.5, 2 + 5, 1.2 + 2.5), dice_of(2.0 + 2.5, 2, 1.2)]
    assert dice(logits, target, IGNORED).item() == pytest.approx(1 - sum(batch) / 2)


def test_focal():
    expected = [-((1 - p) ** 2) * math.log(p) for p in RIGHT]
    assert value("focal") == pytest.approx(sum(expected) / 4)
    by_class = [0.25 * expected[0], 0.75 * expected[1], 0.75 * expected[2], 0.25 * expected[3]]
    assert value("focal", alpha=0.25) == pytest.approx(sum(by_class) / 4)
    assert value("focal", alpha=[0.75, 0.25]) == pytest.approx(sum(by_class) / 4)
    assert value("focal", gamma=0) == pytest.approx(value("cross_entropy"))


def test_generalized_dice():
    """The classes have two positions each, then three and one."""
    background, foreground = (0.8 + 0.4, 2 + 2), (0.9 + 0.3, 2 + 2)
    expected = 1 - 2 * (background[0] + foreground[0]) / (background[1] + foreground[1])
    for weights in ("square", "simple", "uniform"):
        assert value("generalized_dice", volume_weights=weights) == pytest.approx(expected)
    logits, target = case(5)
    target[0, 0] = 0
    for weights, w in (("square", 1 / 9), ("simple", 1 / 3), ("uniform", 1)):
        expected = 1 - 2 * (w * (0.1 + 0.8 + 0.4) + 0.3) / (w * (3 + 2) + 1 + 2)
        loss = generalized_dice(logits, target, IGNORED, volume_weights=weights)
        assert loss.item() == pytest.approx(expected)
    only = generalized_dice(logits, target, IGNORED, include_background=False)
    assert only.item() == pytest.approx(1 - 2 * 0.3 / 3)


def test_focal_tversky():
    foreground, background = (1.2, 0.8, 0.8), (1.2, 0.8, 0.8)  # hits, false positives, false negatives
    loss = [1 - hits / (hits + 0.3 * fp + 0.7 * fn) for hits, fp, fn in (foreground, background)]
    assert value("focal_tversky") == pytest.approx(sum(x**0.75 for x in loss) / 2)
    plain = {"false_positive_weight": 0.5, "false_negative_weight": 0.5, "gamma": 1.0}
    for options in ({}, {"per_image": True}, {"include_background": False}):
        assert value("focal_tversky", **plain, **options) == pytest.approx(value("dice", **options))
    logits, target = case(5)
    target[0, 3] = 0
    hits, fp, fn = 0.9, 0.2 + 0.6 + 0.3, 0.1
    loss = focal_tversky(logits, target, IGNORED, 0.2, 0.9, gamma=2, include_background=False)
    assert loss.item() == pytest.approx((1 - hits / (hits + 0.2 * fp + 0.9 * fn)) ** 0.5)


def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and classes of two volumes; the first has no voxel of class 2."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, 7, generator=generator)
    target = torch.randint(0, 4, (2, 5, 6, 7), generator=generator)
    target[0][target[0] == 2] = 0
    return logits, target


@pytest.mark.parametrize("weights", ["square", "simple", "uniform"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_generalized_dice_is_that_of_monai(weights, per_image, include_background):
    from monai.losses import GeneralizedDiceLoss

    logits, target = volumes()
    options = {"include_background": include_background, "w_type": weights, "batch": not per_image}
    theirs = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0, **options)
    ours = generalized_dice(logits, target, IGNORED, weights, per_image, include_background)
    torch.testing.assert_close(ours, theirs(logits, target[:, None]))


@pytest.mark.parametrize("per_image", [False, True])
def test_tversky_is_that_of_monai_where_the_truth_holds_a_class(per_image):
    from monai.losses import TverskyLoss

    logits, target = volumes()
    options = {"alpha": 0.2, "beta": 0.9, "smooth_nr": 0, "smooth_dr": 0, "reduction": "none", "batch": not per_image}
    theirs = TverskyLoss(to_onehot_y=True, softmax=True, **options)(logits, target[:, None])
    if per_image:
        theirs = theirs.flatten()[[0, 1, 3, 4, 5, 6, 7]]
    ours = focal_tversky(logits, target, IGNORED, 0.2, 0.9, gamma=1.5, per_image=per_image)
    torch.testing.assert_close(ours, (theirs ** (1 / 1.5)).mean())


@pytest.mark.parametrize("options", [{}, {"volume_weights": "uniform"}])
def test_without_foreground_generalized_dice_of_the_foreground_teaches_nothing(options):
    logits = torch.randn(2, 3, 6, requires_grad=True)
    target = torch.zeros(2, 6, dtype=torch.int64)
    loss = generalized_dice(logits, target, IGNORED, include_background=False, **options)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_any_number_of_dimensions_and_any_memory_order(name, options):
    expected = value(name, **options)
    for shape in ((5, 1), (1, 5, 1)):
        assert SEGMENTATION_LOSSES[name](*case(*shape), IGNORED, **options).item() == pytest.approx(expected)
    logits, target = case(5, 1)
    logits = logits.contiguous(memory_format=torch.channels_last)
    assert SEGMENTATION_LOSSES[name](logits, target, IGNORED, **options).item() == pytest.approx(expected)


@pytest.mark.parametrize("ignored", [IGNORED, 0, -1])  # 0 is a class as well
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_what_is_ignored_adds_nothing(name, options, ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, generator=generator)
    target = torch.ones(2, 6, dtype=torch.int64)
    target[:, 0] = 0 if ignored else 1
    target[:, 3:] = ignored
    logits.requires_grad_()
    loss = SEGMENTATION_LOSSES[name](logits, target, ignored, **options)
    torch.testing.assert_close(loss, SEGMENTATION_LOSSES[name](logits[..., :3], target[:, :3], 255, **options))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[..., 3:].abs().max() == 0
    assert logits.grad[..., :3].abs().min() > 0


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_nothing_but_ignored_positions_is_zero(name, options):
    logits = torch.randn(2, 2, 3, 3, requires_grad=True)
    loss = SEGMENTATION_LOSSES[name](logits, torch.full((2, 3, 3), IGNORED), IGNORED, **options)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gradients(name, options):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.tensor([[0, 1, IGNORED], [1, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: SEGMENTATION_LOSSES[name](x, target, IGNORED, **options), logits)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_extreme_logits_stay_finite(name, options):
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]], requires_grad=True)
    loss = SEGMENTATION_LOSSES[name](logits, torch.tensor([[0, 0, 1]]), IGNORED, **options)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_float32_under_autocast(name, options):
    logits, target = case(5)
    expected = SEGMENTATION_LOSSES[name](logits.bfloat16().float(), target, IGNORED, **options)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SEGMENTATION_LOSSES[name](logits.bfloat16(), target, IGNORED, **options)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_perfect_and_wrong():
    right = torch.tensor([[[50.0, -50.0], [-50.0, 50.0]]])
    target = torch.tensor([[0, 1]])
    for name, most in (
        ("cross_entropy", 100),
        ("dice", 1),
        ("focal", 100),
        ("generalized_dice", 1),
        ("focal_tversky", 1),
    ):
        assert SEGMENTATION_LOSSES[name](right, target, IGNORED).item() == pytest.approx(0)
        assert SEGMENTATION_LOSSES[name](-right, target, IGNORED).item() == pytest.approx(most)


def test_weights_first_used_in_a_validation_serve_training():
    options = {"class_weights": [0.123, 0.456]}
    with torch.inference_mode():
        cross_entropy(*case(5), IGNORED, **options)
    logits, target = case(5)
    logits.requires_grad_()
    cross_entropy(logits, target, IGNORED, **options).backward()
    assert logits.grad.abs().sum() > 0


def test_sums():
    total = segmentation_loss({"dice": 0.5, "focal": 2}, {"focal": {"gamma": 1.0}}, IGNORED)
    expected = 0.5 * value("dice") + 2 * value("focal", gamma=1.0)
    assert total(*case(5)).item() == pytest.approx(expected)
    assert segmentation_loss("dice", None, IGNORED)(*case(5)).item() == pytest.approx(value("dice"))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("cross_entrpy", None, "unknown loss 'cross_entrpy'. Did you mean 'cross_entropy'"),
        ({"dice": 1.0, "foca": 1.0}, None, "unknown loss 'foca'. Did you mean 'focal'"),
        ("dice", {"dice": {"square": True}}, "unknown option of loss 'dice' 'square'. Did you mean 'squared'"),
        ("dice", {"focal": {"gamma": 1.0}}, "unknown key of loss_options .* 'focal'.* Valid: dice"),
    ],
)
def test_unknown_names(loss, options, message):
    with pytest.raises(UnknownNameError, match=message):
        segmentation_loss(loss, options, IGNORED)


@pytest.mark.parametrize("loss", [{"dice": 0.0}, {"dice": -1.0}, {"dice": math.nan}, {}])
def test_impossible_sums(loss):
    with pytest.raises(ValueError, match=r"must be a positive number|loss is empty"):
        segmentation_loss(loss, None, IGNORED)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (cross_entropy, {"class_weights": [1.0]}, "class_weights must be 2 positive numbers"),
        (cross_entropy, {"class_weights": [1.0, 0.0]}, "class_weights must be 2 positive numbers"),
        (cross_entropy, {"label_smoothing": 1.0}, "label_smoothing must lie in"),
        (focal, {"gamma": -1.0}, "gamma must be 0 or more"),
        (focal, {"alpha": 1.0}, "alpha must be 2 positive numbers"),
        (generalized_dice, {"volume_weights": "squared"}, "unknown volume_weights 'squared'. Did you mean 'square'"),
        (focal_tversky, {"gamma": 0.0}, "gamma must be positive"),
        (focal_tversky, {"false_positive_weight": -0.1}, "false_positive_weight must be positive"),
    ],
)
def test_impossible_options(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(*case(5), IGNORED, **options)
