"""Binary formats of old and special Office files, and how their container tells them apart."""
