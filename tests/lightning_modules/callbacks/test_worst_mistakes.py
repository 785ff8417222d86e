"""The worst mistakes, kept while a test streams by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.callbacks import WorstMistakes
from lightning_modules.callbacks.worst_mistakes import draw_mistakes
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn: a list of (images, mistakes, names)."""
    calls = []
    monkeypatch.setattr(
        "lightning_modules.callbacks.worst_mistakes.draw_mistakes", lambda *arguments: calls.append(arguments)
    )
    monkeypatch.setattr("lightning_modules.callbacks.worst_mistakes.save_picture", lambda *_: None)
    return calls


def stream(callback, probabilities, labels, batch_size):
    """Hand a test over in batches."""
    datamodule = SimpleNamespace(denormalise=lambda images: images, class_names=None)
    trainer = SimpleNamespace(datamodule=datamodule, is_global_zero=True, fast_dev_run=False)
    callback.on_test_epoch_start(trainer, None)
    for indices in torch.arange(len(labels)).split(batch_size):
        outputs = {"probabilities": probabilities[indices], "label": labels[indices], "index": indices}
        images = indices.float()[:, None, None, None].expand(-1, 1, 2, 2)
        callback.on_test_batch_end(trainer, None, outputs, {"image": images}, 0)
        assert len(callback.worst["index"]) <= callback.count
    callback.on_test_epoch_end(trainer, None)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_they_are_the_worst_of_all(drawn, batch_size):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(100, 5, generator=generator).softmax(1)
    labels = torch.randint(5, (100,), generator=generator)
    stream(WorstMistakes(count=8), probabilities, labels, batch_size)
    confidence, prediction = probabilities.max(1)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if prediction[i] != labels[i]][:8]
    ((images, mistakes, names),) = drawn
    assert [mistake.index for mistake in mistakes] == wrong
    assert [mistake.prediction for mistake in mistakes] == prediction[wrong].tolist()
    assert [mistake.label for mistake in mistakes] == labels[wrong].tolist()
    assert [mistake.doubt for mistake in mistakes] == pytest.approx((1 - confidence[wrong]).tolist(), abs=1e-6)
    assert images[:, 0, 0, 0].tolist() == wrong
    assert names == list("01234")


@pytest.mark.parametrize("batch_size", [2, 5])
def test_ties_come_in_the_order_of_the_data(drawn, batch_size):
    stream(WorstMistakes(count=3), torch.tensor([[0.0, 1.0]]).repeat(10, 1), torch.tensor([1, 0] * 5), batch_size)
    assert [mistake.index for mistake in drawn[0][1]] == [1, 3, 5]


def test_probabilities_that_are_1_in_float32_are_told_apart(drawn):
    probabilities = torch.tensor([[1e-8, 1.0], [1e-10, 1.0], [1e-9, 1.0]])
    stream(WorstMistakes(), probabilities, torch.tensor([0, 0, 0]), 2)
    mistakes = drawn[0][1]
    assert [mistake.index for mistake in mistakes] == [1, 2, 0]
    assert [mistake.doubt for mistake in mistakes] == pytest.approx([1e-10, 1e-9, 1e-8])


def test_right_answers_are_no_mistakes(drawn):
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    stream(WorstMistakes(), probabilities, torch.tensor([0, 0]), 2)
    assert [mistake.index for mistake in drawn[0][1]] == [1]
    stream(WorstMistakes(), probabilities, torch.tensor([0, 1]), 2)
    assert len(drawn) == 1


def test_a_test_draws_them(tmp_path):
    trainer = tiny_trainer(tmp_path, [WorstMistakes(count=7)])
    trainer.test(tiny_task(), datamodule=tiny_data(), verbose=False)
    assert [path.name for path in (tmp_path / "media").iterdir()] == ["worst_mistakes.png"]


def test_a_data_module_that_cannot_denormalise_costs_the_picture_alone(tmp_path):
    data = tiny_data()
    data.setup("test")
    batches = data.test_dataloader()
    data.denormalise = None
    trainer = tiny_trainer(tmp_path, [WorstMistakes()])
    with pytest.warns(UserWarning, match="'worst_mistakes' could not be made"):
        trainer.test(tiny_task(), datamodule=data, verbose=False)
    assert batches is not None
    assert trainer.state.finished


@pytest.mark.parametrize(
    ("doubt", "probability"),
    [(0.38, "62.00 %"), (1e-4, "99.99 %"), (4e-5, "1 − 4.0e-05"), (1.26e-9, "1 − 1.3e-09"), (0.0, "1 − 0.0e+00")],
)
def test_captions_name_classes_probability_and_sample(doubt, probability):
    images = torch.rand(1, 3, 4, 4)
    mistake = SimpleNamespace(label=0, prediction=1, doubt=doubt, index=42)
    figure = draw_mistakes(images, [mistake], ["a", "a class with a very long name"])
    assert figure.axes[0].get_title() == f"a\n→ a class with a ve…\n{probability}, #42"


def test_impossible_count():
    with pytest.raises(ValueError, match="count must be 1 or more"):
        WorstMistakes(count=0)
