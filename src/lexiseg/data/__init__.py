"""Pictures and data sets: finding, reading and preparing them."""
