"""Cut a document into passages that fit the embedding model's window.

Pure functions of text, tokenizer and static vectors, independent of file formats. `options` builds a chunker.
"""
