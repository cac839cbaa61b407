"""PostgreSQL and nothing else: the only package that imports its driver and holds SQL."""
