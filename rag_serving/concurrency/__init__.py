"""Small concurrency tools: a limiter, a circuit breaker, thread priorities."""
