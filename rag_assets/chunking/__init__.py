"""Cut an extracted document into passages that fit the embedding model's window.

Pure functions of text, tokenizer and static vectors: nothing here stores, embeds or knows a file format. `options`
builds a chunker from settings.
"""
