"""Documents over HTTP: their text, their originals, and how callers see their names and links."""
