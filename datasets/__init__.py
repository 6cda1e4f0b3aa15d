"""Referring video datasets. Nothing to do with the Hugging Face package of the same name."""
