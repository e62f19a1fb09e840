"""Reasons for doubt: warnings about the data, and the differences between two models."""
