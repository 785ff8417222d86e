"""What every test starts from."""

import os
import signal
from pathlib import Path

import pytest

# A shell starts background jobs with Ctrl-C ignored, and they pass that on: tests of signals need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `real_data(folder)` needs that folder in $CONVSUITE_DATA."""
    root = os.environ.get("CONVSUITE_DATA")
    for mark in item.iter_markers("real_data"):
        (folder,) = mark.args
        if not root or not Path(root, folder).is_dir():
            pytest.skip(f"needs {folder} in CONVSUITE_DATA")
