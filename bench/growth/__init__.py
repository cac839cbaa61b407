"""How ranks, scores and the rank index behave as the board grows: `make bench-growth`."""
