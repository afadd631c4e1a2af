"""One module per document format; each turns bytes into an `ExtractedDocument`."""
