import threading
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from lightning_modules.metrics.cache import Cache
from lightning_modules.metrics.protocol import ExtractorKey

KEY = ExtractorKey(recipe="r", fingerprint="f", split="train", image_shape=(3, 64, 64))
CONTENT = {"a": torch.arange(5.0), "b": torch.tensor(3)}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path)


def load(cache: Cache, key: ExtractorKey = KEY):
    return cache.load("extractor", key)


def test_what_was_saved_is_read(cache):
    assert load(cache) is None
    cache.save("extractor", KEY, CONTENT)
    content = load(cache)
    assert content.keys() == CONTENT.keys()
    assert all(torch.equal(content[name], value) for name, value in CONTENT.items())
    assert load(cache, replace(KEY, seed=1)) is None
    assert cache.load("statistics", KEY) is None


def test_damage_anywhere_is_noticed(cache):
    cache.save("extractor", KEY, CONTENT)
    path = cache.path("extractor", KEY)
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:500] + b"x" + whole[501:], b"x" + whole[1:], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
            assert load(cache) is None


def test_a_file_of_something_else_is_not_used(cache):
    other = replace(KEY, fingerprint="other")
    cache.save("extractor", other, CONTENT)
    cache.path("extractor", other).rename(cache.path("extractor", KEY))
    with pytest.warns(UserWarning, match="made for something else"):
        assert load(cache) is None


def test_an_interrupted_write_leaves_the_old_file(cache, monkeypatch):
    cache.save("extractor", KEY, CONTENT)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        cache.save("extractor", KEY, {"a": torch.zeros(2)})
    assert torch.equal(load(cache)["a"], CONTENT["a"])


def test_runs_wait_for_each_other(cache, tmp_path):
    entered = threading.Event()

    def other_run() -> None:
        with Cache(tmp_path).locked("extractor", KEY):
            entered.set()

    with cache.locked("extractor", KEY):
        thread = threading.Thread(target=other_run)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()


def test_the_lock_is_free_after_an_error(cache):
    with pytest.raises(KeyError), cache.locked("extractor", KEY):
        raise KeyError
    with FileLock(cache.path("extractor", KEY).with_suffix(".lock"), timeout=0):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="CONVSUITE_CACHE"), Cache(tmp_path / "file").locked("extractor", KEY):
        pass


def test_the_folder_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path))
    assert Cache().root == tmp_path / "metrics"
    monkeypatch.delenv("CONVSUITE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().root == tmp_path / ".cache" / "convsuite" / "metrics"
