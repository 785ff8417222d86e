"""What a loader's worker does with signals: Ctrl-C and a scheduler's reach every process, and only one should act."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

IGNORED = ("SIGINT", "SIGUSR1", "SIGUSR2")


def leave_signals_to_main(worker: int) -> None:
    """Outlive the signals that the main process acts on: it may need batches to finish its step and its validation.

    SIGTERM is also how the main process ends a worker that hangs, so it counts when that process has sent it. A thread
    waits for it, which cannot run where a library hangs without releasing Python's lock: such a worker must be killed.

    Of SIGTERM this holds for workers that are forked. Those that are started anew (spawn, forkserver) have threads of
    libraries already, such as NumPy's, that do not block it: they end by it, whoever has sent it, and a training that
    is stopped so goes back to its last checkpoint (`GracefulStop`).

    Args:
        worker: Number of the worker, as torch's `worker_init_fn` gets it.
    """
    for name in IGNORED:
        if hasattr(signal, name):  # Windows lacks the last two
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if main is not None and hasattr(signal, "sigwaitinfo"):  # macOS and Windows lack it: SIGTERM stays as torch sets it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the threads to come, not in others
        threading.Thread(target=_end_by, args=[main.pid], daemon=True).start()


def _end_by(main: int) -> None:
    """Waits for SIGTERM from that process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
