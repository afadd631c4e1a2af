"""Latency of the answer cache, its cost when Redis is down, and a comparison with other caches. See `__main__`."""
