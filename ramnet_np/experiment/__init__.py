"""Experiments: grids of training runs, each described in one plain file; figures and tables of their results."""
