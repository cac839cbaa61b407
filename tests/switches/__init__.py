"""Proves that every mechanism of consistency is guarded: switched off, a named test has to go red.

`python -m tests.switches` does it; `docs/switched-off.md` tells why and lists them.
"""
