"""The commands, one module per topic. Each imports what it needs when it runs, so that `--help` responds at once."""
