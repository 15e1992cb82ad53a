"""Training: a pure step, pmapped; exact resume; a folder a run."""
