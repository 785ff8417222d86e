"""Losses as plain functions of logits."""
