"""The AWS stacks of one environment, split by what makes them change."""
