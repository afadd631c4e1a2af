"""The service under thousands of open connections: latency of hits and misses, and the highest sustained rate.

`model` is a stand-in for the language model; `people` is the load generator, which runs in its own process.
"""
