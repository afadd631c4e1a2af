"""Concurrency primitives: a limiter, a circuit breaker, thread priorities."""
