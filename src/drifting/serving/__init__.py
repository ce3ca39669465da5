"""A trained generator as a service over HTTP."""
