"""The use cases: reads and writes, as HTTP and the command line call them."""
