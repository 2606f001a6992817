"""Parts that several methods are made of: positions, deformable attention, pixel decoder, mask decoder."""
