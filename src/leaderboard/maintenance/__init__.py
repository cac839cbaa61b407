"""Housekeeping that every process does in the background, on timers (`periodic.py`)."""
