"""Where documents arrive: a folder or an S3 bucket with the layout `region/department/…`."""
