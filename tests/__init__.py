"""Tests, in a folder for each kind, and in `support` what several of them need."""
