"""One module per document format; each parses bytes into an `ExtractedDocument`."""
