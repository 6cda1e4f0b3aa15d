"""From the raw distributions, and from a user's own folder, to the layouts that the readers know."""
