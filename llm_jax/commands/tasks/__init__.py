"""``llm-jax task NAME``: a model trained for a task, or asked to do it, with held-out figures
beside a trivial baseline.
"""
