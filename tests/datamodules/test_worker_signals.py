"""Real workers under real signals."""

import multiprocessing
import os
import signal
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.worker_signals import leave_signals_to_main

# Python 3.12 and later warn about every worker that is forked while another thread runs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Numbers(Dataset):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        return index


class Hanging(Numbers):
    def __getitem__(self, index: int) -> int:
        time.sleep(600)
        return index


def begin(data: Dataset, worker_init_fn=leave_signals_to_main):
    return iter(DataLoader(data, num_workers=1, worker_init_fn=worker_init_fn))


def test_a_worker_ignores_the_signals_that_the_main_process_handles():
    assert len(list(begin(Numbers(), _signal_itself))) == 100


def _signal_itself(worker: int) -> None:
    leave_signals_to_main(worker)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)


needs_sender = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sender of a signal on this system")


@needs_sender
def test_sigterm_from_elsewhere_leaves_a_worker_at_its_work():
    assert len(list(begin(Numbers(), _terminate_itself))) == 100


def _terminate_itself(worker: int) -> None:
    leave_signals_to_main(worker)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)  # two of the same that wait are one


def test_the_main_process_can_end_a_worker_that_hangs():
    begun = multiprocessing.Event()

    def leave_signals(worker: int) -> None:
        leave_signals_to_main(worker)
        begun.set()

    running = begin(Hanging(), leave_signals)
    (worker,) = running._workers
    assert begun.wait(timeout=60)  # before that any worker ends
    worker.terminate()
    worker.join(timeout=60)
    assert not worker.is_alive()


def test_a_worker_goes_when_it_is_done():
    running = begin(Numbers())
    (worker,) = running._workers
    assert len(list(running)) == 100
    worker.join(timeout=60)
    assert worker.exitcode == 0
