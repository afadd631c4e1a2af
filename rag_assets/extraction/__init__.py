"""Read one source object, and what is attached to it, into text with structure, whatever its format.

`registry` detects the format and is where a new one is added; `formats` has one module per format; `sandbox` runs
all of it in limited processes.
"""
