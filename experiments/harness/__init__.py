"""Parts that the experiments share; `experiment` defines an experiment, `cli` its command."""
