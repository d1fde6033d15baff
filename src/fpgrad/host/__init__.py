"""Host sessions: load program, weights and data, run steps, read results back."""
