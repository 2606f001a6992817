"""CMPF (also published as FrozenSeg): FC-CLIP with SAM features injected into queries and features, and two ensembles."""
