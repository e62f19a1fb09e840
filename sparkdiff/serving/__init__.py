"""Serving of fitted pipelines: smaller pipelines (`compact`), export to ONNX (`onnx`), scoring without Spark (`scorer`), and
scoring with torch in Spark (`torch_transformer`).
"""
