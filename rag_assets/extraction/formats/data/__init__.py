"""Data in text files: JSON, YAML, XML, notebooks, calendars and subtitles."""
