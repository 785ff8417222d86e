"""A subject's volume, and volumes held in memory."""

from dataclasses import replace

import torch

from datamodules.volumes.volume import InMemoryVolumes, Volume


def volume(subject: str = "a", site: str | None = "Rome", seed: int = 0) -> Volume:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 4, 3, 5, generator=generator)
    return Volume(subject, site, image, image[0].gt(0.5).byte(), torch.eye(4, dtype=torch.float64))


def test_a_volume_has_a_size_of_its_spatial_axes():
    assert volume().size == (4, 3, 5)
    assert Volume("a", None, torch.zeros(3, 7, 8), None, torch.eye(3, dtype=torch.float64)).size == (7, 8)


def test_the_digest_changes_with_all_that_a_volume_holds():
    one = volume()
    others = [
        volume(seed=1),
        replace(one, subject="b"),
        replace(one, site=None),
        replace(one, mask=None),
        replace(one, mask=1 - one.mask),
        replace(one, affine=2 * one.affine),
        replace(one, image=one.image.view(2, 3, 4, 5), mask=one.mask.view(3, 4, 5)),
    ]
    assert one.digest() == volume().digest()
    assert len({one.digest(), *(other.digest() for other in others)}) == 1 + len(others)


def test_volumes_in_memory_come_in_their_order():
    volumes = [volume("b", None), volume("a", seed=1)]
    store = InMemoryVolumes(volumes)
    assert len(store) == 2
    assert (list(store.subjects), list(store.sites)) == (["b", "a"], [None, "Rome"])
    assert store[1] is volumes[1]
    assert store.digest() == InMemoryVolumes(volumes).digest()
    assert store.digest() != InMemoryVolumes(volumes[::-1]).digest()
