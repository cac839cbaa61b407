"""Measurements of how fast the service is, each a command of its own."""
