"""Inference: pipelines, evaluation, reports and figures."""
