"""Parse untrusted documents in processes with limited time and memory."""
