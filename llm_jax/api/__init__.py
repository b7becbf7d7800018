"""The front door: a model in three lines (``load``), and the command line's verbs as functions.

``import llm_jax`` gives all of it by name, and imports what a name needs when it is first used.
"""
