"""The commands, one module per topic. Commands import other modules only when they run, so that `--help` responds at
once.
"""
