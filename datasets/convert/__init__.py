"""Converts raw distributions, and users' own videos, to the layouts that the readers know."""
