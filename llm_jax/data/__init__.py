"""Data: text files in, tokenized shards, packed batches out. numpy, sentencepiece, tensorflow-datasets and grain;
never jax.

    sources → clean → dedup (and split) → tokenizer → shards        `prepare` runs the chain, `python_docs` is a corpus
    to try it on shards → pack → loader → Batch                                  `inspect` shows what is in a folder of
    shards

Nothing is imported here: each module imports its libraries where it uses them, so this import costs nothing.
"""
