"""How image data sets lie on disk or on the Hub: one module for each layout, all with the functions of `base.Reader`."""
