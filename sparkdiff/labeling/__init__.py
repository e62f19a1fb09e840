"""Labels from votes: how good functions are that vote a class or abstain, learned without labels."""
