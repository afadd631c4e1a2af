"""The service under thousands of open connections: how soon hits and misses are answered, and at which rate no longer.

`model` is the language model that stands in for a real one, `people` those who ask, in a process of their own.
"""
