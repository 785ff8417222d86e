"""Volumes: how they are read, kept, sampled and put back where they came from."""
