"""Clients of the lake and of a service, asynchronous and synchronous."""
