"""What predictions are trained with."""
