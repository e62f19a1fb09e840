"""Growth: plain MLlib stages that learn, added beside the features of a fitted pipeline's last linear stage.

`row_tensors` holds the rows as tensors, `criterion` the loss and the metric. A `part` is a group of stages that may be
added (`parts/` has one module for each kind), a `part.Item` describes one training run of a part, and `rounds` decides
which parts join. `part_inputs` reads the rows from a cache, `assembly` makes the plain MLlib pipeline, and
`growth_steps` has the steps, removes parts whose removal costs too little to matter, and describes beforehand what
growth would try. `growth_options` needs no torch. The margin is the linear predictor before the link; the head is the
last linear stage, to whose margin the parts add.
"""
