"""A day of questions over changing documents: calls saved by the answer cache, and its errors. See `__main__`."""
