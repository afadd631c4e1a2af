"""Latency and recall of search by the number of rows, compared with other ways to search."""
