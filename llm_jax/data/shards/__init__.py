"""Folders of shards: records, their files, rows of a batch, and inspection."""
