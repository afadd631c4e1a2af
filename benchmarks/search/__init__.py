"""Search as serving does it, and how others do it: latency and recall by the number of rows."""
