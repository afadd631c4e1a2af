"""How quick the answer cache is, what it costs when Redis is away, and other caches beside it. See `__main__`."""
