"""Commands that are more than a few lines: each adds itself to the command line (`autoquant.cli`)."""
