"""Datasets, loaded by name if they are built in, or from a path if they are files from anybody."""

from model.data.datasets import Dataset, load

__all__ = ["Dataset", "load"]
