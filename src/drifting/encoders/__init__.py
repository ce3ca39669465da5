"""Feature encoders: in which space the drift field acts."""
