"""Checks a dataset on disk: ``python -m datasets.check``."""
