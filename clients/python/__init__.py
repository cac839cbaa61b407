"""The client for Python, a distribution of its own."""
