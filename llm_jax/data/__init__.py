"""Data: text files in, tokenized shards, packed batches out. Never imports jax.

    corpus:  read files -> documents, clean, deduplicate, split
    prepare: documents -> stages -> tokenizer -> shards
    shards:  write, read, pack and inspect shards
    loading: shards -> order of rows -> ``Batch``
    packing: token ids of documents -> ``Batch``, for any training loop

It uses numpy, sentencepiece, tensorflow-datasets and grain. Each module imports them where it uses
them, so importing this package costs nothing.
"""
