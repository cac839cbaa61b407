"""`make bench`: measures the most frequent calls, and the upper limit of each."""
