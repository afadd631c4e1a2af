"""The service: HTTP in front of the client, with keys, limits and metrics. Needs the extra ``rag-shards[http]``."""
