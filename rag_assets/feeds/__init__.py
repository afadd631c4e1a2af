"""Feeds of arrivals: events that say where to look, from a queue or a topic. What is true is asked of the store.

`records` reads a message, `hints` decides which runs to ask for, `sqs` and `kafka` bring messages. No Dagster here.
"""
