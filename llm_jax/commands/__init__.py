"""What the verbs of ``llm-jax`` do, one module each: they bring data, training and decoding
together.
"""
