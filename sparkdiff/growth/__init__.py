"""Growth: plain MLlib stages that learn, added beside the features of a fitted pipeline's last linear stage.

`table` holds the rows as tensors, `criterion` the loss and the metric; a `part` is what may be added (`parts/`: one module for
each kind), a `part.Item` is one training of a part, `rounds` decides which parts join; `inputs` reads the rows from a cache,
`assembly` makes the plain pipeline, and `procedure` has the steps, removes parts that are not missed, and describes beforehand
what growth would try; `settings` needs no torch.
"""
