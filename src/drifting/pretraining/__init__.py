"""Training of the networks that are not generators: feature encoders and classifiers."""
