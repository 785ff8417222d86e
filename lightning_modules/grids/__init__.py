"""Grids of experiments: their cells, results, tables and figures."""
