"""CMPF (also published as FrozenSeg): FC-CLIP with SAM injected into queries and features, and two ensembles."""
