"""Tests of the client for Python, against the real service."""
