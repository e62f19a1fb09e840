"""Forecasts of the gain and the cost of a run, from cheap facts about a pipeline and its rows, learned from past runs."""
