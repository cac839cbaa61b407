"""The HTTP contract: routes, wire formats, problems and pages. Knows nothing of PostgreSQL or Redis."""
