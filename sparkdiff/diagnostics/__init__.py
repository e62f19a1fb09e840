"""What should make one doubt: the data, the training, and how two models differ."""
