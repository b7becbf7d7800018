"""Data: text files in, tokenized shards, packed batches out. numpy, sentencepiece,
tensorflow-datasets and grain, and tokenizers and jinja2 for what was made elsewhere; never jax.

    sources → clean → dedup (and split) → tokenizer → shards
    shards → pack → loader → Batch
    import_tokenizer → imported.json → open_tokenizer → Tokenizer

`prepare` runs the first chain, and `python_docs` is a corpus to try it on; `inspect` shows a folder
of shards; `chat` renders the template of a tokenizer.

Nothing is imported here: each module imports its libraries where it uses them, so this import costs
nothing.
"""
