"""Triage of many pipelines within one budget: a forecast selects the pipelines for which fine-tuning is worth its cost."""
