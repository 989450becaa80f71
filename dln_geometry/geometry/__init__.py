"""What stands still: the depth kernel, points, balanced factors, metric and entropy."""
