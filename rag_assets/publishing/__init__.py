"""Check a built table and publish it; roll back, retain and clean up published versions."""
