"""Clients of the service for other programs."""
