"""Asynchronous and synchronous clients of a lake and of a service."""
