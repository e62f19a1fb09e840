"""What a run is likely to bring and to cost, by cheap facts of a pipeline and its rows."""
