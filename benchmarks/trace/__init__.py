"""A day of questions over changing documents: what the answer cache saves, and what it gets wrong. See `__main__`."""
