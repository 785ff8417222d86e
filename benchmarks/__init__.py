"""Timed comparisons, run by `make bench`. Never part of the tests, since times depend on the machine and its load."""
