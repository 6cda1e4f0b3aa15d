"""One reader per dataset: which expressions there are, and the mask of each at a frame."""
