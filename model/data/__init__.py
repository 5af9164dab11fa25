"""Datasets by name or place: built-in ones, and files from anybody."""

from model.data.datasets import Dataset, load

__all__ = ["Dataset", "load"]
