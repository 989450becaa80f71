"""What moves: losses, solvers, flows and trajectories."""
