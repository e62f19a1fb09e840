"""Smaller pipelines with the same outputs.

`compact` folds stages into fewer plain MLlib stages: `affine_maps` has the affine maps of stages and the stages that can
absorb such a map, `folding_state` the readers and widths of columns, and `folding` removes stages one by one. `deletion` finds
the single stages that can be deleted from a pipeline, which changes its outputs.
"""
