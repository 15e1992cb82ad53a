"""Training: the recipe, a pure step, its pmap and the loop."""
