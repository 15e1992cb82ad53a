"""Parts that the experiments share; `experiment` and `cli` say what an experiment is."""
