"""What a training step sees: the plan, its random numbers, and the reading of its samples."""
