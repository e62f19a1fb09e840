"""Labels from votes: the accuracies of functions that vote for a class or abstain, learned without labels."""
