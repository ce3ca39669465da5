"""Training: one pure step, a loop that yields steps, and what is kept of them."""
