"""Noise that depends on its key and index alone."""

from __future__ import annotations

import torch

from lightning_modules.noise import BLOCK, generator_for, indexed_normal


def test_rows_depend_on_their_index_alone():
    indices = torch.arange(3 * BLOCK)
    whole = indexed_normal(indices, 5, "a", 0)
    shuffled = torch.randperm(len(indices))
    assert torch.equal(indexed_normal(indices[shuffled], 5, "a", 0), whole[shuffled])
    assert torch.equal(indexed_normal(torch.tensor([70, 1]), 5, "a", 0), whole[[70, 1]])
    assert whole.unique().numel() == whole.numel()


def test_rows_are_standard_normal():
    rows = indexed_normal(torch.arange(4000), 10, "a", 0)
    assert abs(rows.mean()) < 0.02
    assert abs(rows.std() - 1) < 0.02


def test_other_keys_are_other_draws():
    indices = torch.arange(4)
    draws = [indexed_normal(indices, 3, *key) for key in [("a", 0), ("a", 1), ("b", 0), ("a", 0, 0)]]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


def test_no_global_generator_is_touched():
    before = torch.get_rng_state()
    generator_for("a", 1)
    indexed_normal(torch.arange(10), 3, "a")
    assert torch.equal(torch.get_rng_state(), before)
