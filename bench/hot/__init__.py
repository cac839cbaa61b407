"""How fast the calls are that are made most, beside what would be the limit of each: `make bench`."""
