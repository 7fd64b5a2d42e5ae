"""The proving ground: what scripts/test, demo, stress and bench share.

Standard library only, but for the demo's display. `bootstrap` runs on any Python 3, because its first job is to say
that a Python is too old; everything else needs 3.11.
"""
