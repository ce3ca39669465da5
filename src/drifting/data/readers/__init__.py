"""Readers of image data sets: one module per layout, each with the functions of `base.Reader`."""
