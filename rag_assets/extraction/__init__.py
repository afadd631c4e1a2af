"""Parse a source object and its attachments into structured text.

`registry` detects the format, `formats` has one module per format, `sandbox` runs the parsers in limited processes.
"""
