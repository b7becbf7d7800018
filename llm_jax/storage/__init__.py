"""Places of files: folders, and buckets (``gs://``, ``s3://``), with the same methods."""
