"""The HTTP API: routes, requests, responses and errors. Does not know PostgreSQL or Redis."""
