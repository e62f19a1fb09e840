"""Triage of many pipelines within one budget: selection of those that deserve a fine-tuning."""
