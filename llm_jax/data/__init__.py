"""Data: text files in, tokenized shards, packed batches out. numpy, sentencepiece, tensorflow-datasets and grain, and
tokenizers and jinja2 for what was made elsewhere; never jax.

    sources → clean → dedup (and split) → tokenizer → shards        `prepare` runs the chain, `python_docs` is a corpus
    to try it on shards → pack → loader → Batch                                  `inspect` shows what is in a folder of
    shards

    import_tokenizer → imported.json → open_tokenizer → Tokenizer           whatever made it; `chat` renders its template

Nothing is imported here: each module imports its libraries where it uses them, so this import costs nothing.
"""
