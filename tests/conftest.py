"""What every test starts from."""

import signal

# A shell starts background jobs with Ctrl-C ignored, and they pass that on: tests of signals need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
