"""Limited processes that parse untrusted documents."""
