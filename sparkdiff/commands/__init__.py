"""The commands, one module per topic. Each command imports what it needs when it runs, so that `--help` responds at once."""
