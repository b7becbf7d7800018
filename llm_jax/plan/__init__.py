"""Knowing before paying: the step that would run, compiled for the slice it would run on, without
the slice.
"""
