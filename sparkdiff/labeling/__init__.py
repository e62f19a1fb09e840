"""Labels from votes: labelling functions vote for a class or abstain on each row, and their accuracies are learned
without labels.

Also distillation, which takes the predictions of a model (the teacher) as labels.
"""
